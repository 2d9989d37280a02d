"""The store: every image decoded once into one uint8 array on disk, and what identifies the data.

Keyed by the digest of the source files, so a changed file makes another store; written to a
temporary name and renamed, so a store that exists is whole.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from leukocls.data.bmp import read_crop, read_header
from leukocls.data.index import Index
from leukocls.errors import DataFault, LeukoclsError
from leukocls.files import atomic_write, sha256_file

SIDE = 450
FINAL_SIDE = 600

T = TypeVar("T")


def image_sides(index: Index) -> Iterator[tuple[Path, int]]:
    """Every file with the side in pixels that it must have (RECIPES: final images are larger)."""
    for file, part in zip(index.table["file"], index.table["part"], strict=True):
        yield index.root / file, FINAL_SIDE if part == "final" else SIDE


def check_images(index: Index) -> None:
    """Compare every file's size and header with what they must be; nothing is decoded.

    Raises:
        DataFault: all faults in one message, each with its path and remedy.
    """

    def fault(item: tuple[Path, int]) -> str:
        try:
            read_header(*item)
        except DataFault as error:
            return str(error)
        return ""

    faults = [f for f in _parallel(fault, image_sides(index), len(index.table), "check") if f]
    if faults:
        more = f"\n  … and {len(faults) - 20} more" if len(faults) > 20 else ""
        shown = "\n  ".join(faults[:20])
        raise DataFault(f"{index.root}: {len(faults)} damaged image(s)\n  {shown}{more}")


def data_digest(index: Index, cache: Path) -> str:
    """sha256 over a line `{sha256 of the file}  part cell subject label` for each cell.

    Files whose size and time of change are as they were are not read again; `cache` remembers.
    """
    root = index.root.resolve()
    memory = cache / f"digests-{hashlib.sha256(str(root).encode()).hexdigest()[:16]}.json"
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}

    def entry(file: str) -> tuple[str, list]:
        status = os.stat(root / file)
        stamp = [status.st_size, status.st_mtime_ns]
        if file in known and known[file][:2] == stamp:
            return file, known[file]
        return file, [*stamp, sha256_file(root / file)]

    table = index.table
    entries = dict(_parallel(entry, table["file"], len(table), "digest"))
    if entries != known:
        cache.mkdir(parents=True, exist_ok=True)
        atomic_write(memory, json.dumps(entries))
    digest = hashlib.sha256()
    for row in table.itertuples():
        sha = entries[row.file][2]
        digest.update(f"{sha}  {row.part} {row.cell} {row.subject} {row.label}\n".encode())
    return digest.hexdigest()


def open_store(index: Index, digest: str, cache: Path, crop: int, size: int) -> np.memmap:
    """The images of the index as a read-only memory map uint8 [N, size, size, 3], packed if needed.

    Args:
        digest: `data_digest(index, …)`.
        crop: side in pixels of the central square that is kept, 1-450.
        size: side in pixels to which the crop is resized (Pillow, bilinear with antialiasing).

    Raises:
        LeukoclsError: crop or size out of range.
        DataFault: a file that does not read, named.
    """
    if not 1 <= crop <= SIDE:
        raise LeukoclsError(f"data.crop={crop}: choose a side of 1 to {SIDE} pixels.")
    if not 1 <= size <= 2048:
        raise LeukoclsError(f"data.size={size}: choose a side of 1 to 2048 pixels.")
    path = cache / f"{digest[:16]}-crop{crop}-size{size}.npy"
    if not path.is_file():
        _pack(index, path, crop, size)
    images: np.memmap = np.load(path, mmap_mode="r")
    return images


def _pack(index: Index, path: Path, crop: int, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(index.table), size, size, 3)
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        images = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        # A disk that is full must say so here: writing through the map would end the process.
        with open(temporary, "r+b") as stream:
            try:
                os.posix_fallocate(stream.fileno(), 0, temporary.stat().st_size)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error

        def pack(item: tuple[int, tuple[Path, int]]) -> None:
            row, (file, side) = item
            image = read_crop(file, side, crop)
            if size != crop:
                resample = Image.Resampling.BILINEAR
                image = np.asarray(Image.fromarray(image).resize((size, size), resample))
            images[row] = image

        for _ in _parallel(pack, enumerate(image_sides(index)), shape[0], "pack"):
            pass
        images.flush()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _parallel(work: Callable[..., T], items: Iterable, total: int, name: str) -> Iterator[T]:
    """`work` over `items` in order, on threads: file reads, sha256 and copies release the GIL."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        # Only a long wait deserves a bar; `disable=None` keeps it out of files and pipes.
        yield from tqdm(
            pool.map(work, items), desc=name, total=total, unit="image", disable=None, delay=1
        )
