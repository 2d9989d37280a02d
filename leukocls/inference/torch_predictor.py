"""Predict images with the networks of a bundle, by PyTorch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.data.views import image_views, view_weights
from leukocls.data.warp import to_images
from leukocls.inference.bundle import DOCUMENT, Bundle, Member
from leukocls.inference.distance import Neighbour, References, features_of, first_maps, load, pooled
from leukocls.inference.images import seen
from leukocls.inference.predictor import Predictor, Scores
from leukocls.models.logits import to_logit
from leukocls.models.weights import HUB, LOCAL
from leukocls.training.build import untrained


class TorchPredictor(Predictor):
    """The networks of a bundle as PyTorch modules.

    Attributes:
        members: what the bundle says about each of them.
        networks: in evaluation mode.
        device: where they compute.
        references: of the first network, what a distance is measured to; None without.
    """

    def __init__(
        self, bundle: Bundle, device: str | None = None, alpha: float | None = None
    ) -> None:
        super().__init__(bundle, alpha)
        self.device = _device(device)
        self.members = bundle.members
        self.networks = [_network(bundle, member, self.device) for member in bundle.members]
        self.references = _references(bundle, self.device)

    def scores(self, images: Sequence[np.ndarray]) -> Scores:
        means, every = [], []
        distance = np.full(len(images), np.nan)
        for member, network in zip(self.members, self.networks, strict=True):
            stored = np.stack([seen(image, member.crop, member.size) for image in images])
            with first_maps(network) as kept:
                views = member.scale * self._views(network, member, stored) + member.shift
            if self.references and network is self.networks[0]:
                with torch.inference_mode():
                    features = pooled(network, kept[0])
                    distance = self.references.distance(features).cpu().numpy()
            means.append(views @ np.array(view_weights(member.views)))
            every.append(views)
        return Scores(np.mean(means, axis=0), np.concatenate(every, axis=1).std(axis=1), distance)

    def nearest(self, images: Sequence[np.ndarray], number: int) -> list[list[Neighbour]]:
        """The nearest training cells of each image; none of a bundle made without `--data`.

        Args:
            images: uint8 [H, W, 3] each, of the side that the networks were trained on.
            number: of cells for each image.
        """
        if self.references is None:
            return [[] for _ in images]
        first = self.members[0]
        stored = np.stack([seen(image, first.crop, first.size) for image in images])
        features = features_of(self.networks[0], stored, str(self.device))
        return self.references.nearest(features, number)

    @torch.inference_mode()
    def _views(self, network: nn.Module, member: Member, stored: np.ndarray) -> np.ndarray:
        """Logits of each view, float64 [n, V]."""
        images = to_images(torch.from_numpy(stored).to(self.device))
        logits, dtype = [], next(network.parameters()).dtype
        for view in image_views(images, member.views):
            view = view.to(dtype).contiguous(memory_format=torch.channels_last)
            output: Any = network(view)
            logits.append(to_logit(output[0] if isinstance(output, tuple) else output))
        return torch.stack(logits, 1).double().cpu().numpy()


def _device(name: str | None) -> torch.device:
    """The device of this name; None takes a GPU if there is one."""
    usable = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if usable else "cpu"))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise LeukoclsError(
            f"--device {name}: PyTorch computes on cpu here{' or cuda' if usable else ''}"
            f" ({str(error).splitlines()[0]})."
        ) from error
    return device


def _references(bundle: Bundle, device: torch.device) -> References | None:
    entry = bundle.document.get("distance")
    if not entry:
        return None
    name = entry["file"]
    if name not in bundle.document["files"]:
        raise DataFault(f"{bundle.place / DOCUMENT}: the references {name} have no sha256 there.")
    return load(bundle.place / name, float(entry["scale"]), device)


def _network(bundle: Bundle, member: Member, device: torch.device) -> nn.Module:
    backbone = str(member.network.get("backbone"))
    if backbone.startswith((HUB, LOCAL)):
        raise LeukoclsError(
            f"{bundle.place / DOCUMENT}: its backbone {backbone} is described elsewhere, and only"
            " networks of timm and leukocls are built; take the bundle from its author again."
        )
    network = untrained(member.network, drawn=False)
    try:
        state: dict[str, Tensor] = load_file(member.weights)
        network.load_state_dict({member.prefix + name: one for name, one in state.items()})
    except (SafetensorError, RuntimeError, OSError) as error:
        raise DataFault(
            f"{member.weights}: no weights of the network in {DOCUMENT}"
            f" ({str(error).splitlines()[0]}); copy the whole folder of {bundle.place} again."
        ) from error
    # Without gradients, Grad-CAM keeps no maps but those that it needs.
    network = network.eval().requires_grad_(False)
    return network.to(device).to(memory_format=torch.channels_last)
