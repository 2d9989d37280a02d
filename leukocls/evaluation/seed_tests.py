"""Statistics of runs: what seeds do to a number, and whether two arms differ by more than that.

Everything here measures training noise. What is undefined is None, with a reason.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

DDOF = 0  # of every SD over seeds, as in Prellberg & Kramer 2019, Table 2
FEWEST = 2  # values of an arm that a test needs: one has no spread to weigh a difference against


def describe(values: Sequence[float]) -> dict[str, float | None]:
    """`mean`, `sd` (ddof 0), `min`, `max` and `expected_max` of n values; all None of none.

    `expected_max` is what the best of n is expected to be if seeds are normal with this mean and
    SD: a best seed far above it would be news, one at it is what picking the best gives. None where
    that is above 1, so that the normal is no model of these fractions.
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
    """E[max] of n ≥ 1 independent standard normal values, by quadrature.

    The tail formula E[X] = ∫₀^∞ P(X > x) − P(X < −x) dx, with P(max < x) = Φ(x)ⁿ (David &
    Nagaraja 2003, Order Statistics).
    """
    from scipy.integrate import quad
    from scipy.special import ndtr

    return float(quad(lambda x: 1 - ndtr(x) ** n - ndtr(-x) ** n, 0, math.inf)[0])


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """One-sided Mann-Whitney U test that independent `a` [n] tends to be greater than `b` [m].

    `statistic` is U of `a`; `p` is exact where scipy's default makes it so. `effect` is the
    rank-biserial correlation 2U/(nm) − 1 in [−1, 1] (Wendt 1972), positive where `a` is greater.
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
    """One-sided Wilcoxon signed-rank test that `a` [n] is greater than its partners in `b` [n].

    `statistic` is W⁺, pairs without a difference left out (Wilcoxon 1945); `p` is exact where
    scipy's default makes it so. `effect` is the matched-pairs rank-biserial correlation
    (W⁺ − W⁻) / (W⁺ + W⁻) in [−1, 1] (Kerby 2014), positive where `a` is greater.
    """
    row = _row("Wilcoxon signed-rank", "matched-pairs rank-biserial correlation")
    if len(a) < FEWEST:
        return row | {"reason": f"fewer than {FEWEST} shared seeds"}
    # Differences of ratios of counts that are equal must tie, whatever the last bit says.
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
    """Median of the Walsh averages (dᵢ + dⱼ)/2, i ≤ j, of n ≥ 1 differences, zeros among them.

    Hodges & Lehmann 1963.
    """
    d = np.asarray(differences)
    i, j = np.triu_indices(d.size)
    return float(np.median((d[i] + d[j]) / 2))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p values of one family (Holm 1979), in order.

    One that is undefined stays so, and counts as a member: leaving it out would be lenient.
    """
    order = sorted((value, i) for i, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    running = 0.0
    for rank, (value, i) in enumerate(order):
        adjusted[i] = running = max(running, min(1.0, (len(p) - rank) * value))
    return adjusted


def _row(test: str, effect_name: str) -> dict[str, Any]:
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
