"""A trained head on frozen pretrained features (Georgiev)."""

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import torch
from timm.models import VGG
from torch import Tensor, nn

from leukocls.common.errors import LeukoclsError
from leukocls.models.timm_network import TimmNetwork


class FrozenFeatures(TimmNetwork):
    """A trained head on the features of a frozen backbone.

    From images [B, 3, S, S] in [0, 1], or their features [B, F], to logits [B, outputs]. The
    backbone stays in evaluation mode and has no gradients. Its features go through dense layer,
    ReLU and dropout for each width, then through one linear layer. They are the inputs of the
    backbone's own classifier: pooled maps or tokens, and in MobileNets and similar networks the
    pretrained layer after pooling. For VGG they are the pooled maps (F = 512): fc6 and fc7, nine
    tenths of its weights, are loaded and dropped (inferred: the custom layers replace them).

    Args:
        backbone, outputs, network: as in TimmNetwork.
        widths: of the dense layers.
        dropout: probability after each dense layer.
        frozen: must be "all".
        options: passed to `timm.create_model` unchanged.

    Attributes:
        num_features: F.

    Raises:
        LeukoclsError: a width, dropout or `frozen` out of range.
    """

    def __init__(
        self,
        backbone: str,
        *,
        outputs: int = 1,
        widths: Sequence[int] = (256, 128),
        dropout: float = 0.5,
        frozen: str | None = "all",
        options: dict[str, Any] | None = None,
        **network: Any,
    ) -> None:
        if frozen != "all":
            raise LeukoclsError(
                f"model.frozen={frozen}: this model needs frozen=all; model=timm trains the"
                " backbone too."
            )
        if any(width < 1 for width in widths):
            raise LeukoclsError(f"model.widths={list(widths)}: choose at least 1 for each.")
        if not 0 <= dropout < 1:
            raise LeukoclsError(f"model.dropout={dropout}: choose a number from 0 to below 1.")
        super().__init__(backbone, outputs=outputs, frozen=frozen, options=options, **network)
        self.architecture = {"backbone": backbone, "options": options or {}}
        self.backbone.reset_classifier(0)
        self.num_features: int = self.backbone.head_hidden_size
        if isinstance(self.backbone, VGG):
            self.backbone.pre_logits = nn.Identity()  # type: ignore[assignment]
            self.num_features = self.backbone.num_features
        layers: list[nn.Module] = []
        for before, after in zip([self.num_features, *widths], widths, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.head = nn.Sequential(*layers, nn.Linear([self.num_features, *widths][-1], outputs))

    def features(self, images: Tensor) -> Tensor:
        """Features [B, F] of images [B, 3, S, S] in [0, 1], without a gradient graph."""
        with torch.no_grad():
            return super().forward(images)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs if inputs.ndim == 2 else self.features(inputs))

    def fingerprint(self) -> str:
        """sha256 of all that determines the features: architecture, normalisation, weights."""
        digest = sha256(json.dumps(self.architecture, sort_keys=True).encode())
        tensors = self.backbone.state_dict() | {"mean": self.mean, "std": self.std}
        for name, tensor in sorted(tensors.items()):
            digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()
