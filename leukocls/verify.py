"""Check a data set: `python -m leukocls.verify ROOT` prints every fault and every duplicate."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from leukocls.common.arguments import add_data_options
from leukocls.common.errors import DataFault, fault_lines, run_verb
from leukocls.common.tables import aligned

if TYPE_CHECKING:
    import pandas as pd

    from leukocls.data.verify import Examination

SCHEMES_ON_COPIES = [
    "  honest, subject: all copies on one side (subjects that share an image count as one)",
    "  cell: may put copies on both sides, and is marked LEAKY",
]
CNMC_SCHEMES_ON_COPIES = [
    "  lofo: kept in the official fold with most cells of the merged subject, left out elsewhere",
    "  honest: nobody of train is in its test",
    "  challenge: trains on every copy; LEAKY where prelim has a person of train",
]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.verify",
        description="Check counts, subjects, labels, digests and duplicates of a data set, and"
        " decode every image. Training refuses the same faults.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add_data_options(parser)
    add("--layout", default="auto", help="tcia, kaggle, challenge, or auto")
    add("--json", action="store_true", help="print one JSON document")
    return parser


def text(examination: Examination) -> str:
    """The report as text: parts, expected duplicates, notes, faults."""
    from leukocls.artifacts.marks import banner, data_marks
    from leukocls.data.index import PARTS

    index, faults = examination.index, examination.faults
    document, marks = examination.document(), data_marks(index, PARTS)
    parts = _cnmc_parts(document) if index.rules.cnmc_tree else _parts(index.table)
    lines = [f"{document['root']} ({document['layout']} layout)", *banner(marks), aligned(parts)]
    if copies := _expected_copies(examination):
        lines += ["", "Images that are known to be there more than once:", aligned(copies)]
        lines += SCHEMES_ON_COPIES + CNMC_SCHEMES_ON_COPIES * index.rules.cnmc_tree
    if document["notes"]:
        lines += ["", *document["notes"]]
    if faults:
        lines += ["", f"{len(faults)} fault(s):", *fault_lines(faults)]
    else:
        present = [part for part in document["parts"].values() if part["cells"]]
        as_published = all(part["as_published"] for part in present) and not marks
        lines += ["", "As published." if as_published else "No fault found in what is there."]
    return "\n".join(lines)


def _cnmc_parts(document: dict[str, Any]) -> list[Sequence[object]]:
    """A row for each part, beside what was published."""
    words = {True: "yes", False: "no", None: "–"}
    rows: list[Sequence[object]] = [("part", "images", "expected", "subjects", "as published")]
    for name, part in document["parts"].items():
        expected = "–" if part["expected"] is None else f"{part['expected']:,}"
        subjects = part["subjects"] or "–"
        rows.append((name, f"{part['cells']:,}", expected, subjects, words[part["as_published"]]))
    return rows


def _parts(table: pd.DataFrame) -> list[Sequence[object]]:
    """A row for each part of a data set of which nothing is published."""
    rows: list[Sequence[object]] = [("part", "images", "ALL", "HEM", "subjects")]
    for name, cells in table.groupby("part", sort=False):
        classes = [f"{(cells['label'] == label).sum():,}" for label in (1, 0)]
        subjects = cells["group"][cells["group"] != ""].nunique()
        rows.append((name, f"{len(cells):,}", *classes, subjects or "–"))
    return rows


def _expected_copies(examination: Examination) -> list[tuple[str, ...]]:
    """A row for each set of subjects (or final cells) with images in common."""
    from leukocls.data.folds import home_folds

    table = examination.index.table
    trained = table[table["part"] == "train"]
    home = home_folds(trained)
    images: Counter[str] = Counter()
    group_of: dict[str, str] = {}
    for copies in (copies for copies in examination.duplicates if copies.expected):
        cells = table.loc[list(copies.rows)]
        subjects = cells["subject"].where(cells["subject"] != "", cells["cell"])
        name = " = ".join(sorted(set(subjects), key=lambda s: (len(s), s)))
        images[name] += 1
        group_of[name] = cells["group"].iloc[0]
    rows: list[tuple[str, ...]] = []
    for name, count in images.items():
        group = group_of[name]
        away = trained[(trained["group"] == group) & (trained["fold"] != home.get(group))]
        lofo = f"lofo: fold_{home[group]}, {len(away)} cells left out" if len(away) else ""
        merged = f"one subject {group}" if "+" in group else ""
        rows.append((f"  {name}", f"{count} image(s)", merged, lofo))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Check a data set; returns 1 if it has a fault.

    Raises:
        LeukoclsError: there is no data set at ROOT.
    """
    arguments = _parser().parse_args(argv)
    from leukocls.artifacts.marks import data_marks
    from leukocls.data.index import PARTS
    from leukocls.data.verify import examine

    examination = examine(
        arguments.root, arguments.layout, arguments.partial, arguments.cache, arguments.outside
    )
    if arguments.json:
        document = examination.document() | {"marks": data_marks(examination.index, PARTS)}
        print(json.dumps(document, indent=2))
    else:
        print(text(examination))
    return DataFault.exit_code if examination.faults else 0


if __name__ == "__main__":
    run_verb(main)
