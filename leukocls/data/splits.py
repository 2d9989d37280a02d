"""Split schemes: which cells train the network, which choose the epoch, which are only reported.

The cells of a `group` of the index (a subject, or subjects that share images) stay on one side.
Only the schemes `cell` and `leakage` separate them, and are marked LEAKY. Schemes with folds divide
the train part (k-fold cross-validation) and never touch prelim, which `honest` scores once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from leukocls.common.errors import LeukoclsError
from leukocls.common.tables import listing
from leukocls.data.folds import (
    balanced_folds,
    home_folds,
    need_subjects,
    need_two_subjects,
    scheme_without_prelim,
    subset,
)
from leukocls.data.index import Index
from leukocls.data.leakage import HALVES, leakage_rows
from leukocls.data.names import CLASSES, PRELIM_TRAINED, UNKNOWN
from leukocls.data.persons import apart_from_train, leaks_as_published, overlap
from leukocls.data.random import FOLD_STREAM, random_numbers
from leukocls.data.split_options import SplitOptions
from leukocls.data.text_tables import read_words

COLUMNS = ["cell", "subject", "group", "label", "pixels", "split"]


@dataclass(frozen=True)
class Split:
    """Rows of the index by split name.

    Attributes:
        scheme: name of the split scheme, or of the split file.
        rows: int64 [n] for each of train, val, prelim, final that the split has.
        selection: the split whose metrics choose the epoch; its numbers are never a test.
        tests: splits that are scored once, with the chosen epoch, at the end.
        leaky: whether subjects or images may be on both sides.
    """

    scheme: str
    rows: dict[str, np.ndarray]
    selection: str
    tests: tuple[str, ...] = ()
    leaky: bool = False

    @property
    def scored(self) -> list[str]:
        """The splits that are evaluated after each epoch; train only if there is no other."""
        names = [name for name in self.rows if name not in ("train", *self.scored_once)]
        return names or ["train"]

    @property
    def scored_once(self) -> list[str]:
        """The splits that the chosen epoch scores at the end: tests, and what is no test."""
        return [name for name in self.rows if name in (*self.tests, PRELIM_TRAINED)]

    def table(self, index: Index) -> pd.DataFrame:
        """One row with COLUMNS for each cell of the split, in the index's order."""
        cells = _with_split(self, index)
        # 16 digits are enough to tell images apart, and short enough to read.
        short = cells["pixels"].str[:16]
        return cells.assign(pixels=short)[COLUMNS].reset_index(drop=True)


def challenge(index: Index, options: SplitOptions) -> Split:
    """Train on folds 0-2 and select on prelim, as Prellberg & Kramer 2019. There is no test set.

    It is LEAKY where a person of train is in prelim, as 51 is: prelim's 55.
    """
    if options.fold is not None:
        raise LeukoclsError("split_scheme=challenge has no folds: leave fold= out.")
    rows = {"train": part_rows(index, "train"), "prelim": _prelim_rows(index, "challenge")}
    need_subjects(index.table.iloc[np.concatenate([*rows.values()])], index.source)
    leaky = leaks_as_published(index, rows["prelim"])
    return Split("challenge", rows, "prelim", leaky=leaky)


def honest(index: Index, options: SplitOptions) -> Split:
    """Select on a subject-disjoint fold inside train, and score prelim once, as the test set.

    Cells of prelim whose person is in train are scored beside it, and are not part of the test.
    """
    prelim = _prelim_rows(index, "honest")
    need_subjects(index.table.iloc[prelim], index.source)
    rows = {**subject(index, options).rows, **apart_from_train(index, prelim)}
    return Split("honest", rows, "val", ("prelim",))


def subject(index: Index, options: SplitOptions) -> Split:
    """k-fold cross-validation by merged subjects of train, balanced in cells and subjects."""
    rows = part_rows(index, "train")
    table = index.table.iloc[rows]
    need_subjects(table, index.source)
    need_two_subjects(table, index.source)
    fold = balanced_folds(table["group"], table["label"], options.folds, options.seed)
    return _held_out("subject", rows, fold, options.fold, options.folds)


def _prelim_rows(index: Index, scheme: str) -> np.ndarray:
    """`part_rows` of prelim; the error names a scheme that needs none."""
    if "prelim" not in index.table["part"].unique():
        raise LeukoclsError(
            f"{index.source}: split_scheme={scheme} needs the part prelim, and no cell is of it."
            f" What fits this data is {scheme_without_prelim(index.table)}."
        )
    return part_rows(index, "prelim")


