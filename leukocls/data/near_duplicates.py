"""Near-duplicates: two images of one cell that was photographed, normalised or segmented again.

Their pixels differ, so digests cannot find them. Candidates have similar thumbnails; they are
confirmed on the images themselves.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from leukocls.common.files import in_parallel

THUMBNAIL = 24  # px, side
COARSE = 6  # px, side of the image by which most pairs are excluded
TURNS = 8  # quarter turns, and those of the mirrored image
SIDES_PX = 4  # by which the sides of two tight boxes may differ
BLOCK = 512  # cells that are compared with others at a time, which bounds the memory
MOST = 2  # candidates for each cell, on average, that are looked at; C-NMC has .1
LEAST_OVERLAP = 0.9  # of the two cells' areas: intersection over union
SHIFT = 3  # px of the halved image by which the second cell may be moved
FINE, SLOW = 1.0, 6.0  # px of the halved image: the details that are compared are between them


class Limits(NamedTuple):
    """Similarity from which two images show one cell: thumbnails' cosine, details' correlation."""

    cosine: float
    correlation: float


# Measured on folds 0 and 1 of C-NMC (7,108 images): `benchmarks/near_duplicates.py`.
SEGMENTED = Limits(0.985, 0.55)
# Images with a background are alike in every cell's outline, so that only copies count.
WITH_BACKGROUND = Limits(0.998, 0.97)
LEAST_BLACK = 0.04  # share of black pixels in a segmented cell's thumbnail; a disc leaves a fifth


class Pair(NamedTuple):
    """Two images of one cell: rows of the index, and how well the images agree."""

    first: int
    second: int
    correlation: float
    overlap: float


def thumbnail(tight: np.ndarray) -> np.ndarray:
    """Area average of a tight crop, uint8 [THUMBNAIL, THUMBNAIL, 3].

    Args:
        tight: uint8 [H, W, 3].
    """
    small = Image.fromarray(np.ascontiguousarray(tight))
    return np.asarray(small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def near_duplicates(
    thumbnails: np.ndarray,
    sides: np.ndarray,
    pixels: np.ndarray,
    tight: Callable[[int], np.ndarray],
) -> list[Pair]:
    """All pairs of images of one cell, but for those with the same pixels.

    Of more than MOST candidates for each cell on average, as images with the same frame around all
    cells may give, only the most similar ones are looked at.

    Args:
        thumbnails: uint8 [N, THUMBNAIL, THUMBNAIL, 3], as `thumbnail` makes them.
        sides: height and width of the tight crops in px, [N, 2].
        pixels: digests of the tight crops, str [N].
        tight: gives the tight crop of a row, uint8 [H, W, 3].
    """
    segmented = (thumbnails.max(-1) == 0).mean((1, 2)) >= LEAST_BLACK

    def limits(first: int, second: int) -> Limits:
        return SEGMENTED if segmented[first] and segmented[second] else WITH_BACKGROUND

    def measured(candidate: tuple[int, int, float, int]) -> Pair | None:
        first, second, _, turn = candidate
        least = limits(first, second).correlation
        correlation, overlap = agreement(tight(first), turned(tight(second), turn))
        alike = correlation >= least and overlap >= LEAST_OVERLAP
        return Pair(first, second, correlation, overlap) if alike else None

    found = [
        candidate
        for candidate in candidates(thumbnails, sides)
        if candidate[2] >= limits(*candidate[:2]).cosine
        and pixels[candidate[0]] != pixels[candidate[1]]
    ]
    found = sorted(found, key=lambda candidate: -candidate[2])[: MOST * len(thumbnails)]
    return [pair for pair in in_parallel(measured, found, len(found), "compare") if pair]


def candidates(thumbnails: np.ndarray, sides: np.ndarray) -> Iterator[tuple[int, int, float, int]]:
    """Pairs of rows whose thumbnails and sides agree, the cosine, and the turn of the second.

    Args:
        thumbnails, sides: as `near_duplicates`.
    """
    best: dict[tuple[int, int], tuple[float, int]] = {}
    own = _coarse(thumbnails)
    by_height = np.argsort(sides[:, 0], kind="stable")
    for turn in range(TURNS):
        turned_sides = sides[:, ::-1] if turn % 2 else sides
        order = np.argsort(turned_sides[:, 0], kind="stable")
        others = _coarse(turned(thumbnails, turn))[order]
        for start in range(0, len(by_height), BLOCK):
            rows = by_height[start : start + BLOCK]
            tallest = sides[rows[[0, -1]], 0] + [-SIDES_PX, SIDES_PX + 1]
            low, high = np.searchsorted(turned_sides[order, 0], tallest)
            for at in range(low, high, 8 * BLOCK):
                stop = min(at + 8 * BLOCK, high)
                a, b = np.nonzero(own[rows] @ others[at:stop].T > SEGMENTED.cosine)
                first, second = rows[a], order[at + b]
                near = np.abs(sides[first] - turned_sides[second]).max(1, initial=0) <= SIDES_PX
                near &= first < second
                for some in np.array_split(np.flatnonzero(near), -(-near.sum() // BLOCK) or 1):
                    a, b = first[some], second[some]
                    cosine = _cosine(thumbnails[a], turned(thumbnails[b], turn))
                    for i in np.flatnonzero(cosine > SEGMENTED.cosine):
                        pair, value = (int(a[i]), int(b[i])), float(cosine[i])
                        if value > best.get(pair, (0.0, 0))[0]:
                            best[pair] = value, turn
    for (row, other), (value, turn) in sorted(best.items()):
        yield row, other, value, turn


def turned(images: np.ndarray, turn: int) -> np.ndarray:
    """Images [..., H, W, 3] after `turn % 4` quarter turns; mirrored first if `turn` is above 3."""
    return np.rot90(images[..., ::-1, :] if turn > 3 else images, turn % 4, axes=(-3, -2))


def agreement(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Correlation and overlap of two tight crops, at the shift where they correlate best.

    The second is moved by up to 2 · SHIFT px. Only details between a few pixels and a tenth of a
    cell are compared: coarser ones are alike in most cells, finer ones depend on the focus.

    Args:
        first, second: uint8 [H, W, 3].

    Returns:
        Correlation of the brightness of the pixels that both cells cover, and the overlap of the
        two cells' areas (intersection over union).
    """
    from scipy import fft

    (a, mask_a), (b, mask_b) = _details(first), _details(second)
    size = [fft.next_fast_len(max(n, m) + SHIFT) for n, m in zip(a.shape, b.shape, strict=True)]

    def spectrum(image: np.ndarray) -> np.ndarray:
        return np.asarray(fft.rfft2(image, size))

    def moved(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Sum of the products of two images, for each shift of the second."""
        sums = np.roll(fft.irfft2(one * other.conj(), size), (SHIFT, SHIFT), (0, 1))
        return sums[: 2 * SHIFT + 1, : 2 * SHIFT + 1]

    inside_a, inside_b = spectrum(mask_a), spectrum(mask_b)
    squares = moved(spectrum(a**2), inside_b) * moved(inside_a, spectrum(b**2))
    correlation = moved(spectrum(a), spectrum(b)) / np.sqrt(np.maximum(squares, 1e-6))
    at = np.unravel_index(correlation.argmax(), correlation.shape)
    both = moved(inside_a, inside_b)[at]
    return float(correlation[at]), float(both / (mask_a.sum() + mask_b.sum() - both))


def _details(tight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brightness of the halved image between two blurs, and the mask of the cell, float32."""
    from scipy.ndimage import gaussian_filter

    image = np.asarray(Image.fromarray(np.ascontiguousarray(tight)).reduce(2))
    mask = (image.max(-1) > 0).astype(np.float32)
    bright = image.mean(-1, dtype=np.float32) * mask

    def blurred(sigma: float) -> np.ndarray:
        inside = gaussian_filter(mask, sigma, mode="constant")
        return gaussian_filter(bright, sigma, mode="constant") / np.maximum(inside, 1e-3)

    return (blurred(FINE) - blurred(SLOW)) * mask, mask


def _unit(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails as rows of mean 0 and length 1, float32 [N, THUMBNAIL² · 3]."""
    flat = thumbnails.reshape(len(thumbnails), 3 * THUMBNAIL**2).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.maximum(length, 1e-6)


def _cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each pair of thumbnails after their means are removed, float32 [N]."""
    return np.einsum("nd,nd->n", _unit(first), _unit(second))


def _coarse(thumbnails: np.ndarray) -> np.ndarray:
    """Vectors whose products are upper limits of the thumbnails' cosines, float32 [N, D].

    A vector holds the block means of a thumbnail, and the length of what they leave out: by
    Cauchy-Schwarz, the product of two such lengths limits what the finer parts can add.
    """
    step = THUMBNAIL // COARSE
    rows = []
    for start in range(0, len(thumbnails), BLOCK):
        unit = _unit(thumbnails[start : start + BLOCK])
        blocks = unit.reshape(len(unit), COARSE, step, COARSE, step, 3).sum((2, 4)) / step
        means = blocks.reshape(len(unit), -1)
        # Of a uniform image nothing is left either: it is similar to none.
        whole = (unit**2).sum(1, keepdims=True)
        left = np.sqrt(np.maximum(whole - (means**2).sum(1, keepdims=True), 0))
        rows.append(np.hstack([means, left]))
    return np.concatenate(rows)
