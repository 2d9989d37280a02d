"""Write a split: `python -m leukocls.split ROOT --out FILE` writes it as CSV."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from leukocls.common.arguments import add_data_options, add_split_options
from leukocls.common.errors import run_verb
from leukocls.common.files import atomic_write
from leukocls.common.tables import aligned, listing
from leukocls.data.names import PRELIM_TRAINED

if TYPE_CHECKING:
    import pandas as pd


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.split",
        description="Write one split of a data set as CSV: cell, subject, group, label, pixels,"
        " split. Training takes the file as split_scheme=FILE.",
    )
    add = parser.add_argument
    add_data_options(parser)
    add_split_options(parser, scheme="honest")
    add("--out", type=Path, required=True, metavar="FILE.csv", help="file to write")
    add("--json", action="store_true", help="print one JSON document")
    return parser


def counts(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Number of cells, and of cells and subjects by class, in each split of a table."""
    names = ("train", "val", "prelim", PRELIM_TRAINED)
    present = {name: table[table["split"] == name] for name in names}
    return {
        name: {
            "cells": len(cells),
            "ALL": int((cells["label"] == 1).sum()),
            "HEM": int((cells["label"] == 0).sum()),
            "subjects_ALL": int(cells["group"][cells["label"] == 1].nunique()),
            "subjects_HEM": int(cells["group"][cells["label"] == 0].nunique()),
        }
        for name, cells in present.items()
        if len(cells)
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write a split.

    Raises:
        LeukoclsError: no data set at ROOT, or no such split.
        DataFault: the data has faults.
    """
    arguments = _parser().parse_args(argv)
    from leukocls.artifacts.marks import banner, data_marks, run_marks
    from leukocls.data.persons import shared_persons
    from leukocls.data.splits import SplitOptions, as_csv, make_split
    from leukocls.data.summary import two_class_subjects
    from leukocls.data.verify import checked_index

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    index = checked_index(
        arguments.root,
        partial=arguments.partial,
        cache=arguments.cache,
        outside=arguments.outside,
    )
    index = index.only(("train", "prelim"))
    options = SplitOptions(
        arguments.fold,
        arguments.folds,
        arguments.split_seed,
        arguments.n_subjects,
        arguments.n_cells,
        arguments.leak,
    )
    split = make_split(index, arguments.split_scheme, options)
    table = split.table(index)
    atomic_write(arguments.out, as_csv(table))
    by_split = counts(table)
    marks = run_marks(data_marks(index, ("train", "prelim")), leaky=split.leaky)
    shared = shared_persons(table)
    if arguments.json:
        document = {
            "file": str(arguments.out),
            "scheme": split.scheme,
            "marks": marks,
            "shared_persons": shared,
            "selection": split.selection,
            "test": list(split.tests),
            "splits": by_split,
        }
        print(json.dumps(document, indent=2))
        return 0
    print(f"{arguments.out}: {split.scheme}, selection on {split.selection}")
    for line in [*banner(marks), *shared]:
        print(line)
    rows = [[name, *numbers.values()] for name, numbers in by_split.items()]
    print(aligned([["split", *next(iter(by_split.values()))], *rows]))
    if both := two_class_subjects(index):
        print(f"counted in both columns, with cells of both classes: {listing(both)}")
    return 0


if __name__ == "__main__":
    run_verb(main)
