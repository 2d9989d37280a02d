"""The label flip by person, against every flip made by hand and against its nominal size."""

import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from leukocls.evaluation import subject_tests
from leukocls.evaluation.person_counts import RATES, Persons
from leukocls.evaluation.subject_tests import label_flip

ORACLES = {
    "weighted_f1": lambda y, called: f1_score(y, called, average="weighted", zero_division=0),
    "accuracy": accuracy_score,
    "sensitivity": recall_score,
    "specificity": lambda y, called: recall_score(y, called, pos_label=0),
}


def two_arms(rng: np.random.Generator, of_class: int, better: float = 0.0) -> pd.DataFrame:
    """Cells called by two arms that are alike, but for `better`, added to the logits of the second.

    Each person is easier for one arm or the other.
    """
    label = np.repeat([1, 0], of_class)
    person = np.repeat(np.arange(len(label)), rng.integers(3, 25, len(label)))
    y, own = label[person], rng.normal(0, 0.6, (3, len(label)))
    sign = 2 * y - 1
    noise = rng.normal(size=(2, len(person)))
    frame = pd.DataFrame({"label": y, "person": [f"p{p}" for p in person]})
    for arm, more in ((0, 0.0), (1, better)):
        frame[arm] = sign * (1 + more) + own[2][person] + own[arm][person] + noise[arm] > 0
    return frame


def persons(frame: pd.DataFrame, arm: int) -> list[Persons]:
    return [Persons.of(frame["label"], frame[arm], frame["person"])]


def by_hand(frame: pd.DataFrame, metric: str) -> float:
    """p over all flips, each standard error from deleting persons one by one."""
    names = frame["person"].unique()
    classes = {"sensitivity": [1], "specificity": [0]}.get(metric, [1, 0])

    def difference(cells: pd.DataFrame, flipped: pd.Series) -> float:
        one, other = (cells[a].where(~flipped, cells[1 - a]) for a in (0, 1))
        return ORACLES[metric](cells["label"], other) - ORACLES[metric](cells["label"], one)

    def studentised(flip: tuple[bool, ...]) -> float:
        exchanged = set(itertools.compress(names, flip))
        flipped = frame["person"].isin(exchanged)
        found = difference(frame, flipped)
        variance = 0.0
        for y in classes:
            own = [
                difference(frame[kept], flipped[kept])
                for name in frame["person"][frame["label"] == y].unique()
                for kept in [frame["person"] != name]
            ]
            variance += (len(own) - 1) * np.var(own)
        return 0.0 if abs(found) < 1e-9 else abs(found) / np.sqrt(variance)

    every = [studentised(flip) for flip in itertools.product((False, True), repeat=len(names))]
    return float(np.mean(np.array(every) >= every[0] - 1e-9))


@pytest.mark.parametrize("metric", RATES)
def test_p_is_the_share_of_all_flips_that_differ_as_much(metric: str) -> None:
    frame = two_arms(np.random.default_rng(0), 2, better=0.5)
    found = label_flip(persons(frame, 0), persons(frame, 1), metric)
    assert found == pytest.approx(by_hand(frame, metric))
    assert label_flip(persons(frame, 1), persons(frame, 0), metric) == found


def test_random_flips_are_near_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = two_arms(np.random.default_rng(1), 8, better=0.3)
    arms = persons(frame, 0), persons(frame, 1)
    monkeypatch.setattr(subject_tests, "FLIPS", 1 << 16)
    exact = label_flip(*arms, "weighted_f1")
    monkeypatch.setattr(subject_tests, "FLIPS", 500)
    random = label_flip(*arms, "weighted_f1")
    assert exact is not None
    assert random == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 500))
    assert random != exact
    assert random == label_flip(*arms, "weighted_f1")  # the same flips every time
    monkeypatch.setattr(subject_tests, "_AT_ONCE", 800)
    assert label_flip(*arms, "weighted_f1") == pytest.approx(random, abs=0.1)


def test_its_size_is_the_nominal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arms that are alike differ at 5 % in some 5 % of trials, others far more often."""
    monkeypatch.setattr(subject_tests, "FLIPS", 200)
    rng, trials = np.random.default_rng(2), 150
    refused = {better: 0 for better in (0.0, 0.6)}
    for better in refused:
        for _ in range(trials):
            frame = two_arms(rng, 10, better)
            p = label_flip(persons(frame, 0), persons(frame, 1), "weighted_f1")
            refused[better] += p is not None and p <= 0.05
    assert 0.01 * trials <= refused[0.0] <= 0.1 * trials
    assert refused[0.6] >= 0.5 * trials


def test_what_cannot_be_tested_has_no_p() -> None:
    frame = two_arms(np.random.default_rng(3), 4)
    assert label_flip(persons(frame, 0), persons(frame, 0), "accuracy") is None  # nothing differs
    alone = two_arms(np.random.default_rng(3), 1)
    assert label_flip(persons(alone, 0), persons(alone, 1), "accuracy") is None  # one person each
