"""Statistics over seeds: the spread of a metric within an arm, and tests between two arms.

All of them measure training noise. An undefined value is None, with a reason.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

DDOF = 0  # of every SD over seeds, as in Prellberg & Kramer 2019, Table 2
LEVEL = 0.95  # of the interval of the Hodges-Lehmann shift
FEWEST = 2  # number of values in each arm that a test needs


def describe(values: Sequence[float]) -> dict[str, float | None]:
    """`mean`, `sd` (ddof 0), `min`, `max` and `expected_max` of n fractions; all None if n = 0.

    `expected_max` is the expected maximum of n independent normal values: mean + e_n · SD₁ / c₄(n),
    with SD₁ the SD of ddof 1 and c₄ its bias factor. A best seed near it is explained by picking
    the best of n seeds. None if it is above 1, where the normal distribution is no model for
    fractions.
    """
    if not values:
        return dict.fromkeys(("mean", "sd", "min", "max", "expected_max"))
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=DDOF))
    best = mean + unbiased_sd(values) * expected_normal_maximum(len(values))
    return {
        "mean": mean,
        "sd": sd,
        "min": min(values),
        "max": max(values),
        "expected_max": best if best <= 1 else None,
    }


def unbiased_sd(values: Sequence[float]) -> float:
    """The SD of ddof 1 over c₄(n), unbiased for normal values; 0 for a single value.

    c₄(n) = √(2/(n−1)) Γ(n/2) / Γ((n−1)/2) (Holtzman 1950).
    """
    n = len(values)
    if n == 1:
        return 0.0
    c4 = math.sqrt(2 / (n - 1)) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))
    return float(np.std(values, ddof=1)) / c4


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

    `statistic` is U of `a`, with ½ for ties; `p` is the exact permutation probability of so large a
    U, ties and all: three against three cannot give less than .05. `effect` is the rank-biserial
    correlation 2U/(nm) − 1 in [−1, 1] (Wendt 1972), positive if `a` is greater. `hodges_lehmann` is
    the median of all differences aᵢ − bⱼ.
    """
    row = _row("Mann-Whitney U", "rank-biserial correlation")
    if min(len(a), len(b)) < FEWEST:
        return row | {"reason": f"fewer than {FEWEST} runs in an arm"}
    if len({*a, *b}) == 1:
        return row | {"reason": "every value is the same"}
    shifts = np.subtract.outer(a, b).ravel()
    row |= _shift(shifts, _rank_sums(len(a), len(a) + len(b)))
    ranks = _doubled_ranks([*a, *b])
    doubled_sum = int(ranks[: len(a)].sum())
    u = doubled_sum / 2 - len(a) * (len(a) + 1) / 2
    return row | {
        "statistic": u,
        "p": _upper_tail(_subset_sums(ranks, len(a)), doubled_sum),
        "effect": 2 * u / (len(a) * len(b)) - 1,
    }


def signed_rank(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """One-sided Wilcoxon signed-rank test whether `a` [n] is greater than its partners in `b` [n].

    `statistic` is W⁺ without the pairs that do not differ (Wilcoxon 1945); `p` is the exact
    probability of so large a W⁺ over all signs, ties and all. `effect` is the matched-pairs
    rank-biserial correlation (W⁺ − W⁻) / (W⁺ + W⁻) in [−1, 1] (Kerby 2014), positive if `a` is
    greater. `hodges_lehmann` is the median of the averages of two differences.
    """
    row = _row("Wilcoxon signed-rank", "matched-pairs rank-biserial correlation")
    if len(a) < FEWEST:
        return row | {"reason": f"fewer than {FEWEST} shared seeds"}
    # Rounded, so that equal differences of ratios tie in spite of their last bits.
    difference = np.round(np.subtract(a, b), 12).astype(np.float64)
    row |= _shift(_walsh_averages(difference), _subset_sums(np.arange(1, len(a) + 1)))
    unequal = difference[difference != 0]
    if not unequal.size:
        return row | {"reason": "all differences are zero"}
    ranks = _doubled_ranks(np.abs(unequal))
    doubled_sum = int(ranks[unequal > 0].sum())
    return row | {
        "statistic": doubled_sum / 2,
        "p": _upper_tail(_subset_sums(ranks), doubled_sum),
        "effect": 2 * doubled_sum / int(ranks.sum()) - 1,
    }


def _doubled_ranks(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Twice the midranks of n values, whole numbers also where values tie."""
    _, group, size = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (2 * np.cumsum(size) - size + 1)[group]


def _subset_sums(ranks: npt.NDArray[np.int64], size: int | None = None) -> npt.NDArray[np.float64]:
    """Probability of each sum 0, 1, … over all subsets of ranks, or over all those of `size`.

    Adds one rank at a time to the counts of subsets by size and sum (the shift algorithm of
    Streitberg & Röhmel 1986).
    """
    most = len(ranks) if size is None else size
    counts = np.zeros((most + 1, int(np.sort(ranks)[-most:].sum()) + 1))
    counts[0, 0] = 1.0
    for rank in ranks:
        counts[1:, rank:] += counts[:-1, : counts.shape[1] - rank].copy()
    sums = counts.sum(0) if size is None else counts[size]
    return sums / sums.sum()


def _upper_tail(probability: npt.NDArray[np.float64], value: int) -> float:
    """Probability of a sum of at least `value`."""
    return min(1.0, float(probability[value:].sum()))


def _rank_sums(size: int, number: int) -> npt.NDArray[np.float64]:
    """Probability of each U of `size` among `number` values without ties."""
    return _subset_sums(np.arange(1, number + 1), size)[size * (size + 1) // 2 :]


def _walsh_averages(differences: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    i, j = np.triu_indices(differences.size)
    return (differences[i] + differences[j]) / 2


def _shift(
    contrasts: npt.NDArray[np.float64], probability: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Hodges-Lehmann estimate of the shift, the median of the contrasts, and its interval.

    The interval inverts the rank test (Hollander, Wolfe & Chicken 2014, sections 3.3 and 4.3). With
    ties it covers at least as often.

    Args:
        contrasts: as many as the test's statistic counts, in any order.
        probability: of each value of the statistic without ties, from 0.
    """
    ordered = np.sort(contrasts)
    # The k-th lowest and highest contrasts are the limits: as large a k as the level allows.
    k = int(np.searchsorted(np.cumsum(probability), (1 - LEVEL) / 2))
    limits = {"low": float(ordered[k - 1]), "high": float(ordered[-k])} if k else None
    return {"hodges_lehmann": float(np.median(ordered)), "hodges_lehmann_interval": limits}


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
        "hodges_lehmann_interval": None,  # None too where so few runs give none of this level
        "reason": None,
    }
