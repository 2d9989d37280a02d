"""The store: every image decoded once into one uint8 array on disk, and the digest of the data.

The name of a store contains the digest of its source files, so a changed file leads to another
store. It is written to a temporary name and renamed, so a store that exists is complete.
"""

import hashlib
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from leukocls.common.errors import DataFault, Fault, LeukoclsError
from leukocls.common.files import atomic_stream, in_parallel, remove_unfinished
from leukocls.data.bmp import read_crop
from leukocls.data.images import central, cut, image_sides, read_image, resized
from leukocls.data.index import BOX, Index

LARGEST = 2048  # px, of a stored image
DEFAULT_CROP = 300  # px: data.crop of conf/data/cnmc.yaml


def data_digest(index: Index) -> str:
    """sha256 over a line `{sha256 of the file}  part cell subject label` for each cell.

    Args:
        index: one whose columns `leukocls.data.verify` has filled in.
    """
    digest = hashlib.sha256()
    for row in index.table.itertuples():
        digest.update(f"{row.sha256}  {row.part} {row.cell} {row.subject} {row.label}\n".encode())
    return digest.hexdigest()


def windows(table: pd.DataFrame, crop: int | str) -> np.ndarray:
    """The square of each image that `open_store` keeps: top, left, side in px, int64 [N, 3].

    Args:
        table: rows of an index, with its columns BOX, `height` and `width` filled in.
        crop: as `open_store`.
    """
    if crop == "box":
        box = table[BOX].to_numpy()
        side = (box[:, 2:] - box[:, :2]).max(1)
        return np.column_stack([(box[:, :2] + box[:, 2:] - side[:, None]) // 2, side])
    margin = table[["height", "width"]].to_numpy() - int(crop)
    first = np.round(margin / 2).astype(np.int64)
    return np.column_stack([first, np.full(len(table), int(crop))])


def boxes(index: Index, crop: int | str) -> np.ndarray:
    """Each cell's box in its stored image: float32 [N, 4], top, left, bottom, right in [-1, 1].

    The tight box of the index, cut off at the edges of the crop.
    """
    window = windows(index.table, crop)
    first = np.tile(window[:, :2], 2)
    box = 2 * (index.table[BOX].to_numpy() - first) / window[:, 2:] - 1
    return box.clip(-1, 1).astype(np.float32)


def store_path(digest: str, cache: Path, crop: int | str, size: int) -> Path:
    """The path of the store of these images below `cache`."""
    return cache / f"{digest[:16]}-crop{crop}-size{size}.npy"


def open_store(
    index: Index, digest: str, cache: Path, crop: int | str, size: int | None
) -> np.memmap:
    """The images of the index as a read-only memory map uint8 [N, size, size, 3], packed if needed.

    Args:
        digest: `data_digest(index)`.
        cache: folder of the stores.
        crop: side in px of the central square that is kept, 1-450 (other data sets: 1-2048, with
            black around smaller images); or "box", the smallest square around the cell's box.
        size: side in px to which the crop is resized (Pillow, bilinear with antialiasing); None
            keeps it.

    Raises:
        LeukoclsError: as `stored_side`.
        DataFault: a file cannot be read; the store was damaged after it was packed.
    """
    side = stored_side(index, crop, size)
    path = store_path(digest, cache, crop, side)
    if not (path.is_file() and checksums_of(path).is_file()):
        _pack(index, path, crop, side)
    return _checked(path, (len(index.table), side, side, 3))


def stored_side(index: Index, crop: int | str, size: int | None) -> int:
    """Side in px of the images of a store, as `open_store` takes `crop` and `size`.

    Raises:
        LeukoclsError: crop or size out of range.
    """
    most = index.rules.largest_crop
    if crop != "box" and not (isinstance(crop, int) and 1 <= crop <= most):
        raise LeukoclsError(f"data.crop={crop}: choose a side of 1 to {most} pixels, or box.")
    if crop == "box" and size is None:
        raise LeukoclsError("data.crop=box: cells differ in size; choose data.size too.")
    size = int(crop) if size is None else size
    if not isinstance(size, int) or not 1 <= size <= LARGEST:
        raise LeukoclsError(f"data.size={size}: choose a side of 1 to {LARGEST} pixels.")
    return size


def checksums_of(store: Path) -> Path:
    """The file of the CRC-32 of each image of a store."""
    return store.with_suffix(".crc32")


def _checked(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """The store, after one pass over it that compares every image with its CRC-32.

    Raises:
        DataFault: the file is short, of another shape, or an image has changed.
    """

    def fault(cause: str) -> DataFault:
        return DataFault(Fault(path, cause, "remove it, and the next run packs it again"))

    try:
        images: np.memmap = np.load(path, mmap_mode="r")
        written = np.load(checksums_of(path))
    except (OSError, ValueError, EOFError) as error:
        raise fault(f"cannot be read ({error})") from error
    if images.shape != shape or images.dtype != np.uint8 or written.shape != shape[:1]:
        raise fault(f"holds {images.dtype} {images.shape} where uint8 {shape} belong")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        present = np.fromiter(pool.map(zlib.crc32, images), np.uint32, shape[0])
    if len(changed := np.flatnonzero(present != written)):
        raise fault(f"{len(changed)} of its {shape[0]} images have changed since they were packed")
    return images


def check_length(store: np.memmap) -> None:
    """Compare the file's length with that of the map: to read past its end would kill the process.

    Raises:
        DataFault: the file was cut short. One that was removed is still there for its readers.
    """
    path, length = Path(str(store.filename)), store.offset + store.nbytes
    with suppress(FileNotFoundError):
        if (found := path.stat().st_size) < length:
            cause = f"was cut short while it was in use, from {length} to {found} bytes"
            raise DataFault(Fault(path, cause, "remove it, and the next run packs it again"))


def _pack(index: Index, path: Path, crop: int | str, size: int) -> None:
    """Write the store, reading the images on several threads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path.parent)
    shape = (len(index.table), size, size, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with atomic_stream(path) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.flush()
        descriptor, start = stream.fileno(), stream.tell()
        # A full disk fails here, before the images are read.
        os.posix_fallocate(descriptor, 0, start + int(np.prod(shape)))
        squares = windows(index.table, crop) if crop == "box" else None
        checksums = np.zeros(shape[0], np.uint32)

        def pack(item: tuple[int, tuple[Path, int | None]]) -> None:
            row, (file, side) = item
            if squares is not None:
                image = cut(read_image(file, side), *squares[row])
            elif side:  # only the rows of the crop are read where the format is known
                image = read_crop(file, side, int(crop))
            else:
                image = central(read_image(file), int(crop))
            # Not through a memory map, whose pages would count as this process's memory.
            pixels = resized(image, size).tobytes()
            os.pwrite(descriptor, pixels, start + row * len(pixels))
            checksums[row] = zlib.crc32(pixels)

        for _ in in_parallel(pack, enumerate(image_sides(index)), shape[0], "pack"):
            pass
        # Before the store itself appears, so that a store has its checksums.
        with atomic_stream(checksums_of(path)) as sums:
            np.save(sums, checksums)
