"""Build objects from configurations: only what an allowlist in Python names, through Hydra."""

import importlib
import inspect
from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.overrides import TorchFunctionMode

from leukocls.common.errors import LeukoclsError

ALLOWED = {
    "leukocls.data.augment.Augmentation",
    "torch.optim.Adam",
    "torch.optim.AdamW",
    "torch.optim.SGD",
    "torch.optim.lr_scheduler.StepLR",
    "torch.optim.lr_scheduler.ConstantLR",
    "torch.optim.lr_scheduler.OneCycleLR",
}
# What `torch.nn.init` and timm draw random weights by.
DRAWS = {"uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_"}


def build(config: Any) -> Any:
    """Instantiate `config["_target_"]`, which must be in ALLOWED or a network of leukocls.models.

    Raises:
        LeukoclsError: naming the target that is refused, or a `${…}` that `instantiate` would make
            another object of.
    """
    config = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    _check(config)
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, LeukoclsError):
            raise cause from None
        raise LeukoclsError(f"{config['_target_']}: {cause or error}") from error


def untrained(model: Any, drawn: bool = True) -> nn.Module:
    """The network of the configuration group `model`, without pretrained weights.

    Args:
        drawn: whether its weights are random; else they are of no value, and a large network is
            built several times as fast.

    Raises:
        LeukoclsError: as `build`.
    """
    random = {"pretrained": False, "weights": None}
    config = {key: random.get(key, value) for key, value in model.items()}
    with nullcontext() if drawn else _NoDraws():
        network: nn.Module = build(config)
    return network


class _NoDraws(TorchFunctionMode):
    """Leaves tensors as they are instead of filling them with random numbers."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def parameters_of(target: str) -> Collection[str]:
    """Names of the parameters that a `_target_` takes.

    Raises:
        LeukoclsError: the target is not allowed.
    """
    check_target(target)
    module, _, name = target.rpartition(".")
    return inspect.signature(getattr(importlib.import_module(module), name)).parameters


def check_target(target: str) -> None:
    """Refuse a `_target_` that is neither in ALLOWED nor a network of leukocls.models.

    Raises:
        LeukoclsError: naming the target.
    """
    if target not in ALLOWED and not _is_network(target):
        raise LeukoclsError(
            f"_target_={target}: not allowed in a configuration. Networks live in"
            " leukocls/models/; anything else is added to ALLOWED in"
            " leukocls/training/build.py."
        )


def _check(node: Any) -> None:
    """Refuse a target that is not allowed, and text that would become one, at any depth."""
    if isinstance(node, dict):
        if "_target_" in node:
            check_target(str(node["_target_"]))
        for value in node.values():
            _check(value)
    elif isinstance(node, list):
        for value in node:
            _check(value)
    elif isinstance(node, str) and "${" in node:
        raise LeukoclsError(
            f"{node}: not allowed in an option; write the value that it stands for."
        )


def _is_network(target: str) -> bool:
    module, _, name = target.rpartition(".")
    if not module.startswith("leukocls.models."):
        return False
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    # By where it is defined: `leukocls.models.x.torch.hub.load` must not pass.
    return isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == module
