"""Is this the data it should be? Every fault in one list; training refuses what is refused here."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leukocls.common.errors import DataFault, Fault, report
from leukocls.common.files import atomic_write, in_parallel, sha256_file
from leukocls.common.tables import listing
from leukocls.data.cnmc import read_official_labels
from leukocls.data.duplicates import Duplicates, find_duplicates, merged_groups, pixel_digest
from leukocls.data.images import extent, image_sides, read_image
from leukocls.data.index import COLUMNS, NAMED, Index, scan
from leukocls.data.names import UNKNOWN
from leukocls.data.published import PART_DIGESTS, labels_digest

READ = COLUMNS[len(NAMED) :]  # what of the index only the file's content tells
CACHE_VERSION = 3  # raise it when an entry means something else
AGAIN = "fetch the part again from the original archive"
ACCEPT = "fetch what is missing, or accept it: verify --partial, data.partial=true (marked PARTIAL)"


@dataclass(frozen=True)
class Examination:
    """What was found; the table of `index` is filled in."""

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
    cache.mkdir(parents=True, exist_ok=True)
    index, damaged = _with_contents(index, cache)
    faults += damaged
    # Without labels no prelim image has a row, and that has been told.
    labels_read = not any(fault.path.suffix == ".csv" for fault in faults)
    faults += _surplus(index)
    if not partial:
        faults += _shortage(index, labels_read)
    genuine = _genuine(index) if index.published else {}
    for part in (part for part, same in genuine.items() if not same):
        files = {index.root / file for file in index.table["file"][index.part_names() == part]}
        if files.isdisjoint(fault.path for fault in faults):
            cause = "its files are not those published (sha256)"
            faults.append(Fault(_folder(index, part), cause, AGAIN))
    duplicates = find_duplicates(index, genuine)
    faults += _copies(index, duplicates) + _shared(index) + _two_classes(index)
    faults += _labels(index, faults)
    index = replace(index, table=index.table.assign(group=merged_groups(index.table, duplicates)))
    return Examination(index, faults, duplicates, genuine)


def checked_index(
    root: str | Path,
    layout: str = "auto",
    partial: bool = False,
    cache: Path = Path("outputs/store"),
) -> Index:
    """The index of data that `examine` finds no fault with.

    Raises:
        LeukoclsError: `root` is missing or holds no known layout.
        DataFault: the faults, in one message.
    """
    found = examine(root, layout, partial, cache)
    if found.faults:
        more = "\n`python -m leukocls.verify` lists them all" if len(found.faults) > 20 else ""
        raise DataFault(report(found.index.source, found.faults) + more)
    return found.index


def _with_contents(index: Index, cache: Path) -> tuple[Index, list[Fault]]:
    """The index with what each file holds, decoded whole (`Index`); as unread where that fails.

    A file whose size and time of change are as they were is not read again.
    """
    key = hashlib.sha256(str(index.source.resolve()).encode()).hexdigest()[:16]
    memory = cache / f"contents-{key}.json"
    try:
        stored = json.loads(memory.read_text())
        known = dict(stored["files"]) if stored["version"] == CACHE_VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        known = {}

    def entry(item: tuple[str, tuple[Path, int | None]]) -> list | Fault:
        file, (path, side) = item
        try:
            status = os.stat(path)
            # The time of the inode's change moves even if somebody sets the other one back.
            stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            before = known.get(file)
            if isinstance(before, list) and before[:3] == stamp and len(before) == 3 + len(READ):
                return before
            image = read_image(path, side)
            pixels = pixel_digest(image)
            return [*stamp, sha256_file(path), pixels, *extent(image), *image.shape[:2]]
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
        atomic_write(memory, json.dumps({"version": CACHE_VERSION, "files": entries}))
    table = index.table.copy()
    read = [not isinstance(one, Fault) for one in found]
    for place, name in enumerate(READ, start=3):
        table.loc[read, name] = [entries[file][place] for file in table["file"][read]]
    return replace(index, table=table), [one for one in found if isinstance(one, Fault)]


def _labels(index: Index, told: list[Fault]) -> list[Fault]:
    """Whether prelim's names and labels are those published, or those that were drawn.

    A digest says that something is wrong, and not what: it comes where no fault of prelim, of the
    label file or of one of its lines has been told.
    """
    if index.labels is None or not index.rules.cnmc_names:
        return []
    files = {index.root / f for f in index.table["file"][index.table["part"] == "prelim"]}
    name = index.labels.name
    if any(fault.path in files or fault.path.name.startswith(name) for fault in told):
        return []
    truth = read_official_labels(index.labels, [])
    lines = ((name, row.original, row.label) for name, row in truth.items())
    if labels_digest(lines) == index.rules.labels_digest():
        return []
    cause = "names and labels are not those published, though each line agrees with itself"
    return [Fault(index.labels, cause, "fetch the original file")]


def _surplus(index: Index) -> list[Fault]:
    """Subjects with more cells in a part than they have, or that are not of it at all."""
    faults = []
    names, wanted = index.part_names(), index.expected_subjects()
    for (part, subject), cells in index.table.groupby([names, "subject"]):
        most = wanted.get(part, {}).get(subject, 0)
        if part in wanted and len(cells) > most:
            cause = f"subject {subject} has {len(cells)} images in {part}, {most} are published"
            # Which of a subject's own cells is one too many cannot be told.
            path = _folder(index, part) if most else index.root / cells["file"].iloc[-1]
            faults.append(Fault(path, cause, "restore the original name or remove the file"))
    have, total = index.counts().get("final", 0), index.expected().get("final", 0)
    if have > total:
        cause = f"final has {have:,} images, {total:,} are published"
        faults.append(Fault(_folder(index, "final"), cause, "remove what was added"))
    return faults


def _shortage(index: Index, labels_read: bool) -> list[Fault]:
    """Parts with too few cells. Final may be absent, for it serves a submission only."""
    faults = []
    have, names, subjects = index.counts(), index.part_names(), index.expected_subjects()
    for part, number in index.expected().items():
        here = have.get(part, 0)
        excused = not here if part == "final" else part == "prelim" and not labels_read
        if here >= number or excused:
            continue
        cause = f"{part} has {here:,} of {number:,} images"
        counted = index.table["subject"][names == part].value_counts()
        short = [
            f"subject {subject} has {counted.get(subject, 0)} of {most}"
            for subject, most in subjects.get(part, {}).items()
            if counted.get(subject, 0) < most
        ]
        if part == "prelim" and index.absent:
            cause += f", without {listing(index.absent)}"
        elif short and here:
            cause += f": {listing(short)}"
        faults.append(Fault(_folder(index, part), cause, ACCEPT))
    if index.absent and index.rules.counts() is None:
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


def _copies(index: Index, duplicates: Iterable[Duplicates]) -> list[Fault]:
    """Copies that nobody expects."""
    faults = []
    for found in (found for found in duplicates if not found.expected):
        cells = index.table.loc[list(found.rows)]
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


def _two_classes(index: Index) -> list[Fault]:
    """Subjects with cells of both classes: a subject has one, and is scored by it.

    C-NMC's names say so already.
    """
    faults: list[Fault] = []
    if index.rules.cnmc_names:
        return faults
    known = index.table[(index.table["group"] != "") & (index.table["label"] != UNKNOWN)]
    for group, cells in known.groupby("group"):
        if len(set(cells["label"])) > 1:
            rarer = cells["label"].value_counts().idxmin()
            path = index.root / cells["file"][cells["label"] == rarer].iloc[0]
            cause = f"subject {group} has cells of both classes, and a subject is ALL or HEM"
            faults.append(Fault(path, cause, "correct the label, or leave these cells out"))
    return faults


def summary(found: Examination) -> dict[str, Any]:
    """What was found, fit for JSON, without the data's marks."""
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
