"""Augmentation and views: whole batches, on the device, decided by (seed, epoch, cell) alone.

Once an epoch one row of uniform numbers is drawn for every cell of the index and turned into one
homography a cell; a batch takes its rows and is warped by one `grid_sample`. Batch size, workers,
subset and resume therefore change nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from kornia.geometry.transform import get_affine_matrix2d
from torch import Tensor

from leukocls.errors import LeukoclsError

# Streams of one (seed, epoch) key, so that the order of cells and their pixels are independent.
AUGMENT_STREAM, ORDER_STREAM = 0, 1


def generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """The one source of randomness of an epoch's data (Philox: Salmon et al., SC 2011)."""
    key = np.array([seed, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, stream]))


@dataclass(frozen=True)
class Augmentation:
    """Vertical flip, horizontal flip, then rotation and translation about the centre.

    Args:
        vertical_flip, horizontal_flip: probabilities in [0, 1].
        rotation: degrees; the angle is uniform in ±rotation, positive turns clockwise.
        translation: fraction of the side in [0, 1]; the shift is uniform in ±translation and
            rounded to whole pixels (torchvision's RandomAffine, which the paper's code uses).
        interpolation: "nearest" or "bilinear"; what comes from outside the image is 0.
    """

    vertical_flip: float = 0.0
    horizontal_flip: float = 0.0
    rotation: float = 0.0
    translation: float = 0.0
    interpolation: str = "nearest"

    def __post_init__(self) -> None:
        for name in ("vertical_flip", "horizontal_flip", "translation"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise LeukoclsError(f"augment.{name}={value}: choose a number from 0 to 1.")
        if not 0 <= self.rotation <= 180:
            raise LeukoclsError(f"augment.rotation={self.rotation}: choose 0 to 180 degrees.")
        if self.interpolation not in ("nearest", "bilinear"):
            raise LeukoclsError(
                f"augment.interpolation={self.interpolation}: choose nearest or bilinear."
            )

    @property
    def is_identity(self) -> bool:
        """Whether no image can change."""
        return not (self.vertical_flip or self.horizontal_flip or self.rotation or self.translation)

    def draw(self, seed: int, epoch: int, cells: int, size: int) -> dict[str, Tensor]:
        """What happens to each cell of an epoch.

        Returns:
            `vertical` and `horizontal`, bool [cells]; `angle`, float64 [cells] in degrees;
            `shift`, float64 [cells, 2] in pixels (x, y).
        """
        uniform = torch.from_numpy(generator(seed, epoch, AUGMENT_STREAM).random((cells, 5)))
        signed = 2 * uniform[:, 2:] - 1
        return {
            "vertical": uniform[:, 0] < self.vertical_flip,
            "horizontal": uniform[:, 1] < self.horizontal_flip,
            "angle": self.rotation * signed[:, 0],
            "shift": torch.round(self.translation * size * signed[:, 1:]),
        }

    def plan(self, seed: int, epoch: int, cells: int, size: int) -> Tensor:
        """One `affine_grid` matrix a cell, float32 [cells, 2, 3], for images of `size` pixels."""
        drawn = self.draw(seed, epoch, cells, size)
        flip = torch.eye(3, dtype=torch.float64).repeat(cells, 1, 1)
        for axis, name in ((0, "horizontal"), (1, "vertical")):
            flip[:, axis, axis] = 1 - 2 * drawn[name].double()
            flip[:, axis, 2] = (size - 1) * drawn[name].double()
        return _to_grid(_affine(drawn["angle"], drawn["shift"], size) @ flip, size)

    def __call__(self, images: Tensor, theta: Tensor) -> Tensor:
        """Warp float images [B, C, S, S] by rows [B, 2, 3] of `plan`."""
        return _warp(images, theta, self.interpolation)


def views(images: Tensor, count: int) -> Iterator[Tensor]:
    """`count` copies of float images [B, C, S, S], turned anticlockwise by k · 360/count degrees.

    About the centre, nearest neighbour, zero fill, no enlarging (Prellberg & Kramer 2019). View 0
    is the image itself; multiples of 90° are exact; the rest are turned from one warp for each
    distinct angle below 90°.
    """
    warped = {0.0: images}
    for k in range(count):
        quarters, angle = divmod(360 * k / count, 90)
        if angle not in warped:
            # Kornia's angle is clockwise.
            matrix = _affine(
                torch.tensor([-angle], dtype=torch.float64),
                torch.zeros(1, 2, dtype=torch.float64),
                images.shape[-1],
            )
            theta = _to_grid(matrix, images.shape[-1]).to(images.device)
            warped[angle] = _warp(images, theta.expand(len(images), -1, -1), "nearest")
        yield torch.rot90(warped[angle], int(quarters), (2, 3))


def _affine(angle: Tensor, shift: Tensor, size: int) -> Tensor:
    """Rotation about the image's centre, then shift, in pixels; float64 [N, 3, 3]."""
    centre = torch.full_like(shift, (size - 1) / 2)
    return get_affine_matrix2d(shift, centre, torch.ones_like(shift), angle)


def _to_grid(matrix: Tensor, size: int) -> Tensor:
    """Pixel homographies, source to target [N, 3, 3], as `affine_grid` wants them [N, 2, 3]."""
    to_unit = torch.tensor(
        [[2 / size, 0, 1 / size - 1], [0, 2 / size, 1 / size - 1], [0, 0, 1]], dtype=torch.float64
    )
    # In double precision on the host, so that every device warps by the same numbers.
    theta = to_unit @ torch.linalg.inv(matrix) @ torch.linalg.inv(to_unit)
    return theta[:, :2].float()


def _warp(images: Tensor, theta: Tensor, interpolation: str) -> Tensor:
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, interpolation, "zeros", align_corners=False)
