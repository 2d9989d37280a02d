"""Features of one cell, measured without a network: size, outline, colour and texture.

Each function takes one image, uint8 [H, W, 3] RGB whose background is exactly 0, and returns finite
floats by name. Only the cell's tight box is used, so the place of the cell changes nothing.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import fft
from scipy.spatial import ConvexHull
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import (
    label,
    moments_central,
    moments_hu,
    moments_normalized,
    perimeter_crofton,
)
from tqdm import tqdm

from leukocls.common.errors import DataFault, Fault
from leukocls.data.images import read_image
from leukocls.data.names import FEATURE_KINDS

VERSION = 1  # raise it whenever the same image would give other values

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Features = dict[str, float]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
GREY_LEVELS = 16
GLCM_DISTANCES = (1, 4)  # px
LBP_POINTS, LBP_RADIUS = 8, 2
# Edges in cycles per px: an octave each, from the slow drift of stain to the noise of pixels.
BANDS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
SPOT_PX = 4.0  # sigma of the spot detector, about the radius of a nucleolus
SPOT_SDS = 1.0  # height of a spot above its surroundings, in SDs of the cell's green


def tight(image: Image) -> tuple[Image, Mask]:
    """The pixels of the cell's tight box, uint8 [h, w, 3], and its foreground mask, bool [h, w].

    Raises:
        ValueError: all pixels are 0.
    """
    # Five times as fast as image.any(2).
    foreground = (image[..., 0] | image[..., 1] | image[..., 2]) > 0
    rows, columns = np.flatnonzero(foreground.any(1)), np.flatnonzero(foreground.any(0))
    if not rows.size:
        raise ValueError("is all black: there is no cell in it")
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return image[box], foreground[box]


def size(image: Image) -> Features:
    """Area in px², its logarithm, and the longer and the shorter side of the tight box in px."""
    _, shape = tight(image)
    area = float(shape.sum())
    return {
        "area": area,
        "log_area": float(np.log(area)),
        "box_long": float(max(shape.shape)),
        "box_short": float(min(shape.shape)),
    }


def mask(image: Image) -> Features:
    """Shape of the foreground mask: `area` in px², `perimeter` in px, the others without a unit.

    `hu_*` are the first four moment invariants (Hu 1962): compactness, elongation, and two of
    asymmetry. `solidity` is the area divided by that of its convex hull.
    """
    _, shape = tight(image)
    area, length = float(shape.sum()), float(perimeter_crofton(np.pad(shape, 1)))
    central = moments_central(shape, order=3)
    moments = moments_hu(moments_normalized(central))
    long, short = _axes(central)
    return {
        "area": area,
        "perimeter": length,
        "circularity": 4 * np.pi * area / max(length, 1.0) ** 2,
        "axis_ratio": short / long,
        "solidity": area / _hull_area(shape),
        "extent": area / shape.size,
        **{f"hu_{k + 1}": float(moments[k]) for k in range(4)},
    }


def _axes(central: Floats) -> tuple[float, float]:
    """Longer and shorter axis in px of the ellipse with the mask's second moments.

    Args:
        central: central moments of the mask; 1/12 is added as the variance within a pixel.
    """
    covariance = np.array([[central[2, 0], central[1, 1]], [central[1, 1], central[0, 2]]])
    variances = np.linalg.eigvalsh(covariance / central[0, 0] + np.eye(2) / 12)
    short, long = 4 * np.sqrt(variances)
    return float(long), float(short)


def _hull_area(shape: Mask) -> float:
    """Exact area in px² of the convex hull of the mask's pixels, taken as unit squares."""
    rows = np.flatnonzero(shape.any(1))
    first = shape[rows].argmax(1)
    last = shape.shape[1] - shape[rows, ::-1].argmax(1)
    y, x = np.concatenate([rows, rows + 1] * 2), np.concatenate([first, first, last, last])
    return float(ConvexHull(np.column_stack([y, x])).volume)


def colour(image: Image) -> Features:
    """Mean, SD and quantiles of each channel over the foreground, in [0, 255]."""
    box, shape = tight(image)
    features: Features = {}
    for name, values in zip(("red", "green", "blue"), box[shape].T, strict=True):
        features[f"{name}_mean"] = float(values.mean())
        features[f"{name}_sd"] = float(values.std())
        for q, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True):
            features[f"{name}_q{100 * q:02.0f}"] = float(value)
    return features


