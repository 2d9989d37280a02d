"""What R finds in the same runs and cells; r_oracle.json was written by r_oracle.R beside it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from leukocls.evaluation import person_level, seed_tests
from leukocls.evaluation.cell_metrics import cell_metrics
from leukocls.evaluation.intervals import jackknife
from leukocls.evaluation.person_counts import Persons

R = json.loads(Path(__file__).with_name("r_oracle.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["distinct", "tied"])
def test_runs_are_described_and_tested_as_r_does(name: str) -> None:
    r: dict[str, Any] = R[name]
    a, b = r["values"]["a"], r["values"]["b"]
    for values, known in ((a, r["first"]), (b, r["second"])):
        found = seed_tests.describe(values)
        assert {key: found[key] for key in known} == pytest.approx(known)
    unpaired, paired = seed_tests.mann_whitney(a, b), seed_tests.signed_rank(a, b)
    assert unpaired["statistic"] == r["u"]
    assert unpaired["p"] == pytest.approx(r["mann_whitney_p"], rel=1e-6)
    assert paired["p"] == pytest.approx(r["signed_rank_p"], rel=1e-6)
    assert unpaired["hodges_lehmann"] == pytest.approx(r["shift"])


def test_shifts_have_the_intervals_of_r() -> None:
    r = R["distinct"]
    a, b = r["values"]["a"], r["values"]["b"]
    unpaired, paired = seed_tests.mann_whitney(a, b), seed_tests.signed_rank(a, b)
    assert (unpaired["statistic"], unpaired["p"]) == pytest.approx(
        (r["wilcox_test_u"], r["wilcox_test_p"])
    )
    scipys = stats.mannwhitneyu(a, b, alternative="greater", method="exact")
    assert (unpaired["statistic"], unpaired["p"]) == pytest.approx(tuple(scipys))
    assert paired["statistic"] == r["v"]
    assert paired["hodges_lehmann"] == pytest.approx(r["paired_shift"])
    for row, known in ((unpaired, r["shift_interval"]), (paired, r["paired_interval"])):
        limits = row["hodges_lehmann_interval"]
        assert [limits["low"], limits["high"]] == pytest.approx(known, abs=1e-12)


def test_holm_is_that_of_r() -> None:
    assert seed_tests.holm(R["holm"]["p"]) == pytest.approx(R["holm"]["adjusted"])


def test_the_interval_of_auroc_is_that_of_r() -> None:
    """R deletes persons from the cells, and has the degrees of freedom from matrices of cells."""
    r = R["clustered"]
    label, logit = np.array(r["cells"]["label"]), np.array(r["cells"]["logit"])
    persons = Persons.of(label, logit > 0, np.array(r["cells"]["person"]), logit)
    found = jackknife([persons], "auroc")
    assert (found.value, found.df) == pytest.approx((r["auroc"], r["df"]))
    assert (found.low, found.high) == pytest.approx((r["low"], r["high"]))


def test_figures_by_person_are_those_of_r() -> None:
    """Binomial limits, DeLong's by pROC, and rates to which each person contributes the same."""
    r, cells = R["by_person"], R["clustered"]["cells"]
    label, logit, person = (np.array(cells[name]) for name in ("label", "logit", "person"))
    found = cell_metrics(label, logit=logit, subject=person)["subject"]
    assert found["accuracy"] * 13 == pytest.approx(r["right"])
    exact = person_level.limits(found)["subject.accuracy"]
    delong = person_level.auroc_limits(r["label"], r["score"])
    for limits, known in ((exact, r["accuracy_limits"]), (delong, r["auroc_limits"])):
        assert [limits["low"], limits["high"]] == pytest.approx(known)
    persons = Persons.of(label, logit > 0, person, logit)
    for name in ("sensitivity", "specificity"):
        assert [*person_level.averaged(persons, name).values()] == pytest.approx(r[name])
