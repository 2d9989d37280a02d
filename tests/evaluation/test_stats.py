"""The statistics of compare against hand-written enumerations, scipy and printed examples."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as oracle

from leukocls.evaluation import published_results, seed_tests

# Ratios of counts, as metrics are: ties and equal differences occur.
ratios = st.integers(0, 40).map(lambda k: k / 40)
samples = st.lists(ratios, min_size=2, max_size=9)
pairs = st.lists(st.tuples(ratios, ratios), min_size=2, max_size=9)
probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=8)

quickly = settings(deadline=None, max_examples=40, derandomize=True)

# Darwin's Zea mays (1876), differences in eighths of an inch: the example of scipy and of many
# textbooks; W⁺ = 96, two-sided exact p = .0413.
DARWIN = [6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75]


def wins(a, b):
    """U by its definition: pairs in which a is greater, ties half."""
    return sum((x > y) + (x == y) / 2 for x, y in itertools.product(a, b))


# --- reductions


def test_reductions_are_those_of_the_paper():
    values = [0.8628, 0.8791, 0.8803, 0.8981]
    found = seed_tests.describe(values)
    mean = sum(values) / 4
    assert found["mean"] == pytest.approx(mean, rel=1e-14)
    assert found["sd"] == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 4))
    assert (found["min"], found["max"]) == (0.8628, 0.8981)
    # The expected largest of four standard normals, tabled as 1.0294, of the unbiased SD: c₄ of
    # four is tabled as 0.9213.
    spread = found["sd"] * math.sqrt(4 / 3) / 0.921318
    assert found["expected_max"] == pytest.approx(mean + spread * 1.02938, abs=1e-6)
    assert set(seed_tests.describe([]).values()) == {None}
    # More than everything right is expected of nobody.
    assert seed_tests.describe([0.5, 0.9])["expected_max"] < 1
    assert seed_tests.describe([0.9, 1.0, 1.0])["expected_max"] is None


def test_the_best_of_24_seeds_is_what_the_paper_headlines():
    printed = published_results.RESULTS["prellberg2019", "proposal"]["weighted_f1"]
    expected = printed["mean"] + printed["sd"] * seed_tests.expected_normal_maximum(24)
    assert expected == pytest.approx(0.8964, abs=5e-5)
    assert printed["max"] - expected == pytest.approx(0.0017, abs=1e-4)


@pytest.mark.parametrize(
    ("n", "tabled"), [(1, 0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))]
)
def test_the_expected_maximum_has_its_closed_forms(n, tabled):
    assert seed_tests.expected_normal_maximum(n) == pytest.approx(tabled, abs=1e-9)


@pytest.mark.parametrize("n", [10, 24, 1000])
def test_the_expected_maximum_is_that_of_the_uniforms_quantile(n):
    """E[Φ⁻¹(U)] of U ~ Beta(n, 1), the largest of n uniforms, on a grid of its quantiles."""
    grid = (np.arange(400_000) + 0.5) / 400_000
    largest = oracle.norm.ppf(grid ** (1 / n))
    assert seed_tests.expected_normal_maximum(n) == pytest.approx(largest.mean(), abs=2e-5)


# --- tests


@quickly
@given(samples, samples)
def test_mann_whitney_counts_wins(a, b):
    row = seed_tests.mann_whitney(a, b)
    if len({*a, *b}) == 1:
        assert row["reason"] == "every value is the same"
        assert row["p"] is row["statistic"] is row["effect"] is None
        return
    assert row["statistic"] == wins(a, b)
    reverse = sum((x < y) - (x > y) for x, y in itertools.product(a, b))
    assert row["effect"] == pytest.approx(-reverse / (len(a) * len(b)), abs=1e-12)
    assert seed_tests.mann_whitney(b, a)["effect"] == pytest.approx(-row["effect"], abs=1e-12)
    assert -1 <= row["effect"] <= 1
    assert 0 <= row["p"] <= 1


@quickly
@given(st.permutations(range(9)), st.integers(2, 7))
def test_without_ties_mann_whitney_is_exact(order, n):
    """The share of all ways to draw arm a whose U is at least as large."""
    values = [v / 100 for v in order]
    u = wins(values[:n], values[n:])
    ways = [wins(chosen, set(values) - set(chosen)) for chosen in itertools.combinations(values, n)]
    share = sum(way >= u for way in ways) / len(ways)
    row = seed_tests.mann_whitney(values[:n], values[n:])
    assert row["p"] == pytest.approx(share, rel=1e-12)
    assert (row["test"], row["alternative"]) == ("Mann-Whitney U", "greater")


def test_mann_whitney_of_two_sweeps_is_scipys():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.879, 0.009, 24), rng.normal(0.872, 0.007, 24)
    known = oracle.mannwhitneyu(a, b, alternative="greater", method="exact")
    row = seed_tests.mann_whitney(a, b)
    assert (row["statistic"], row["p"]) == (known.statistic, pytest.approx(known.pvalue))


@quickly
@given(pairs)
def test_signed_rank_sums_ranks(both):
    a, b = map(list, zip(*both, strict=True))
    row = seed_tests.signed_rank(a, b)
    # In counts of 40, where equal differences are equal.
    d = [round(40 * x) - round(40 * y) for x, y in both]
    if not any(d):
        assert row["reason"] == "all differences are zero"
        assert row["p"] is row["statistic"] is row["effect"] is None
        assert row["hodges_lehmann"] == 0
        return
    ranks = oracle.rankdata([abs(v) for v in d if v])
    signs = np.sign([v for v in d if v])
    assert row["statistic"] == ranks[signs > 0].sum()
    assert row["effect"] == pytest.approx((ranks * signs).sum() / ranks.sum(), abs=1e-12)
    assert seed_tests.signed_rank(b, a)["effect"] == pytest.approx(-row["effect"], abs=1e-12)
    assert -1 <= row["effect"] <= 1
    walsh = [(x + y) / 80 for x, y in itertools.combinations_with_replacement(d, 2)]
    assert row["hodges_lehmann"] == pytest.approx(np.median(walsh), abs=1e-12)


@quickly
@given(pairs.filter(lambda both: all(x != y for x, y in both)))
def test_signed_rank_is_exact_over_all_signs(both):
    a, b = map(list, zip(*both, strict=True))
    ranks = oracle.rankdata([abs(round(40 * x) - round(40 * y)) for x, y in both])
    sums = [
        sum(itertools.compress(ranks, up)) for up in itertools.product((0, 1), repeat=len(ranks))
    ]
    row = seed_tests.signed_rank(a, b)
    share = sum(s >= row["statistic"] for s in sums) / len(sums)
    assert row["p"] == pytest.approx(share, rel=1e-9)


def test_signed_rank_of_darwins_plants():
    row = seed_tests.signed_rank(DARWIN, [0] * len(DARWIN))
    assert row["statistic"] == 96
    assert 2 * row["p"] == pytest.approx(0.04125976562)
    assert row["effect"] == pytest.approx((96 - 24) / 120)


def test_differences_that_are_equal_tie_whatever_their_last_bit_says():
    a, b = [0.3, 0.2, 0.9], [0.2, 0.1, 1.0]
    assert len({x - y for x, y in zip(a[:2], b[:2], strict=True)}) == 2
    assert seed_tests.signed_rank(a, b)["statistic"] == 4  # all of rank 2


@pytest.mark.parametrize("test", [seed_tests.mann_whitney, seed_tests.signed_rank])
@quickly
@given(both=pairs.filter(lambda both: len(set(both)) > 1), steps=st.integers(-40, 40))
def test_the_shift_moves_with_the_data(test, both, steps):
    a, b = map(list, zip(*both, strict=True))
    by = steps / 40
    row, moved = test(a, b), test([x + by for x in a], b)
    assert moved["hodges_lehmann"] == pytest.approx(row["hodges_lehmann"] + by, abs=1e-12)
    one, other = row["hodges_lehmann_interval"], moved["hodges_lehmann_interval"]
    assert (one is None) == (other is None)
    if one and other:
        assert one["low"] <= row["hodges_lehmann"] <= one["high"]
        assert [other["low"] - by, other["high"] - by] == pytest.approx([one["low"], one["high"]])


def least_p(test, *samples):
    sides = (test(*samples, alternative=side, method="exact") for side in ("greater", "less"))
    return min(side.pvalue for side in sides)


@pytest.mark.parametrize("n", [4, 7])
def test_the_interval_holds_the_shifts_that_the_test_does_not_refuse(n):
    """Scipy's exact tests, just inside and just outside of each limit."""
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.5, 1, n), rng.normal(0, 1, 6)
    alone = rng.normal(0.5, 1, n + 2)
    intervals = [
        (seed_tests.mann_whitney(a, b), lambda by: least_p(oracle.mannwhitneyu, a - by, b)),
        (
            seed_tests.signed_rank(alone, np.zeros(n + 2)),
            lambda by: least_p(oracle.wilcoxon, alone.round(12) - by),
        ),
    ]
    for row, p_of in intervals:
        limits = row["hodges_lehmann_interval"]
        for edge, inwards in ((limits["low"], 1e-9), (limits["high"], -1e-9)):
            assert p_of(edge + inwards) > 0.025
            assert p_of(edge - inwards) <= 0.025


