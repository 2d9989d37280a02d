"""Reading image files: C-NMC's BMPs, and BMP, PNG, TIFF and JPEG of other data sets; crops."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from leukocls.common.errors import DataFault, Fault
from leukocls.data.bmp import read_crop, read_header
from leukocls.data.index import Index

FORMATS = {"BMP": {".bmp"}, "PNG": {".png"}, "TIFF": {".tif", ".tiff"}, "JPEG": {".jpg", ".jpeg"}}
LARGEST = 8192  # px; a larger image shows a slide, not a cell, and is refused before decoding


def image_sides(index: Index) -> Iterator[tuple[Path, int | None]]:
    """Each cell's file, in the index's order, and the side in px that it must have (None: any)."""
    for file, part in zip(index.table["file"], index.table["part"], strict=True):
        yield index.root / file, index.rules.sides.get(part)


def read_image(path: Path, side: int | None = None) -> np.ndarray:
    """All pixels of an 8-bit RGB image as uint8 [H, W, 3], top row first.

    Args:
        side: the file must be a BMP of side × side pixels; None: any size and any of FORMATS.

    Raises:
        DataFault: the file is damaged, or has another format, pixel mode or size.
    """
    if side is not None:
        return read_crop(path, side, side)

    def fault(cause: str, remedy: str = "restore the file or leave it out") -> DataFault:
        return DataFault(Fault(path, cause, remedy))

    try:
        with Image.open(path) as image:
            if path.suffix.lower() not in FORMATS.get(image.format or "", set()):
                raise fault(
                    f"is {image.format} by its content",
                    "use BMP, PNG, TIFF or JPEG with the suffix of that format",
                )
            pages = getattr(image, "n_frames", 1)
            if max(image.size) > LARGEST or pages != 1:
                raise fault(
                    f"is {image.width}×{image.height} pixels, {pages} page(s)",
                    f"use one image per cell, at most {LARGEST} pixels wide",
                )
            # Pillow also opens 16 bits a channel as RGB, and cuts them to 8.
            deep = any(";16" in str(tile[-1]) for tile in image.tile)
            if image.mode != "RGB" or deep:
                mode = "RGB;16" if image.mode == "RGB" else image.mode
                raise fault(f"has the pixel mode {mode}", "save it as 8-bit RGB")
            if image.format == "BMP":
                read_header(path, None)  # Pillow accepts a truncated BMP
            return np.asarray(image)
    except DataFault:
        raise
    except Exception as error:  # Pillow's readers raise many kinds of errors on damaged files
        raise fault(f"does not decode ({error})") from error


def extent(image: np.ndarray) -> tuple[int, int, int, int]:
    """Tight box of the pixels of uint8 [H, W, 3] that are not black.

    Returns:
        Top, left, bottom, right in px, half open.

    Raises:
        ValueError: all pixels are black.
    """
    flat = image.reshape(len(image), -1)
    rows = np.flatnonzero(flat.any(1))
    columns = np.flatnonzero(flat.any(0).reshape(-1, 3).any(1))
    if not len(rows):
        raise ValueError("all pixels are black: there is no cell in it")
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def central(image: np.ndarray, crop: int) -> np.ndarray:
    """The central crop × crop pixels of uint8 [H, W, 3]; black outside the image.

    An odd margin rounds half to even.
    """
    height, width = image.shape[:2]
    return cut(image, round((height - crop) / 2), round((width - crop) / 2), crop)


def cut(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """The square of uint8 [H, W, 3] with a side of `side` px and the corner (top, left).

    Black outside the image.
    """
    square = np.zeros((side, side, 3), np.uint8)
    spans = []
    for first, length in zip((top, left), image.shape, strict=False):
        start, stop = max(first, 0), min(first + side, length)
        spans.append((slice(start, stop), slice(start - first, stop - first)))
    (rows, to_rows), (columns, to_columns) = spans
    square[to_rows, to_columns] = image[rows, columns]
    return square
