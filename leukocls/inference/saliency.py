"""Maps of what a network looks at: class activation, attention masks and the proposed box."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leukocls.common.errors import LeukoclsError
from leukocls.data.views import image_views
from leukocls.data.warp import to_images
from leukocls.inference.bundle import Member
from leukocls.inference.distance import first_maps
from leukocls.inference.images import seen
from leukocls.inference.torch_predictor import TorchPredictor
from leukocls.models.frozen import FrozenFeatures
from leukocls.models.logits import to_logit
from leukocls.models.multiattention import MultiAttention
from leukocls.models.timm_network import TimmNetwork

CAM, REGION, ATTENTION = "grad-cam", "region", "attention"
Maps = dict[str, np.ndarray]


def maps(
    predictor: TorchPredictor, images: Sequence[np.ndarray], called: np.ndarray
) -> tuple[np.ndarray, Maps]:
    """Maps of each image, averaged over views and networks in the image's own frame.

    "grad-cam": Grad-CAM (Selvaraju et al. 2017) of the last feature maps, for the class that the
    image is called: what speaks for it, 1 where most. "region": the share of views whose proposed
    box holds the pixel. "attention 1" and so on: the network's spatial masks, in (0, 1). A map is
    only as fine as the network's last feature maps, of which one cell covers many pixels.

    Args:
        images: uint8 [H, W, 3] each, of the side that the networks were trained on.
        called: True for images that are called ALL, [n].

    Returns:
        What the first network sees, uint8 [n, S, S, 3]; and by name float32 [n, S, S] in [0, 1].

    Raises:
        LeukoclsError: a network without feature maps, or networks that see different crops.
    """
    members = predictor.members
    if len({member.crop for member in members}) > 1:
        raise LeukoclsError(
            f"{predictor.bundle.place}: its networks see different parts of an image; explain a"
            " bundle of one of them."
        )
    sign = np.where(called, 1.0, -1.0)
    side = members[0].size
    sums: dict[str, list[Tensor]] = {}
    for member, network in zip(members, predictor.networks, strict=True):
        for name, found in _of_member(predictor, member, network, images, sign).items():
            scaled = F.interpolate(found[:, None], (side, side), mode="bilinear")[:, 0]
            sums.setdefault(name, []).append(scaled)
    averaged = {name: torch.stack(found).mean(0).cpu().numpy() for name, found in sums.items()}
    first = np.stack([seen(image, members[0].crop, side) for image in images])
    return first, averaged


def _of_member(
    predictor: TorchPredictor,
    member: Member,
    network: nn.Module,
    images: Sequence[np.ndarray],
    sign: np.ndarray,
) -> dict[str, Tensor]:
    """The maps of one network, float32 [n, S, S], averaged over its views."""
    stored = np.stack([seen(image, member.crop, member.size) for image in images])
    batch = to_images(torch.from_numpy(stored).to(predictor.device))
    toward = torch.from_numpy(sign).float().to(predictor.device)
    side = member.size
    # Where in the image each pixel of a view comes from: x, y in [-1, 1], and 1 inside it.
    line = torch.arange(side, device=batch.device) * (2 / (side - 1)) - 1
    frame = torch.stack([line.expand(side, -1), line[:, None].expand(-1, side)])
    frame = torch.cat([frame, torch.ones_like(frame[:1])])[None]
    views = zip(image_views(batch, member.views), image_views(frame, member.views), strict=True)
    sums: dict[str, Tensor] = {}
    count = torch.zeros(1, 1, side, side, device=batch.device)
    for view, origin in views:
        back = _back(origin[0], line)
        grid = F.affine_grid(back[None], [1, 1, side, side], align_corners=True)
        count += F.grid_sample(torch.ones_like(count), grid, align_corners=True)
        for name, found in _of_view(network, view, toward).items():
            grids = grid.expand(len(found), -1, -1, -1)
            turned = F.grid_sample(found[:, None], grids, align_corners=True)
            sums[name] = sums[name] + turned if name in sums else turned
    mean = {name: (total / count.clamp(min=0.5))[:, 0] for name, total in sums.items()}
    most = mean[CAM].amax((1, 2), keepdim=True)
    mean[CAM] = mean[CAM] / most.clamp(min=1e-12)
    return {name: one.clamp(0, 1) for name, one in mean.items()}


def _back(origin: Tensor, line: Tensor) -> Tensor:
    """The affine map [2, 3] from the image's coordinates to a view's, both in [-1, 1].

    Args:
        origin: for each pixel of the view its x and y in the image, and 1 inside it, [3, S, S].
        line: coordinates of a row of pixels, [S].
    """
    inside = origin[2] > 0.99
    x, y = line.expand(len(line), -1)[inside], line[:, None].expand(-1, len(line))[inside]
    # Of a rotation with the nearest neighbour each is half a pixel off at most, and their mean not.
    known = torch.cat([origin[:2, inside], torch.ones_like(x)[None]]).T.double()
    wanted = torch.stack([x, y], 1).double()
    return torch.linalg.lstsq(known, wanted).solution.T.float()


def _of_view(network: nn.Module, view: Tensor, toward: Tensor) -> dict[str, Tensor]:
    """The maps of one view in its own frame, float32 [n, S, S]."""
    side = view.shape[-1]
    with _captured(network) as kept, torch.enable_grad():
        output: Any = _forward(network, view)
        output, box = output if isinstance(output, tuple) else (output, None)
        features = kept.get("features")
        if features is None or features.ndim != 4:
            raise LeukoclsError(
                "explain: this network has no feature maps (as transformers), so there is no"
                " Grad-CAM of it; bundle a convolutional one."
            )
        (gradient,) = torch.autograd.grad((toward * to_logit(output)).sum(), features)
    weights = gradient.mean((2, 3), keepdim=True)
    cam = (weights * features.detach()).sum(1, keepdim=True).relu()
    found = {CAM: F.interpolate(cam, (side, side), mode="bilinear")[:, 0]}
    if box is not None:
        edges = (torch.arange(side, device=view.device) + 0.5) * 2 / side - 1
        top, left, bottom, right = (edge[:, None] for edge in box.detach().float().T)
        rows, columns = (top < edges) & (edges < bottom), (left < edges) & (edges < right)
        found[REGION] = (rows[:, :, None] & columns[:, None]).float()
    if "masks" in kept:
        masks = F.interpolate(kept["masks"].detach().sigmoid(), (side, side), mode="bilinear")
        found |= {f"{ATTENTION} {k}": masks[:, k - 1] for k in range(1, masks.shape[1] + 1)}
    return found


def _forward(network: nn.Module, view: Tensor) -> Any:
    if isinstance(network, FrozenFeatures):  # whose own `features` has no gradients
        return network.head(TimmNetwork.forward(network, view))
    return network(view)


@contextmanager
def _captured(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep the backbone's last feature maps, and the logits of attention masks."""
    kept: dict[str, Tensor] = {}

    def leaf(maps: Tensor) -> Tensor:
        # Gradients are wanted only of what comes after.
        kept["features"] = maps.detach().requires_grad_()
        return kept["features"]

    hook = None
    if isinstance(network, MultiAttention) and network.attention:
        hook = network.masks.register_forward_hook(
            lambda module, inputs, output: kept.__setitem__("masks", output)
        )
    try:
        with first_maps(network, leaf):
            yield kept
    finally:
        if hook:
            hook.remove()