def lofo(index: Index, options: SplitOptions) -> Split:
    """Leave one official fold out.

    A merged subject that spans folds belongs to the fold with most of its cells (the first such
    fold); its cells in the others are left out.
    """
    rows = part_rows(index, "train")
    table = index.table.iloc[rows]
    if (table["fold"] < 0).any():
        raise LeukoclsError(
            f"{index.source}: has no official folds, which split_scheme=lofo leaves out one at a"
            " time. Use subject."
        )
    home = home_folds(table)
    at_home = (table["group"].map(home) == table["fold"]).to_numpy()
    fold = np.where(at_home, table["fold"], -1)
    return _held_out("lofo", rows, fold, options.fold, 3)


def everything(index: Index, options: SplitOptions) -> Split:
    """Train on all labelled cells, for a submission on final; nothing is left to select on."""
    if options.fold is not None:
        raise LeukoclsError("split_scheme=all has no folds: leave fold= out.")
    rows = np.flatnonzero(index.table["part"].isin(["train", "prelim"]))
    return Split("all", {"train": rows}, "train")


def cell(index: Index, options: SplitOptions) -> Split:
    """k-fold cross-validation by cells, with subjects on both sides: LEAKY, inflated numbers."""
    rows = part_rows(index, "train")
    table = index.table.iloc[rows]
    draw = pd.Series(
        random_numbers(options.seed, FOLD_STREAM).permutation(len(table)), index=table.index
    )
    fold = draw.groupby(table["label"]).rank(method="first").to_numpy(np.int64) % options.folds
    return replace(_held_out("cell", rows, fold, options.fold, options.folds), leaky=True)


def leakage(index: Index, options: SplitOptions) -> Split:
    """Score some cells of half of the persons; train on the other half, or on these persons' cells.

    LEAKY if `options.leak` is above 0. See `leukocls.data.leakage`.
    """
    table = index.table.iloc[part_rows(index, "train")]
    fold = _fold("leakage", options.fold, HALVES)
    rows = leakage_rows(table, index.source, replace(options, fold=fold))
    return Split("leakage", rows, "val", leaky=bool(options.leak))


SCHEMES: dict[str, Callable[[Index, SplitOptions], Split]] = {
    "challenge": challenge,
    "honest": honest,
    "subject": subject,
    "lofo": lofo,
    "cell": cell,
    "all": everything,
    "leakage": leakage,
}


def make_split(index: Index, scheme: str, options: SplitOptions | None = None) -> Split:
    """The split of a scheme.

    Args:
        index: one whose columns `leukocls.data.verify` has filled in.
        scheme: a key of SCHEMES, or the path of a .csv or .parquet file with cell,split.

    Raises:
        LeukoclsError: unknown scheme, missing part, fold or class, or subjects or identical images
            on two sides of a scheme that is not LEAKY.
    """
    options = options or SplitOptions()
    classes = {*index.table["label"].unique()} - {UNKNOWN}
    if len(classes) == 1:
        (only,) = classes
        raise LeukoclsError(
            f"{index.source}: all {(index.table['label'] == only).sum():,} labelled cells are"
            f" {CLASSES[only]}, and a classifier needs both classes. Add cells that are"
            f" {CLASSES[1 - only]}."
        )
    if options.leak is not None and scheme != "leakage":
        raise LeukoclsError(f"leak={options.leak}: only split_scheme=leakage has it; leave it out.")
    if scheme in SCHEMES:
        split = SCHEMES[scheme](index, options)
    elif Path(str(scheme)).suffix in (".csv", ".parquet"):
        split = _from_file(index, Path(scheme), options)
    else:
        raise LeukoclsError(
            f"split_scheme={scheme}: choose one of {', '.join(SCHEMES)}, or a .csv or .parquet"
            " file with cell,split."
        )
    split = _reduced(split, index, options)
    if not split.leaky and len(leaks := overlap(_with_split(split, index))):
        raise LeukoclsError(
            f"{index.source}: split_scheme={scheme} has subjects or images of these cells on two"
            f" sides: {listing(leaks['cell'])}. `python -m leukocls.verify` says why."
        )
    labels = index.table["label"].to_numpy()
    # Cells without a known class can be scored, but not trained or selected on.
    assert not (labels[split.rows["train"]] == UNKNOWN).any()
    for name in ("train", split.selection):
        if set(labels[split.rows[name]].tolist()) != {0, 1}:
            raise LeukoclsError(
                f"{index.source}: the cells of {name} are of one class only; {scheme} needs ALL and"
                " HEM in it. Choose another fold or more subjects."
            )
    return split


