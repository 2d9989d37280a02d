"""EfficientNets with channel and spatial attention: a RECONSTRUCTION of Saeed et al. 2022.

Electronics 11(19), 3168. No code was released; the abstract says that the last block was modified
and layers were added. The order of the layers and all their sizes are inferred.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from leukocls.common.errors import LeukoclsError
from leukocls.models.timm_network import TimmNetwork


class MultiAttention(TimmNetwork):
    """A backbone with channel attention and several spatial attention maps.

    From images [B, 3, S, S] in [0, 1] to logits [B, outputs]: features → BatchNorm → channel
    attention (squeeze and excitation: Hu et al. 2018) → dropout → 1×1 convolutions → `maps` sigmoid
    masks; for each mask GAP(mask × features) / GAP(mask), where GAP is global average pooling; all
    of these → dropout → dense, ReLU → dropout → output.

    Args:
        backbone, outputs, network: as in TimmNetwork; the backbone must have feature maps.
        maps: number of spatial masks, each of which pools the features.
        widths: of the 1×1 convolutions before the masks.
        reduction: factor by which the bottleneck of the channel attention reduces the channels.
        attention_dropout: probability before the 1×1 convolutions; the pooled features are those
            without dropout.
        dropout: probability before and after the dense layer.
        dense: width of the dense layer.
        attention: False for the plain TimmNetwork (its own pooling, one linear layer) without any
            of these layers.

    Raises:
        LeukoclsError: as TimmNetwork; a size below 1, a dropout outside [0, 1).
    """

    def __init__(
        self,
        backbone: str,
        *,
        outputs: int = 1,
        maps: int = 4,
        widths: Sequence[int] = (64, 16, 8),
        reduction: int = 16,
        attention_dropout: float = 0.5,
        dropout: float = 0.25,
        dense: int = 128,
        attention: bool = True,
        **network: Any,
    ) -> None:
        super().__init__(backbone, outputs=outputs, **network)
        self.attention = attention
        if not attention:
            return
        for name, sizes in (
            ("maps", [maps]), ("widths", widths), ("reduction", [reduction]), ("dense", [dense]),
        ):  # fmt: skip
            if any(size < 1 for size in sizes):
                raise LeukoclsError(f"model.{name}: choose at least 1.")
        for name, share in (("attention_dropout", attention_dropout), ("dropout", dropout)):
            if not 0 <= share < 1:
                raise LeukoclsError(f"model.{name}={share}: choose a number from 0 to below 1.")
        # With these arguments timm removes pooling and classifier, which leaves feature maps.
        self.backbone.reset_classifier(0, "")
        channels = self.channels = self.backbone.head_hidden_size
        squeezed = max(channels // reduction, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.gates = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )
        layers: list[nn.Module] = [nn.Dropout(attention_dropout)]
        for before, after in zip([channels, *widths], widths, strict=False):
            layers += [nn.Conv2d(before, after, 1), nn.ReLU()]
        self.masks = nn.Sequential(*layers, nn.Conv2d([channels, *widths][-1], maps, 1))
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(maps * channels, dense),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(dense, outputs),
        )

    def forward(self, images: Tensor) -> Tensor:
        if not self.attention:
            return super().forward(images)
        return self.head(masked_pooling(*self._attend(images)))

    def attention_maps(self, images: Tensor) -> Tensor:
        """The spatial masks: [B, maps, h, w] in (0, 1), at the resolution of the feature maps.

        Raises:
            LeukoclsError: the network was built without attention.
        """
        if not self.attention:
            raise LeukoclsError("model.attention=false: this network has no attention maps.")
        return self._attend(images)[1].sigmoid()

    def _attend(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Gated features [B, C, h, w] and the masks' logits [B, maps, h, w]."""
        features = self.norm(self.feature_maps(images))
        features = features * self.gates(features)
        return features, self.masks(features)


def masked_pooling(features: Tensor, logits: Tensor) -> Tensor:
    """GAP(mask × features) / GAP(mask) for mask = sigmoid(logits): [B, maps, C].

    Args:
        features: [B, C, h, w].
        logits: [B, maps, h, w].
    """
    # exp(logsigmoid) is the mask, so softmax is mask / sum(mask), and never divides by 0.
    weights = F.logsigmoid(logits).flatten(2).softmax(-1)
    return weights.to(features.dtype) @ features.flatten(2).transpose(1, 2)
