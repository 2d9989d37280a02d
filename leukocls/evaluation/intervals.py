"""Confidence intervals over persons: of a metric, and of its difference between two arms.

Cells of one person are alike, so what varies is the person: each is left out in turn, within its
class (delete-one-group jackknife). A few persons hold most cells; hence Student's t with degrees of
freedom that count them by their size. Several runs of one recipe, which differ in their seed, are
one result: the mean of their counts, whose interval covers what other seeds would give as well.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from leukocls.artifacts.predictions import sigmoid
from leukocls.evaluation.metrics import Floats, checked_labels

METRICS = ("weighted_f1", "accuracy", "sensitivity", "specificity", "auroc")
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
        se: standard error: of a single metric on the logit scale, of a difference on its own.
    """

    value: float
    low: float
    high: float
    df: float
    se: float

    @property
    def limits(self) -> dict[str, float] | None:
        """`low`, `high` and `df` for JSON; None without limits, or where nothing varies."""
        known = math.isfinite(self.df)
        return {"low": self.low, "high": self.high, "df": self.df} if known else None


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
            every = _rate(name, *cells, *hits)
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
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _rate(name: str, of_hem: Floats, of_all: Floats, tn: Floats, tp: Floats) -> Floats:
    """A metric of counts, which may be means over runs: `rates` is of whole numbers."""
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


def jackknife(runs: Sequence[Persons], metric: str, level: float = 0.95) -> Interval:
    """Interval of a metric in (0, 1): deleted persons on the logit scale, Student's t.

    Args:
        runs: of one recipe on the same cells, which differ in their seed. The metric is that of
            the mean of their counts.
        metric: of METRICS. Sensitivity rests on the ALL persons alone, specificity on HEM.
        level: confidence level in (0, 1).
    """
    mean = Persons.mean(runs)
    value, without = mean.metric(metric)
    spread = _between(runs, metric, _logit)
    found = _limits(float(_logit(value)), _logit(without), mean, mean.right, metric, spread, level)
    return Interval(
        value, float(sigmoid(found.low)), float(sigmoid(found.high)), found.df, found.se
    )


def paired_difference(
    first: Sequence[Persons],
    second: Sequence[Persons],
    metric: str,
    shared: bool = False,
    level: float = 0.95,
) -> Interval:
    """Interval of the metric's difference, second less first, on the same cells in the same order.

    Deleted persons on the metric's own scale; degrees of freedom from the differences of what is
    right and wrong.

    Args:
        first, second: the runs of each arm, which differ in their seed.
        metric: of METRICS.
        shared: whether the runs of both arms are the same trainings, in the same order.
        level: confidence level in (0, 1).
    """
    a, b = Persons.mean(first), Persons.mean(second)
    assert np.array_equal(a.label, b.label)
    assert np.array_equal(a.of_cell, b.of_cell)
    (value_a, without_a), (value_b, without_b) = a.metric(metric), b.metric(metric)
    if shared:
        spread = _between(first, metric, _same, second)
    else:
        spread = [*_between(first, metric, _same), *_between(second, metric, _same)]
    return _limits(
        value_b - value_a, without_b - without_a, b, b.right - a.right, metric, spread, level
    )


def power(interval: Interval, difference: float, level: float = 0.95) -> float | None:
    """Probability that the interval of such data is clear of 0 if the truth is `difference`.

    From the noncentral t distribution, as if the standard error were the true one. None without an
    interval.
    """
    if math.isnan(interval.df) or not interval.se > 0:
        return None
    most = stats.t.ppf((1 + level) / 2, interval.df)
    shifted = stats.nct(interval.df, difference / interval.se)
    # SciPy finds no number for tails that are all or nothing.
    above, below = np.nan_to_num(shifted.sf(most), nan=1.0), np.nan_to_num(shifted.cdf(-most))
    return float(above + below)


def _same(rate: npt.ArrayLike) -> Floats:
    return np.asarray(rate, np.float64)


def _between(
    runs: Sequence[Persons],
    metric: str,
    scale: Callable[[npt.ArrayLike], Floats],
    less: Sequence[Persons] | None = None,
) -> list[tuple[float, float]]:
    """Variance between seeds of the mean over runs, with its degrees of freedom, in a list.

    The variance of the runs' values, less what the interaction of persons and seeds has in it:
    that is in the variance over persons already. Empty for one run, whose seed cannot be told.

    Args:
        less: runs whose values are replaced by the difference from those of `runs`.
    """
    number = len(runs)
    if number < 2:
        return []
    found = [run.metric(metric) for run in runs]
    values = scale([value for value, _ in found])
    without = scale([rest for _, rest in found])
    if less is not None:
        other = [run.metric(metric) for run in less]
        values = scale([value for value, _ in other]) - values
        without = scale([rest for _, rest in other]) - without
    mostly_all, interaction = runs[0].mostly_all, 0.0
    for y in _CLASS_OF.get(metric, (0, 1)):
        own = without[:, mostly_all == bool(y)]
        if own.shape[1] < 2:  # there is no interval
            return []
        own = own - own.mean(1, keepdims=True)
        own = own - own.mean(0)
        persons = own.shape[1]
        interaction += (persons - 1) / persons * float((own**2).sum()) / (number - 1)
    more = max(0.0, float(values.var(ddof=1)) - interaction) / number
    return [(more, number - 1.0)]


def _limits(
    value: float,
    without: Floats,
    persons: Persons,
    values: Floats,
    metric: str,
    more: list[tuple[float, float]],
    level: float,
) -> Interval:
    """Limits from deleted persons [K], the cells' `values` [n], and more parts of the variance."""
    parts = []
    for y in _CLASS_OF.get(metric, (0, 1)):
        own = without[persons.mostly_all == bool(y)]
        number = len(own)
        if number < 2 or np.isnan(own).any():
            return Interval(value, math.nan, math.nan, math.nan, math.nan)
        variance = (number - 1) / number * float(((own - own.mean()) ** 2).sum())
        parts.append((variance, persons.df(y, values)))
    parts += more
    variance = sum(part for part, _ in parts)
    if not variance > 0:
        return Interval(value, value, value, math.nan, 0.0)
    # Welch (1947): the parts are independent.
    df = variance**2 / sum(part**2 / of_part for part, of_part in parts)
    se = math.sqrt(variance)
    half = float(stats.t.ppf((1 + level) / 2, df)) * se
    return Interval(value, value - half, value + half, df, se)


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
