"""What each person contributes to a metric, so that it can be computed without any of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from leukocls.evaluation.metrics import Floats, checked_labels

RATES = ("weighted_f1", "accuracy", "sensitivity", "specificity")
METRICS = (*RATES, "auroc")
CLASS_OF = {"sensitivity": (1,), "specificity": (0,)}  # others rest on both
_MOST_ICC = 0.9


@dataclass(frozen=True, eq=False)
class Persons:
    """Sums over each person's cells, from which metrics without one person follow at once.

    Attributes:
        label: 0 or 1, [n].
        of_cell: the number of each cell's person, below K, [n].
        right: 1 if a cell is called rightly and 0 if not; of several runs the mean, [n].
        cells: each person's cells of HEM and of ALL, [2, K].
        hits: of these, what is called rightly, [2, K].
        wins: pairs of cells, ALL of person p above HEM of person q, ties as half, [K, K]; None
            without a logit.
    """

    label: npt.NDArray[np.int64]
    of_cell: npt.NDArray[np.int64]
    right: Floats
    cells: Floats
    hits: Floats
    wins: Floats | None

    @classmethod
    def of(
        cls,
        label: npt.ArrayLike,
        called: npt.ArrayLike,
        person: npt.ArrayLike,
        logit: npt.ArrayLike | None = None,
    ) -> "Persons":
        """The sums of one run's n cells.

        Args:
            label: 0 or 1, [n].
            called: whether each cell is called ALL, [n].
            person: whom each cell is from, none of them "", [n].
            logit: any number that orders the cells, [n].
        """
        y = checked_labels(label)
        names, of_cell = np.unique(np.asarray(person, str), return_inverse=True)
        assert "" not in names
        right = (np.asarray(called, bool) == (y == 1)).astype(float)
        number = len(names)
        cells, hits = (
            np.stack([_by_person(np.where(y == one, values, 0), of_cell, number) for one in (0, 1)])
            for values in (np.ones(y.size), right)
        )
        wins = None if logit is None else _wins(np.asarray(logit), y == 1, of_cell, number)
        return cls(y, of_cell, right, cells, hits, wins)

    @classmethod
    def mean(cls, runs: "Sequence[Persons]") -> "Persons":
        """The mean of the counts of several runs on the same cells in the same order."""
        first = runs[0]
        if len(runs) == 1:
            return first
        for run in runs:
            assert np.array_equal(run.label, first.label)
            assert np.array_equal(run.of_cell, first.of_cell)
        right, hits = (
            np.mean([getattr(run, name) for run in runs], 0) for name in ("right", "hits")
        )
        wins = [run.wins for run in runs if run.wins is not None]
        of_pairs = np.mean(wins, 0) if len(wins) == len(runs) else None
        return cls(first.label, first.of_cell, right, first.cells, hits, of_pairs)

    @property
    def mostly_all(self) -> npt.NDArray[np.bool_]:
        """True for each person of class ALL, which has more cells of ALL than of HEM, [K]."""
        return 2 * self.cells[1] > self.cells.sum(0)

    @property
    def number(self) -> dict[str, int]:
        """Persons of each class."""
        most = self.mostly_all
        return {"ALL": int(most.sum()), "HEM": int((~most).sum())}

    def metric(self, name: str) -> tuple[float, Floats]:
        """A metric of METRICS over all cells, and without each person [K]; NaN if undefined."""
        cells = self.cells.sum(1, keepdims=True) - np.column_stack([np.zeros(2), self.cells])
        if name == "auroc":
            if self.wins is None:
                return math.nan, np.full(self.cells.shape[1], np.nan)
            lost = self.wins.sum(0) + self.wins.sum(1) - self.wins.diagonal()
            every = _ratio(self.wins.sum() - np.append(0, lost), cells.prod(0))
        else:
            hits = self.hits.sum(1, keepdims=True) - np.column_stack([np.zeros(2), self.hits])
            every = rate(name, *cells, *hits)
        return float(every[0]), every[1:]

    def df(self, y: int, values: Floats) -> float:
        """Degrees of freedom of class `y`, if its cells' `values` [n] are correlated by person."""
        here = self.mostly_all == bool(y)
        own = np.where(self.label == y, values, 0)
        sums, squares = (_by_person(one, self.of_cell, len(here))[here] for one in (own, own**2))
        sizes = self.cells[y][here]
        return degrees_of_freedom(sizes, icc(sizes, sums, squares))


