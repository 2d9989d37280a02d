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


def image_views(images: Tensor, views: int | str) -> Iterator[Tensor]:
    """The views of float images [B, C, S, S], each of the same shape; view 0 is the image itself.

    Args:
        views: a number n of copies, rotated anticlockwise by k · 360/n degrees about the centre,
            nearest neighbour, zero fill, not enlarged (Prellberg & Kramer 2019); or "corners": the
            image, its four corners enlarged by 1.15, and their mirror images (fastai 1's TTA as in
            Marzahl et al. 2019, without the random rotation that fastai adds to each).

    Raises:
        LeukoclsError: as `view_count`.
    """
    count = view_count(views)
    return _corner_views(images) if views == CORNERS else _rotated_views(images, count)


def _rotated_views(images: Tensor, count: int) -> Iterator[Tensor]:
    # Multiples of 90° are exact; the others need one warp for each distinct angle below 90°.
    warped = {0.0: images}
    for k in range(count):
        quarters, angle = divmod(360 * k / count, 90)
        if angle not in warped:
            # Kornia's angle is clockwise.
            matrix = rotation_matrix(
                torch.tensor([-angle], dtype=torch.float64),
                torch.zeros(1, 2, dtype=torch.float64),
                images.shape[-1],
            )
            theta = to_grid(matrix, images.shape[-1])[:, :2].float().to(images.device)
            warped[angle] = warp_images(
                images, theta.expand(len(images), -1, -1), "nearest", "zeros"
            )
        yield torch.rot90(warped[angle], int(quarters), (2, 3))


def _corner_views(images: Tensor) -> Iterator[Tensor]:
    yield images
    scale = torch.tensor([CORNER_SCALE], dtype=torch.float64)
    enlarged = []
    # x last: the second view is the lower left corner.
    for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        theta = zoom_matrix(scale, torch.tensor([[x, y]], dtype=torch.float64))[:, :2].float()
        theta = theta.to(images.device).expand(len(images), -1, -1)
        enlarged.append(warp_images(images, theta, "bilinear", "border"))
    yield from enlarged
    for view in enlarged:
        yield view.flip(3)
