"""Splits by name: which cells train, which choose the epoch, which are only reported.

What must stay together is a `group` of the index: a subject, or several that share an image. Only
the scheme `cell` separates its cells, and is marked LEAKY. Schemes with folds divide the train part
and never touch prelim, which `honest` scores once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from leukocls.common.errors import LeukoclsError
from leukocls.common.tables import listing
from leukocls.data.folds import balanced_folds, home_folds, nested
from leukocls.data.index import Index
from leukocls.data.names import UNKNOWN
from leukocls.data.random import FOLD_STREAM, random_numbers
from leukocls.data.text_tables import read_words

COLUMNS = ["cell", "subject", "group", "label", "pixels", "split"]


@dataclass(frozen=True)
class Split:
    """Rows of the index by split name.

    `selection` names the split whose metrics choose the epoch; its numbers are never a test.
    `tests` are scored once, by the chosen epoch, when everything has been chosen.
    """

    scheme: str
    rows: dict[str, np.ndarray]
    selection: str
    tests: tuple[str, ...] = ()
    leaky: bool = False

    @property
    def scored(self) -> list[str]:
        """The splits that are evaluated after each epoch; train only if it is all there is."""
        names = [name for name in self.rows if name != "train" and name not in self.tests]
        return names or ["train"]

    def table(self, index: Index) -> pd.DataFrame:
        """One row a cell that is in the split, in the index's order, with COLUMNS."""
        known = _known(self, index)
        # Enough to tell images apart, and short enough to read.
        short = known["pixels"].str[:16]
        return known.assign(pixels=short)[COLUMNS].reset_index(drop=True)


@dataclass(frozen=True)
class SplitOptions:
    """Which split of a scheme. `seed` is that of the split, never of a run.

    `fold` is the fold that is held out as val (None: 0, and no fold for `challenge`), of `folds`
    (of the official three for `lofo`). `n_subjects` and `n_cells` cut the training set for
    learning curves: a smaller one is part of a larger one, with the same share of ALL.
    """

    fold: int | None = None
    folds: int = 5
    seed: int = 0
    n_subjects: int | None = None
    n_cells: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("folds", 2), ("seed", 0), ("n_subjects", 2), ("n_cells", 2)):
            value = getattr(self, name)
            absent = value is None and name.startswith("n_")
            if not absent and not (type(value) is int and least <= value < 2**64):
                name = {"seed": "split_seed"}.get(name, name)
                raise LeukoclsError(f"{name}={value}: choose a whole number, at least {least}.")


def challenge(index: Index, options: SplitOptions) -> Split:
    """Train on folds 0-2, select on prelim: Prellberg & Kramer 2019. No test number can exist."""
    if options.fold is not None:
        raise LeukoclsError("split_scheme=challenge has no folds: leave fold= out.")
    rows = {part: part_rows(index, part) for part in ("train", "prelim")}
    _need_subjects(index, np.concatenate([*rows.values()]))
    return Split("challenge", rows, "prelim")


def honest(index: Index, options: SplitOptions) -> Split:
    """Select on a subject-disjoint fold inside train; score prelim once: the headline."""
    prelim = part_rows(index, "prelim")
    _need_subjects(index, prelim)
    inner = subject(index, options)
    return Split("honest", {**inner.rows, "prelim": prelim}, "val", ("prelim",))


def subject(index: Index, options: SplitOptions) -> Split:
    """k folds over the merged subjects of train, balanced in cells and subjects of each class."""
    rows = part_rows(index, "train")
    table = index.table.iloc[rows]
    _need_subjects(index, rows)
    fold = balanced_folds(table["group"], table["label"], options.folds, options.seed)
    return _held_out("subject", rows, fold, options.fold, options.folds)


def _need_subjects(index: Index, rows: np.ndarray) -> None:
    unknown = int((index.table["group"].iloc[rows] == "").sum())
    if unknown:
        raise LeukoclsError(
            f"{index.source}: {unknown:,} cells have no subject, so that no split can keep subjects"
            " apart. Add them, or use split_scheme=cell (LEAKY)."
        )


