"""Pretrained weights from a file, every key accounted for."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from leukocls.errors import LeukoclsError


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a PyTorch state dict; nothing is unpickled.

    Wrappers (`state_dict`, `model`) and a `module.` prefix are taken off.

    Raises:
        LeukoclsError: the file is missing or is neither.
    """
    if not path.is_file():
        raise LeukoclsError(f"model.weights={path}: no such file.")
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


def load_weights(network: nn.Module, path: Path, classifier: str | tuple[str, ...]) -> list[str]:
    """Load `path` into `network`; only a `classifier` of another shape or name may stay random.

    Args:
        classifier: name of the last linear layer (or names), whose shape may differ; "" for none.

    Returns:
        Names of the network's tensors that keep their fresh values.

    Raises:
        LeukoclsError: naming every key that is missing, unexpected or of another shape.
    """
    state = read_state_dict(path)
    own = network.state_dict()
    classifiers = (classifier,) if isinstance(classifier, str) else classifier
    prefixes = tuple(f"{name}." for name in classifiers)
    head = {name for name in own.keys() | state.keys() if name.startswith(prefixes)}
    fits = all(n in state and n in own and state[n].shape == own[n].shape for n in head)
    if not fits:
        state = {name: tensor for name, tensor in state.items() if name not in head}
    fresh = head & own.keys() if not fits else set()
    # Old files lack BatchNorm's counter, which nothing but cumulative averaging reads.
    counters = {n for n in own if n.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - state.keys() - fresh - counters)
    unexpected = sorted(state.keys() - own.keys())
    shapes = sorted(n for n in own.keys() & state.keys() if own[n].shape != state[n].shape)
    if missing or unexpected or shapes:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
            for what, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", shapes),
            )
            if names
        ]
        raise LeukoclsError(
            f"model.weights={path}: these are not weights of this network: {'; '.join(parts)}."
            " Choose the model that the file belongs to."
        )
    network.load_state_dict(state, strict=False)
    return sorted(fresh)
