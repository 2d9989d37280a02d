"""Figures in which each person counts once: where they are undefined, and what they hold."""

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.metrics import roc_auc_score

from leukocls.artifacts.predictions import sigmoid
from leukocls.evaluation.person_counts import Persons
from leukocls.evaluation.person_level import (
    accuracy_limits,
    auroc_limits,
    averaged,
    beta_binomial,
)


def test_a_person_with_many_cells_counts_once() -> None:
    """90 cells of which all are right, and 10 of another person of which 4 are."""
    person = np.repeat(["a", "b", "c"], [90, 10, 20])
    label = np.repeat([1, 1, 0], [90, 10, 20])
    called = np.array([1] * 94 + [0] * 6 + [0] * 15 + [1] * 5)
    persons = Persons.of(label, called, person)
    assert persons.metric("sensitivity")[0] == pytest.approx(0.94)
    found = averaged(persons, "sensitivity")
    assert found["value"] == pytest.approx(0.7)
    assert found["low"] < 0.7 < found["high"]
    assert averaged(persons, "specificity") == {"value": 0.75}  # one person


def test_without_a_person_of_the_class_there_is_no_mean() -> None:
    persons = Persons.of([1, 1], [1, 0], ["a", "b"])
    assert averaged(persons, "specificity") is None


def test_limits_of_persons_told_apart_entirely() -> None:
    assert auroc_limits([0, 0, 1, 1], [1, 2, 3, 4]) is None
    assert auroc_limits([0, 1, 1], [2, 1, 3]) is None  # one HEM person
    all_right = accuracy_limits(28, 28)
    assert all_right["high"] == 1
    assert all_right["low"] == pytest.approx(0.025 ** (1 / 28))


@pytest.mark.parametrize(("number", "alike"), [(15, False), (28, False), (5, False), (13, True)])
def test_beta_binomial_limits_are_those_of_a_plain_search(number: int, alike: bool) -> None:
    """scipy's distribution, and its own search over both parameters."""
    rng = np.random.default_rng(number)
    n = rng.integers(4, 120, number)
    k = rng.binomial(n, 0.9 if alike else rng.beta(8, 1.5, number))
    called = np.concatenate([np.arange(cells) < right for right, cells in zip(k, n, strict=True)])
    person = np.repeat([f"p{i}" for i in range(number)], n)
    found = beta_binomial(Persons.of(np.ones(len(person), int), called, person), "sensitivity")

    def profile(at: float) -> float:
        def negative(size: float) -> float:
            a, b = sigmoid(at) * np.exp(size), sigmoid(-at) * np.exp(size)
            return -stats.betabinom(n, a, b).logpmf(k).sum()

        halves = ((-4, 3), (3, 10))
        return -min(optimize.minimize_scalar(negative, bounds=half).fun for half in halves)

    best = optimize.minimize_scalar(lambda at: -profile(at), bounds=(-8, 8))
    enough = -best.fun - stats.t.ppf(0.975, number - 1) ** 2 / 2
    low, high = (
        optimize.brentq(lambda at: profile(at) - enough, *sorted((best.x, end)), xtol=1e-4)
        for end in (-11, 11)
    )
    wanted = {"value": sigmoid(best.x), "low": sigmoid(low), "high": sigmoid(high)}
    assert found == pytest.approx({k: float(v) for k, v in wanted.items()}, abs=2e-4)


def test_beta_binomial_limits_without_an_error() -> None:
    persons = Persons.of(
        [1] * 60 + [0] * 3,
        [1] * 60 + [0] * 3,
        ["abcdefghij"[i % 10] for i in range(60)] + ["x"] * 3,
    )
    found = beta_binomial(persons, "sensitivity")
    assert found["value"] == found["high"] == 1
    assert 0.6 < found["low"] < 1
    assert beta_binomial(persons, "specificity") is None  # one person


def test_limits_hold_the_truth_as_often_as_they_say() -> None:
    """Persons with scores of a known AUROC: 300 draws of 40 and 30."""
    rng, held = np.random.default_rng(5), 0
    label = np.repeat([1, 0], [40, 30])
    truth = roc_auc_score(np.repeat([1, 0], 200_000), rng.normal(np.repeat([1.0, 0.0], 200_000)))
    for _ in range(300):
        limits = auroc_limits(label, rng.normal(label))
        held += limits["low"] < truth < limits["high"]
    assert 0.91 < held / 300 < 0.99
