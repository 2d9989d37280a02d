"""`python -m leukocls.split ROOT --out FILE`: a split as a table to read, diff and commit."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukocls.common.arguments import add_split_options
from leukocls.common.errors import run_verb
from leukocls.common.files import atomic_write
from leukocls.common.tables import aligned

if TYPE_CHECKING:
    import pandas as pd


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.split",
        description="Write one split of a data set as CSV: cell, subject, group, label, pixels,"
        " split. Training takes the file as split_scheme=FILE.",
    )
    add = parser.add_argument
    add("root", type=Path, metavar="ROOT", help="a data tree, or the CSV of a data set")
    add_split_options(parser, scheme="honest")
    add("--out", type=Path, required=True, metavar="FILE.csv", help="where to write it")
    add("--partial", action="store_true", help="go on with an incomplete tree")
    add("--cache", type=Path, default=Path("outputs/store"), help="remembers unchanged files")
    add("--json", action="store_true", help="print one JSON document")
    return parser


def counts(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Cells, subjects and both by class, of each split of a table."""
    present = {name: table[table["split"] == name] for name in ("train", "val", "prelim")}
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
    """Write a split. Raises LeukoclsError or DataFault as training would."""
    arguments = _parser().parse_args(argv)
    from leukocls.artifacts.marks import banner, data_marks, run_marks
    from leukocls.data.splits import SplitOptions, as_csv, make_split
    from leukocls.data.verify import checked_index

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    index = checked_index(arguments.root, partial=arguments.partial, cache=arguments.cache)
    index = index.only(("train", "prelim"))
    choice = SplitOptions(
        arguments.fold,
        arguments.folds,
        arguments.split_seed,
        arguments.n_subjects,
        arguments.n_cells,
    )
    split = make_split(index, arguments.split_scheme, choice)
    table = split.table(index)
    atomic_write(arguments.out, as_csv(table))
    found = counts(table)
    marks = run_marks(data_marks(index, ("train", "prelim")), leaky=split.leaky)
    if arguments.json:
        told: dict[str, Any] = {"file": str(arguments.out), "scheme": split.scheme, "marks": marks}
        told |= {"selection": split.selection, "test": list(split.tests), "splits": found}
        print(json.dumps(told, indent=2))
        return 0
    print(f"{arguments.out}: {split.scheme}, selection on {split.selection}")
    for line in banner(marks):
        print(line)
    rows = [[name, *one.values()] for name, one in found.items()]
    print(aligned([["split", *next(iter(found.values()))], *rows]))
    return 0


if __name__ == "__main__":
    run_verb(main)
