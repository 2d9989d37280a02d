"""Any timm network with a new head, and its stages, which can have their own learning rates."""

import difflib
from collections.abc import Sequence
from typing import Any, Self

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from leukocls.common.errors import LeukoclsError
from leukocls.models.weights import HUB, LOCAL, initial_weights, load_weights

NORMALISATION = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class TimmNetwork(nn.Module):
    """A timm network, from images [B, 3, S, S] in [0, 1] to logits [B, outputs].

    Args:
        backbone: its name in timm, `hf-hub:OWNER/NAME` or `local-dir:FOLDER`; SE-ResNeXt50 of
            Prellberg & Kramer 2019 is `legacy_seresnext50_32x4d`.
        pretrained: whether to start from timm's ImageNet weights, which are downloaded if needed
            (without effect if `weights` is given).
        weights: a file or name as `leukocls.models.weights.weights_file` takes it, or None.
        outputs: 1 (logit of ALL) or 2 (logits of HEM and ALL).
        mean, std: normalisation of each channel; None leaves pixels in [0, 1].
        frozen: None trains everything; "weights" trains the last layer and the backbone's
            normalisation layers (Howard & Gugger's freeze in fastai 1); "all" trains the last
            layer alone and keeps the backbone in evaluation mode, so that the statistics of
            BatchNorm stay as they are.
        early: number of timm's coarse groups of layers that form the stage `early`.
        options: passed to `timm.create_model` unchanged.

    Raises:
        LeukoclsError: unknown backbone or one without stages, weights that do not fit, or a failed
            download.
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
        file = initial_weights({"backbone": backbone, "pretrained": pretrained, "weights": weights})
        download = pretrained and file is None
        self.backbone: Any = _create(
            backbone, download, {"num_classes": outputs, **(options or {})}
        )
        known: Any = self.backbone.pretrained_cfg
        if not download or outputs != known.get("num_classes"):
            # timm initialises an EfficientNet's single output with weights of ±1: a loss of 5.
            for name in self.classifier_names:
                head: Any = self.backbone.get_submodule(name)
                head.reset_parameters()
        if file is not None:
            load_weights(self.backbone, weights or file, self.classifier_names)
        # Not persistent: the configuration holds them, and the state dict stays the backbone's.
        self.mean: Tensor
        self.std: Tensor
        for name, channels in (("mean", mean or [0.0] * 3), ("std", std or [1.0] * 3)):
            if len(channels) != 3:
                raise LeukoclsError(f"model.{name}={channels}: give three numbers, red first.")
            self.register_buffer(name, torch.tensor(channels).view(1, 3, 1, 1), False)
        self.normalises = mean is not None or std is not None

        try:
            staged = all(self.stages().values())
        except (AttributeError, AssertionError):
            staged = False
        if not staged:
            raise LeukoclsError(
                f"model.backbone={backbone}: timm does not say which of its layers are stages and"
                " which are the head, so stages cannot have learning rates. Choose another."
            )
        if frozen:
            self._freeze()
            self.train()  # Lightning keeps the mode that a network has when training starts

    @property
    def classifier_names(self) -> tuple[str, ...]:
        """The names of the last linear layers: one, or several in distilled networks."""
        names = self.backbone.pretrained_cfg.get("classifier")
        if names is None:  # as in some repositories of the hub
            last = self.backbone.get_classifier()
            names = [name for name, module in self.backbone.named_modules() if module is last]
        return (names,) if isinstance(names, str) else tuple(names)

    def forward(self, images: Tensor) -> Tensor:
        if self.normalises:
            images = (images - self.mean) / self.std
        return self.backbone(images)

    def feature_maps(self, images: Tensor) -> Tensor:
        """Feature maps [B, C, h, w] of a backbone whose own pooling and classifier were removed.

        Raises:
            LeukoclsError: the backbone has no feature maps.
        """
        channels: int = self.backbone.head_hidden_size
        features = TimmNetwork.forward(self, images)
        if features.ndim != 4 or features.shape[1] != channels:
            raise LeukoclsError(
                f"model.backbone: its features have shape {tuple(features.shape)}; this network"
                f" needs maps [B, {channels}, h, w]. Choose a convolutional backbone."
            )
        return features

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen == "all":
            self.backbone.eval()
        return self

    def constants(self) -> set[str]:
        """Names in the state dict of the tensors that training never changes."""
        if self.frozen != "all":
            return set()
        prefixes = tuple(f"backbone.{name}." for name in self.classifier_names)
        names = (name for name in self.state_dict() if name.startswith("backbone."))
        return {name for name in names if not name.startswith(prefixes)}

    def stages(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter once: `early` (stem and first stage), `late` (other stages), `head`.

        Stages are timm's own coarse parameter groups; for SE-ResNeXt50 they are the paper's three
        groups (45, 178 and 2 tensors). `head` includes everything that was added to the backbone.
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
        added = [p for n, p in self.named_parameters() if not n.startswith("backbone.")]
        names = {
            "early": [name for group in body[: self.early] for name in group],
            "late": [name for group in body[self.early :] for name in group],
            "head": head,
        }
        stages = {stage: [parameters[name] for name in chosen] for stage, chosen in names.items()}
        return stages | {"head": stages["head"] + added}

    def layers(self) -> list[list[nn.Parameter]]:
        """Every parameter once, by layer from stem to head: timm's fine groups."""
        head = self.stages()["head"]
        of_head = {id(parameter) for parameter in head}
        groups = group_parameters(self.backbone, self.backbone.group_matcher(coarse=False))
        parameters = dict(self.backbone.named_parameters())
        body = [[parameters[name] for name in names] for _, names in sorted(groups.items())]
        kept = [[p for p in layer if id(p) not in of_head] for layer in body]
        return [*filter(None, kept), head]

    def _freeze(self) -> None:
        stages = TimmNetwork.stages(self)
        body = {id(p) for p in (*stages["early"], *stages["late"])}
        for module in self.backbone.modules():
            if self.frozen == "weights" and isinstance(module, NORMALISATION):
                continue
            for parameter in module.parameters(recurse=False):
                if id(parameter) in body:
                    parameter.requires_grad_(False)


# Options of timm's that would bring weights which neither lineage nor digests know.
HIDDEN_WEIGHTS = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")


def _create(backbone: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if hidden := [name for name in HIDDEN_WEIGHTS if name in options]:
        raise LeukoclsError(
            f"model.options.{hidden[0]}: not available, since a run records the weights that it"
            " starts from; use model.weights=FILE or model.pretrained."
        )
    if not backbone.startswith((HUB, LOCAL)) and not timm.is_model(backbone.split(".")[0]):
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
                " Check the name, model.options and the image size."
            ) from error
        reason = next(iter(str(error).splitlines()), "no message")
        raise LeukoclsError(
            f"model.backbone={backbone}: its pretrained weights could not be fetched"
            f" ({type(error).__name__}: {reason}). Do one of these:\n"
            "  1. connect this machine to the hub once; timm keeps the downloaded file;\n"
            "  2. model.weights=FILE, a safetensors file or state dict from elsewhere;\n"
            "  3. model.pretrained=false, to train from random weights."
        ) from error
