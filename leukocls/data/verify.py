"""Is this the data it should be? Every fault in one list; training refuses what is refused here."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leukocls.data.images import image_sides, read_image
from leukocls.data.index import TABLE, Index, read_official_labels, scan
from leukocls.data.published import (
    LABELS_DIGEST,
    PART_DIGESTS,
    SAME_FINAL,
    SHARED_IMAGES,
)
from leukocls.errors import DataFault, Fault, report
from leukocls.files import atomic_write, in_parallel, sha256_file
from leukocls.prediction_files import listing

CACHE_VERSION = 2  # raise it when an entry means something else
FETCH = "fetch the part again from the original archive"
ACCEPT = "fetch what is missing, or accept it: verify --partial, data.partial=true (marked PARTIAL)"


@dataclass(frozen=True)
class Duplicates:
    """Cells with the same pixels, up to quarter turns, flips and position in the frame.

    `kind` is "identical" (the files are) or "turned" (also: flipped, moved, saved anew);
    `expected` says that a genuine copy (or a synthetic tree's manifest) has them.
    """

    rows: tuple[int, ...]
    kind: str
    expected: bool


@dataclass(frozen=True)
class Examination:
    """What was found. The table of `index` has the further columns `sha256` and `pixels`."""

    index: Index
    faults: list[Fault]
    duplicates: list[Duplicates]
    genuine: dict[str, bool]  # by complete part, whether its files are those published


def examine(root: str | Path, layout: str, partial: bool, cache: Path) -> Examination:
    """Check names, labels, counts, subjects, digests, duplicates; decode every image.

    Args:
        root, layout: as `leukocls.data.index.scan`.
        partial: files that are missing are no fault.
        cache: folder that remembers what each unchanged file holds, so that it is read once.

    Raises:
        LeukoclsError: `root` is missing or holds no known layout.
    """
    index, faults = scan(root, layout)
    index, damaged = _with_contents(index, cache)
    faults += damaged
    if index.published and index.labels is not None:
        faults += _labels(index.labels)
    faults += _counts(index, partial)
    genuine = _genuine(index) if index.published else {}
    for part in (part for part, same in genuine.items() if not same):
        folder = _folder(index, part)
        if not any(fault.path.is_relative_to(folder) for fault in faults):
            faults.append(Fault(folder, "its files are not those published (sha256)", FETCH))
    duplicates = _duplicates(index, genuine)
    index = replace(index, table=index.table.assign(group=_merged(index.table, duplicates)))
    faults += _copies(index, duplicates) + _shared(index)
    return Examination(index, faults, duplicates, genuine)


def checked_index(
    root: str | Path,
    layout: str = "auto",
    partial: bool = False,
    cache: Path = Path("outputs/store"),
) -> Index:
    """The index of data that `examine` finds no fault with; its table has `sha256`, `pixels`.

    Raises:
        LeukoclsError: `root` is missing or holds no known layout.
        DataFault: the faults, in one message.
    """
    found = examine(root, layout, partial, cache)
    if found.faults:
        more = "\n`python -m leukocls.verify` lists them all" if len(found.faults) > 20 else ""
        raise DataFault(report(found.index.source, found.faults) + more)
    return found.index


def pixel_digest(image: np.ndarray) -> str:
    """sha256 of what is not black in uint8 [H, W, 3], the least over quarter turns and flips.

    Equal for copies that are turned by 90°, flipped, moved within the frame or saved in another
    lossless format.

    Raises:
        ValueError: all pixels are black.
    """
    flat = image.reshape(len(image), -1)
    rows = np.flatnonzero(flat.any(1))
    columns = np.flatnonzero(flat.any(0).reshape(-1, 3).any(1))
    if not len(rows):
        raise ValueError("all pixels are black: there is no cell in it")
    tight = np.ascontiguousarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])

    def digest(pixels: np.ndarray) -> str:
        state = hashlib.sha256(f"{pixels.shape[0]} {pixels.shape[1]}\n".encode())
        state.update(np.ascontiguousarray(pixels).data)
        return state.hexdigest()

    return min(digest(np.rot90(half, k)) for half in (tight, tight[::-1]) for k in range(4))


def _with_contents(index: Index, cache: Path) -> tuple[Index, list[Fault]]:
    """The index with `sha256` and `pixels` of each file, decoded whole; "" where that fails.

    A file whose size and time of change are as they were is not read again.
    """
    key = hashlib.sha256(str(index.source.resolve()).encode()).hexdigest()[:16]
    memory = cache / f"contents-{key}.json"
    try:
        stored = json.loads(memory.read_text())
        known = stored["files"] if stored["version"] == CACHE_VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        known = {}

    def entry(item: tuple[str, tuple[Path, int | None]]) -> list | Fault:
        file, (path, side) = item
        try:
            status = os.stat(path)
            # The time of the inode's change moves even if somebody sets the other one back.
            stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            if known.get(file, [])[:3] == stamp:
                return known[file]
            pixels = pixel_digest(read_image(path, side))
            return [*stamp, sha256_file(path), pixels]
        except DataFault as error:
            return error.args[0]
        except (OSError, ValueError) as error:
            return Fault(path, str(error), "restore the file from the original archive")

    items = zip(index.table["file"], image_sides(index), strict=True)
    found = list(in_parallel(entry, items, len(index.table), "verify"))
    entries = {
        file: one
        for file, one in zip(index.table["file"], found, strict=True)
        if not isinstance(one, Fault)
    }
    if entries != known:
        cache.mkdir(parents=True, exist_ok=True)
        atomic_write(memory, json.dumps({"version": CACHE_VERSION, "files": entries}))
    columns = {
        name: ["" if isinstance(one, Fault) else one[place] for one in found]
        for place, name in ((3, "sha256"), (4, "pixels"))
    }
    faults = [one for one in found if isinstance(one, Fault)]
    return replace(index, table=index.table.assign(**columns)), faults


def _labels(path: Path) -> list[Fault]:
    unreadable: list[Fault] = []
    truth = read_official_labels(path, unreadable)
    if unreadable:
        return []  # `scan` has told it
    lines = sorted(f"{name},{row.original},{row.label}\n" for name, row in truth.items())
    if hashlib.sha256("".join(lines).encode()).hexdigest() == LABELS_DIGEST:
        return []
    cause = "names and labels are not those published, though each line agrees with itself"
    return [Fault(path, cause, "fetch the original file")]


def _counts(index: Index, partial: bool) -> list[Fault]:
    """Parts with too few cells (unless `partial`), and subjects that are not theirs."""
    faults = []
    have, want = index.counts(), index.expected()
    names, table = index.part_names(), index.table
    subjects = index.expected_subjects()
    for part, number in want.items():
        here = table[names == part]
        short: list[str] = []
        published = subjects.get(part, {})
        for subject, cells in here.groupby("subject") if published else ():
            most = published.get(str(subject), 0)
            if len(cells) > most:
                cause = f"subject {subject} has {len(cells)} images in {part}, {most} are published"
                path = index.root / cells["file"].iloc[-1]
                faults.append(Fault(path, cause, "restore the original name or remove the file"))
        counted = here["subject"].value_counts()
        for subject, most in published.items():
            if counted.get(subject, 0) < most:
                short.append(f"subject {subject} has {counted.get(subject, 0)} of {most}")
        # Final is needed for a submission only; half of it is a fault.
        wanted = part != "final" or have.get("final", 0) > 0
        too_few = have.get(part, 0) < number or (short and have.get(part, 0) == number)
        if wanted and too_few and not partial:
            cause = f"{part} has {have.get(part, 0):,} of {number:,} images"
            if part == "prelim" and index.absent:
                cause += f", without {listing(index.absent)}"
            elif short and len(here):
                cause += f": {listing(short)}"
            faults.append(Fault(_folder(index, part), cause, ACCEPT))
        if have.get(part, 0) > number and not published:
            cause = f"{part} has {have[part]:,} images, {number:,} are published"
            faults.append(Fault(_folder(index, part), cause, "remove what was added"))
    if index.layout == TABLE and index.absent and not partial:
        cause = f"images that the table lists are missing: {listing(index.absent)}"
        faults.append(Fault(index.source, cause, ACCEPT))
    return faults


def _folder(index: Index, part: str) -> Path:
    """The folder of a part; the root if nothing of it is there."""
    files = index.table["file"][index.part_names() == part]
    if files.empty:
        return index.root
    return (index.root / files.iloc[0]).parents[1 if part.startswith("fold_") else 0]


def _genuine(index: Index) -> dict[str, bool]:
    """For every part with the published number of files, whether they are those published."""
    names, wanted = index.part_names(), index.expected()
    found = {}
    for part, digest in PART_DIGESTS.items():
        here = index.table[names == part]
        if len(here) == wanted[part]:
            lines = sorted(
                f"{sha}  {cell}\n" for sha, cell in zip(here["sha256"], here["cell"], strict=True)
            )
            found[part] = hashlib.sha256("".join(lines).encode()).hexdigest() == digest
    return found


def _duplicates(index: Index, genuine: dict[str, bool]) -> list[Duplicates]:
    table = index.table
    names = index.part_names()
    sets = table.index[table["pixels"] != ""].to_series().groupby(table["pixels"])
    found = []
    for _, rows in sets:
        if len(rows) > 1:
            kind = "identical" if len(set(table["sha256"][rows])) == 1 else "turned"
            certain = all(genuine.get(part, False) for part in names[rows])
            expected = certain or _expected(index, table.loc[rows])
            found.append(Duplicates(tuple(rows), kind, expected))
    return found


def _expected(index: Index, cells: pd.DataFrame) -> bool:
    """Whether every two of these cells are known to be one image."""
    if index.synthetic:
        pairs = {
            frozenset(Path(file).name for file in pair) for pair in index.declared("duplicates")
        }
        linked = {name for pair in pairs for name in pair}
        return all(name in linked for name in cells["cell"])
    if not index.published:
        return False
    pairs = {frozenset(pair) for pair in SHARED_IMAGES}
    final = {frozenset(pair) for pair in SAME_FINAL}
    # Three subjects may share one image by two known pairs: 51 = 75 and 51 = 78.
    chain = {subject for pair in pairs for subject in pair if pair <= set(cells["subject"])}
    return all(
        frozenset((a.cell, b.cell)) in final
        if a.part == b.part == "final"
        else a.part == b.part == "train" and {a.subject, b.subject} <= chain
        for a, b in combinations(cells.itertuples(), 2)
    )


def _merged(table: pd.DataFrame, duplicates: Iterable[Duplicates]) -> list[str]:
    """`group` of each row once subjects with a cell in common are one: the transitive closure."""
    parent = {group: group for group in table["group"] if group}

    def top(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    for found in duplicates:
        groups = [group for group in table["group"][list(found.rows)] if group]
        for one, other in pairwise(groups):
            parent[top(other)] = top(one)
    members: dict[str, set[str]] = {}
    for group in parent:
        members.setdefault(top(group), set()).update(group.split("+"))
    names = {root: "+".join(sorted(of, key=lambda s: (len(s), s))) for root, of in members.items()}
    return [names[top(group)] if group else "" for group in table["group"]]


def _copies(index: Index, duplicates: Iterable[Duplicates]) -> list[Fault]:
    """Copies that nobody expects. In other data sets those of one part and class are merged."""
    faults = []
    for found in duplicates:
        cells = index.table.loc[list(found.rows)]
        harmless = (
            index.layout == TABLE and len(set(cells["part"])) == len(set(cells["label"])) == 1
        )
        if found.expected or harmless:
            continue
        first, *others = (index.root / file for file in cells["file"])
        how = "the same file as" if found.kind == "identical" else "turned, flipped or moved:"
        cause = f"{how} {', '.join(map(str, others))}"
        faults.append(Fault(first, cause, "restore the original files or remove the copies"))
    return faults


def _shared(index: Index) -> list[Fault]:
    """Subjects with cells in more than one of train, prelim and final."""
    faults = []
    known = index.table[index.table["group"] != ""]
    for group, cells in known.groupby("group"):
        parts = list(dict.fromkeys(cells["part"]))
        if len(parts) > 1:
            path = index.root / cells["file"][cells["part"] == parts[-1]].iloc[0]
            cause = f"subject {group} is in {' and in '.join(parts)}"
            faults.append(Fault(path, cause, "keep a subject in one part; restore the names"))
    return faults


def summary(found: Examination) -> dict[str, Any]:
    """Everything that was found, fit for JSON."""
    index, table = found.index, found.index.table
    names, wanted = index.part_names(), index.expected()
    parts = {
        part: {
            "cells": int((names == part).sum()),
            "expected": wanted.get(part),
            "subjects": int(table["subject"][(names == part) & (table["subject"] != "")].nunique()),
            "as_published": found.genuine.get(part),
        }
        for part in dict.fromkeys([*wanted, *names])
    }
    return {
        "root": str(index.source),
        "layout": index.layout,
        "marks": [
            mark
            for mark, holds in (("SYNTHETIC", index.synthetic), ("PARTIAL", index.incomplete()))
            if holds
        ],
        "parts": parts,
        "faults": [{**fault._asdict(), "path": str(fault.path)} for fault in found.faults],
        "duplicates": [
            {
                "cells": table["file"][list(one.rows)].to_list(),
                "subjects": table["subject"][list(one.rows)].to_list(),
                "kind": one.kind,
                "expected": one.expected,
            }
            for one in found.duplicates
        ],
    }
