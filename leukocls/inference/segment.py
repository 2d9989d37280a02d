"""Cut a stained cell out of its background, by classical means.

C-NMC's cells lie on black, and networks that were trained on them know nothing else. The steps are
those of many leukocyte papers: a stain threshold, the component in the middle, its holes filled.
`benchmarks/segment.py` measures them on genuine cells that were pasted on drawn backgrounds.
"""

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import disk

SMOOTH = 2.0  # px, of the Gaussian before the threshold
OPENING = 5  # px, radius: narrower bridges to what touches the cell are cut
REACH = 0.25  # of the image's side: the cell comes so near to the middle
CONTRAST = 0.15  # saturation of the cell less that of all else; with less it is noise
SMALLEST = 0.004  # of the image's area: at 450 pixels a cell of 32 across


def segmented(image: np.ndarray) -> np.ndarray:
    """The cell in the middle of uint8 [H, W, 3] on black.

    The stain is measured by saturation, which is high in nuclei and low in the background and, in
    Wright's and Giemsa's stains, in red cells; Otsu's threshold.

    Raises:
        ValueError: no stained component of a cell's size near the middle.
    """
    mask = cell_mask(image)
    return np.where(mask[..., None], image, 0).astype(np.uint8)


def cell_mask(image: np.ndarray) -> np.ndarray:
    """The pixels of the cell in the middle, bool [H, W]; raises as `segmented`."""
    height, width = image.shape[:2]
    colours = image.astype(np.float32)
    most, least = colours.max(2), colours.min(2)
    # Differences of dark pixels are noise: black has no saturation.
    saturation = (most - least) / np.maximum(most, 32)
    smooth = ndimage.gaussian_filter(saturation, SMOOTH)
    stained = smooth > threshold_otsu(smooth)
    opened = ndimage.binary_opening(stained, disk(OPENING))
    labels, number = ndimage.label(opened)
    sizes = ndimage.sum_labels(opened, labels, range(1, number + 1))
    rows, columns = np.indices((height, width))
    # Far from the middle a component has to be larger to be the cell that the image shows.
    far = np.hypot((rows - height / 2) / height, (columns - width / 2) / width)
    nearest = ndimage.minimum(far, labels, range(1, number + 1)) if number else []
    worth = [
        size * max(0.0, 1 - distance / REACH) if size >= SMALLEST * height * width else 0.0
        for size, distance in zip(np.atleast_1d(sizes), np.atleast_1d(nearest), strict=True)
    ]
    found: np.ndarray = labels == 1 + int(np.argmax(worth or [0]))
    if not any(worth) or saturation[found].mean() - saturation[~found].mean() < CONTRAST:
        raise ValueError("there is no stained cell in the middle of it")
    filled: np.ndarray = ndimage.binary_fill_holes(found)
    return filled
