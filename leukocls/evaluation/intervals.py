"""Confidence intervals over persons: of a metric, and of its difference between two arms.

Cells of one person are alike, so what varies is the person: each is left out in turn, within its
class (delete-one-group jackknife). A few persons hold most cells; hence Student's t with degrees of
freedom that count them by their size. Several runs of one recipe, which differ in their seed, are
one result: the mean of their counts, whose interval covers what other seeds would give as well.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from leukocls.artifacts.predictions import sigmoid
from leukocls.evaluation.metrics import Floats
from leukocls.evaluation.person_counts import CLASS_OF, Persons

_CLIP = 5e-4  # rates are this far from 0 and 1 on the logit scale, where these are infinite


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        value: the metric, or the difference, of all cells.
        low, high: limits; NaN where a class that the metric rests on has fewer than two persons.
        df: degrees of freedom, Satterthwaite's; NaN as above, or where nothing varies.
        se: standard error: of a single metric on the logit scale, of a difference on its own.
        by_seeds: share of its square that comes from the seeds, in [0, 1], the rest from persons;
            None for a single run, which does not tell.
    """

    value: float
    low: float
    high: float
    df: float
    se: float
    by_seeds: float | None = None

    @property
    def limits(self) -> dict[str, float] | None:
        """`low`, `high` and `df` for JSON; None without limits, or where nothing varies."""
        known = math.isfinite(self.df)
        return {"low": self.low, "high": self.high, "df": self.df} if known else None

    @property
    def half_width(self) -> float | None:
        """Half of the interval's width; None without limits, or where nothing varies."""
        return (self.high - self.low) / 2 if math.isfinite(self.df) else None


@dataclass(frozen=True)
class Plan:
    """A study of another size, whose interval is to be expected from present runs.

    Attributes:
        persons: number of persons, of both classes in the present proportion, and with as many
            cells each as the present ones.
        seeds: number of runs of each arm.
    """

    persons: int
    seeds: int


@dataclass(frozen=True)
class _Seeds:
    """What the seed changes in one run.

    Attributes:
        variance: between runs, of what is common to all persons.
        interaction: in the variance over the persons of each class.
        runs: the number of runs.
    """

    variance: float
    interaction: dict[int, float]
    runs: int


def jackknife(
    runs: Sequence[Persons], metric: str, level: float = 0.95, plan: Plan | None = None
) -> Interval:
    """Interval of a metric in (0, 1): deleted persons on the logit scale, Student's t.

    Args:
        runs: of one recipe on the same cells, which differ in their seed. The metric is that of
            the mean of their counts.
        metric: of METRICS. Sensitivity rests on the ALL persons alone, specificity on HEM.
        level: confidence level in (0, 1).
        plan: what the interval would be of; None for the data at hand.
    """
    mean = Persons.mean(runs)
    value, without = mean.metric(metric)
    scaled = float(logit(value)), logit(without)
    seeds = [_between(runs, metric, logit)]
    found = _limits(*scaled, mean, mean.right, metric, seeds, level, plan)
    return replace(
        found, value=value, low=float(sigmoid(found.low)), high=float(sigmoid(found.high))
    )


def deletion_interval(
    value: float, without: Floats, persons: Persons, values: Floats, level: float = 0.95
) -> Interval:
    """Interval of any figure of both classes, from its values without each person, on its scale.

    Args:
        value: the figure of all cells.
        without: the figure without each person, [K]; NaN if undefined.
        persons: who the persons are, and whose cells.
        values: what each cell contributes, [n]: its correlation within persons gives the degrees
            of freedom.
        level: confidence level in (0, 1).
    """
    return _limits(value, without, persons, values, "", (), level, None)


