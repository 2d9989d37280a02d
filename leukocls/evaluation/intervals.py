"""Confidence intervals over persons: one metric, or its difference between two sets of predictions.

Cells of one person are alike, so what varies is the person: each is left out in turn, within its
class (delete-one-group jackknife). A few persons hold most cells; hence Student's t with degrees of
freedom that count them by their size.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from leukocls.artifacts.predictions import sigmoid
from leukocls.evaluation.metrics import Floats, checked_labels, decide, rates

METRICS = ("weighted_f1", "sensitivity", "specificity", "auroc")
_CLASS_OF = {"sensitivity": (1,), "specificity": (0,)}  # others rest on both
_CLIP = 5e-4  # rates are this far from 0 and 1 on the logit scale, where these are infinite
_MOST_ICC = 0.9


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        value: the metric, or the difference, of all cells.
        low, high: limits; NaN where a class that the metric rests on has fewer than two persons.
        df: degrees of freedom, Satterthwaite's; NaN as above, or where nothing varies.
    """

    value: float
    low: float
    high: float
    df: float


class Persons:
    """Sums over each person's cells, from which metrics without one person follow at once.

    A person with cells of both classes counts in the class of most of them.

    Args:
        label: 0 or 1, [n].
        logit: finite, [n].
        person: whom each cell is from, none of them "", [n].
    """

    def __init__(self, label: npt.ArrayLike, logit: npt.ArrayLike, person: npt.ArrayLike) -> None:
        self.label, z = checked_labels(label), np.asarray(logit, np.float64)
        names, of_cell = np.unique(np.asarray(person, str), return_inverse=True)
        self.of_cell = of_cell
        assert "" not in names
        self.number = len(names)
        self.correct = decide(logit=z) == (self.label == 1)
        self.cells = np.stack([self._sums(self.label == y) for y in (0, 1)])  # [2, K]
        self.hits = np.stack([self._sums((self.label == y) & self.correct) for y in (0, 1)])
        self.mostly_all = 2 * self.cells[1] > self.cells.sum(0)
        self.wins = self._wins(z)

    def _sums(self, weights: npt.ArrayLike) -> Floats:
        return np.bincount(self.of_cell, np.asarray(weights, float), self.number).astype(float)

    def _wins(self, z: Floats) -> Floats:
        """Number of pairs of cells, ALL of person p above HEM of person q, ties as half: [K, K]."""
        found = np.zeros((self.number, self.number))
        is_all = self.label == 1
        for q in range(self.number):
            other = np.sort(z[~is_all & (self.of_cell == q)])
            below = np.searchsorted(other, z[is_all], "left")
            below = (below + np.searchsorted(other, z[is_all], "right")) / 2
            found[:, q] = np.bincount(self.of_cell[is_all], below, self.number)
        return found

    def metric(self, name: str) -> tuple[float, Floats]:
        """A metric of METRICS over all cells, and without each person [K]."""
        cells = self.cells.sum(1, keepdims=True) - np.column_stack([np.zeros(2), self.cells])
        hits = self.hits.sum(1, keepdims=True) - np.column_stack([np.zeros(2), self.hits])
        if name == "auroc":
            lost = self.wins.sum(0) + self.wins.sum(1) - self.wins.diagonal()
            wins = self.wins.sum() - np.append(0, lost)
            pairs = cells.prod(0)
            every = np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)
        else:
            counts = zip(hits[1], cells[0] - hits[0], hits[0], cells[1] - hits[1], strict=True)
            found = [rates(*map(int, four))[name] for four in counts]
            every = np.array([np.nan if one is None else one for one in found])
        return float(every[0]), every[1:]

    def df(self, y: int, values: Floats) -> float:
        """Degrees of freedom of class `y`, if its cells' `values` [n] are correlated by person."""
        rows, here = self.label == y, self.mostly_all == bool(y)
        sizes = self.cells[y][here]
        own = np.where(rows, values, 0)
        sums, squares = self._sums(own)[here], self._sums(own**2)[here]
        return degrees_of_freedom(sizes, icc(sizes, sums, squares))


def jackknife(persons: Persons, metric: str, level: float = 0.95) -> Interval:
    """Interval of a metric in (0, 1): deleted persons on the logit scale, Student's t.

    Args:
        metric: of METRICS. Sensitivity rests on the ALL persons alone, specificity on HEM.
        level: confidence level in (0, 1).
    """
    value, without = persons.metric(metric)
    correct = persons.correct.astype(float)
    low, high, df = _limits(float(_logit(value)), _logit(without), persons, metric, correct, level)
    return Interval(value, float(sigmoid(low)), float(sigmoid(high)), df)


def paired_difference(
    first: Persons, second: Persons, metric: str, level: float = 0.95
) -> Interval:
    """Interval of the metric's difference, second less first, on the same cells in the same order.

    Deleted persons on the metric's own scale; degrees of freedom from the differences of what is
    right and wrong.
    """
    assert np.array_equal(first.label, second.label)
    assert np.array_equal(first.of_cell, second.of_cell)
    (a, without_a), (b, without_b) = first.metric(metric), second.metric(metric)
    differs = second.correct.astype(float) - first.correct
    low, high, df = _limits(b - a, without_b - without_a, second, metric, differs, level)
    return Interval(b - a, low, high, df)


def _limits(
    value: float, without: Floats, persons: Persons, metric: str, values: Floats, level: float
) -> tuple[float, float, float]:
    variances, parts = [], []
    for y in _CLASS_OF.get(metric, (0, 1)):
        own = without[persons.mostly_all == bool(y)]
        number = len(own)
        if number < 2 or np.isnan(own).any():
            return math.nan, math.nan, math.nan
        variances.append((number - 1) / number * float(((own - own.mean()) ** 2).sum()))
        parts.append(persons.df(y, values))
    variance = sum(variances)
    if not variance > 0:
        return value, value, math.nan
    # Welch (1947): classes are independent.
    df = variance**2 / sum(v**2 / part for v, part in zip(variances, parts, strict=True))
    half = float(stats.t.ppf((1 + level) / 2, df)) * math.sqrt(variance)
    return value - half, value + half, df


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


def _logit(rate: npt.ArrayLike) -> npt.NDArray[np.float64]:
    p = np.clip(np.asarray(rate, np.float64), _CLIP, 1 - _CLIP)
    return np.log(p / (1 - p))
