"""Figures in which each person counts once: where they are undefined, and what they hold."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from leukocls.evaluation.person_counts import Persons
from leukocls.evaluation.person_level import accuracy_limits, auroc_limits, averaged


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


def test_limits_hold_the_truth_as_often_as_they_say() -> None:
    """Persons with scores of a known AUROC: 300 draws of 40 and 30."""
    rng, held = np.random.default_rng(5), 0
    label = np.repeat([1, 0], [40, 30])
    truth = roc_auc_score(np.repeat([1, 0], 200_000), rng.normal(np.repeat([1.0, 0.0], 200_000)))
    for _ in range(300):
        limits = auroc_limits(label, rng.normal(label))
        held += limits["low"] < truth < limits["high"]
    assert 0.91 < held / 300 < 0.99
