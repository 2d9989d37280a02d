"""The table of cells: what the file names and the label file say, before any image is opened.

One row a cell, always in the same order, whatever order the file system lists them in.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from leukocls.common.errors import DataFault, Fault, report
from leukocls.data.cnmc import scan_tree
from leukocls.data.rules import DataRules, TableRules
from leukocls.data.table import table_rows

PARTS = ("train", "prelim", "final")
NAMED = ["cell", "file", "part", "fold", "subject", "label", "image", "number", "group"]
BOX = ["top", "left", "bottom", "right"]
COLUMNS = [*NAMED, "sha256", "pixels", *BOX, "height", "width"]
TABLE = "table"  # the layout of a data set that one CSV describes


@dataclass(frozen=True)
class Index:
    """The cells of one data set.

    `table` has the columns COLUMNS: `cell` (its name), `file` (path below `root`), `part`,
    `fold` (0-2, −1 outside C-NMC's train), `subject` (upper case, "" if unknown), `label` (ALL 1,
    HEM 0, −1 unknown), `image` and `number` (the field and the cell in it, −1 if unknown),
    `group` (what splits keep together: the subject, or several that are one; "" if unknown),
    and, once `leukocls.data.verify` has read the file ("" or 0 before), `sha256`, `pixels` (what
    copies of an image share), BOX (the tight extent of what is not black, half open, px), and the
    image's `height` and `width` in px.
    `layout` is a key of `leukocls.data.cnmc.LAYOUTS`, or TABLE. `absent` names the cells that a
    label file lists and the tree lacks; `labels` is C-NMC's label file or the CSV of another data
    set; `rules` are those by which data of this kind is read and checked.
    """

    root: Path
    layout: str
    table: pd.DataFrame
    absent: tuple[str, ...]
    labels: Path | None
    rules: DataRules

    @property
    def source(self) -> Path:
        """What the user named: the root, or the CSV of another data set."""
        return self.labels if self.labels and not self.rules.cnmc_names else self.root

    @property
    def synthetic(self) -> bool:
        """Whether the cells are embedded ones: nothing measured on them holds for people."""
        return self.rules.synthetic

    @property
    def published(self) -> bool:
        """Whether this must be C-NMC 2019 as published."""
        return self.rules.published

    def only(self, parts: Collection[str]) -> "Index":
        """The index of these parts alone; the rows of those that come first keep their numbers."""
        kept = self.table[self.table["part"].isin(parts)].reset_index(drop=True)
        stays = any(part in parts for part in self.rules.listed_parts)
        return replace(self, table=kept, absent=self.absent if stays else ())

    def without_h3(self) -> "Index":
        """Without the 36 cells whose subject H3 is written in lower case (RECIPES §2)."""
        kept = self.table[~self.table["cell"].str.startswith("UID_h3_")].reset_index(drop=True)
        return replace(self, table=kept)

    def part_names(self) -> pd.Series:
        """The part of each row, with the official folds as fold_0, fold_1, fold_2."""
        part, fold = self.table["part"], self.table["fold"]
        return part.where(fold < 0, "fold_" + fold.astype(str))

    def expected(self) -> dict[str, int]:
        """Cells that a complete data set of this kind holds, by part (folds as fold_0 …)."""
        counts = self.rules.counts()
        return self.counts() if counts is None else counts

    def expected_subjects(self) -> dict[str, dict[str, int]]:
        """Cells of each subject by part that a complete data set holds; empty if nobody says."""
        return self.rules.subject_counts()

    def counts(self) -> dict[str, int]:
        """Cells present, under the same keys as `expected`."""
        return {str(k): int(n) for k, n in self.part_names().value_counts().items()}

    def incomplete(self, parts: Collection[str] = PARTS) -> str:
        """Which of `parts` differ from a complete data set, in words; "" if none does.

        Final is optional, but half of it is a fault.
        """
        have, want = self.counts(), self.expected()
        if self.absent and self.rules.counts() is None:
            return f"{len(self.absent):,} images that the table lists are missing"
        return ", ".join(
            f"{part} has {have.get(part, 0):,} of {number:,} images"
            for part, number in want.items()
            if ("train" if part.startswith("fold_") else part) in parts
            and have.get(part, 0) != number
            and (part != "final" or have.get("final"))
        )


def scan(root: str | Path, layout: str = "auto") -> tuple[Index, list[Fault]]:
    """Read the names below `root` into one table; no image is opened.

    Args:
        root: a folder that holds one of the three layouts, itself or one or two levels down; or
            the CSV file of another data set (see `leukocls.data.table`).
        layout: "auto" or a key of `leukocls.data.cnmc.LAYOUTS`.

    Returns:
        The index, and names, folders and labels that do not parse or disagree.

    Raises:
        LeukoclsError: `root` is missing or holds no known layout.
    """
    given, faults = Path(root), list[Fault]()
    if given.is_file():
        rows, missing = table_rows(given, faults)
        table = _ordered(rows)
        return Index(given.parent, TABLE, table, tuple(missing), given, TableRules()), faults
    tree = scan_tree(given, layout, faults)
    index = Index(given, tree.layout, _ordered(tree.rows), tree.absent, tree.labels, tree.rules)
    return index, faults


def build_index(root: str | Path, layout: str = "auto") -> Index:
    """The index of `scan`, refused if anything is wrong with names, folders and labels.

    Raises:
        LeukoclsError: `root` is missing or holds no known layout.
        DataFault: all faults in one message.
    """
    index, faults = scan(root, layout)
    if faults:
        raise DataFault(report(index.source, faults))
    return index


def _ordered(rows: list[tuple]) -> pd.DataFrame:
    unread = {"sha256": "", "pixels": "", **dict.fromkeys([*BOX, "height", "width"], 0)}
    table = pd.DataFrame(rows, columns=NAMED).assign(**unread)
    table["part"] = pd.Categorical(table["part"], categories=PARTS)
    table = table.sort_values(["part", "fold", "subject", "image", "number", "cell"])
    table = table.reset_index(drop=True)
    table["part"] = table["part"].astype(str)
    for column in ("fold", "label", "image", "number"):
        table[column] = table[column].astype("int64")
    return table
