"""Any timm network with a fresh head, and its stages for learning rates."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from leukocls.errors import LeukoclsError
from leukocls.models.weights import load_weights

NORMALISATION = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class TimmNetwork(nn.Module):
    """Images [B, 3, S, S] in [0, 1] to logits [B, outputs].

    Args:
        backbone: a name of timm's; SE-ResNeXt50 of Prellberg & Kramer 2019 is
            `legacy_seresnext50_32x4d`.
        pretrained: fetch timm's ImageNet weights (ignored when `weights` is given).
        weights: a safetensors file or state dict to start from instead.
        outputs: 1 (logit of ALL) or 2 (logits of HEM and ALL).
        mean, std: per channel, subtracted and divided first; None leaves pixels in [0, 1].
        frozen: None trains everything; "weights" trains the last layer and the backbone's
            normalisation (Howard & Gugger's freeze in fastai 1); "all" the last layer alone, and
            keeps the backbone in evaluation mode, so that no BatchNorm statistic moves.
        early: how many of timm's coarse groups of layers are the stage `early`.
        options: passed to `timm.create_model` as they are.

    Raises:
        LeukoclsError: unknown backbone or one without stages, weights that do not fit, a hub that
            cannot be reached.
    """

    def __init__(
        self,
        backbone: str,
        pretrained: bool = False,
        weights: str | None = None,
        outputs: int = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        frozen: str | None = None,
        early: int = 2,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if frozen not in (None, "weights", "all"):
            raise LeukoclsError(f"model.frozen={frozen}: choose null, weights or all.")
        self.frozen, self.early = frozen, early
        download = pretrained and weights is None
        self.backbone: Any = _create(
            backbone, download, {"num_classes": outputs, **(options or {})}
        )
        if weights is not None:
            load_weights(self.backbone, Path(weights), self.classifier_names)
        # Not persistent: the recipe holds them, and state dicts stay those of the backbone.
        shape = (1, 3, 1, 1)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean or [0.0]).expand(3).view(shape), False)
        self.register_buffer("std", torch.tensor(std or [1.0]).expand(3).view(shape), False)
        self.normalises = mean is not None or std is not None

        try:
            staged = all(self.stages().values())
        except (AttributeError, AssertionError):
            staged = False
        if not staged:
            raise LeukoclsError(
                f"model.backbone={backbone}: timm does not say which of its layers are stages and"
                " which are the head, so no stage can have a rate of its own. Choose another."
            )
        if frozen:
            self._freeze()

    @property
    def classifier_names(self) -> tuple[str, ...]:
        """timm's names of the last linear layers: one, or more in distilled networks."""
        names = self.backbone.pretrained_cfg.get("classifier") or ()
        return (names,) if isinstance(names, str) else tuple(names)

    def forward(self, images: Tensor) -> Tensor:
        if self.normalises:
            images = (images - self.mean) / self.std
        return self.backbone(images)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen == "all":
            self.backbone.eval()
        return self

    def constants(self) -> set[str]:
        """Names in the state dict of what training never changes."""
        if self.frozen != "all":
            return set()
        prefixes = tuple(f"backbone.{name}." for name in self.classifier_names)
        names = (name for name in self.state_dict() if name.startswith("backbone."))
        return {name for name in names if not name.startswith(prefixes)}

    def stages(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter once: `early` (stem and first stage), `late` (other stages), `head`.

        Stages are timm's own coarse parameter groups; for SE-ResNeXt50 they are the paper's
        three groups (45, 178 and 2 tensors).
        """
        prefixes = tuple(f"{name}." for name in self.classifier_names)
        head = [name for name, _ in self.backbone.named_parameters() if name.startswith(prefixes)]
        groups = group_parameters(self.backbone, self.backbone.group_matcher(coarse=True))
        body = [
            kept
            for _, names in sorted(groups.items())
            if (kept := [name for name in names if name not in head])
        ]
        parameters = dict(self.backbone.named_parameters())
        names = {
            "early": [name for group in body[: self.early] for name in group],
            "late": [name for group in body[self.early :] for name in group],
            "head": head,
        }
        return {stage: [parameters[name] for name in chosen] for stage, chosen in names.items()}

    def _freeze(self) -> None:
        stages = TimmNetwork.stages(self)
        body = {id(p) for p in (*stages["early"], *stages["late"])}
        for module in self.backbone.modules():
            if self.frozen == "weights" and isinstance(module, NORMALISATION):
                continue
            for parameter in module.parameters(recurse=False):
                if id(parameter) in body:
                    parameter.requires_grad_(False)


def _create(backbone: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if not timm.is_model(backbone.split(".")[0]):
        close = difflib.get_close_matches(backbone, timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise LeukoclsError(
            f"model.backbone={backbone}: timm has no such network.{hint}"
            " All names: python -c 'import timm; print(timm.list_models())'"
        )
    try:
        return timm.create_model(backbone, pretrained=pretrained, **options)
    except Exception as error:
        if not pretrained:
            raise LeukoclsError(
                f"model.backbone={backbone}: timm cannot build it ({error})."
                " Check model.options and the image size."
            ) from error
        reason = next(iter(str(error).splitlines()), "no message")
        raise LeukoclsError(
            f"model.backbone={backbone}: its pretrained weights could not be fetched"
            f" ({type(error).__name__}: {reason}). Three ways on:\n"
            "  1. connect this machine to the hub once; timm keeps what it fetched;\n"
            "  2. model.weights=FILE, a safetensors file or state dict fetched elsewhere;\n"
            "  3. model.pretrained=false, to train from random weights."
        ) from error