def paired_difference(
    first: Sequence[Persons],
    second: Sequence[Persons],
    metric: str,
    shared: bool = False,
    level: float = 0.95,
    plan: Plan | None = None,
) -> Interval:
    """Interval of the metric's difference, second less first, on the same cells in the same order.

    Deleted persons on the metric's own scale; degrees of freedom from the differences of what is
    right and wrong.

    Args:
        first, second: the runs of each arm, which differ in their seed.
        metric: of METRICS.
        shared: whether the runs of both arms are the same trainings, in the same order.
        level: confidence level in (0, 1).
        plan: what the interval would be of; None for the data at hand.
    """
    a, b = Persons.mean(first), Persons.mean(second)
    assert np.array_equal(a.label, b.label)
    assert np.array_equal(a.of_cell, b.of_cell)
    (value_a, without_a), (value_b, without_b) = a.metric(metric), b.metric(metric)
    if shared:
        seeds = [_between(first, metric, _same, second)]
    else:
        seeds = [_between(first, metric, _same), _between(second, metric, _same)]
    difference = value_b - value_a, without_b - without_a
    return _limits(*difference, b, b.right - a.right, metric, seeds, level, plan)


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
) -> _Seeds | None:
    """What the seed changes; None for one run, or where a class has fewer than two persons.

    The variance of the runs' values holds what the interaction of persons and seeds has in it:
    that is in the variance over persons already.

    Args:
        less: runs whose values are replaced by the difference from those of `runs`.
    """
    number = len(runs)
    if number < 2:
        return None
    found = [run.metric(metric) for run in runs]
    values = scale([value for value, _ in found])
    without = scale([rest for _, rest in found])
    if less is not None:
        other = [run.metric(metric) for run in less]
        values = scale([value for value, _ in other]) - values
        without = scale([rest for _, rest in other]) - without
    mostly_all = runs[0].mostly_all
    interaction: dict[int, float] = {}
    for y in CLASS_OF.get(metric, (0, 1)):
        own = without[:, mostly_all == bool(y)]
        if own.shape[1] < 2:
            return None
        own = own - own.mean(1, keepdims=True)
        own = own - own.mean(0)
        persons = own.shape[1]
        interaction[y] = (persons - 1) / persons * float((own**2).sum()) / (number - 1)
    common = max(0.0, float(values.var(ddof=1)) - sum(interaction.values()))
    return _Seeds(common, interaction, number)


def _limits(
    value: float,
    without: Floats,
    persons: Persons,
    values: Floats,
    metric: str,
    seeds: Sequence[_Seeds | None],
    level: float,
    plan: Plan | None,
) -> Interval:
    """Limits from deleted persons [K], the cells' `values` [n], and what the seeds change."""
    unknown = Interval(value, math.nan, math.nan, math.nan, math.nan)
    known = [one for one in seeds if one]
    if plan and plan.seeds > 1 and len(known) < len(seeds):
        return unknown
    times = plan.persons / len(persons.mostly_all) if plan else 1.0
    runs = [(one, plan.seeds if plan else one.runs) for one in known]
    parts = []
    for y in CLASS_OF.get(metric, (0, 1)):
        own = without[persons.mostly_all == bool(y)]
        number = len(own)
        if number < 2 or np.isnan(own).any():
            return unknown
        variance = (number - 1) / number * float(((own - own.mean()) ** 2).sum())
        variance += sum(one.interaction[y] * (1 / n - 1 / one.runs) for one, n in runs)
        parts.append((max(0.0, variance) / times, persons.df(y, values) * times))
    of_seeds = [(one.variance / n, n - 1.0) for one, n in runs if n > 1]
    parts += of_seeds
    variance = sum(part for part, _ in parts)
    if not variance > 0:
        return Interval(value, value, value, math.nan, 0.0)
    # Welch (1947): the parts are independent.
    df = variance**2 / sum(part**2 / of_part for part, of_part in parts)
    se = math.sqrt(variance)
    half = float(stats.t.ppf((1 + level) / 2, df)) * se
    share = sum(part for part, _ in of_seeds) / variance if of_seeds else None
    return Interval(value, value - half, value + half, df, se, share)


def logit(rate: npt.ArrayLike) -> Floats:
    """Log odds of rates, which count as at least _CLIP from 0 and 1."""
    p = np.clip(np.asarray(rate, np.float64), _CLIP, 1 - _CLIP)
    return np.log(p / (1 - p))
