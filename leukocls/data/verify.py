"""Checks of a data set: every fault in one list. Training refuses the same faults."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leukocls.common.errors import DataFault, Fault, report
from leukocls.common.tables import listing
from leukocls.data.cnmc import read_official_labels
from leukocls.data.contents import with_contents
from leukocls.data.duplicates import (
    IDENTICAL,
    REPROCESSED,
    TURNED,
    Duplicates,
    find_duplicates,
    merged_groups,
)
from leukocls.data.index import Index, scan
from leukocls.data.published import PART_DIGESTS, labels_digest
from leukocls.data.store import DEFAULT_CROP
from leukocls.data.summary import image_notes, subject_notes

AGAIN = "fetch the part again from the original archive"
_REMOVE = "restore the original files or remove the copies"
# What is said of copies, by their kind.
HOW = {
    IDENTICAL: ("the same file as", _REMOVE),
    TURNED: ("turned, flipped or moved:", _REMOVE),
    REPROCESSED: (
        "shows the same cell, processed again, as",
        "keep a cell in one part and one class: look at it (verify --sheet) and remove one of them",
    ),
}
ACCEPT = "fetch what is missing, or accept it: verify --partial, data.partial=true (marked PARTIAL)"


@dataclass(frozen=True)
class Examination:
    """The result of the checks.

    Attributes:
        index: with all columns of its table filled in.
        faults: everything that is wrong with the data.
        duplicates: every image that is there more than once, and pairs of images of one cell.
        genuine: for each complete part of C-NMC, whether its files are those published.
    """

    index: Index
    faults: list[Fault]
    duplicates: list[Duplicates]
    genuine: dict[str, bool]

    def document(self) -> dict[str, Any]:
        """The result as plain values for JSON, without the marks of the data."""
        table = self.index.table
        names, expected = self.index.part_names(), self.index.expected()
        parts = {
            part: {
                "cells": int((names == part).sum()),
                "expected": expected.get(part),
                "subjects": int(
                    table["subject"][(names == part) & (table["subject"] != "")].nunique()
                ),
                "as_published": self.genuine.get(part),
            }
            for part in dict.fromkeys([*expected, *names])
        }
        return {
            "root": str(self.index.source),
            "layout": self.index.layout,
            "parts": parts,
            "faults": [{**fault._asdict(), "path": str(fault.path)} for fault in self.faults],
            "duplicates": [
                {
                    "cells": table["file"][list(copies.rows)].to_list(),
                    "subjects": table["subject"][list(copies.rows)].to_list(),
                    "kind": copies.kind,
                    "similarity": copies.similarity,
                    "known": copies.known,
                    "expected": copies.expected,
                }
                for copies in self.duplicates
            ],
            "notes": image_notes(self.index, DEFAULT_CROP) + subject_notes(self.index),
        }


def examine(
    root: str | Path, layout: str, partial: bool, cache: Path, outside: bool = False
) -> Examination:
    """Check names, labels, counts, subjects, digests, duplicates; decode every image.

    Args:
        root, layout, outside: as `leukocls.data.index.scan`.
        partial: whether missing files are no fault.
        cache: folder that keeps digest, box and size of each file until the file changes.

    Raises:
        LeukoclsError: `root` is missing or holds no known layout.
    """
    index, faults = scan(root, layout, outside)
    index, damaged, pairs = with_contents(index, cache)
    faults += damaged
    # Without labels no prelim image has a row, and the label file is a fault already.
    labels_read = not any(fault.path.suffix == ".csv" for fault in faults)
    faults += _surplus_faults(index)
    if not partial:
        faults += _shortage_faults(index, labels_read)
    genuine = _genuine_parts(index) if index.published else {}
    for part in (part for part, same in genuine.items() if not same):
        files = {index.root / file for file in index.table["file"][index.part_names() == part]}
        if files.isdisjoint(fault.path for fault in faults):
            cause = "its files are not those published (sha256)"
            faults.append(Fault(_folder(index, part), cause, AGAIN))
    duplicates = find_duplicates(index, pairs, genuine)
    faults += _copy_faults(index, duplicates)
    faults += _shared_subject_faults(index)
    faults += _label_file_faults(index, faults)
    table, images = index.table, [str(row) for row in index.table.index]
    filled = {
        "group": merged_groups(table, duplicates),
        "copies": merged_groups(table.assign(group=images), duplicates),
    }
    index = replace(index, table=table.assign(**filled))
    return Examination(index, faults, duplicates, genuine)


def checked_index(
    root: str | Path,
    layout: str = "auto",
    partial: bool = False,
    cache: Path = Path("outputs/store"),
    outside: bool = False,
) -> Index:
    """The index of data in which `examine` finds no fault.

    Args:
        root, layout, partial, cache, outside: as `examine`.

    Raises:
        LeukoclsError: `root` is missing or holds no known layout.
        DataFault: the faults, in one message.
    """
    examination = examine(root, layout, partial, cache, outside)
    if faults := examination.faults:
        more = "\n`python -m leukocls.verify --json` names each" if len(faults) > 20 else ""
        raise DataFault(report(examination.index.source, faults) + more)
    return examination.index


def _label_file_faults(index: Index, faults: list[Fault]) -> list[Fault]:
    """A fault if the digest of prelim's names and labels is not the expected one.

    The digest cannot name the wrong line, so it is only compared if there is no fault yet in
    prelim's images or in the label file.
    """
    if index.labels is None or not index.rules.cnmc_tree:
        return []
    files = {index.root / f for f in index.table["file"][index.table["part"] == "prelim"]}
    name = index.labels.name
    if any(fault.path in files or fault.path.name.startswith(name) for fault in faults):
        return []
    truth = read_official_labels(index.labels, [])
    lines = ((name, row.original, row.label) for name, row in truth.items())
    if labels_digest(lines) == index.rules.labels_digest():
        return []
    cause = "names and labels are not those published (sha256)"
    return [Fault(index.labels, cause, "fetch the original file")]


def _surplus_faults(index: Index) -> list[Fault]:
    """A fault for each subject with more cells in a part than were published (0 in other parts)."""
    faults = []
    names, published = index.part_names(), index.expected_subjects()
    for (part, subject), cells in index.table.groupby([names, "subject"]):
        most = published.get(part, {}).get(subject, 0)
        if part in published and len(cells) > most:
            cause = f"subject {subject} has {len(cells)} images in {part}, {most} are published"
            # It is unknown which cell of a subject that belongs here is the surplus one.
            path = _folder(index, part) if most else index.root / cells["file"].iloc[-1]
            faults.append(Fault(path, cause, "restore the original name or remove the file"))
    present, total = index.counts().get("final", 0), index.expected().get("final", 0)
    if present > total:
        cause = f"final has {present:,} images, {total:,} are published"
        faults.append(Fault(_folder(index, "final"), cause, "remove the files that were added"))
    return faults


def _shortage_faults(index: Index, labels_read: bool) -> list[Fault]:
    """A fault for each part with too few cells.

    Final may be absent, because only a challenge submission needs it.
    """
    faults = []
    counts, names, subjects = index.counts(), index.part_names(), index.expected_subjects()
    for part, number in index.expected().items():
        present = counts.get(part, 0)
        excused = not present if part == "final" else part == "prelim" and not labels_read
        if present >= number or excused:
            continue
        cause = f"{part} has {present:,} of {number:,} images"
        counted = index.table["subject"][names == part].value_counts()
        short = [
            f"subject {subject} has {counted.get(subject, 0)} of {most}"
            for subject, most in subjects.get(part, {}).items()
            if counted.get(subject, 0) < most
        ]
        if part == "prelim" and index.absent:
            cause += f", without {listing(index.absent)}"
        elif short and present:
            cause += f": {listing(short)}"
        faults.append(Fault(_folder(index, part), cause, ACCEPT))
    if index.absent and index.rules.counts() is None:
        cause = f"images that the table lists are missing: {listing(index.absent)}"
        faults.append(Fault(index.source, cause, ACCEPT))
    return faults


def _folder(index: Index, part: str) -> Path:
    """The folder of a part; the root if the part has no file."""
    files = index.table["file"][index.part_names() == part]
    if files.empty:
        return index.root
    return (index.root / files.iloc[0]).parents[1 if part.startswith("fold_") else 0]


def _genuine_parts(index: Index) -> dict[str, bool]:
    """For each part with the published number of files, whether they are those published."""
    names, expected = index.part_names(), index.expected()
    genuine = {}
    for part, digest in PART_DIGESTS.items():
        cells = index.table[names == part]
        if len(cells) == expected[part]:
            lines = sorted(
                f"{sha}  {cell}\n" for sha, cell in zip(cells["sha256"], cells["cell"], strict=True)
            )
            genuine[part] = hashlib.sha256("".join(lines).encode()).hexdigest() == digest
    return genuine


def _copy_faults(index: Index, duplicates: Iterable[Duplicates]) -> list[Fault]:
    """A fault for each set of copies that is not expected."""
    faults = []
    for copies in (copies for copies in duplicates if not copies.expected):
        cells = index.table.loc[list(copies.rows)]
        first, *others = (index.root / file for file in cells["file"])
        how, remedy = HOW[copies.kind]
        faults.append(Fault(first, f"{how} {', '.join(map(str, others))}", remedy))
    return faults


def _shared_subject_faults(index: Index) -> list[Fault]:
    """A fault for each subject with cells in more than one of train, prelim and final."""
    faults = []
    known = index.table[index.table["group"] != ""]
    for group, cells in known.groupby("group"):
        parts = list(dict.fromkeys(cells["part"]))
        if len(parts) > 1 and not index.rules.expects_in(str(group), parts):
            path = index.root / cells["file"][cells["part"] == parts[-1]].iloc[0]
            cause = f"subject {group} is in {' and in '.join(parts)}"
            how = "restore the names" if index.rules.cnmc_tree else "correct subject or split"
            faults.append(Fault(path, cause, f"keep a subject in one part; {how}"))
    return faults
