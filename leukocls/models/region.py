"""The three networks of Marzahl et al. 2019 (ISBI challenge on C-NMC), with the heads of fastai 1.

One class head, as in the submissions; a box head beside the class head, as released; and a proposed
box that acts on the class, as the abstract says ("a basic attention mechanism based on a region
proposal subnetwork"). Neither paper nor code says how it acts: that network is a RECONSTRUCTION.

A box is float [B, 4]: top, left, bottom, right, where the image's outer edges are −1 and 1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leukocls.common.errors import LeukoclsError
from leukocls.models.logits import at_least_single
from leukocls.models.timm_network import TimmNetwork


class FastaiNetwork(TimmNetwork):
    """A backbone with the head of fastai 1's `create_head`.

    From images [B, 3, S, S] in [0, 1] to logits [B, outputs]: max-pool ‖ average-pool → BatchNorm →
    dropout → dense, ReLU → BatchNorm → dropout → output. Training needs batches of at least two
    cells, because BatchNorm needs a variance.

    Args:
        backbone, outputs, network: as in TimmNetwork; the backbone must have feature maps.
        width: of the dense layer.
        dropouts: probabilities before the dense layer and before the output.

    Raises:
        LeukoclsError: as TimmNetwork; a width below 1, a dropout outside [0, 1).
    """

    def __init__(
        self,
        backbone: str,
        *,
        outputs: int = 1,
        width: int = 512,
        dropouts: Sequence[float] = (0.25, 0.5),
        **network: Any,
    ) -> None:
        super().__init__(backbone, outputs=outputs, **network)
        if width < 1:
            raise LeukoclsError(f"model.width={width}: choose at least 1.")
        if len(dropouts) != 2 or not all(0 <= share < 1 for share in dropouts):
            raise LeukoclsError(
                f"model.dropouts={list(dropouts)}: choose two numbers from 0 to below 1."
            )
        self.width, self.dropouts = width, tuple(dropouts)
        # With these arguments timm removes pooling and classifier, which leaves feature maps.
        self.backbone.reset_classifier(0, "")
        # Not num_features: MobileNets have one more convolution before the classifier.
        self.channels: int = self.backbone.head_hidden_size
        self.head = self._create_head(2 * self.channels, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(concat_pool(self.feature_maps(images)))

    def _create_head(self, inputs: int, outputs: int) -> nn.Sequential:
        first, second = self.dropouts
        head = nn.Sequential(
            nn.BatchNorm1d(inputs),
            nn.Dropout(first),
            nn.Linear(inputs, self.width),
            nn.ReLU(),
            nn.BatchNorm1d(self.width),
            nn.Dropout(second),
            nn.Linear(self.width, outputs),
        )
        for layer in head:
            if isinstance(layer, nn.Linear):
                # Inferred: the default of fastai 1 (`create_cnn`, `init_default`).
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        return head


class RegionNetwork(FastaiNetwork):
    """A backbone with a class head and a head that proposes the cell's box.

    From images [B, 3, S, S] in [0, 1] to logits [B, outputs] and boxes [B, 4]. The box head has
    four outputs and proposes the box from the same pooled features: 2·(sigmoid − ½), so its edges
    lie in [−1, 1].

    Args:
        backbone, outputs, network: as in FastaiNetwork.
        attention: True (*inferred* from the abstract): the class head also gets the features pooled
            inside the proposed box, and its loss trains the box head too. False (as released): the
            box is only a second task for the backbone.
    """

    proposes_box = True

    def __init__(
        self, backbone: str, *, outputs: int = 1, attention: bool = True, **network: Any
    ) -> None:
        super().__init__(backbone, outputs=outputs, **network)
        self.attention = attention
        self.box_head = self._create_head(2 * self.channels, 4)
        if attention:
            self.head = self._create_head(4 * self.channels, outputs)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        features = self.feature_maps(images)
        pooled = concat_pool(features)
        # Also under autocast: bfloat16 is too coarse for edges.
        box = 2 * (at_least_single(self.box_head(pooled)).sigmoid() - 0.5)
        if self.attention:
            pooled = torch.cat([pooled, concat_pool(region_grid(features, box))], 1)
        return self.head(pooled), box


def concat_pool(features: Tensor) -> Tensor:
    """Maximum and mean over the map: [B, C, h, w] to [B, 2C] (fastai's AdaptiveConcatPool2d)."""
    # Not AdaptiveMaxPool2d, whose gradient is not deterministic on CUDA.
    return torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1)


def region_grid(features: Tensor, box: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Features at the centres of a grid over the box, [B, C, h, w], differentiable in both inputs.

    Bilinear interpolation as A_y · F · A_xᵀ, where each row of A is the hat function around one
    sample. It equals `torchvision.ops.roi_align(aligned=True, sampling_ratio=1)` (RoIAlign: He et
    al. 2017, section 3), which has no gradient for boxes: up to one map cell beyond the outermost
    centres a sample has the border's value, farther out 0. The box of the whole image, at the map's
    own size, returns the map itself.

    Crossed edges mirror the region, which changes no pooled value. Where two edges coincide, the
    region is a line or a point that is sampled repeatedly.

    Args:
        features: [B, C, H, W].
        box: [B, 4]; the computation has its precision, even under autocast.
        size: (h, w); None for the map's own.
    """
    height, width = features.shape[-2:]
    rows, columns = size or (height, width)
    top, left, bottom, right = box.unbind(1)
    with torch.autocast(box.device.type, enabled=False):
        return torch.einsum(
            "bpy,bcyx,bqx->bcpq",
            _hat_weights(top, bottom, rows, height),
            features.to(box.dtype),
            _hat_weights(left, right, columns, width),
        )


def _hat_weights(start: Tensor, end: Tensor, count: int, length: int) -> Tensor:
    """Weight of each of `length` map cells in each of `count` samples: [B, count, length].

    Args:
        start, end: edges of the box in [−1, 1], [B].
    """
    first, step = (start + 1) * length / 2, (end - start) * length / 2 / count
    steps = torch.arange(count, device=start.device, dtype=start.dtype) + 0.5
    # In units of map cells, with the centre of cell i at i instead of i + ½.
    samples = (first[:, None] + steps * step[:, None] - 0.5)[..., None]
    near = (samples >= -1) & (samples <= length)
    cells = torch.arange(length, device=start.device, dtype=start.dtype)
    return (1 - (samples.clamp(0, length - 1) - cells).abs()).relu() * near


def iou(box: Tensor, target: Tensor) -> Tensor:
    """Intersection over union [B] of boxes [B, 4] in any common unit.

    0 for a box without area, whose edges coincide or cross.
    """
    inner_start = torch.maximum(box[:, :2], target[:, :2])
    inner_end = torch.minimum(box[:, 2:], target[:, 2:])
    inner = _area(inner_start, inner_end)
    union = _area(box[:, :2], box[:, 2:]) + _area(target[:, :2], target[:, 2:]) - inner
    return inner / union.clamp_min(torch.finfo(union.dtype).tiny)


def _area(start: Tensor, end: Tensor) -> Tensor:
    return (end - start).relu().prod(1)
