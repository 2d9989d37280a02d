"""The loss of a cell's logit: binary cross-entropy, weighted, focal, with smoothed labels."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leukocls.common.errors import LeukoclsError


class CellLoss:
    """Mean over cells of target · w · (1−p)^γ · −log p + (1 − target) · p^γ · −log(1−p).

    It is linear in the target, so that a mixture of two cells (mixup) costs the mixture of both.
    For a network with two outputs, whose logit is z₁ − z₀, γ = 0 and w = 1 give its cross-entropy.

    Args:
        pos_weight: w above, the weight of ALL; above 0.
        focal_gamma: γ ≥ 0 (Lin et al. 2017, eq. 4); 0 is binary cross-entropy.
        label_smoothing: ε in [0, 1): the target is 1 − ε/2 or ε/2 (Szegedy et al. 2016, §7).

    Raises:
        LeukoclsError: a number out of its range.
    """

    def __init__(
        self, pos_weight: float, focal_gamma: float = 0.0, label_smoothing: float = 0.0
    ) -> None:
        for name, value, good, range_ in (
            ("pos_weight", pos_weight, pos_weight > 0, "above 0"),
            ("focal_gamma", focal_gamma, focal_gamma >= 0, "from 0 up"),
            ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "from 0 to below 1"),
        ):
            if not good:
                raise LeukoclsError(f"loss.{name}={value}: choose a number {range_}.")
        self.pos_weight, self.gamma, self.smoothing = pos_weight, focal_gamma, label_smoothing

    def __call__(self, logit: Tensor, target: Tensor) -> Tensor:
        """The mean loss of logits [B] for targets [B] in [0, 1]."""
        target = (1 - self.smoothing) * target.to(logit.dtype) + self.smoothing / 2
        of_all = -F.logsigmoid(logit) * torch.sigmoid(-logit) ** self.gamma
        of_hem = -F.logsigmoid(-logit) * torch.sigmoid(logit) ** self.gamma
        return (self.pos_weight * target * of_all + (1 - target) * of_hem).mean()


def pos_weight(weight: float | str, sampler: str, label: np.ndarray) -> float:
    """The weight of ALL in the loss.

    `balanced` is n_HEM / n_ALL of the training cells (Prellberg & Kramer 2019, released code), or 1
    where the sampler balances the batches already.

    Args:
        weight: `loss.pos_weight`, a number above 0 or "balanced".
        sampler: the configured sampler.
        label: int [n] of the training cells, ALL = 1.

    Raises:
        LeukoclsError: neither a number nor "balanced".
    """
    if isinstance(weight, int | float):
        return float(weight)
    if weight != "balanced":
        raise LeukoclsError(f"loss.pos_weight={weight}: choose balanced, or a number above 0.")
    return 1.0 if sampler == "balanced" else float((label == 0).sum() / (label == 1).sum())
