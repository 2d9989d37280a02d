"""`python -m leukocls.verify ROOT`: is this the data it should be, and what is in it twice."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukocls.common.errors import DataFault, run_verb
from leukocls.common.tables import aligned

if TYPE_CHECKING:
    from leukocls.data.verify import Examination

SCHEMES_ON_COPIES = (
    "  honest, subject: one side for all of them (subjects that share an image are one subject)\n"
    "  lofo: kept in the official fold with most cells of the merged subject, left out elsewhere\n"
    "  challenge: trains on every copy; none is in prelim\n"
    "  cell: may put copies on both sides, and is marked LEAKY"
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.verify",
        description="Check counts, subjects, labels, digests and duplicates of a data set, and"
        " decode every image; training refuses what is refused here.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "root", type=Path, metavar="ROOT", help="C-NMC 2019 in any layout, or the CSV of a data set"
    )
    add("--layout", default="auto", help="tcia, kaggle, challenge, or auto")
    add("--partial", action="store_true", help="missing files are no fault (data.partial=true)")
    add("--cache", type=Path, default=Path("outputs/store"), help="remembers unchanged files")
    add("--json", action="store_true", help="print one JSON document")
    return parser


def text(found: Examination) -> str:
    """The report for people: parts, known duplicates, faults."""
    from leukocls.artifacts.marks import banner, data_marks
    from leukocls.data.verify import summary

    told, marks = summary(found), data_marks(found.index)
    words = {True: "yes", False: "no", None: "–"}
    rows: list[Sequence[object]] = [("part", "images", "expected", "subjects", "as published")]
    for part, one in told["parts"].items():
        expected = "–" if one["expected"] is None else f"{one['expected']:,}"
        subjects = one["subjects"] or "–"
        rows.append((part, f"{one['cells']:,}", expected, subjects, words[one["as_published"]]))
    lines = [f"{told['root']} ({told['layout']} layout)", *banner(marks), aligned(rows)]
    if known := _known(found):
        lines += ["", "Images that are there more than once, and are known to be:", aligned(known)]
        lines += [SCHEMES_ON_COPIES]
    unknown = int((found.index.table["subject"] == "").sum())
    if unknown and not found.index.rules.cnmc_names:
        lines += ["", f"{unknown:,} cells without a subject: only split_scheme=cell can split them"]
    if found.faults:
        lines += ["", f"{len(found.faults)} fault(s):", *sorted(map(str, found.faults))]
    else:
        whole = [one for one in told["parts"].values() if one["cells"]]
        as_published = all(one["as_published"] for one in whole) and not marks
        lines += ["", "As published." if as_published else "No fault found in what is there."]
    return "\n".join(lines)


def _known(found: Examination) -> list[tuple[str, ...]]:
    """A row for each set of subjects (or final cells) with images in common."""
    from leukocls.data.folds import home_folds

    table = found.index.table
    trained = table[table["part"] == "train"]
    home = home_folds(trained)
    images: Counter[str] = Counter()
    group_of: dict[str, str] = {}
    for one in (one for one in found.duplicates if one.expected):
        cells = table.loc[list(one.rows)]
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
    """Verify a data set; 1 if anything is wrong with it. Raises LeukoclsError without one."""
    arguments = _parser().parse_args(argv)
    from leukocls.artifacts.marks import data_marks
    from leukocls.data.verify import examine, summary

    found = examine(arguments.root, arguments.layout, arguments.partial, arguments.cache)
    if arguments.json:
        told: dict[str, Any] = summary(found) | {"marks": data_marks(found.index)}
        print(json.dumps(told, indent=2))
    else:
        print(text(found))
    return DataFault.exit_code if found.faults else 0


if __name__ == "__main__":
    run_verb(main)
