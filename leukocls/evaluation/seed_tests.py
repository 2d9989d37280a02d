"""Statistics over seeds: the spread of a metric within an arm, and tests between two arms.

All of them measure training noise. An undefined value is None, with a reason.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

DDOF = 0  # of every SD over seeds, as in Prellberg & Kramer 2019, Table 2
FEWEST = 2  # number of values in each arm that a test needs


def describe(values: Sequence[float]) -> dict[str, float | None]:
    """`mean`, `sd` (ddof 0), `min`, `max` and `expected_max` of n fractions; all None if n = 0.

    `expected_max` is the expected maximum of n independent normal values with this mean and SD. A
    best seed near it is explained by picking the best of n seeds. None if it is above 1, where the
    normal distribution is no model for fractions.
    """
    if not values:
        return dict.fromkeys(("mean", "sd", "min", "max", "expected_max"))
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=DDOF))
    best = mean + sd * expected_normal_maximum(len(values))
    return {
        "mean": mean,
        "sd": sd,
        "min": min(values),
        "max": max(values),
        "expected_max": best if best <= 1 else None,
    }


def expected_normal_maximum(n: int) -> float:
    """Expected maximum of n ≥ 1 independent standard normal values, by quadrature.

    The tail formula E[X] = ∫₀^∞ P(X > x) − P(X < −x) dx, with P(max < x) = Φ(x)ⁿ (David &
    Nagaraja 2003, Order Statistics).
    """
    from scipy.integrate import quad
    from scipy.special import ndtr

    return float(quad(lambda x: 1 - ndtr(x) ** n - ndtr(-x) ** n, 0, math.inf)[0])


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """One-sided Mann-Whitney U test whether independent `a` [n] tends to be greater than `b` [m].

    `statistic` is U of `a`; SciPy decides whether `p` is exact. `effect` is the rank-biserial
    correlation 2U/(nm) − 1 in [−1, 1] (Wendt 1972), positive if `a` is greater.
    """
    row = _row("Mann-Whitney U", "rank-biserial correlation")
    if min(len(a), len(b)) < FEWEST:
        return row | {"reason": f"fewer than {FEWEST} runs in an arm"}
    if len({*a, *b}) == 1:
        return row | {"reason": "every value is the same"}
    from scipy.stats import mannwhitneyu

    u, p = mannwhitneyu(a, b, alternative="greater")
    return row | {
        "statistic": float(u),
        "p": float(p),
        "effect": float(2 * u / (len(a) * len(b)) - 1),
    }


def signed_rank(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """One-sided Wilcoxon signed-rank test whether `a` [n] is greater than its pairs in `b` [n].

    `statistic` is W⁺ without pairs of equal values (Wilcoxon 1945); SciPy decides whether `p` is
    exact. `effect` is the matched-pairs rank-biserial correlation (W⁺ − W⁻) / (W⁺ + W⁻) in [−1, 1]
    (Kerby 2014), positive if `a` is greater.
    """
    row = _row("Wilcoxon signed-rank", "matched-pairs rank-biserial correlation")
    if len(a) < FEWEST:
        return row | {"reason": f"fewer than {FEWEST} shared seeds"}
    # Rounded, because equal differences of fractions must tie even if their last bits differ.
    difference = np.round(np.subtract(a, b), 12)
    row["hodges_lehmann"] = hodges_lehmann(difference.tolist())
    unequal = np.count_nonzero(difference)
    if not unequal:
        return row | {"reason": "all differences are zero"}
    from scipy.stats import wilcoxon

    w, p = wilcoxon(difference, alternative="greater")
    return row | {
        "statistic": float(w),
        "p": float(p),
        "effect": float(4 * w / (unequal * (unequal + 1)) - 1),
    }


def hodges_lehmann(differences: Sequence[float]) -> float:
    """Hodges-Lehmann estimate of the shift: median of the averages (dᵢ + dⱼ)/2, i ≤ j.

    Hodges & Lehmann 1963. Needs n ≥ 1 differences; zeros count.
    """
    d = np.asarray(differences)
    i, j = np.triu_indices(d.size)
    return float(np.median((d[i] + d[j]) / 2))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p values of one family, in the same order (Holm 1979).

    An undefined one stays None but counts as a member of the family, which is conservative.
    """
    order = sorted((value, i) for i, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    running = 0.0
    for rank, (value, i) in enumerate(order):
        adjusted[i] = running = max(running, min(1.0, (len(p) - rank) * value))
    return adjusted


def _row(test: str, effect_name: str) -> dict[str, Any]:
    """The keys of one test, all of them undefined."""
    return {
        "test": test,
        "alternative": "greater",
        "statistic": None,
        "p": None,
        "effect": None,
        "effect_name": effect_name,
        "hodges_lehmann": None,
        "reason": None,
    }
