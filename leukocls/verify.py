"""Check a data set: `python -m leukocls.verify ROOT` prints every fault and every duplicate."""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukocls.common.arguments import add_data_options, png_file
from leukocls.common.errors import DataFault, fault_lines, run_verb
from leukocls.common.tables import aligned

if TYPE_CHECKING:
    import pandas as pd

    from leukocls.data.verify import Examination

# Headings of the kinds of `leukocls.data.duplicates`, the most certain first.
KINDS = {"identical": "same file", "turned": "same pixels", "reprocessed": "processed again"}
SCHEMES_ON_COPIES = [
    "  honest, subject: all cells of a person on one side",
    "  cell: may put images of one cell on both sides, and is marked LEAKY",
]
CNMC_SCHEMES_ON_COPIES = [
    "  lofo: kept in the official fold with most cells of the person, left out elsewhere",
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
    add("--duplicates", type=Path, metavar="FILE.csv", help="write all pairs of images of one cell")
    add(
        "--sheet",
        type=png_file,
        metavar="FILE.png",
        help="draw these pairs, the least similar last",
    )
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
    if families := shared_cells(examination):
        lines += ["", "Subjects that share cells; each line is one person:", aligned(families)]
        if any(str(row[-1]).startswith("new") for row in families):
            lines += ["  new: not among C-NMC's known families. Look at the pairs with --sheet."]
    if count := repeated_cells(examination):
        lines += ["", f"Cells that one subject has more than once: {count}."]
    if families or count:
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


def shared_cells(examination: Examination) -> list[Sequence[object]]:
    """A row for each person with several subjects, or with cells in final; empty without any.

    Those of C-NMC's names are listed even if none of the cells that they share is there.
    """
    from leukocls.data.folds import home_folds

    table, cnmc = examination.index.table, examination.index.rules.cnmc_subjects
    families = {
        group: set(cells["subject"]) for group, cells in table.groupby("group") if "+" in group
    }
    images: dict[str, Counter[str]] = defaultdict(Counter)
    new = set()
    for copies in (copies for copies in examination.duplicates if copies.expected):
        cells = table.loc[list(copies.rows)]
        subjects = set(cells["subject"].where(cells["subject"] != "", cells["part"]))
        if len(subjects) > 1 or subjects == {"final"}:
            group = max(cells["group"])  # "" is that of final's cells
            families.setdefault(group, set()).update(subjects)
            images[group][copies.kind] += 1
            new |= set() if copies.known else {group}
    trained = table[table["part"] == "train"]
    home = home_folds(trained)
    rows: list[Sequence[object]] = [("  subjects", *KINDS.values(), "")]
    for group, subjects in families.items():
        if len(subjects) < 2 and not images[group]:
            continue
        away = trained[(trained["group"] == group) & (trained["fold"] != home.get(group))]
        notes = [
            ("new" if group in new else "known") if cnmc else "",
            f"lofo: fold_{home[group]}, {len(away)} cells left out" if len(away) else "",
        ]
        names = ", ".join(sorted(subjects, key=lambda subject: (len(subject), subject)))
        counts = [images[group][kind] or "–" for kind in KINDS]
        rows.append((f"  {names}", *counts, "; ".join(filter(None, notes))))
    return rows if len(rows) > 1 else []


def repeated_cells(examination: Examination) -> str:
    """How many cells one subject has more than once, by kind; "" if there are none."""
    groups = examination.index.table["subject"]
    images = Counter(
        copies.kind
        for copies in examination.duplicates
        if copies.expected and len(set(groups[list(copies.rows)]) - {""}) == 1
    )
    return ", ".join(f"{images[kind]:,} {name}" for kind, name in KINDS.items() if images[kind])


def main(argv: Sequence[str] | None = None) -> int:
    """Check a data set; returns 1 if it has a fault.

    Raises:
        LeukoclsError: there is no data set at ROOT.
    """
    arguments = _parser().parse_args(argv)
    from leukocls.artifacts.marks import data_marks
    from leukocls.common.files import atomic_write
    from leukocls.data.duplicate_pairs import draw_pairs, pairs_table
    from leukocls.data.index import PARTS
    from leukocls.data.verify import examine

    examination = examine(
        arguments.root, arguments.layout, arguments.partial, arguments.cache, arguments.outside
    )
    marks = data_marks(examination.index, PARTS)
    written = []
    if arguments.duplicates:
        pairs = pairs_table(examination)
        atomic_write(arguments.duplicates, pairs.to_csv(index=False, lineterminator="\n"))
        written.append(f"{arguments.duplicates}: {len(pairs):,} pairs of images of one cell")
    if arguments.sheet:
        count = draw_pairs(
            examination, arguments.sheet, " ".join([str(examination.index.source), *marks])
        )
        written.append(f"{arguments.sheet}: {count:,} of these pairs")
    if arguments.json:
        print(json.dumps(examination.document() | {"marks": marks}, indent=2))
    else:
        print("\n".join([text(examination), *written]))
    return DataFault.exit_code if examination.faults else 0


if __name__ == "__main__":
    run_verb(main)
