"""Figures in which each person counts once, with 95 % intervals over persons."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from leukocls.artifacts.predictions import sigmoid
from leukocls.evaluation.intervals import logit
from leukocls.evaluation.person_counts import CLASS_OF, Persons

LEVEL = 0.95
LIMITS = ("subject.accuracy", "subject.auroc")
_END = 12.0  # a rate's logit that counts as infinite
# a + b of the beta distribution: intra-class correlations 1 / (1 + a + b) from .00005 to .98.
_CONCENTRATION = np.exp(np.linspace(10, -4, 57))[:, None]


def averaged(persons: Persons, name: str) -> dict[str, float] | None:
    """The mean over persons of each one's sensitivity or specificity, with its interval.

    Another question than the rate of all cells, to which persons with many cells contribute more;
    the two differ where cells of such persons are easier or harder. Persons are left out in turn on
    the logit scale (delete-one jackknife); Student's t with K − 1 degrees of freedom.

    Args:
        name: "sensitivity", of the ALL persons, or "specificity", of the HEM persons.

    Returns:
        `value`, `low` and `high`; without limits where all persons' rates are equal, or of one
        person; None without a person of the class.
    """
    (y,) = CLASS_OF[name]
    here = persons.mostly_all == bool(y)
    number = int(here.sum())
    if not number:
        return None
    rates = persons.hits[y, here] / persons.cells[y, here]
    value = float(rates.mean())
    if number < 2 or not np.ptp(rates):
        return {"value": value}
    without = (rates.sum() - rates) / (number - 1)
    moved = logit(without)
    variance = (number - 1) / number * float(((moved - moved.mean()) ** 2).sum())
    half = float(stats.t.ppf((1 + LEVEL) / 2, number - 1)) * math.sqrt(variance)
    middle = float(logit(value))
    return {
        "value": value,
        "low": float(sigmoid(middle - half)),
        "high": float(sigmoid(middle + half)),
    }


def beta_binomial(persons: Persons, name: str) -> dict[str, float] | None:
    """Sensitivity or specificity under a model of how persons differ, with its interval.

    The model is another than the jackknife's, which is what it is for: where both intervals agree,
    little depends on either. Each person's rate is drawn from a beta distribution (Skellam 1948).
    The limits are those of the profile likelihood, by the quantile of F with 1 and K − 1 degrees of
    freedom instead of χ², because there are few persons.

    Args:
        name: "sensitivity", of the ALL persons, or "specificity", of the HEM persons.

    Returns:
        `value`, the mean of the beta distribution, `low` and `high`; None with fewer than two
        persons.
    """
    (y,) = CLASS_OF[name]
    here = persons.mostly_all == bool(y)
    k, n = persons.hits[y, here], persons.cells[y, here]
    if len(k) < 2:
        return None

    def support(at: float) -> float:
        # Largest over how much persons differ.
        mean = sigmoid(at)
        a, b = mean * _CONCENTRATION, (1 - mean) * _CONCENTRATION
        values = (special.betaln(a + k, b + n - k) - special.betaln(a, b)).sum(axis=1)
        i = int(values.argmax())
        if i in (0, len(values) - 1):
            return float(values[i])
        # The top of the parabola through the highest value and its neighbours.
        below, top, above = values[i - 1 : i + 2]
        bend = below - 2 * top + above
        return float(top + (below - above) ** 2 / (-8 * bend) if bend < 0 else top)

    if k.sum() in (0, n.sum()):
        best = _END if k.sum() else -_END
    else:
        best = float(optimize.minimize_scalar(lambda at: -support(at), bounds=(-_END, _END)).x)
    enough = support(best) - stats.f.ppf(LEVEL, 1, len(k) - 1) / 2

    def limit(end: float) -> float:
        if support(end) >= enough:
            return end
        return float(optimize.brentq(lambda at: support(at) - enough, end, best, xtol=1e-4))

    ends = {-_END: 0.0, _END: 1.0}
    found = {"value": best, "low": limit(-_END), "high": limit(_END)}
    return {name: ends.get(at, float(sigmoid(at))) for name, at in found.items()}


def accuracy_limits(right: int, number: int) -> dict[str, float]:
    """Exact binomial limits (Clopper & Pearson 1934) of `right` of `number` persons."""
    found = stats.binomtest(right, number).proportion_ci(LEVEL, method="exact")
    return {"low": float(found.low), "high": float(found.high)}


def auroc_limits(label: npt.ArrayLike, score: npt.ArrayLike) -> dict[str, float] | None:
    """Limits of the AUROC of persons by DeLong et al. 1988, on the logit scale.

    Args:
        label: 0 or 1, one for each person, [K].
        score: any number that orders the persons, [K].

    Returns:
        `low` and `high`; None if the AUROC is 0 or 1, or a class has fewer than two persons.
    """
    y, z = np.asarray(label), np.asarray(score, np.float64)
    ours, theirs = z[y == 1][:, None], z[y == 0]
    if len(ours) < 2 or len(theirs) < 2:
        return None
    above = (ours > theirs) + 0.5 * (ours == theirs)
    value = float(above.mean())
    variance = sum(above.mean(axis).var(ddof=1) / above.shape[1 - axis] for axis in (0, 1))
    if not 0 < value < 1:
        return None
    half = stats.norm.ppf((1 + LEVEL) / 2) * math.sqrt(variance) / (value * (1 - value))
    low, high = (float(sigmoid(logit(value) + step)) for step in (-half, half))
    return {"low": low, "high": high}


def limits(by_subject: dict[str, Any]) -> dict[str, dict[str, float] | None]:
    """The limits of LIMITS: of the persons whose majority vote is right, and of their AUROC.

    Args:
        by_subject: `subject` of `leukocls.evaluation.cell_metrics.cell_metrics`.
    """
    rows = by_subject["per_subject"]
    of_one_class = [row for row in rows if row["label"] is not None]
    area = None
    if by_subject["auroc"] is not None:
        area = auroc_limits(
            *([row[name] for row in of_one_class] for name in ("label", "mean_logit"))
        )
    right = round(by_subject["accuracy"] * len(rows))
    return dict(zip(LIMITS, (accuracy_limits(right, len(rows)), area), strict=True))
