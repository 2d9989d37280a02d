"""Write a data set's CSV: `python -m leukocls.index FOLDER --out FILE.csv` from class folders."""

from __future__ import annotations

import argparse
import csv
import io
import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from leukocls.common.errors import LeukoclsError, run_verb
from leukocls.common.files import atomic_write
from leukocls.common.tables import listing


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.index",
        description="Write the CSV of a data set (cell, subject, label, path) from a folder with"
        " one folder of images per class: all and hem, or two others. No image is opened.",
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="the folder that holds the class folders")
    add("--out", type=Path, required=True, metavar="FILE.csv", help="file to write, in FOLDER or"
        " in a folder above it")  # fmt: skip
    add("--positive", metavar="NAME", help="the class folder of ALL; the other one is HEM")
    add("--outside", action="store_true", help="write absolute paths, so that FILE.csv may be"
        " anywhere; all verbs that read it then need --outside, too")  # fmt: skip
    add("--json", action="store_true", help="print one JSON document")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the CSV.

    Raises:
        LeukoclsError: no two class folders, FILE.csv exists, or its place is not above FOLDER.
    """
    arguments = _parser().parse_args(argv)
    from leukocls.data.class_folders import read_class_folders
    from leukocls.data.table import REQUIRED

    root, out = arguments.folder, arguments.out
    if out.exists():
        raise LeukoclsError(f"{out}: exists already; remove it, or name another file")
    base = out.parent.resolve()
    if not (arguments.outside or root.resolve().is_relative_to(base)):
        raise LeukoclsError(
            f"{out}: is not in a folder above the images of {root}; write {root.parent / out.name},"
            " or absolute paths with --outside"
        )
    found = read_class_folders(root, arguments.positive, None if arguments.outside else base)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([REQUIRED, *found.rows])
    atomic_write(out, text.getvalue())
    cells = Counter(label for _, _, label, _ in found.rows)
    unknown = sum(not subject for _, subject, _, _ in found.rows)
    if arguments.json:
        document = {
            "file": str(out),
            "labels": found.labels,
            "cells": dict(cells),
            "without_subject": unknown,
            "left_out": [path.as_posix() for path in found.left_out],
        }
        print(json.dumps(document, indent=2))
        return 0
    classes = ", ".join(
        f"{cells[label]:,} {label} ({name})" for name, label in found.labels.items()
    )
    print(f"{out}: {len(found.rows):,} cells: {classes}")
    if found.left_out:
        names = listing(found.left_out)
        print(f"left out, no image or in neither folder: {names}")
    if unknown:
        print(
            f"The subject of {unknown:,} cells is empty. Fill in from whom each cell is, the same"
            " ID for all cells of a person:\nwithout subjects only split_scheme=cell works, and all"
            " its numbers are LEAKY."
        )
    file = shlex.quote(str(out))
    print(f"Next: python -m leukocls.verify {file}" + " --outside" * arguments.outside)
    return 0


if __name__ == "__main__":
    run_verb(main)
