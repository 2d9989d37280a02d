"""The logit of ALL from a network's output."""

import torch
from torch import Tensor

from leukocls.common.errors import LeukoclsError


def to_logit(output: Tensor) -> Tensor:
    """Logit of ALL [B] of a network's output [B, 1], or z₁ − z₀ of [B, 2] (HEM, ALL).

    In single precision at least.
    """
    if output.ndim != 2 or output.shape[1] not in (1, 2):
        raise LeukoclsError(
            f"model: the network's output has shape {tuple(output.shape)}; it must be [B, 1] (logit"
            " of ALL) or [B, 2] (HEM, ALL)."
        )
    output = at_least_single(output)
    return output[:, 0] if output.shape[1] == 1 else output[:, 1] - output[:, 0]


def at_least_single(values: Tensor) -> Tensor:
    """The values in single precision if theirs is lower, as under autocast; else unchanged."""
    return values.float() if values.dtype.itemsize < torch.float32.itemsize else values