def _by_person(values: Floats, of_cell: npt.NDArray[np.int64], number: int) -> Floats:
    return np.bincount(of_cell, values, number).astype(float)


def _wins(
    z: npt.NDArray[np.generic],
    is_all: npt.NDArray[np.bool_],
    of_cell: npt.NDArray[np.int64],
    number: int,
) -> Floats:
    found = np.zeros((number, number))
    for q in range(number):
        other = np.sort(z[~is_all & (of_cell == q)])
        below = sum(np.searchsorted(other, z[is_all], side) / 2 for side in ("left", "right"))
        found[:, q] = np.bincount(of_cell[is_all], below, number)
    return found


def _ratio(part: Floats, whole: Floats) -> Floats:
    undefined = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    return np.divide(part, whole, out=undefined, where=whole > 0)


def rate(name: str, of_hem: Floats, of_all: Floats, tn: Floats, tp: Floats) -> Floats:
    """A metric of counts, which may be means over runs (`metrics.rates` is of whole numbers).

    Args:
        name: of METRICS, but AUROC.
        of_hem, of_all: cells of HEM and of ALL, any shape that broadcasts.
        tn, tp: of these, what is called rightly.
    """
    if name == "sensitivity":
        return _ratio(tp, of_all)
    if name == "specificity":
        return _ratio(tn, of_hem)
    if name == "accuracy":
        return _ratio(tp + tn, of_all + of_hem)
    assert name == "weighted_f1"
    wrong = of_all + of_hem - tp - tn
    f1_all, f1_hem = (np.nan_to_num(_ratio(2 * hits, 2 * hits + wrong)) for hits in (tp, tn))
    return _ratio(of_all * f1_all + of_hem * f1_hem, of_all + of_hem)


def icc(sizes: npt.ArrayLike, sums: npt.ArrayLike, squares: npt.ArrayLike) -> float:
    """Intra-class correlation by the one-way analysis of variance (Donner 1986), in [0, .9].

    0 if no person has two cells, or if nothing varies.

    Args:
        sizes, sums, squares: of each person's values their number, sum and sum of squares, [K].
    """
    n, s, q = (np.asarray(each, np.float64) for each in (sizes, sums, squares))
    total, number = n.sum(), len(n)
    if number < 2 or total <= number:
        return 0.0
    within = float((q - s**2 / n).sum()) / (total - number)
    between = float((s**2 / n).sum() - s.sum() ** 2 / total) / (number - 1)
    size = (total - (n**2).sum() / total) / (number - 1)
    below = between + (size - 1) * within
    return float(np.clip((between - within) / below, 0, _MOST_ICC)) if below > 0 else 0.0


def degrees_of_freedom(sizes: npt.ArrayLike, rho: float) -> float:
    """Satterthwaite's degrees of freedom of a pooled proportion's variance over persons.

    Bell & McCaffrey 2002, with residuals divided by the root of 1 − leverage and a working
    correlation `rho` of a person's cells. K − 1 if the K persons have equally many cells.

    Args:
        sizes: cells of each person, [K], K ≥ 2.
        rho: in [0, 1].
    """
    n = np.asarray(sizes, np.float64)
    h = n / n.sum()
    residuals = (np.eye(len(n)) - h[:, None]) / np.sqrt(1 - h)[:, None]
    covariance = (residuals * (n * (1 + (n - 1) * rho))) @ residuals.T
    return float(np.trace(covariance) ** 2 / (covariance**2).sum())
