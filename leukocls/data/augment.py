"""Augmentation of whole batches on the device, determined by seed, epoch and cell alone.

Once an epoch, one row of random numbers is drawn for every cell of the index and turned into one
homography for each cell. A batch takes its rows and is warped by one `grid_sample`, so batch size,
workers, subset and resuming change nothing. Only mixup depends on the batch: on (seed, step).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from kornia.geometry.transform import get_perspective_transform
from torch import Tensor

from leukocls.common.errors import LeukoclsError
from leukocls.data.random import AUGMENT_STREAM, HOLES_STREAM, MIXUP_STREAM, STEPS_STREAM, generator
from leukocls.data.warp import rotation_matrix, to_grid, warp_images, zoom_matrix


@dataclass(frozen=True)
class Transforms:
    """The drawn transforms of n cells; None for a step that changes no cell.

    Attributes:
        theta: warp from target to source in units of half the image, float32 [n, 2, 3] or, with a
            perspective, [n, 3, 3].
        light: summand and factor for the pixels' logits, float32 [n, 2].
        holes: top, left, bottom, right in px, half open, int64 [n, holes, 4].
    """

    theta: Tensor | None = None
    light: Tensor | None = None
    holes: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> "Transforms":
        """The transforms of these rows."""
        return self._each(lambda numbers: numbers[rows])

    def to(self, device: torch.device) -> "Transforms":
        """The transforms, moved to a device."""
        return self._each(lambda numbers: numbers.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Transforms":
        steps = (self.theta, self.light, self.holes)
        return Transforms(*(None if numbers is None else change(numbers) for numbers in steps))


@dataclass(frozen=True)
class Augmentation:
    """Random changes of images: light, then one warp for all geometric steps, then holes, mixup.

    The warp composes flips, rotation, translation, zoom and perspective. Each step is off by
    default. Order and formulas of dihedral, rotation, zoom, warp and lighting are those of fastai
    1's `get_transforms`, except that ±1 is the image's edge (in fastai, the centre of its last
    pixel). Lighting keeps black pixels black (below 1e-5 for a lighting of 0.2).

    Args:
        vertical_flip, horizontal_flip: probabilities in [0, 1].
        rotation: degrees; the angle is uniform in ±rotation, positive turns clockwise.
        translation: fraction of the side in [0, 1]; the shift is uniform in ±translation and
            rounded to whole pixels (torchvision's RandomAffine, which Prellberg's code uses).
        interpolation: "nearest" or "bilinear".
        padding: pixels outside the image: "zeros", or its "reflection".
        dihedral: whether one of the square's eight symmetries follows the flips, uniformly drawn.
        zoom: at least 1; enlarges by a factor uniform in [1, zoom]; the visible window is uniform
            among those inside the image (`rand_zoom`).
        warp: 0 to 0.3, in units of half the image; the four sides are lengthened by fractions
            uniform in ±warp, each about its middle (`symmetric_warp`).
        affine_p: probability of rotation, of zoom and of warp, each drawn separately.
        lighting: l in [0, 1); logit(c), c uniform in (1 ± l)/2, is added to the pixels' logits,
            then they are multiplied by a factor log-uniform in [1 − l, 1/(1 − l)].
        lighting_p: probability of the summand and of the factor, each drawn separately.
        holes: number of squares that are set to 0 (cutout); their centres are uniform over the
            pixels, and squares are cut off at the image's edges.
        hole_side: smallest and largest side of a square, as fractions of the image's side.
        mixup: α of Beta(α, α), 0 for no mixup; see `mix`.

    Raises:
        LeukoclsError: a value out of range.
    """

    vertical_flip: float = 0.0
    horizontal_flip: float = 0.0
    rotation: float = 0.0
    translation: float = 0.0
    interpolation: str = "nearest"
    padding: str = "zeros"
    dihedral: bool = False
    zoom: float = 1.0
    warp: float = 0.0
    affine_p: float = 1.0
    lighting: float = 0.0
    lighting_p: float = 1.0
    holes: int = 0
    hole_side: Sequence[float] = (0.05, 0.2)
    mixup: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vertical_flip", "horizontal_flip", "translation", "affine_p", "lighting_p"):
            self._require(name, "a number from 0 to 1", lambda p: 0 <= p <= 1)
        self._require("rotation", "0 to 180 degrees", lambda degrees: 0 <= degrees <= 180)
        # Beyond a third, the perspective would show pixels from behind its horizon.
        self._require("warp", "a number from 0 to 0.3", lambda w: 0 <= w <= 0.3)
        self._require("zoom", "a number of at least 1", lambda s: 1 <= s < math.inf)
        self._require("lighting", "a number from 0 to below 1", lambda x: 0 <= x < 1)
        self._require("holes", "a whole number", lambda n: isinstance(n, int) and n >= 0)
        self._require(
            "hole_side",
            "two numbers from 0 to 1, the smaller one first",
            lambda sides: len(sides) == 2 and 0 <= sides[0] <= sides[1] <= 1,
        )
        self._require("mixup", "α of Beta(α, α), 0 for none", lambda a: 0 <= a < math.inf)
        self._require("interpolation", "nearest or bilinear", ("nearest", "bilinear").__contains__)
        self._require("padding", "zeros or reflection", ("zeros", "reflection").__contains__)

    def _require(self, name: str, wanted: str, holds: Callable[..., bool]) -> None:
        value = getattr(self, name)
        if not holds(value):
            raise LeukoclsError(f"augment.{name}={value}: choose {wanted}.")

    @property
    def is_identity(self) -> bool:
        """Whether all steps are off."""
        return not (self.is_geometric or self.lighting or self.holes or self.mixup)

    @property
    def is_geometric(self) -> bool:
        """Whether any geometric step is on."""
        flips = self.vertical_flip or self.horizontal_flip or self.dihedral
        affine = self.rotation or self.translation or self.zoom > 1
        return bool(flips or affine or self.warp)

    def draw(self, seed: int, epoch: int, cells: int, size: int) -> dict[str, Tensor]:
        """Draw the random numbers of an epoch: 0, or a factor of 1, where a cell stays as it is.

        Returns:
            `vertical`, `horizontal` and `transpose`, bool [cells]; float64 [cells] `angle` in
            degrees, `zoom` and `contrast` as factors, `brightness` in logits; `shift` in px and
            `focus` in ±1, both float64 [cells, 2] (x, y); `warp`, float64 [cells, 4], by which the
            right, left, lower and upper side are lengthened; `hole`, int64 [cells, holes, 3] in px:
            row and column of the centre, side.
        """
        uniform = torch.from_numpy(generator(seed, epoch, AUGMENT_STREAM).random((cells, 5)))
        signed = 2 * uniform[:, 2:] - 1
        steps = torch.from_numpy(generator(seed, epoch, STEPS_STREAM).random((cells, 15)))
        turned, zoomed, warped = (steps[:, :3] < self.affine_p).double().unbind(1)
        lit, stretched = (steps[:, 3:5] < self.lighting_p).double().unbind(1)
        symmetry = (8 * steps[:, 5]).long() * self.dihedral
        hole = torch.from_numpy(generator(seed, epoch, HOLES_STREAM).random((cells, self.holes, 3)))
        least, most = self.hole_side
        hole[..., 2] = least + (most - least) * hole[..., 2]
        contrast = -math.log1p(-self.lighting) * (2 * steps[:, 10] - 1)
        return {
            "vertical": (uniform[:, 0] < self.vertical_flip) ^ (symmetry & 1 > 0),
            "horizontal": (uniform[:, 1] < self.horizontal_flip) ^ (symmetry & 2 > 0),
            "transpose": symmetry & 4 > 0,
            "angle": self.rotation * signed[:, 0] * turned,
            "shift": torch.round(self.translation * size * signed[:, 1:]),
            "zoom": 1 + (self.zoom - 1) * steps[:, 6] * zoomed,
            "focus": 2 * steps[:, 7:9] - 1,
            "brightness": torch.logit((1 + self.lighting * (2 * steps[:, 9] - 1)) / 2) * lit,
            "contrast": torch.exp(contrast * stretched),
            "warp": self.warp * (2 * steps[:, 11:] - 1) * warped[:, None],
            "hole": (hole * size).long(),
        }

    def transforms(self, seed: int, epoch: int, cells: int, size: int) -> Transforms:
        """The transforms of an epoch for `cells` images with a side of `size` px, on the CPU."""
        drawn = self.draw(seed, epoch, cells, size)
        light = torch.stack([drawn["brightness"], drawn["contrast"]], 1).float()
        start = drawn["hole"][..., :2] - drawn["hole"][..., 2:] // 2
        holes = torch.cat([start, start + drawn["hole"][..., 2:]], -1)
        return Transforms(
            self._theta(drawn, size) if self.is_geometric else None,
            light if self.lighting else None,
            holes if self.holes else None,
        )

    def _theta(self, drawn: dict[str, Tensor], size: int) -> Tensor:
        """One warp for each cell, composed of all geometric steps: `Transforms.theta`."""
        flip = torch.eye(3, dtype=torch.float64).repeat(len(drawn["angle"]), 1, 1)
        for axis, name in ((0, "horizontal"), (1, "vertical")):
            flip[:, axis, axis] = 1 - 2 * drawn[name].double()
            flip[:, axis, 2] = (size - 1) * drawn[name].double()
        flip[drawn["transpose"]] = flip[drawn["transpose"]][:, [1, 0, 2]]
        theta = to_grid(rotation_matrix(drawn["angle"], drawn["shift"], size) @ flip, size)
        if self.zoom > 1:
            theta = theta @ zoom_matrix(drawn["zoom"], drawn["focus"])
        if self.warp:
            return (theta @ _symmetric_warp(drawn["warp"])).float()
        return theta[:, :2].float()

    def __call__(self, images: Tensor, transforms: Transforms) -> Tensor:
        """Augment float images [B, C, S, S] in [0, 1] by B rows of `transforms`, without mixup."""
        if transforms.light is not None:
            images = _light(images, transforms.light)
        if transforms.theta is not None:
            images = warp_images(images, transforms.theta, self.interpolation, self.padding)
        if transforms.holes is not None:
            images = _cut_out(images, transforms.holes)
        return images

    def warp_mask(self, mask: Tensor, transforms: Transforms) -> Tensor:
        """Warp masks, bool [B, 1, S, S], as `transforms` warps the images; False outside of them.

        The box of a warped cell is the tight box of its warped mask: the corners of a rotated box
        are not tight, and pixels are no guide under reflection padding and holes.
        """
        if transforms.theta is None:
            return mask
        return warp_images(mask.float(), transforms.theta, "nearest", "zeros") > 0

    def mix(
        self, images: Tensor, label: Tensor, seed: int, step: int, rank: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Mixup (Zhang et al. 2018) within a batch, determined by seed, step and rank alone.

        λ is drawn from Beta(α, α) for each image and replaced by max(λ, 1 − λ), so that each image
        keeps the larger weight in its own mixture, and its box (Marzahl et al. 2019, code).

        Args:
            images: float [B, C, S, S].
            label: [B], 0 or 1.

        Returns:
            λ · x + (1 − λ) · x[partner] of images and labels, both float.
        """
        random = generator(seed, step, MIXUP_STREAM, rank)
        drawn = random.beta(self.mixup, self.mixup, len(label))
        weight = torch.from_numpy(np.maximum(drawn, 1 - drawn)).float().to(images.device)
        partner = torch.from_numpy(random.permutation(len(label))).to(images.device)
        mixed = torch.lerp(images[partner], images, weight[:, None, None, None])
        return mixed, torch.lerp(label[partner].float(), label.float(), weight)