def lofo(index: Index, options: SplitOptions) -> Split:
    """Leave one official fold out.

    A merged subject that spans folds belongs to the one with most of its cells (the first of
    equals); its cells in the others are left out (RECIPES, merge rule).
    """
    rows = part_rows(index, "train")
    table = index.table.iloc[rows]
    if (table["fold"] < 0).any():
        raise LeukoclsError(
            f"{index.source}: split_scheme=lofo needs C-NMC's official folds. Use subject."
        )
    home = home_folds(table)
    at_home = (table["group"].map(home) == table["fold"]).to_numpy()
    fold = np.where(at_home, table["fold"], -1)
    return _held_out("lofo", rows, fold, options.fold, 3)


def everything(index: Index, options: SplitOptions) -> Split:
    """All labelled cells train, and nothing is left to choose or report on: to score final by."""
    if options.fold is not None:
        raise LeukoclsError("split_scheme=all has no folds: leave fold= out.")
    rows = np.concatenate([part_rows(index, part) for part in ("train", "prelim")])
    return Split("all", {"train": rows}, "train")


def cell(index: Index, options: SplitOptions) -> Split:
    """k folds over the cells, whoever they are from: what inflates published numbers. LEAKY."""
    rows = part_rows(index, "train")
    table = index.table.iloc[rows]
    draw = pd.Series(
        random_numbers(options.seed, FOLD_STREAM).permutation(len(table)), index=table.index
    )
    fold = draw.groupby(table["label"]).rank(method="first").to_numpy(np.int64) % options.folds
    return replace(_held_out("cell", rows, fold, options.fold, options.folds), leaky=True)


SCHEMES: dict[str, Callable[[Index, SplitOptions], Split]] = {
    "challenge": challenge,
    "honest": honest,
    "subject": subject,
    "lofo": lofo,
    "cell": cell,
    "all": everything,
}


def make_split(index: Index, scheme: str, options: SplitOptions | None = None) -> Split:
    """The split named `scheme`, or the one in the file of that name.

    Raises:
        LeukoclsError: unknown scheme, parts or folds that are not there, classes that are
            missing, or subjects or identical images on two sides of anything but `cell`.
    """
    options = options or SplitOptions()
    if scheme in SCHEMES:
        split = SCHEMES[scheme](index, options)
    elif Path(str(scheme)).suffix in (".csv", ".parquet"):
        split = _from_file(index, Path(scheme), options)
    else:
        raise LeukoclsError(
            f"split_scheme={scheme}: choose one of {', '.join(SCHEMES)}, or a .csv or .parquet"
            " file with cell,split."
        )
    split = _cut(split, index, options)
    if not split.leaky and len(leaks := overlap(_known(split, index))):
        raise LeukoclsError(
            f"{index.source}: {scheme} would have these on two sides: {listing(leaks['cell'])}."
            " `python -m leukocls.verify` says why."
        )
    labels = index.table["label"].to_numpy()
    # Cells without a known class can be scored, never trained or selected on.
    assert not (labels[split.rows["train"]] == UNKNOWN).any()
    for name in ("train", split.selection):
        if set(labels[split.rows[name]].tolist()) != {0, 1}:
            raise LeukoclsError(
                f"{index.source}: the cells of {name} are of one class only; {scheme} needs ALL and"
                " HEM in it. Choose another fold or more subjects."
            )
    return split


def overlap(table: pd.DataFrame) -> pd.DataFrame:
    """Cells of a split's table, outside train, whose group or pixels are in another split too.

    Columns of `table`: `cell`, `group`, `pixels` ("" where they are unknown), `split`.
    """
    shared = pd.Series(False, index=table.index)
    for column in ("group", "pixels"):
        known = table[column] != ""
        splits = table[known].groupby(column)["split"].transform("nunique")
        shared |= known & (splits.reindex(table.index, fill_value=1) > 1)
    return table[shared & (table["split"] != "train")]


def part_rows(index: Index, part: str) -> np.ndarray:
    """Rows int64 [n] of one part of the data, in the index's order.

    Raises:
        LeukoclsError: the part is not one of train, prelim, final, or holds no image.
    """
    rows = np.flatnonzero(index.table["part"].to_numpy() == part)
    if not len(rows):
        raise LeukoclsError(
            f"{index.source}: part {part!r} holds no image (present: "
            f"{', '.join(index.table['part'].unique())}). Add it, or name another part."
        )
    return rows


def as_csv(table: pd.DataFrame) -> str:
    """A split's table as text: equal splits are equal bytes, and a diff names cells."""
    text: str = table.to_csv(index=False, lineterminator="\n")
    return text