def test_too_few_runs_have_a_shift_without_interval():
    row = seed_tests.mann_whitney([0.9, 0.8, 0.7], [0.6, 0.5, 0.4])
    assert row["hodges_lehmann"] == pytest.approx(0.3)
    assert row["hodges_lehmann_interval"] is None


@pytest.mark.parametrize("test", [seed_tests.mann_whitney, seed_tests.signed_rank])
@pytest.mark.parametrize("n", [0, 1])
def test_one_value_is_no_sample(test, n):
    row = test([0.9] * n, [0.8] * n)
    assert "fewer than 2" in row["reason"]
    assert row["p"] is row["statistic"] is row["effect"] is None


# --- Holm


@quickly
@given(probabilities)
def test_holm_is_its_definition(p):
    """p̃ of the k-th smallest is the largest of min(1, (m − j + 1) p₍ⱼ₎) over j ≤ k."""
    order = sorted(p)
    known = {
        value: max(min(1.0, (len(p) - j) * order[j]) for j in range(order.index(value) + 1))
        for value in order
    }
    found = seed_tests.holm(p)
    assert all(adjusted >= value for adjusted, value in zip(found, p, strict=True))
    for adjusted, value in zip(found, p, strict=True):
        assert adjusted == pytest.approx(known[value], abs=1e-15)
    by_p = [adjusted for _, adjusted in sorted(zip(p, found, strict=True))]
    assert by_p == sorted(by_p)
    assert seed_tests.holm(p[::-1]) == pytest.approx(found[::-1])


def test_holm_as_r_has_it():
    """R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert seed_tests.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_what_is_undefined_counts_as_a_member_of_the_family():
    assert seed_tests.holm([0.01, None, 0.02]) == pytest.approx([0.03, None, 0.04])
    assert seed_tests.holm([None]) == [None]
    assert seed_tests.holm([]) == []
