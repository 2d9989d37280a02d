"""The store: every image decoded once into one uint8 array on disk, and what identifies the data.

Keyed by the digest of the source files, so a changed file makes another store; written to a
temporary name and renamed, so a store that exists is whole.
"""

import hashlib
import os
import uuid
from pathlib import Path

import numpy as np
from PIL import Image

from leukocls.data.bmp import read_crop
from leukocls.data.images import central, image_sides, read_image
from leukocls.data.index import TABLE, Index
from leukocls.data.published import SIDE
from leukocls.errors import LeukoclsError
from leukocls.files import in_parallel

LARGEST = 2048  # px


def data_digest(index: Index) -> str:
    """sha256 over a line `{sha256 of the file}  part cell subject label` for each cell.

    The index is one that `leukocls.data.verify` has read.
    """
    digest = hashlib.sha256()
    for row in index.table.itertuples():
        digest.update(f"{row.sha256}  {row.part} {row.cell} {row.subject} {row.label}\n".encode())
    return digest.hexdigest()


def open_store(index: Index, digest: str, cache: Path, crop: int, size: int) -> np.memmap:
    """The images of the index as a read-only memory map uint8 [N, size, size, 3], packed if needed.

    Args:
        digest: `data_digest(index)`.
        crop: side in pixels of the central square that is kept, 1-450 (other data sets: 1-2048,
            with black around images that are smaller).
        size: side in pixels to which the crop is resized (Pillow, bilinear with antialiasing).

    Raises:
        LeukoclsError: crop or size out of range.
        DataFault: a file that does not read, named.
    """
    most = LARGEST if index.layout == TABLE else SIDE
    for key, side, limit in (("crop", crop, most), ("size", size, LARGEST)):
        if not isinstance(side, int) or not 1 <= side <= limit:
            raise LeukoclsError(f"data.{key}={side}: choose a side of 1 to {limit} pixels.")
    path = cache / f"{digest[:16]}-crop{crop}-size{size}.npy"
    if not path.is_file():
        _pack(index, path, crop, size)
    images: np.memmap = np.load(path, mmap_mode="r")
    return images


def _pack(index: Index, path: Path, crop: int, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(index.table), size, size, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            stream.flush()
            descriptor, start = stream.fileno(), stream.tell()
            try:
                # A full disk is told before the work is done.
                os.posix_fallocate(descriptor, 0, start + int(np.prod(shape)))
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error

            def pack(item: tuple[int, tuple[Path, int | None]]) -> None:
                row, (file, side) = item
                # Only the rows of the crop are read where the format is known beforehand.
                image = read_crop(file, side, crop) if side else central(read_image(file), crop)
                if size != crop:
                    resample = Image.Resampling.BILINEAR
                    image = np.asarray(Image.fromarray(image).resize((size, size), resample))
                # Not through a memory map, whose pages would count as this process's memory.
                os.pwrite(descriptor, image.tobytes(), start + row * image.nbytes)

            for _ in in_parallel(pack, enumerate(image_sides(index)), shape[0], "pack"):
                pass
            os.fsync(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
