"""Digests, boxes and sizes of a data set's images, and the pairs of images that show one cell.

All of it is remembered until a file changes.
"""

import hashlib
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from leukocls.common.errors import DataFault, Fault
from leukocls.common.files import atomic_write, in_parallel, sha256_file
from leukocls.data.duplicates import pixel_digest
from leukocls.data.images import extent, image_sides, read_with_form
from leukocls.data.index import BOX, CONTENT, Index, among
from leukocls.data.near_duplicates import THUMBNAIL, Pair, near_duplicates, thumbnail

CACHE_VERSION = 5  # raise it when an entry, or a pair, means something else


def with_contents(index: Index, cache: Path) -> tuple[Index, list[Fault], list[Pair]]:
    """Fill in the columns that come from the files' content, and find pairs that show one cell.

    A file whose size and times are unchanged since the last call is not read again.

    Args:
        index: as `leukocls.data.index.scan` makes it.
        cache: folder that keeps what was found, in one file for each data set.

    Returns:
        The index; a fault for each file that cannot be read, whose columns stay empty; the pairs.
    """
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(str(index.source.resolve()).encode()).hexdigest()[:16]
    cache_file = cache / f"contents-{key}.json"
    known, remembered = _remembered(cache_file)
    thumbnails: dict[str, np.ndarray] = {}

    def entry(item: tuple[str, tuple[Path, int | None]]) -> list | Fault:
        file, (path, side) = item
        try:
            status = os.stat(path)
            # The inode's change time moves even if the modification time is set back.
            stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            before = known.get(file)
            length = len(stamp) + len(CONTENT)
            if isinstance(before, list) and before[:3] == stamp and len(before) == length:
                return before
            image, form = read_with_form(path, side)
            top, left, bottom, right = box = extent(image)
            thumbnails[file] = thumbnail(image[top:bottom, left:right])
            digests = sha256_file(path), pixel_digest(image)
            return [*stamp, *digests, *box, *image.shape[:2], form]
        except DataFault as error:
            return error.args[0]
        except (OSError, ValueError) as error:
            return Fault(path, str(error), "restore the file or leave it out")

    items = zip(index.table["file"], image_sides(index), strict=True)
    results = list(in_parallel(entry, items, len(index.table), "verify"))
    entries = {
        file: result
        for file, result in zip(index.table["file"], results, strict=True)
        if not isinstance(result, Fault)
    }
    table = index.table.copy()
    read = among(table["file"], entries)
    for place, name in enumerate(CONTENT if entries else (), start=3):
        table.loc[read, name] = [entries[file][place] for file in table["file"][read]]
    index = replace(index, table=table)
    row_of = {file: row for row, file in table["file"].items()}
    if entries != known or not all({one, other} <= row_of.keys() for one, other, *_ in remembered):
        rows = np.flatnonzero(read)
        remembered = _pairs(index, rows, thumbnails, cache_file.with_suffix(".npz"))
        stored = {"version": CACHE_VERSION, "files": entries, "near_duplicates": remembered}
        atomic_write(cache_file, json.dumps(stored))
    pairs = [Pair(row_of[one], row_of[other], *values) for one, other, *values in remembered]
    return index, [fault for fault in results if isinstance(fault, Fault)], pairs


def _remembered(cache_file: Path) -> tuple[dict[str, list], list[list]]:
    """The entry of each file, and the pairs; both empty unless a cache of this version is whole."""
    try:
        stored = json.loads(cache_file.read_text())
        files, pairs = dict(stored["files"]), list(stored["near_duplicates"])
        valid = stored["version"] == CACHE_VERSION and {len(pair) for pair in pairs} <= {4}
    except (OSError, ValueError, KeyError, TypeError):
        return {}, []
    return (files, pairs) if valid else ({}, [])


def _pairs(
    index: Index, rows: np.ndarray, thumbnails: dict[str, np.ndarray], path: Path
) -> list[list]:
    """Pairs among the rows that show one cell: both files, correlation and overlap.

    Args:
        rows: those whose files were read, int64 [n].
        thumbnails: by file, of those that were read just now.
        path: where the thumbnails of all are kept.
    """
    if not len(rows):
        return []
    sides, table = list(image_sides(index)), index.table.iloc[rows]
    files, digests, pixels = (table[name].to_numpy(str) for name in ("file", "sha256", "pixels"))
    box = table[BOX].to_numpy()
    kept = _kept_thumbnails(path)

    def tight(place: int) -> np.ndarray:
        top, left, bottom, right = box[place]
        return read_with_form(*sides[rows[place]])[0][top:bottom, left:right]

    def small(place: int) -> np.ndarray:
        known = thumbnails.get(files[place], kept.get(digests[place]))
        return thumbnail(tight(place)) if known is None else known

    made = np.stack(list(in_parallel(small, range(len(rows)), len(rows), "thumbnails")))
    stream = io.BytesIO()
    np.savez(stream, sha256=digests, thumbnails=made)
    atomic_write(path, stream.getvalue())
    return [
        [str(files[pair.first]), str(files[pair.second]), *pair[2:]]
        for pair in near_duplicates(made, box[:, 2:] - box[:, :2], pixels, tight)
    ]


def _kept_thumbnails(path: Path) -> dict[str, np.ndarray]:
    """Thumbnails by the digest of the file; empty if there are none, or they are damaged."""
    try:
        # numpy leaves a file open that it cannot read
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            digests, kept = stored["sha256"].tolist(), stored["thumbnails"]
    except Exception:  # numpy and zipfile raise many kinds of errors on damaged files
        return {}
    whole = kept.dtype == np.uint8 and kept.shape == (len(digests), THUMBNAIL, THUMBNAIL, 3)
    return dict(zip(digests, kept, strict=True)) if whole else {}
