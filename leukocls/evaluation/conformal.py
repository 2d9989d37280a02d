"""Abstention with a guarantee over persons: conformal limits of the logit, by class.

Cells of one person are alike, so what a limit holds for is another person, not another cell of the
same one. Each person of a class has the same weight, whatever the number of cells, and one person
that is still to come has as much (hierarchical conformal prediction: Lee, Barber & Willett 2023,
arXiv 2306.06342). Then of a new person's cells at most the share α, on average over persons like
these, lies beyond the limit of their own class.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from leukocls.artifacts import predictions
from leukocls.evaluation.metrics import Floats

ALPHAS = (0.05, 0.1, 0.15, 0.2, 0.3)
USUAL = 0.1
UNKNOWN = "whom a cell is from is unknown, so that nothing can be promised about other persons"
NO_CELLS = "no labelled cells that were held out of training"


def limit(scores: npt.ArrayLike, person: npt.ArrayLike, alpha: float) -> float:
    """The score that a new person's cells exceed with a share of at most `alpha`, on average.

    The (1 − α) quantile of the scores, each with the weight 1 / ((K + 1) · n) for one of n cells of
    one of K persons, and of infinity with the weight 1 / (K + 1).

    Args:
        scores: higher for cells that fit their class less, [n].
        person: whom each is from, [n].
        alpha: in (0, 1).

    Returns:
        The limit; infinity if K persons are too few, which is so if α < 1 / (K + 1).
    """
    values = np.asarray(scores, np.float64)
    _, of_cell, cells = np.unique(np.asarray(person, str), return_inverse=True, return_counts=True)
    order = np.argsort(values, kind="stable")
    weight = 1 / ((len(cells) + 1) * cells[of_cell[order]])
    reached = np.flatnonzero(np.cumsum(weight) >= 1 - alpha - 1e-9)
    return float(values[order][reached[0]]) if len(reached) else float("inf")


def conformal_table(
    label: npt.ArrayLike, logit: npt.ArrayLike, person: npt.ArrayLike
) -> dict[str, Any]:
    """Limits of both classes for each of ALPHAS, as plain values for JSON.

    Args:
        label: 1 is ALL, 0 is HEM, [n].
        logit: of ALL, of models that were not trained on the cell's person, [n].
        person: whom each cell is from, [n].

    Returns:
        `persons` of each class, and `levels`: `alpha`, `all_above` (an ALL cell's logit is at least
        so high), `hem_below` (a HEM cell's is at most so high), None where a class has too few
        persons.
    """
    y, z, who = np.asarray(label), np.asarray(logit, np.float64), np.asarray(person, str)
    levels = []
    for alpha in ALPHAS:
        above = -limit(-z[y == 1], who[y == 1], alpha)
        below = limit(z[y == 0], who[y == 0], alpha)
        levels.append({
            "alpha": alpha,
            "all_above": above if np.isfinite(above) else None,
            "hem_below": below if np.isfinite(below) else None,
        })  # fmt: skip
    persons = {name: len(set(who[y == value])) for name, value in (("ALL", 1), ("HEM", 0))}
    return {"persons": persons, "levels": levels}


def of_cells(frame: pd.DataFrame, logit: Floats, fitted_on: str) -> dict[str, Any]:
    """`conformal_table` of labelled cells, with `fitted_on` and the `reason` if it has no levels.

    Args:
        frame: with `cell`, `subject`, `label` and maybe `person`.
        logit: of these cells, [n].
        fitted_on: their name.
    """
    known = frame["label"].to_numpy() >= 0
    cells = frame[known]
    names = predictions.persons(cells).to_numpy(str)
    if set(cells["label"]) != {0, 1}:
        return none(NO_CELLS)
    if (names == "").any():
        return none(UNKNOWN)
    table = conformal_table(cells["label"].to_numpy(), logit[known], names)
    return {"fitted_on": fitted_on, "reason": None, **table}


def none(reason: str) -> dict[str, Any]:
    """A table without levels, for a reason."""
    return {"fitted_on": None, "reason": reason, "persons": None, "levels": []}


def kept(
    logit: npt.ArrayLike, level: dict[str, Any]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Masks of the cells to which a level leaves the label ALL, and HEM, bool [n] each."""
    z = np.asarray(logit, np.float64)
    above, below = level["all_above"], level["hem_below"]
    every = np.ones(len(z), bool)
    return every if above is None else z >= above, every if below is None else z <= below


def abstains(logit: npt.ArrayLike, called: npt.ArrayLike, level: dict[str, Any]) -> Any:
    """True for cells of which not just the label is left that they are called, [n].

    Args:
        called: True for ALL, [n].
    """
    kept_all, kept_hem = kept(logit, level)
    return np.where(np.asarray(called, bool), ~kept_all | kept_hem, ~kept_hem | kept_all)


def usable_levels(table: dict[str, Any]) -> list[dict[str, Any]]:
    """The levels of a table for which both classes have enough persons."""
    return [one for one in table["levels"] if None not in (one["all_above"], one["hem_below"])]
