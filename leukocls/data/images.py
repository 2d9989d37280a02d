"""Reading image files: C-NMC's BMPs, and BMP, PNG, TIFF and JPEG of other data sets; crops."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from leukocls.common.errors import DataFault, Fault
from leukocls.data.bmp import read_crop, read_header
from leukocls.data.index import Index

FORMATS = {"BMP": {".bmp"}, "PNG": {".png"}, "TIFF": {".tif", ".tiff"}, "JPEG": {".jpg", ".jpeg"}}
LARGEST = 8192  # px; a larger image shows a slide, not a cell, and is refused before decoding
# Pillow's modes that are read, in words. Those of 16 bits a channel become 8-bit by their upper
# byte, as Pillow reads 16-bit RGB.
MODES = {"RGB": "RGB", "RGBA": "RGB with alpha", "L": "grey", "LA": "grey with alpha"}
GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N")
RESTORE = "restore the file or leave it out"
DIMMEST = 64  # of 255: 16-bit files with 14 bits or fewer in use stay below it


def image_sides(index: Index) -> Iterator[tuple[Path, int | None]]:
    """Each cell's file, in the index's order, and the side in px that it must have (None: any)."""
    for file, part in zip(index.table["file"], index.table["part"], strict=True):
        yield index.root / file, index.rules.sides.get(part)


def read_image(path: Path, side: int | None = None) -> np.ndarray:
    """All pixels of an image as uint8 [H, W, 3], top row first: see `read_with_form`."""
    return read_with_form(path, side)[0]


def read_with_form(path: Path, side: int | None = None) -> tuple[np.ndarray, str]:
    """All pixels of an image as uint8 [H, W, 3], top row first, and the form they had before.

    Grey values are repeated in the three channels, an opaque alpha channel is dropped, and of 16
    bits the upper 8 are kept (value // 256).

    Args:
        side: the file must be an 8-bit RGB BMP of side × side pixels; None: any size, any of
            FORMATS and MODES.

    Returns:
        The pixels, and "" or the form that was converted to 8-bit RGB, such as "16-bit grey".

    Raises:
        DataFault: the file is damaged, or has another format, pixel mode or size; transparent
            pixels; or 16 bits of which the upper two are not used.
    """
    if side is not None:
        return read_crop(path, side, side), ""

    try:
        with Image.open(path) as image:
            if path.suffix.lower() not in FORMATS.get(image.format or "", set()):
                raise _fault(
                    path,
                    f"is {image.format} by its content",
                    "use BMP, PNG, TIFF or JPEG with the suffix of that format",
                )
            pages = getattr(image, "n_frames", 1)
            if max(image.size) > LARGEST or pages != 1:
                raise _fault(
                    path,
                    f"is {image.width}×{image.height} pixels, {pages} page(s)",
                    f"use one image per cell, at most {LARGEST} pixels wide",
                )
            return _decoded(image, path)
    except DataFault:
        raise
    except UnidentifiedImageError as error:  # whose text would repeat the path
        raise _fault(path, "does not decode (no image of a known format)") from error
    except Exception as error:  # Pillow's readers raise many kinds of errors on damaged files
        if isinstance(error, OSError) and error.errno:  # the system's, as of a missing permission
            raise _fault(path, f"cannot be read ({error.strerror})") from error
        raise _fault(path, f"does not decode ({error})") from error


def _decoded(image: ImageFile, path: Path) -> tuple[np.ndarray, str]:
    """As `read_with_form`, of one image that Pillow has opened."""
    deep = any(";16" in str(tile[-1]) for tile in image.tile)
    mode = "L" if image.mode in GREY_16 else image.mode
    # Pillow does not invert 16-bit TIFF files in which white is 0 (tag 262).
    inverted = deep and getattr(image, "tag_v2", {}).get(262) == 0
    if mode not in MODES or inverted:
        kind = "values in which white is 0" if inverted else f"the pixel mode {mode}"
        raise _fault(path, f"has {kind}", "save it as 8-bit RGB")
    if image.format == "BMP":
        read_header(path, None)  # Pillow accepts a truncated BMP
    form = "16-bit " * deep + MODES[mode]
    pixels = np.asarray(image)
    if image.mode in GREY_16:
        pixels = (pixels >> 8).astype(np.uint8)
    if mode in ("RGBA", "LA"):
        if pixels[..., -1].min() < 255:
            raise _fault(path, "has transparent pixels", "put it on black and save it as RGB")
        pixels = pixels[..., :-1]
    if deep and pixels.max() < DIMMEST:
        raise _fault(
            path,
            f"is 16-bit, and no value reaches {256 * DIMMEST:,} of 65,535",
            "scale it to all 16 bits, or save it as 8-bit RGB",
        )
    if mode in ("L", "LA"):
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(pixels), "" if form == "RGB" else form


def _fault(path: Path, cause: str, remedy: str = RESTORE) -> DataFault:
    return DataFault(Fault(path, cause, remedy))


def extent(image: np.ndarray) -> tuple[int, int, int, int]:
    """Tight box of the pixels of uint8 [H, W, 3] that are not black.

    Returns:
        Top, left, bottom, right in px, half open.

    Raises:
        ValueError: all pixels are black.
    """
    flat = image.reshape(len(image), -1)
    # The largest value is found twice as fast as whether any is not zero.
    rows = np.flatnonzero(flat.max(1, initial=0))
    columns = np.flatnonzero(flat.max(0, initial=0).reshape(-1, 3).max(1, initial=0))
    if not len(rows):
        raise ValueError("all pixels are black: there is no cell in it")
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def central(image: np.ndarray, crop: int) -> np.ndarray:
    """The central crop × crop pixels of uint8 [H, W, 3]; black outside the image.

    An odd margin rounds half to even.
    """
    height, width = image.shape[:2]
    return cut(image, round((height - crop) / 2), round((width - crop) / 2), crop)


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """Square uint8 [S, S, 3] scaled to side × side px: Pillow, bilinear with antialiasing."""
    if len(image) == side:
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def around_cell(image: np.ndarray) -> np.ndarray:
    """The smallest square of uint8 [H, W, 3] around the box of its cell, black outside the image.

    Raises:
        ValueError: all pixels are black.
    """
    top, left, bottom, right = extent(image)
    side = max(bottom - top, right - left)
    return cut(image, (top + bottom - side) // 2, (left + right - side) // 2, side)


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
