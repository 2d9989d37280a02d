"""Assignment of groups of cells to balanced folds, and nested subsets of a training set."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from leukocls.common.errors import LeukoclsError
from leukocls.data.index import among
from leukocls.data.names import CLASSES
from leukocls.data.random import FOLD_STREAM, SUBSET_STREAM, random_numbers

CANDIDATES = 200
# Weight of an even share of: HEM cells, ALL cells, HEM groups, ALL groups.
WEIGHTS = np.array([1.0, 1.0, 0.2, 0.2])


def home_folds(table: pd.DataFrame) -> dict[str, int]:
    """The official fold with most cells of each group; the first such fold if there are several."""
    counts = pd.crosstab(table["group"], table["fold"])
    return {str(group): int(fold) for group, fold in counts.idxmax(axis=1).items()}


def balanced_folds(group: pd.Series, label: pd.Series, folds: int, seed: int) -> np.ndarray:
    """The fold of each cell, int64 [n], 0 to folds − 1: groups stay whole, folds are balanced.

    A greedy assignment takes the groups in random order, larger ones earlier on average, and puts
    each into the fold that has the least of its classes' cells and groups so far. The most even of
    CANDIDATES such assignments is kept.

    Args:
        group, label: of each cell; labels are 0 or 1.

    Raises:
        LeukoclsError: fewer groups of a class than folds.
    """
    names, code = np.unique(group.to_numpy(str), return_inverse=True)
    cells = np.zeros((len(names), 2))
    np.add.at(cells, (code, label.to_numpy()), 1)
    fewest = int((cells > 0).sum(0).min())
    if fewest < folds:
        few = CLASSES[(cells > 0).sum(0).argmin()]
        raise LeukoclsError(
            f"folds={folds}: {few} has cells of {fewest} subjects only. Choose folds={fewest} or"
            " fewer."
        )
    shares = np.hstack([cells / cells.sum(0), (cells > 0) / (cells > 0).sum(0)])
    weighted = WEIGHTS * shares
    rng = random_numbers(seed, FOLD_STREAM)
    best, least = np.zeros(len(names), np.int64), np.inf
    for _ in range(CANDIDATES):
        order = np.argsort(-cells.sum(1) * (0.5 + rng.random(len(names))), kind="stable")
        load = np.zeros((folds, 4))
        assigned = np.zeros(len(names), np.int64)
        for i in order:
            assigned[i] = (load @ weighted[i]).argmin()
            load[assigned[i]] += shares[i]
        uneven = np.abs(load * folds - 1).max(0) @ WEIGHTS
        if uneven < least:
            best, least = rng.permutation(folds)[assigned], uneven
    return best[code]


def need_subjects(table: pd.DataFrame, source: Path) -> None:
    """Refuse cells without a subject, which no split can keep apart.

    Args:
        table: column `group`.
        source: the name of the data in the message.

    Raises:
        LeukoclsError: a subject is unknown.
    """
    if unknown := int((table["group"] == "").sum()):
        raise LeukoclsError(
            f"{source}: {unknown:,} cells have no subject, so no split can keep subjects apart. Add"
            " the subjects, or use split_scheme=cell (LEAKY)."
        )


def need_two_subjects(table: pd.DataFrame, source: Path) -> None:
    """Refuse training cells of which a class has fewer than two subjects.

    Args:
        table: columns `group` and `label`.
        source: the name of the data in the message.

    Raises:
        LeukoclsError: a class has no cell, or cells of one subject only.
    """
    for label, name in enumerate(CLASSES):
        subjects = table["group"][table["label"] == label].unique()
        if not len(subjects):
            raise LeukoclsError(f"{source}: no cell of the part train is {name}. Add some.")
        if len(subjects) == 1:
            raise LeukoclsError(
                f"{source}: all {name} cells are of one subject, {subjects[0]}, so no split by"
                " subject can train on that class and score it. Add subjects, or use"
                " split_scheme=cell (LEAKY)."
            )


def scheme_without_prelim(table: pd.DataFrame) -> str:
    """The `split_scheme=` that fits data without the part prelim, with the reason if it is LEAKY.

    Args:
        table: columns `part`, `group` and `label`.
    """
    train = table[table["part"] == "train"]
    if unknown := int((train["group"] == "").sum()):
        return f"split_scheme=cell (LEAKY, because {unknown:,} cells have no subject)"
    subjects = train.groupby("label")["group"].nunique()
    if subjects.min() < 2:
        few = CLASSES[int(subjects.idxmin())]
        return f"split_scheme=cell (LEAKY, because {few} has only one subject)"
    return "split_scheme=subject"


def subset(
    table: pd.DataFrame, n_subjects: int | None, n_cells: int | None, seed: int
) -> pd.DataFrame:
    """The rows of fewer subjects, and then of fewer of their cells, as `nested` draws them.

    Args:
        table: columns `cell`, `group` and `label` of a training set.
        n_subjects, n_cells: how many to keep; None for all.

    Raises:
        LeukoclsError: there are not so many, or subjects are unknown.
    """
    if n_subjects is not None:
        if (table["group"] == "").any():
            raise LeukoclsError("data.n_subjects: some cells have no subject; use data.n_cells.")
        label_of = table.groupby("group")["label"].agg(lambda label: int(label.mean() >= 0.5))
        kept = nested(label_of.index, label_of, n_subjects, seed, "data.n_subjects")
        table = table[among(table["group"], kept)]
    if n_cells is not None:
        kept = nested(table["cell"], table["label"], n_cells, seed, "data.n_cells")
        table = table[among(table["cell"], kept)]
    return table


def nested(names: Iterable[str], label: Iterable[int], n: int, seed: int, key: str) -> set[str]:
    """A random subset of `names` with about the same share of each class, nested in larger ones.

    Args:
        n: size of the subset; the subsets of one seed contain each other.
        key: the configuration key of `n`, for the error message.

    Raises:
        LeukoclsError: `n` is larger than the number of names.
    """
    table = pd.DataFrame({"name": np.array(names), "label": np.array(label)}).sort_values("name")
    if n > len(table):
        raise LeukoclsError(f"{key}={n}: the training set has {len(table):,}. Choose fewer.")
    table["draw"] = random_numbers(seed, SUBSET_STREAM).random(len(table))
    of_class = table.groupby("label")["draw"]
    # Ordered by rank within the class, so that the first n are balanced for every n.
    table["place"] = (of_class.rank(method="first") - 1) / of_class.transform("size")
    return {*table.sort_values(["place", "label"])["name"].to_numpy()[:n]}
