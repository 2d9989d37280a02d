"""Optimiser and schedule from a recipe: one rate for each stage of a network."""

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from leukocls.build import build
from leukocls.errors import LeukoclsError


def parameter_groups(network: nn.Module, lr: float | dict[str, float]) -> list[dict[str, Any]]:
    """The network's trainable parameters, each in one group with `name`, `params` and `lr`.

    Args:
        network: its method `stages()` gives parameters by stage; without one all are one stage.
        lr: a rate for every stage, or one for each by name.

    Raises:
        LeukoclsError: a stage without a rate, a rate without a stage or not above 0, nothing left
            to train.
    """
    by_stage: Any = getattr(network, "stages", lambda: {"all": network.parameters()})
    trainable = {name: [p for p in group if p.requires_grad] for name, group in by_stage().items()}
    if isinstance(lr, dict) and lr.keys() != trainable.keys():
        raise LeukoclsError(
            f"optim.lr has rates for {', '.join(lr)}; the network's stages are"
            f" {', '.join(trainable)}. Give each stage a rate, or one number for all."
        )
    for name, rate in lr.items() if isinstance(lr, dict) else [("", lr)]:
        if not isinstance(rate, int | float) or not rate > 0:
            key = f"optim.lr.{name}".rstrip(".")
            raise LeukoclsError(f"{key}={rate}: choose a number above 0, such as 1e-4.")
    groups = [
        {"name": name, "params": params, "lr": lr[name] if isinstance(lr, dict) else lr}
        for name, params in trainable.items()
        if params
    ]
    if not groups:
        raise LeukoclsError("model: no parameter is trainable; there is nothing to train.")
    return groups


def configure(network: nn.Module, optim: dict[str, Any]) -> tuple[Optimizer, LRScheduler]:
    """The optimiser and the schedule (stepped once an epoch) that `optim` describes.

    `optim` holds `optimizer` and `schedule` (each with a `_target_`), `lr`, `weight_decay`.
    """
    groups = parameter_groups(network, optim["lr"])
    # Hydra copies what it is given, so the parameters are handed over after the build.
    make_optimizer = build({**optim["optimizer"], "_partial_": True})
    optimizer = make_optimizer(groups, weight_decay=optim["weight_decay"])
    return optimizer, build({**optim["schedule"], "_partial_": True})(optimizer)