def mask_boxes(mask: Tensor) -> Tensor:
    """Tight boxes of masks, bool [B, S, S]: float32 [B, 4], top, left, bottom, right in [-1, 1].

    Row i reaches from 2i/S − 1 to 2(i + 1)/S − 1. The box of an empty mask is the whole image.
    """
    size = mask.shape[-1]
    ends = []
    for across in (2, 1):
        occupied = mask.any(across).byte()
        # argmax is the first maximum; for zeros alone it is 0, from either end.
        ends.append((occupied.argmax(1), size - occupied.flip(1).argmax(1)))
    (top, bottom), (left, right) = ends
    return 2 * torch.stack([top, left, bottom, right], 1).float() / size - 1


def _symmetric_warp(longer: Tensor) -> Tensor:
    """Perspective from target to source in ±1, [N, 3, 3].

    Args:
        longer: fractions by which the right, left, lower and upper side are lengthened, [N, 4].
    """
    right, left, lower, upper = (1 + longer).unbind(1)
    corners = [-upper, -left, upper, -right, -lower, left, lower, right]
    moved = torch.stack(corners, 1).reshape(-1, 4, 2)
    plain = moved.new_tensor([[-1, -1], [1, -1], [-1, 1], [1, 1]]).expand_as(moved)
    return get_perspective_transform(moved, plain)


def _light(images: Tensor, light: Tensor) -> Tensor:
    summand, factor = light[..., None, None, None].unbind(1)
    return torch.sigmoid((torch.logit(images, eps=1e-7) + summand) * factor)


def _cut_out(images: Tensor, holes: Tensor) -> Tensor:
    pixel = torch.arange(images.shape[-1], device=images.device)
    top, left, bottom, right = holes[..., None].unbind(2)
    rows, columns = (top <= pixel) & (pixel < bottom), (left <= pixel) & (pixel < right)
    cut = (rows[..., :, None] & columns[..., None, :]).any(1, keepdim=True)
    return images.masked_fill(cut, 0)