def read_split(path: Path) -> pd.DataFrame:
    """A table with `cell` and `split` (or `fold`), and `subject` and `label` where it has them.

    Raises:
        LeukoclsError: not such a file.
    """
    table = read_words(path)
    if "cell" not in table or not {"split", "fold"} & set(table):
        raise LeukoclsError(
            f"{path}: needs the columns cell and split (or fold); has {', '.join(map(str, table))}"
        )
    return table


def _held_out(
    scheme: str, rows: np.ndarray, fold: np.ndarray, wanted: int | None, folds: int
) -> Split:
    """Fold `wanted` as val, the others as train; fold −1 is left out of both."""
    wanted = 0 if wanted is None else wanted
    if type(wanted) is not int or not 0 <= wanted < folds:
        raise LeukoclsError(f"fold={wanted}: {scheme} has the folds 0 to {folds - 1}.")
    fold = np.asarray(fold)
    train, val = rows[(fold != wanted) & (fold >= 0)], rows[fold == wanted]
    return Split(scheme, {"train": train, "val": val}, "val")


def _known(split: Split, index: Index) -> pd.DataFrame:
    """The split's rows with all that `overlap` can compare."""
    names = pd.Series("", index=index.table.index)
    for name, rows in split.rows.items():
        names.iloc[rows] = name
    return index.table.assign(split=names)[names != ""]


def _from_file(index: Index, path: Path, options: SplitOptions) -> Split:
    """A split that was written before, by hand or by somebody else; LEAKY if it is."""
    table = read_split(path)
    if "split" not in table:
        raise LeukoclsError(f"{path}: needs the column split (train, val, prelim)")
    if options.fold is not None:
        raise LeukoclsError(f"split_scheme={path}: a file has no folds; leave fold= out.")
    names = [name for name in ("train", "val", "prelim", "final") if name in set(table["split"])]
    if set(table["split"]) - {*names, ""} or names[:1] != ["train"]:
        held = ", ".join(sorted(set(table["split"]))) or "nothing"
        raise LeukoclsError(
            f"{path}: its column split holds {held}; it takes train, and val or prelim or both"
        )
    table = table[table["split"] != "final"]
    # Final has cells of prelim's names, and no labels to train or choose by.
    labelled = index.table["cell"][index.table["part"] != "final"]
    row_of = {name: row for row, name in labelled.items()}
    if (twice := table["cell"][table["cell"].duplicated()]).size:
        raise LeukoclsError(f"{path}: cells named twice: {listing(twice)}; keep one of each")
    if unknown := [name for name in table["cell"] if name not in row_of]:
        raise LeukoclsError(f"{path}: cells that {index.source} lacks: {listing(unknown)}")
    found = {
        name: np.sort([row_of[cell] for cell in table["cell"][table["split"] == name]])
        for name in names
        if name != "final"
    }
    chosen_on = "val" if "val" in found else "prelim"
    if chosen_on not in found:
        raise LeukoclsError(f"{path}: needs val or prelim, to choose the epoch on")
    tests = ("prelim",) if chosen_on == "val" and "prelim" in found else ()
    split = Split(path.name, found, chosen_on, tests)
    known = _known(split, index)
    # What is not known to be apart is not called so.
    return replace(split, leaky=(known["group"] == "").any() or not overlap(known).empty)


def _cut(split: Split, index: Index, options: SplitOptions) -> Split:
    """Fewer training subjects, then fewer training cells; what is scored stays as it is."""
    rows = split.rows["train"]
    table = index.table.iloc[rows]
    if options.n_subjects is not None:
        if (table["group"] == "").any():
            raise LeukoclsError("data.n_subjects: some cells have no subject; use data.n_cells.")
        label_of = table.groupby("group")["label"].agg(lambda label: int(label.mean() >= 0.5))
        kept = nested(label_of.index, label_of, options.n_subjects, options.seed, "data.n_subjects")
        table = table[table["group"].isin(kept)]
    if options.n_cells is not None:
        kept = nested(table["cell"], table["label"], options.n_cells, options.seed, "data.n_cells")
        table = table[table["cell"].isin(kept)]
    return replace(split, rows={**split.rows, "train": np.array(table.index, np.int64)})