def part_rows(index: Index, part: str) -> np.ndarray:
    """Rows of one part of the data, int64 [n], in the index's order.

    Raises:
        LeukoclsError: the part is not one of train, prelim and final, or holds no image.
    """
    rows = np.flatnonzero(index.table["part"].to_numpy() == part)
    if not len(rows):
        raise LeukoclsError(
            f"{index.source}: part {part!r} holds no image (present: "
            f"{', '.join(index.table['part'].unique())}). Add it, or name another part."
        )
    return rows


def as_csv(table: pd.DataFrame) -> str:
    """A split's table as CSV text; equal splits give equal bytes."""
    text: str = table.to_csv(index=False, lineterminator="\n")
    return text


def read_split(path: Path) -> pd.DataFrame:
    """Read a split file as text: `cell`, `split` (or `fold`), maybe `subject` and `label`.

    Raises:
        LeukoclsError: the file is no such table.
    """
    table = read_words(path)
    if "cell" not in table or not {"split", "fold"} & set(table):
        raise LeukoclsError(
            f"{path}: needs the columns cell and split (or fold); it has"
            f" {', '.join(map(str, table))}"
        )
    return table


def _held_out(
    scheme: str, rows: np.ndarray, fold: np.ndarray, wanted: int | None, folds: int
) -> Split:
    """The split with fold `wanted` as val and the others as train; fold −1 is left out."""
    wanted, fold = _fold(scheme, wanted, folds), np.asarray(fold)
    train, val = rows[(fold != wanted) & (fold >= 0)], rows[fold == wanted]
    return Split(scheme, {"train": train, "val": val}, "val")


def _fold(scheme: str, wanted: int | None, folds: int) -> int:
    """The number of the fold to hold out, the first one if `wanted` is None."""
    wanted = 0 if wanted is None else wanted
    if type(wanted) is not int or not 0 <= wanted < folds:
        raise LeukoclsError(f"fold={wanted}: {scheme} has the folds 0 to {folds - 1}.")
    return wanted


def _with_split(split: Split, index: Index) -> pd.DataFrame:
    """The rows of the index that are in the split, with a column `split`."""
    names = pd.Series("", index=index.table.index)
    for name, rows in split.rows.items():
        names.iloc[rows] = name
    return index.table.assign(split=names)[names != ""]


def _from_file(index: Index, path: Path, options: SplitOptions) -> Split:
    """The split in a file, marked LEAKY if subjects or images are on two sides or unknown."""
    table = read_split(path)
    if "split" not in table:
        raise LeukoclsError(f"{path}: needs the column split (train, val, prelim)")
    if options.fold is not None:
        raise LeukoclsError(f"split_scheme={path}: a file has no folds; leave fold= out.")
    present = {*table["split"].unique()}
    names = [n for n in ("train", "val", "prelim", PRELIM_TRAINED, "final") if n in present]
    if present - {*names, ""} or names[:1] != ["train"]:
        held = ", ".join(sorted(present)) or "nothing"
        raise LeukoclsError(
            f"{path}: its column split holds {held}; it takes train, and val or prelim or both"
        )
    table = table[table["split"] != "final"]
    # Final's cells may have the names of prelim's, and have no labels to train or select on.
    labelled = index.table["cell"][index.table["part"] != "final"]
    row_of = {name: row for row, name in labelled.items()}
    if (twice := table["cell"][table["cell"].duplicated()]).size:
        raise LeukoclsError(f"{path}: cells named twice: {listing(twice)}; keep one of each")
    if unknown := [name for name in table["cell"] if name not in row_of]:
        raise LeukoclsError(f"{path}: cells that {index.source} lacks: {listing(unknown)}")
    rows = {
        name: np.sort([row_of[cell] for cell in table["cell"][table["split"] == name]])
        for name in names
        if name != "final"
    }
    selection = "val" if "val" in rows else "prelim"
    if selection not in rows:
        raise LeukoclsError(f"{path}: needs val or prelim, to choose the epoch on")
    tests = ("prelim",) if selection == "val" and "prelim" in rows else ()
    split = Split(path.name, rows, selection, tests)
    cells = _with_split(split, index)
    # Unknown subjects are treated as overlapping.
    return replace(split, leaky=(cells["group"] == "").any() or not overlap(cells).empty)


def _reduced(split: Split, index: Index, options: SplitOptions) -> Split:
    """The split with fewer training subjects, then fewer training cells, if options say so."""
    table = index.table.iloc[split.rows["train"]]
    table = subset(table, options.n_subjects, options.n_cells, options.seed)
    return replace(split, rows={**split.rows, "train": np.array(table.index, np.int64)})