def handcrafted(image: Image) -> Features:
    """Features that haematologists use: size, outline, nucleus and cytoplasm, chromatin, nucleoli.

    All but size and outline come from the green channel, which the nuclear stain absorbs most.
    Texture is measured after standardising green by the cell's own mean and SD, so that a stronger
    stain does not look like another chromatin.
    """
    box, shape = tight(image)
    green = box[..., 1]
    inside = green[shape]
    mean, sd = float(inside.mean()), float(inside.std())
    grey = np.where(shape, (green - mean) / (sd or 1.0), 0.0)
    nucleus = shape & (green <= threshold_otsu(inside))
    n, whole = int(nucleus.sum()), int(shape.sum())
    return {
        **size(image),
        **mask(image),
        # Half a pixel each keeps the logarithm finite if Otsu's threshold separates nothing.
        "log_nucleus_to_cytoplasm": float(np.log((n + 0.5) / (whole - n + 0.5))),
        "green_variation": sd / (mean or 1.0),
        **_cooccurrence(grey, shape),
        **_binary_patterns(green, shape),
        **_spectrum(grey),
        **_spots(grey, shape, nucleus),
    }


def _cooccurrence(grey: Floats, shape: Mask) -> Features:
    """Haralick's texture features (1973): 16 grey levels over ±2 SD, mean over four directions."""
    levels = np.clip((grey + 2) * GREY_LEVELS / 4, 0, GREY_LEVELS - 1).astype(np.uint8) + 1
    counts = graycomatrix(
        np.where(shape, levels, 0).astype(np.uint8),
        GLCM_DISTANCES,
        np.arange(4) * np.pi / 4,
        levels=GREY_LEVELS + 1,
        symmetric=True,
    )
    # Level 0 is the background, which is left out.
    counts = counts[1:, 1:]
    return {
        f"glcm_{name}_{distance}": float(value)
        for name in ("contrast", "homogeneity", "energy", "correlation")
        for distance, value in zip(GLCM_DISTANCES, graycoprops(counts, name).mean(1), strict=True)
    }


def _binary_patterns(green: Image, shape: Mask) -> Features:
    """Shares of the ten rotation-invariant uniform local binary patterns (Ojala et al. 2002)."""
    patterns = local_binary_pattern(green, LBP_POINTS, LBP_RADIUS, method="uniform")
    counts = np.bincount(patterns[shape].astype(np.int64), minlength=LBP_POINTS + 2)
    return {f"lbp_{k}": float(share) for k, share in enumerate(counts / shape.sum())}


def _spectrum(grey: Floats) -> Features:
    """Logarithm of the share of power in each octave of spatial frequency, coarse ones first."""
    sides = [fft.next_fast_len(side) for side in grey.shape]
    power = np.abs(fft.fft2(grey, sides)) ** 2
    frequency = np.hypot(fft.fftfreq(sides[0])[:, None], fft.fftfreq(sides[1]))
    band = np.searchsorted(BANDS, frequency.ravel())
    totals = np.bincount(band, power.ravel(), minlength=len(BANDS) + 1)
    shares = totals[1:-1] / (totals.sum() or 1.0)
    return {
        f"power_{1 / high:.0f}_{1 / low:.0f}px": float(np.log(share + 1e-9))
        for low, high, share in zip(BANDS[:-1], BANDS[1:], shares, strict=True)
    }


def _spots(grey: Floats, shape: Mask, nucleus: Mask) -> Features:
    """Bright spots, as nucleoli are: their number, share of the nucleus, and mean height in SDs."""
    fine, coarse = (gaussian(grey, SPOT_PX * k, mode="constant") for k in (0.5, 2))
    weight = gaussian(shape.astype(np.float64), 2 * SPOT_PX, mode="constant")
    height = fine - coarse
    # Spots near the rim do not count: their surroundings are background or bright cytoplasm.
    spots = (height > SPOT_SDS) & (weight > 0.95)
    return {
        "spots": float(label(spots).max()),
        "spots_share": float(spots.sum() / nucleus.sum()),
        "spots_height": float(height[spots].mean()) if spots.any() else 0.0,
    }


KINDS: dict[str, Callable[[Image], Features]] = dict(
    zip(FEATURE_KINDS, (size, mask, colour, handcrafted), strict=True)
)


def _file_features(path: Path, kind: str) -> Features:
    image = read_image(path)
    try:
        return KINDS[kind](image)
    except ValueError as error:
        fault = Fault(path, str(error), "fetch the file again or leave it out")
        raise DataFault(fault) from error


def extract(paths: Sequence[Path], kind: str) -> pd.DataFrame:
    """Features of `kind` (a key of KINDS), float64: one row for each path, in the same order.

    Raises:
        DataFault: a file cannot be read or is all black.
    """
    # Processes, because most of scikit-image holds the GIL.
    pool: Any = Parallel(n_jobs=len(os.sched_getaffinity(0)), return_as="generator")
    rows = pool(delayed(_file_features)(path, kind) for path in paths)
    bar = tqdm(rows, "features", len(paths), unit="image", disable=None, leave=False)
    return pd.DataFrame(bar)
