"""Warps of whole image batches by one homography each: the matrices and the sampling."""

import torch
import torch.nn.functional as F
from kornia.geometry.transform import get_affine_matrix2d
from torch import Tensor


def to_images(stored: Tensor) -> Tensor:
    """Stored uint8 [B, S, S, 3] as float32 [B, 3, S, S] in [0, 1]."""
    return stored.permute(0, 3, 1, 2).float() / 255


def rotation_matrix(angle: Tensor, shift: Tensor, size: int) -> Tensor:
    """Rotation about the image's centre, then shift, in pixels; float64 [N, 3, 3]."""
    centre = torch.full_like(shift, (size - 1) / 2)
    return get_affine_matrix2d(shift, centre, torch.ones_like(shift), angle)


def zoom_matrix(scale: Tensor, focus: Tensor) -> Tensor:
    """Target to source in ±1, [N, 3, 3]: a window 1/scale wide, at its corner for a focus of ±1."""
    matrix = torch.eye(3, dtype=torch.float64).repeat(len(scale), 1, 1)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 / scale
    matrix[:, :2, 2] = (1 - 1 / scale)[:, None] * focus
    return matrix


def to_grid(matrix: Tensor, size: int) -> Tensor:
    """Pixel homographies, source to target, as target to source in ±1; both [N, 3, 3]."""
    to_unit = torch.tensor(
        [[2 / size, 0, 1 / size - 1], [0, 2 / size, 1 / size - 1], [0, 0, 1]], dtype=torch.float64
    )
    # In double precision on the host, so that every device warps by the same numbers.
    return to_unit @ torch.linalg.inv(matrix) @ torch.linalg.inv(to_unit)


def warp_images(images: Tensor, theta: Tensor, interpolation: str, padding: str) -> Tensor:
    """Warp float images [N, C, S, S] by theta [N, 2, 3] or [N, 3, 3], target to source in ±1.

    Args:
        interpolation, padding: modes of `torch.nn.functional.grid_sample`.
    """
    grid = F.affine_grid(theta[:, :2], list(images.shape), align_corners=False)
    if theta.shape[1] == 3:
        # The same function of the last row, which comes out second, is what to divide by.
        grid = grid / F.affine_grid(theta[:, 1:], list(images.shape), align_corners=False)[..., 1:]
    return F.grid_sample(images, grid, interpolation, padding, align_corners=False)
