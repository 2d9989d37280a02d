"""Optimiser and schedule from a recipe: one rate for each stage, or each layer, of a network."""

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from leukocls.common.errors import LeukoclsError
from leukocls.training.build import build


def parameter_groups(
    network: nn.Module, lr: float | dict[str, float], layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """The network's trainable parameters, each in one group with `name`, `params` and `lr`.

    Args:
        network: its method `stages()` gives parameters by stage; without one all are one stage.
        lr: a rate for every stage, or one for each by name.
        layer_decay: in (0, 1]: `lr` (one number) is the head's rate, and each layer below, as
            `network.layers()` gives them, has `layer_decay` times that of the one above it (Clark
            et al. 2020, ELECTRA, appendix A).

    Raises:
        LeukoclsError: a stage without a rate, a rate without a stage or not above 0, nothing left
            to train, a decay out of range or of a network without layers.
    """
    if layer_decay is not None:
        return _by_layer(network, lr, layer_decay)
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


def _by_layer(network: nn.Module, lr: Any, decay: float) -> list[dict[str, Any]]:
    find: Any = getattr(network, "layers", None)
    if not 0 < decay <= 1 or find is None or not isinstance(lr, int | float):
        raise LeukoclsError(
            f"optim.layer_decay={decay}: needs a number above 0 and up to 1, one number as"
            " optim.lr, and a network whose layers are known (any of timm's)."
        )
    layers = [[p for p in layer if p.requires_grad] for layer in find()]
    rates = [lr * decay**depth for depth in reversed(range(len(layers)))]
    return [
        {"name": f"layer_{n:02d}", "params": params, "lr": rate}
        for n, (params, rate) in enumerate(zip(layers, rates, strict=True))
        if params
    ]


def configure(
    network: nn.Module, optim: dict[str, Any], steps: int
) -> tuple[Optimizer, LRScheduler]:
    """The optimiser and the schedule that `optim` describes.

    Args:
        optim: `optimizer` and `schedule` (each with a `_target_`), `lr`, `weight_decay`, and maybe
            `layer_decay`. OneCycleLR is stepped at each optimiser step, others once an epoch.
        steps: of the optimiser, in the whole run.

    Raises:
        LeukoclsError: as `parameter_groups`; an option that does not exist or is out of range.
    """
    groups = parameter_groups(network, optim["lr"], optim.get("layer_decay"))
    # Hydra copies what it is given, so the parameters are handed over after the build.
    make_optimizer = build({**optim["optimizer"], "_partial_": True})
    schedule = {**optim["schedule"], "_partial_": True}
    if schedule["_target_"] == f"{OneCycleLR.__module__}.{OneCycleLR.__name__}":
        schedule |= {"max_lr": [group["lr"] for group in groups], "total_steps": steps}
    try:
        optimizer = make_optimizer(groups, weight_decay=optim["weight_decay"])
        return optimizer, build(schedule)(optimizer)
    except (TypeError, ValueError) as error:
        raise LeukoclsError(f"optim: optimiser or schedule cannot be made ({error}).") from error
