"""Limits for abstention: the weighted quantile by hand, and coverage of new persons."""

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

from leukocls.evaluation.conformal import (
    ALPHAS,
    NO_CELLS,
    UNKNOWN,
    abstains,
    conformal_table,
    kept,
    limit,
    of_cells,
)


def by_hand(scores: list[float], person: list[str], alpha: Fraction) -> float:
    """The quantile in exact fractions: every cell's weight, one after the other."""
    number = len(set(person)) + 1
    reached = Fraction(0)
    for value, who in sorted(zip(scores, person, strict=True)):
        reached += Fraction(1, number * person.count(who))
        if reached >= 1 - alpha:
            return value
    return float("inf")


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_weighted_quantile(seed: int) -> None:
    rng = np.random.default_rng(seed)
    person = rng.choice(list("abcdefgh")[: rng.integers(2, 9)], rng.integers(5, 40)).tolist()
    scores = rng.integers(0, 12, len(person)).astype(float).tolist()  # with ties
    for alpha in (Fraction(1, 20), Fraction(1, 10), Fraction(3, 10), Fraction(1, 2)):
        assert limit(scores, person, float(alpha)) == by_hand(scores, person, alpha)


def test_too_few_persons_rule_nothing_out() -> None:
    """K persons allow α ≥ 1 / (K + 1), however many cells each has."""
    person = np.repeat([f"p{k}" for k in range(9)], 50)
    scores = np.arange(450.0)
    assert limit(scores, person, 0.1) == 449
    assert limit(scores, person, 0.0999) == float("inf")
    assert limit(scores[:50], person[:50], 0.49) == float("inf")


def drawn(rng: np.random.Generator, persons: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, logits and persons; persons differ, and some have many cells."""
    label = np.arange(persons) % 2
    cells = rng.choice([3, 10, 80], persons)
    own = rng.normal(0, 1.5, persons)
    of_cell = np.repeat(np.arange(persons), cells)
    noise = rng.normal(0, 1, len(of_cell))
    logit = 2.0 * (2 * label[of_cell] - 1) + own[of_cell] + noise
    return label[of_cell], logit, of_cell.astype(str)


@pytest.mark.parametrize("alpha", [0.1, 0.2])
def test_it_holds_for_new_persons_and_cells_as_units_do_not(alpha: float) -> None:
    """Mean coverage over new persons of each class is 1 − α or more; by cells it is less."""
    rng = np.random.default_rng(round(100 * alpha))
    covered: dict[str, list[float]] = {"person": [], "cell": []}
    for _ in range(400):
        y, z, who = drawn(rng, 24)
        y_new, z_new, _ = drawn(rng, 2)
        for unit, names in (("person", who), ("cell", np.arange(len(y)).astype(str))):
            table = conformal_table(y, z, names)
            (level,) = (one for one in table["levels"] if one["alpha"] == alpha)
            keeps = np.where(y_new == 1, *kept(z_new, level))
            covered[unit] += [float(keeps[y_new == label].mean()) for label in (0, 1)]
    error = np.std(covered["person"]) / np.sqrt(len(covered["person"]))
    assert np.mean(covered["person"]) > 1 - alpha - 2 * error
    assert np.mean(covered["cell"]) < np.mean(covered["person"])


def test_a_cell_without_a_single_label_is_left_open() -> None:
    level = {"alpha": 0.1, "all_above": -1.0, "hem_below": 1.0}
    z = np.array([-2.0, -0.5, 0.5, 2.0])
    assert abstains(z, z > 0, level).tolist() == [False, True, True, False]
    # Neither label fits between the limits, and a call that is ruled out is none.
    level = {"alpha": 0.3, "all_above": 1.0, "hem_below": -1.0}
    assert abstains(z, z > 0, level).tolist() == [False, True, True, False]
    assert abstains(z, z > 5, level).tolist() == [False, True, True, True]
    nothing = {"alpha": 0.05, "all_above": None, "hem_below": None}
    assert abstains(z, z > 0, nothing).all()


def test_tables_grow_with_alpha() -> None:
    table = conformal_table(*drawn(np.random.default_rng(0), 60))
    assert table["persons"] == {"ALL": 30, "HEM": 30}
    assert [one["alpha"] for one in table["levels"]] == list(ALPHAS)
    above = [one["all_above"] for one in table["levels"]]
    below = [one["hem_below"] for one in table["levels"]]
    assert above == sorted(above)
    assert below == sorted(below, reverse=True)


def test_unknown_persons_and_missing_labels_have_a_reason() -> None:
    frame = pd.DataFrame({"cell": ["a", "b", "c"], "subject": ["1", "", "2"], "label": [1, 0, 0]})
    logit = np.array([1.0, -1.0, -2.0])
    assert of_cells(frame, logit, "val")["reason"] == UNKNOWN
    assert of_cells(frame.assign(label=-1), logit, "val")["reason"] == NO_CELLS
    known = of_cells(frame.assign(subject=["1", "3", "2"]), logit, "val")
    assert known["reason"] is None
    assert known["persons"] == {"ALL": 1, "HEM": 2}
    assert known["fitted_on"] == "val"
