"""How groups of cells are divided into folds, and how a training set is made smaller."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from leukocls.common.errors import LeukoclsError
from leukocls.data.random import FOLD_STREAM, SUBSET_STREAM, random_numbers

CANDIDATES = 200
# Of cells by class, of groups by class: what evenness is worth.
WEIGHTS = np.array([1.0, 1.0, 0.2, 0.2])


def home_folds(table: pd.DataFrame) -> dict[str, int]:
    """The official fold that holds most cells of each group; the first of equals."""
    counts = pd.crosstab(table["group"], table["fold"])
    return {str(group): int(fold) for group, fold in counts.idxmax(axis=1).items()}


def balanced_folds(group: pd.Series, label: pd.Series, folds: int, seed: int) -> np.ndarray:
    """Fold int64 [n] of each cell, all cells of a group in one, classes and sizes alike.

    Groups in random order, large ones first by tendency, each go to the fold that has least of
    what they bring (share of the cells of each class, share of the groups of each class); of
    CANDIDATES such assignments the most even one is taken.

    Raises:
        LeukoclsError: fewer groups of a class than folds.
    """
    names, code = np.unique(group.to_numpy(str), return_inverse=True)
    cells = np.zeros((len(names), 2))
    np.add.at(cells, (code, label.to_numpy()), 1)
    fewest = int((cells > 0).sum(0).min())
    if fewest < folds:
        raise LeukoclsError(
            f"folds={folds}: the smaller class has {fewest} to divide. Choose fewer folds."
        )
    shares = np.hstack([cells / cells.sum(0), (cells > 0) / (cells > 0).sum(0)])
    rng = random_numbers(seed, FOLD_STREAM)
    best, least = np.zeros(len(names), np.int64), np.inf
    for _ in range(CANDIDATES):
        order = np.argsort(-cells.sum(1) * (0.5 + rng.random(len(names))), kind="stable")
        load = np.zeros((folds, 4))
        assigned = np.zeros(len(names), np.int64)
        for one in order:
            assigned[one] = np.argmin(load @ (WEIGHTS * shares[one]))
            load[assigned[one]] += shares[one]
        uneven = np.abs(load * folds - 1).max(0) @ WEIGHTS
        if uneven < least:
            best, least = rng.permutation(folds)[assigned], uneven
    return best[code]


def nested(names: Iterable[str], label: Iterable[int], n: int, seed: int, key: str) -> set[str]:
    """n of `names`, one class as often as it is there; fewer are always among more.

    Raises:
        LeukoclsError: `n` is more than there are, naming `key`.
    """
    table = pd.DataFrame({"name": list(names), "label": list(label)}).sort_values("name")
    if n > len(table):
        raise LeukoclsError(f"{key}={n}: the training set has {len(table):,}. Choose fewer.")
    table["draw"] = random_numbers(seed, SUBSET_STREAM).random(len(table))
    of_class = table.groupby("label")["draw"]
    # The first of each class come first, the last of each last: every beginning is balanced.
    table["place"] = (of_class.rank(method="first") - 1) / of_class.transform("size")
    return set(table.sort_values(["place", "label"])["name"].iloc[:n])
