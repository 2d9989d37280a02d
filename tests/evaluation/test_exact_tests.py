"""p values are exact permutation probabilities, ties and all; the expected maximum is unbiased."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as oracle

from leukocls.evaluation.seed_tests import describe, mann_whitney, signed_rank, unbiased_sd


@pytest.mark.parametrize("seed", range(6))
def test_mann_whitney_equals_every_permutation_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, 5) / 10, rng.integers(0, 4, 4) / 10
    pooled = np.concatenate([a, b])

    def u(first: tuple[int, ...]) -> float:
        x, y = pooled[list(first)], np.delete(pooled, first)
        return float((x[:, None] > y).sum() + 0.5 * (x[:, None] == y).sum())

    every = [u(first) for first in itertools.combinations(range(9), 5)]
    found = mann_whitney(a, b)
    assert found["statistic"] == u((0, 1, 2, 3, 4))
    assert found["p"] == pytest.approx(np.mean([x >= found["statistic"] for x in every]))


@pytest.mark.parametrize("seed", range(6))
def test_signed_rank_equals_every_sign_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, 9) / 10, rng.integers(0, 4, 9) / 10
    d = np.round(a - b, 12)
    d = d[d != 0]
    ranks = oracle.rankdata(np.abs(d))
    every = [
        float(ranks[np.array(signs, bool)].sum())
        for signs in itertools.product((0, 1), repeat=len(d))
    ]
    found = signed_rank(a, b)
    assert found["statistic"] == ranks[d > 0].sum()
    assert found["p"] == pytest.approx(np.mean([x >= found["statistic"] for x in every]))


def test_without_ties_both_equal_scipys_exact_p() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.2, 1, 24), rng.normal(0, 1, 24)
    theirs = oracle.mannwhitneyu(a, b, alternative="greater", method="exact").pvalue
    assert mann_whitney(a, b)["p"] == pytest.approx(theirs, rel=1e-9)
    theirs = oracle.wilcoxon(a, b, alternative="greater", method="exact").pvalue
    assert signed_rank(a, b)["p"] == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("b", [[0.1, 0.2, 0.3], [0.1, 0.1, 0.1], [0.1, 0.1, 0.3]])
def test_three_against_three_cannot_give_less_than_one_in_twenty(b: list[float]) -> None:
    assert mann_whitney([0.9, 0.8, 0.7], b)["p"] == pytest.approx(1 / 20)


def test_the_expected_maximum_is_that_of_normal_values() -> None:
    """Over many triples the mean of expected maxima equals the mean of maxima."""
    rng = np.random.default_rng(0)
    triples = rng.normal(0.5, 0.01, (4000, 3))
    expected = np.mean([describe(triple.tolist())["expected_max"] for triple in triples])
    assert expected == pytest.approx(triples.max(1).mean(), abs=3 * 0.01 / math.sqrt(4000))
    assert unbiased_sd([0.5]) == 0
