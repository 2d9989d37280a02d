"""Data sets other than C-NMC: one CSV with `cell,subject,label,path` and, optionally, `split`.

Commas, semicolons or tabs separate the columns, whose names may have any case.

| column | holds |
|---|---|
| `cell` | a unique name for each image |
| `subject` | the person; empty if unknown, which leaves only the split scheme `cell` (LEAKY) |
| `label` | 1 or ALL, 0 or HEM; empty only in final |
| `path` | the image (`leukocls.data.images`), below the CSV's folder; backslashes count as / |
| `split` | train (default), val, prelim, final; only split_scheme=FILE tells val from train |
"""

import re
import unicodedata
from collections import Counter
from pathlib import Path

from leukocls.common.errors import Fault, LeukoclsError
from leukocls.data.names import LABEL_WORDS, UNKNOWN, cell_key
from leukocls.data.published import person_of
from leukocls.data.text_tables import read_words

INSIDE = (
    "write it relative to that folder and keep the image below it, or accept it: --outside,"
    " data.outside=true"
)
REQUIRED = ("cell", "subject", "label", "path")
PART_OF_SPLIT = {
    "": "train",
    "train": "train",
    "val": "train",
    "prelim": "prelim",
    "final": "final",
}


def table_rows(path: Path, outside: bool, faults: list[Fault]) -> tuple[list[tuple], list[str]]:
    """Rows of the index (columns NAMED), and the names of cells whose image is missing.

    Rows that do not parse are appended to `faults`.

    Args:
        outside: whether images may lie outside the CSV's folder.

    Raises:
        LeukoclsError: the file is not a CSV or parquet file with the columns REQUIRED.
    """
    table = read_words(path)
    lacking = [column for column in REQUIRED if column not in table]
    if lacking or table.empty:
        cause = f"no column {', '.join(lacking)}" if lacking else "no rows"
        raise LeukoclsError(
            f"{path}: {cause}; a data set is a CSV with {','.join(REQUIRED)} and, optionally, split"
        )
    if "split" not in table:
        table["split"] = "train"
    seen: Counter[str] = Counter()
    rows, missing = [], []
    # Row 1 is the header; empty lines do not count.
    for number, row in enumerate(table.itertuples(), start=2):
        place = path.with_name(f"{path.name}, row {number}")
        part = PART_OF_SPLIT.get(row.split)
        label = LABEL_WORDS.get(row.label.lower(), UNKNOWN)
        seen[cell_key(row.cell)] += 1
        cause = ""
        if not row.cell or seen[cell_key(row.cell)] > 1:
            cause = f"the cell's name {row.cell!r} is empty or not unique"
        elif part is None:
            cause = f"the split is {row.split!r}, not one of train, val, prelim, final"
        elif label < 0 and (row.label or part != "final"):
            cause = f"the label is {row.label!r}, not one of 1, ALL, 0, HEM"
        elif not row.path:
            cause = "the path is empty"
        if cause:
            faults.append(Fault(place, cause, "correct the row"))
            continue
        file = _located(path.parent, row.path)
        if not (outside or _is_below(path.parent, file)):
            faults.append(Fault(place, "the path leads out of the CSV's folder", INSIDE))
        elif not (path.parent / file).is_file():
            missing.append(row.cell)
        else:
            group = person_of(row.cell, row.subject)
            rows.append((row.cell, file, part, -1, row.subject, label, -1, -1, group))
    return rows, missing


def _located(folder: Path, text: str) -> str:
    """The path of a row as it is on disk: with `/`, and accents as one character or as two."""
    file = text.replace("\\", "/")
    parted = unicodedata.normalize("NFD", file)
    return file if (folder / file).is_file() or not (folder / parted).is_file() else parted


def _is_below(folder: Path, file: str) -> bool:
    """True if the file is inside the folder once links are resolved; a Windows drive never is."""
    inside = (folder / file).resolve().is_relative_to(folder.resolve())
    return inside and not re.match("[A-Za-z]:", file)
