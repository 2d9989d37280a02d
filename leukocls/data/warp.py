"""Warps of image batches, one homography for each image: the matrices and the sampling.

Unit coordinates: the image's outer edges are −1 and 1.
"""

import torch
import torch.nn.functional as F
from kornia.geometry.transform import get_affine_matrix2d
from torch import Tensor


def to_images(stored: Tensor) -> Tensor:
    """Stored uint8 [B, S, S, 3] as float32 [B, 3, S, S] in [0, 1]."""
    return stored.permute(0, 3, 1, 2).float() / 255


def rotation_matrix(angle: Tensor, shift: Tensor, size: int) -> Tensor:
    """Rotation about the image's centre, then shift: source to target in px, float64 [N, 3, 3].

    Args:
        angle: degrees, positive clockwise, float64 [N].
        shift: px (x, y), float64 [N, 2].
        size: side of the image in px.
    """
    centre = torch.full_like(shift, (size - 1) / 2)
    return get_affine_matrix2d(shift, centre, torch.ones_like(shift), angle)


def zoom_matrix(scale: Tensor, focus: Tensor) -> Tensor:
    """Enlargement of a window of the image: target to source in unit coordinates, [N, 3, 3].

    Args:
        scale: factor of at least 1, [N]; a smaller one shrinks the image, about `focus` 0.
        focus: place of the window (x, y), −1 to 1 from edge to edge of the image, [N, 2].
    """
    matrix = torch.eye(3, dtype=torch.float64).repeat(len(scale), 1, 1)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 / scale
    matrix[:, :2, 2] = (1 - 1 / scale)[:, None] * focus
    return matrix


def to_grid(matrix: Tensor, size: int) -> Tensor:
    """Pixel homographies from source to target as unit ones from target to source, [N, 3, 3]."""
    to_unit = torch.tensor(
        [[2 / size, 0, 1 / size - 1], [0, 2 / size, 1 / size - 1], [0, 0, 1]], dtype=torch.float64
    )
    # In double precision on the CPU, so that every device warps by the same numbers.
    return to_unit @ torch.linalg.inv(matrix) @ torch.linalg.inv(to_unit)


def warp_images(images: Tensor, theta: Tensor, interpolation: str, padding: str) -> Tensor:
    """Warp float images [N, C, S, S].

    Args:
        theta: target to source in unit coordinates, [N, 2, 3] or [N, 3, 3].
        interpolation, padding: modes of `torch.nn.functional.grid_sample`.
    """
    grid = F.affine_grid(theta[:, :2], list(images.shape), align_corners=False)
    if theta.shape[1] == 3:
        # The divisor is the last row of theta at each pixel: the second output of this call.
        grid = grid / F.affine_grid(theta[:, 1:], list(images.shape), align_corners=False)[..., 1:]
    return F.grid_sample(images, grid, interpolation, padding, align_corners=False)
