"""The index: one row for each cell, from file names and label file, before any image is opened.

The order of the rows does not depend on the order in which the file system lists the files.
"""

from collections.abc import Collection, Container
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from leukocls.common.errors import DataFault, Fault, report
from leukocls.data.cnmc import scan_tree
from leukocls.data.names import subject_of
from leukocls.data.rules import DataRules, TableRules
from leukocls.data.table import table_rows

PARTS = ("train", "prelim", "final")
NAMED = ["cell", "file", "part", "fold", "subject", "label", "image", "number", "group"]
BOX = ["top", "left", "bottom", "right"]
CONTENT = ["sha256", "pixels", *BOX, "height", "width", "converted"]  # from a file's content
COLUMNS = [*NAMED, *CONTENT, "copies"]
TABLE = "table"  # the layout of a data set that one CSV describes


@dataclass(frozen=True)
class Index:
    """The cells of one data set.

    Attributes:
        root: the folder below which all files lie.
        layout: a key of `leukocls.data.cnmc.LAYOUTS`, or TABLE.
        table: columns COLUMNS: `cell` (its name), `file` (path below `root`), `part`, `fold` (0-2,
            −1 outside C-NMC's train), `subject` (upper case, "" if unknown), `label` (ALL 1, HEM 0,
            −1 unknown), `image` and `number` (the field of view and the cell in it, −1 if unknown),
            `group` (what splits keep together: a subject, or merged subjects; "" if unknown).
            `leukocls.data.verify` fills in the rest ("" or 0 before): `sha256` of the file,
            `pixels` (equal for copies of an image), BOX (tight extent of the pixels that are not
            black, half open, px), the image's `height` and `width` in px, and the form that was
            `converted` to 8-bit RGB, such as "16-bit grey" ("" if none was); and `copies`, equal
            for all images that show one cell.
        absent: names of the cells that the label file lists and whose images are missing.
        labels: C-NMC's label file, or the CSV of another data set.
        rules: how data of this kind is read and checked.
    """

    root: Path
    layout: str
    table: pd.DataFrame
    absent: tuple[str, ...]
    labels: Path | None
    rules: DataRules

    @property
    def source(self) -> Path:
        """The path by which users name the data: the root, or the CSV of another data set."""
        return self.labels if self.labels and not self.rules.cnmc_tree else self.root

    @property
    def synthetic(self) -> bool:
        """Whether the cells are synthetic, so that no number holds for people."""
        return self.rules.synthetic

    @property
    def published(self) -> bool:
        """Whether the data must be C-NMC 2019 as published."""
        return self.rules.published

    def only(self, parts: Collection[str]) -> "Index":
        """The index of these parts only; rows before the first one left out keep their numbers."""
        kept = self.table[self.table["part"].isin(parts)].reset_index(drop=True)
        listed = any(part in parts for part in self.rules.listed_parts)
        return replace(self, table=kept, absent=self.absent if listed else ())

    def without_h3(self) -> "Index":
        """The index without the 36 cells whose subject H3 is written in lower case.

        The released code of Prellberg & Kramer 2019 loses them.
        """
        kept = self.table[~self.table["cell"].str.startswith("UID_h3_")].reset_index(drop=True)
        return replace(self, table=kept)

    def part_names(self) -> pd.Series:
        """The part of each row, with the official folds as fold_0, fold_1, fold_2."""
        part, fold = self.table["part"], self.table["fold"]
        return part.where(fold < 0, "fold_" + fold.astype(str))

    def expected(self) -> dict[str, int]:
        """Number of cells of a complete data set, by part (folds as fold_0 …)."""
        counts = self.rules.counts()
        return self.counts() if counts is None else counts

    def expected_subjects(self) -> dict[str, dict[str, int]]:
        """Number of cells of each subject of a complete data set, by part; empty if unknown."""
        return self.rules.subject_counts()

    def counts(self) -> dict[str, int]:
        """Number of cells that are present, with the keys of `expected`."""
        return {str(k): int(n) for k, n in self.part_names().value_counts().items()}

    def incomplete(self, parts: Collection[str] = PARTS) -> str:
        """A description of the parts that differ from a complete data set; "" if none does.

        Final may be absent as a whole.
        """
        present, complete = self.counts(), self.expected()
        if self.absent and self.rules.counts() is None:
            return f"{len(self.absent):,} images that the table lists are missing"
        return ", ".join(
            f"{part} has {present.get(part, 0):,} of {number:,} images"
            for part, number in complete.items()
            if ("train" if part.startswith("fold_") else part) in parts
            and present.get(part, 0) != number
            and (part != "final" or present.get("final"))
        )


def scan(
    root: str | Path, layout: str = "auto", outside: bool = False
) -> tuple[Index, list[Fault]]:
    """Read the names below `root` into one table; no image is opened.

    Args:
        root: a folder that holds one of the three layouts, itself or one or two levels down; or
            the CSV file of another data set (see `leukocls.data.table`).
        layout: "auto" or a key of `leukocls.data.cnmc.LAYOUTS`.
        outside: whether the images of a CSV may lie outside its folder.

    Returns:
        The index, and a fault for each name, folder and label that does not parse or disagrees.

    Raises:
        LeukoclsError: `root` is missing or holds no known layout.
    """
    path, faults = Path(root), list[Fault]()
    if path.is_file():
        rows, missing = table_rows(path, outside, faults)
        table = _ordered(rows)
        rules = TableRules(cnmc_subjects=bool(table["cell"].map(subject_of).any()))
        return Index(path.parent, TABLE, table, tuple(missing), path, rules), faults
    tree = scan_tree(path, layout, faults)
    index = Index(path, tree.layout, _ordered(tree.rows), tree.absent, tree.labels, tree.rules)
    return index, faults


def build_index(root: str | Path, layout: str = "auto") -> Index:
    """The index of `scan`, for data without any fault in names, folders and labels.

    Raises:
        LeukoclsError: `root` is missing or holds no known layout.
        DataFault: all faults in one message.
    """
    index, faults = scan(root, layout)
    if faults:
        raise DataFault(report(index.source, faults))
    return index


def _ordered(rows: list[tuple]) -> pd.DataFrame:
    """Rows as a table with COLUMNS, sorted; what only the images tell is still empty."""
    texts = dict.fromkeys(["sha256", "pixels", "converted", "copies"], "")
    unread = texts | dict.fromkeys([*BOX, "height", "width"], 0)
    table = pd.DataFrame(rows, columns=NAMED).assign(**unread)[COLUMNS]
    table["part"] = pd.Categorical(table["part"], categories=PARTS)
    table = table.sort_values(["part", "fold", "subject", "image", "number", "cell"])
    table = table.reset_index(drop=True)
    table["part"] = table["part"].astype(str)
    for column in ("fold", "label", "image", "number"):
        table[column] = table[column].astype("int64")
    return table


def among(names: pd.Series, values: Container[str]) -> np.ndarray:
    """Mask of the names that are one of `values`, bool [n]; `Series.isin` is slow on text."""
    return np.array([name in values for name in names.tolist()], dtype=bool)
