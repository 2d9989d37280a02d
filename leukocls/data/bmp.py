"""Reading of uncompressed 24-bit BMP files, the format of C-NMC 2019: only the rows of a crop.

Pillow would decode the whole image, and accepts a truncated file.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leukocls.common.errors import DataFault, Fault

# BITMAPFILEHEADER + the head of BITMAPINFOHEADER (Microsoft, Windows GDI reference).
_HEADER = struct.Struct("<2sIHHI IiiHHII")
_REMEDY = "fetch the file again from the original archive"
_OWN_REMEDY = "restore the file or leave it out"  # of data sets other than C-NMC


@dataclass(frozen=True)
class BmpHeader:
    """Geometry of a BMP: `width` and `height` in px, `offset` of the pixels and `stride` in bytes.

    `stride` is the length of a row of pixels with its padding.
    """

    width: int
    height: int
    offset: int
    stride: int
    top_down: bool


def read_header(path: Path, side: int | None) -> BmpHeader:
    """The header of a BMP, checked to be uncompressed and untruncated; no pixel is decoded.

    Args:
        side: width and height in px that the image must have, with 24 bits a pixel; None: any
            size, and 8, 24 or 32 bits.

    Raises:
        DataFault: the file is not such a BMP.
    """

    def fault(cause: str) -> DataFault:
        return DataFault(Fault(path, cause, _OWN_REMEDY if side is None else _REMEDY))

    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            head = stream.read(_HEADER.size)
    except OSError as error:
        raise fault(f"cannot be read ({error.strerror})") from error
    if size == 0:
        raise fault("is empty (0 bytes)")
    if len(head) < _HEADER.size or head[:2] != b"BM":
        raise fault(f"is not a BMP image (starts with {head[:8]!r})")
    _, stated, _, _, offset, _, width, height, _, bits, compression, _ = _HEADER.unpack(head)
    # 3 names the order of the channels in 32 bits, and compresses nothing.
    if bits not in ((24,) if side else (8, 24, 32)) or compression not in (0, 3 * (bits == 32)):
        raise fault(
            f"is not an uncompressed 8-bit RGB BMP ({bits} bits a pixel, compression {compression})"
        )
    if side is not None and (width, abs(height)) != (side, side):
        raise fault(f"is {width}×{abs(height)} pixels, not {side}×{side}")
    stride = (bits // 8 * width + 3) // 4 * 4
    whole = offset + stride * abs(height)
    if not size == stated == whole:
        raise fault(
            f"is {size:,} bytes long, its header says {stated:,} and its pixels need {whole:,}"
        )
    return BmpHeader(width, abs(height), offset, stride, height < 0)


def read_crop(path: Path, side: int, crop: int) -> np.ndarray:
    """The central `crop` × `crop` pixels as uint8 [crop, crop, 3], RGB, top row first.

    An odd margin rounds half to even, as in torchvision's CenterCrop.

    Args:
        side: width and height in px that the image must have.

    Raises:
        DataFault: as `read_header`; or the file ended while it was read.
    """
    header = read_header(path, side)
    first = round((side - crop) / 2)
    # A bottom-up BMP stores its last row first.
    start = first if header.top_down else side - first - crop
    rows = np.empty((crop, header.stride), np.uint8)
    with open(path, "rb", buffering=0) as stream:
        read = os.preadv(stream.fileno(), [rows.data], header.offset + start * header.stride)
    if read != rows.nbytes:
        raise DataFault(Fault(path, "ended while it was read", _REMEDY))
    pixels = rows[:, 3 * first : 3 * (first + crop)].reshape(crop, crop, 3)
    if not header.top_down:
        pixels = pixels[::-1]
    image = np.empty((crop, crop, 3), np.uint8)
    # BGR to RGB, one channel at a time: four times as fast as one copy with a negative stride.
    for channel in range(3):
        image[..., channel] = pixels[..., 2 - channel]
    return image
