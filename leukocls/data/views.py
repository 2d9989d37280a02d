"""Views for test-time augmentation: rotated or enlarged copies of an image, and their weights."""

from collections.abc import Iterator

import torch
from torch import Tensor

from leukocls.common.errors import LeukoclsError
from leukocls.data.warp import rotation_matrix, to_grid, warp_images, zoom_matrix

CORNERS = "corners"
CORNER_SCALE, PLAIN_WEIGHT = 1.15, 0.4


def view_count(views: int | str) -> int:
    """The number of views: `views` itself, or nine for "corners".

    Raises:
        LeukoclsError: `views` is neither a whole number of at least 1 nor "corners".
    """
    if views == CORNERS:
        return 9
    if not isinstance(views, int) or isinstance(views, bool) or views < 1:
        raise LeukoclsError(f"views={views}: choose a whole number of 1 or more, or {CORNERS}.")
    return views


def view_weights(views: int | str) -> list[float]:
    """Weights of the views' logits, which sum to 1.

    Equal for rotations; for "corners" .4 for the image and .6 for the others (Marzahl et al. 2019).

    Raises:
        LeukoclsError: as `view_count`.
    """
    count = view_count(views)
    if views == CORNERS:
        return [PLAIN_WEIGHT] + [(1 - PLAIN_WEIGHT) / (count - 1)] * (count - 1)
    return [1 / count] * count


def view_matrices(views: int | str, size: int) -> Tensor:
    """The distinct warps of the views of images [B, C, S, S] with S = `size`, float32 [K, 2, 3].

    Each maps target to source in unit coordinates. Turns by multiples of 90° and mirror images are
    none of them, because they are exact without.

    Raises:
        LeukoclsError: as `view_count`.
    """
    count = view_count(views)
    if views == CORNERS:
        # x last: the second view is the lower left corner.
        focus = torch.tensor([(-1, -1), (-1, 1), (1, -1), (1, 1)], dtype=torch.float64)
        scale = torch.full((4,), CORNER_SCALE, dtype=torch.float64)
        return zoom_matrix(scale, focus)[:, :2].float()
    angles = [angle for angle in _angles(count) if angle]
    # Kornia's angle is clockwise.
    clockwise = -torch.tensor(angles, dtype=torch.float64)
    shift = torch.zeros(len(angles), 2, dtype=torch.float64)
    return to_grid(rotation_matrix(clockwise, shift, size), size)[:, :2].float()


def image_views(
    images: Tensor, views: int | str, matrices: Tensor | None = None
) -> Iterator[Tensor]:
    """The views of float images [B, C, S, S], each of the same shape; view 0 is the image itself.

    Args:
        views: a number n of copies, rotated anticlockwise by k · 360/n degrees about the centre,
            nearest neighbour, zero fill, not enlarged (Prellberg & Kramer 2019); or "corners": the
            image, its four corners enlarged by 1.15, and their mirror images (fastai 1's TTA as in
            Marzahl et al. 2019, without the random rotation that fastai adds to each).
        matrices: of `view_matrices`, where they are at hand already.

    Raises:
        LeukoclsError: as `view_count`.
    """
    if matrices is None:
        matrices = view_matrices(views, images.shape[-1]).to(images.device)
    if views == CORNERS:
        return _corner_views(images, matrices)
    return _rotated_views(images, view_count(views), matrices)


def _angles(count: int) -> list[float]:
    """The distinct remainders of the rotations by 90°, in degrees, in the order of the views."""
    return list(dict.fromkeys(360 * k / count % 90 for k in range(count)))


def _warped(images: Tensor, matrix: Tensor, interpolation: str, padding: str) -> Tensor:
    return warp_images(images, matrix.expand(images.shape[0], -1, -1), interpolation, padding)


def _rotated_views(images: Tensor, count: int, matrices: Tensor) -> Iterator[Tensor]:
    # Multiples of 90° are exact; the others need one warp for each distinct angle below 90°.
    matrix_of = dict(zip([angle for angle in _angles(count) if angle], matrices, strict=True))
    warped = {0.0: images}
    for k in range(count):
        quarters, angle = divmod(360 * k / count, 90)
        if angle not in warped:
            warped[angle] = _warped(images, matrix_of[angle], "nearest", "zeros")
        yield torch.rot90(warped[angle], int(quarters), (2, 3))


def _corner_views(images: Tensor, matrices: Tensor) -> Iterator[Tensor]:
    yield images
    enlarged = [_warped(images, matrix, "bilinear", "border") for matrix in matrices]
    yield from enlarged
    for view in enlarged:
        yield view.flip(3)
