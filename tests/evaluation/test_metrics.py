import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from sklearn import metrics as oracle

from leukocls.common.errors import LeukoclsError
from leukocls.evaluation import metrics
from leukocls.evaluation.cell_metrics import cell_metrics, unlabelled

EXACT = {"rel": 1e-12, "abs": 1e-12}


def cells(seed, n=300, decimals=None):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    logit = rng.normal(size=n) * 1.5 + label - 0.3
    return label, logit if decimals is None else logit.round(decimals)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [None, 0])
def test_agrees_with_sklearn(seed, decimals):
    label, logit = cells(seed, decimals=decimals)
    called, prob = logit > 0, 1 / (1 + np.exp(-logit))
    ours = cell_metrics(label, logit=logit)
    fpr, tpr, _ = oracle.roc_curve(label, logit, drop_intermediate=False)
    tn, fp, fn, tp = oracle.confusion_matrix(label, called).ravel()
    theirs = {
        "n": 300,
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "prevalence": label.mean(),
        "accuracy": oracle.accuracy_score(label, called),
        "balanced_accuracy": oracle.balanced_accuracy_score(label, called),
        "sensitivity": oracle.recall_score(label, called),
        "specificity": oracle.recall_score(label, called, pos_label=0),
        "f1": oracle.f1_score(label, called),
        "macro_f1": oracle.f1_score(label, called, average="macro"),
        "weighted_f1": oracle.f1_score(label, called, average="weighted"),
        "weighted_precision": oracle.precision_score(label, called, average="weighted"),
        "weighted_recall": oracle.recall_score(label, called, average="weighted"),
        "auroc": oracle.roc_auc_score(label, logit),
        "average_precision": oracle.average_precision_score(label, logit),
        "sensitivity_at_90_specificity": tpr[fpr <= 0.1 + 1e-12].max(),
        "brier": oracle.brier_score_loss(label, prob),
    }
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, **EXACT), name


def test_the_papers_confusion_gives_the_papers_weighted_f1():
    rates = metrics.rates(tp=1142, fp=112, tn=536, fn=77)
    assert rates["weighted_f1"] == pytest.approx(0.898080, abs=5e-7)
    assert rates["f1"] == pytest.approx(0.9236, abs=5e-5)
    assert rates["macro_f1"] == pytest.approx(0.8868, abs=5e-5)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_rates_agree_with_sklearn_wherever_they_are_defined(pairs):
    label, called = np.array(pairs, dtype=int).T
    tn, fp, fn, tp = oracle.confusion_matrix(label, called, labels=[0, 1]).ravel().tolist()
    ours = metrics.rates(tp, fp, tn, fn)
    common = {"labels": [0, 1], "zero_division": 0}
    theirs = {
        "accuracy": oracle.accuracy_score(label, called),
        "sensitivity": oracle.recall_score(label, called, zero_division=0),
        "specificity": oracle.recall_score(label, called, pos_label=0, zero_division=0),
        "f1": oracle.f1_score(label, called, zero_division=0),
        "macro_f1": oracle.f1_score(label, called, average="macro", **common),
        "weighted_f1": oracle.f1_score(label, called, average="weighted", **common),
        "weighted_precision": oracle.precision_score(label, called, average="weighted", **common),
        "weighted_recall": oracle.recall_score(label, called, average="weighted", **common),
    }
    for name, value in theirs.items():
        if ours[name] is not None:
            assert ours[name] == pytest.approx(value, **EXACT), name
    assert (ours["sensitivity"] is None) == (tp + fn == 0)
    assert (ours["specificity"] is None) == (tn + fp == 0)
    assert (ours["balanced_accuracy"] is None) == (label.min() == label.max())
    assert (ours["f1"] is None) == (tp + fp + fn == 0)
    always = ("accuracy", "weighted_f1", "weighted_precision", "weighted_recall")
    assert None not in [ours[name] for name in always]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), min_size=2, max_size=40).filter(
        lambda rows: len({label for label, _ in rows}) == 2
    )
)
def test_ranking_with_many_ties(rows):
    label, logit = np.array(rows).T
    wins = [(a > b) + 0.5 * (a == b) for a in logit[label == 1] for b in logit[label == 0]]
    assert metrics.auroc(label, logit) == pytest.approx(np.mean(wins), **EXACT)
    assert metrics.auroc(label, -logit) == pytest.approx(1 - np.mean(wins), **EXACT)
    expected = oracle.average_precision_score(label, logit)
    assert metrics.average_precision(label, logit) == pytest.approx(expected, **EXACT)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(seed, random):
    label, logit = cells(seed, n=40, decimals=0)
    order = list(range(40))
    random.shuffle(order)
    first = cell_metrics(label, logit=logit)
    second = cell_metrics(label[order], logit=logit[order])
    for name in (*metrics.RATES, *metrics.GRADED):
        assert second[name] == pytest.approx(first[name], rel=1e-9, abs=1e-9), name


def test_auroc_is_not_fooled_by_saturated_probabilities():
    label, logit = np.array([0, 1, 0, 1]), np.array([40.0, 50.0, 60.0, 70.0])
    assert cell_metrics(label, logit=logit)["auroc"] == 0.75


def test_sigmoid_never_overflows():
    with np.errstate(all="raise", under="ignore"):
        assert metrics.sigmoid([-800.0, 0.0, 800.0]).tolist() == [0.0, 0.5, 1.0]


def test_ece_has_fifteen_bins_of_equal_mass():
    rng = np.random.default_rng(3)
    prob = rng.random(1000)
    label = (rng.random(1000) < prob**2).astype(int)
    gaps = [
        len(part) * abs(label[part].mean() - prob[part].mean())
        for part in np.array_split(np.argsort(prob), 15)
    ]
    assert metrics.ece(label, prob) == pytest.approx(sum(gaps) / 1000, **EXACT)


def test_ece_of_tied_probabilities_is_zero_when_calibrated_whatever_the_order():
    prob, label = np.full(300, 0.5), np.repeat([0, 1], 150)
    assert metrics.ece(label, prob) == pytest.approx(0, abs=1e-12)
    assert metrics.ece(label[::-1], prob) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_calibration_agrees_with_a_general_optimiser(seed):
    label, logit = cells(seed)
    logit = logit * (0.2 + seed) + 3 * seed

    def loss(beta):
        eta = beta[0] + beta[1] * logit
        return np.logaddexp(0, eta).sum() - (label * eta).sum()

    slope = optimize.minimize(
        loss,
        [0.0, 0.1],
        method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-13, "maxiter": 4000},
    ).x[1]
    offset = optimize.minimize_scalar(lambda a: loss([a, 1.0]), bracket=(-50, 50), tol=1e-12).x
    assert metrics.calibration_slope(label, logit) == pytest.approx(slope, rel=1e-5)
    assert metrics.calibration_intercept(label, logit) == pytest.approx(offset, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_calibration_solves_the_score_equations(seed):
    label, logit = cells(seed, n=2000)
    a = metrics.calibration_intercept(label, 30 * logit)
    assert metrics.sigmoid(a + 30 * logit).mean() == pytest.approx(label.mean(), abs=1e-12)
    b = metrics.calibration_slope(label, logit)
    residual = metrics.sigmoid(b * logit + metrics.calibration_intercept(label, b * logit)) - label
    assert residual.sum() == pytest.approx(0, abs=1e-9)
    assert (residual * logit).sum() == pytest.approx(0, abs=1e-8)


@settings(deadline=None, max_examples=60)
@given(st.floats(0.1, 10), st.floats(-20, 20))
def test_calibration_moves_with_the_logits(scale, shift):
    label, logit = cells(11)
    slope = metrics.calibration_slope(label, logit)
    assert metrics.calibration_slope(label, logit * scale + shift) == pytest.approx(slope / scale)
    intercept = metrics.calibration_intercept(label, logit)
    moved = metrics.calibration_intercept(label, logit + shift)
    assert moved == pytest.approx(intercept - shift, abs=1e-9)


def test_separated_logits_have_no_slope():
    result = cell_metrics([0, 0, 1, 1], logit=[-2.0, -1.0, 1.0, 2.0])
    assert result["calibration_slope"] is None
    assert "separate" in result["missing"]["calibration_slope"]
    assert result["calibration_intercept"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("only", [0, 1])
def test_one_class_is_missing_with_a_reason_and_valid_json(only):
    result = cell_metrics(np.full(20, only), logit=np.linspace(-1, 2, 20))
    undefined = {"auroc", "balanced_accuracy", "calibration_intercept", "calibration_slope"}
    undefined |= {"sensitivity_at_90_specificity"}
    undefined |= {"specificity"} if only else {"sensitivity", "average_precision"}
    assert undefined == {key for key in metrics.RATES + metrics.GRADED if result[key] is None}
    assert all(result["missing"][key] for key in undefined)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_every_none_has_a_reason_and_every_reason_a_none():
    examples = [
        cell_metrics([1, 0], logit=[1.0, 2.0]),
        cell_metrics([0, 0], logit=[-1.0, -2.0], subject=["H1", "H1"]),
        cell_metrics([1, 0], label_pred=[1, 0], subject=["1", "H1"]),
        unlabelled(3),
    ]
    for result in examples:
        none = {key for key, value in result.items() if value is None}
        none |= {f"subject.{key}" for key, value in result["subject"].items() if value is None}
        assert none == set(result["missing"])
        assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert len({frozenset(result) for result in examples}) == 1


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_the_threshold_is_strict(threshold):
    at = math.log(threshold / (1 - threshold))
    logit = [np.nextafter(at, -9), at, np.nextafter(at, 9)]
    assert metrics.decide(logit=logit, threshold=threshold).tolist() == [False, False, True]
    prob = [np.nextafter(threshold, 0), threshold, np.nextafter(threshold, 1)]
    assert metrics.decide(prob=prob, threshold=threshold).tolist() == [False, False, True]


@pytest.mark.parametrize("threshold", [0, 1, -0.1, float("nan")])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(LeukoclsError, match="threshold"):
        metrics.decide(prob=[0.5], threshold=threshold)


def test_probabilities_of_zero_and_one_are_clipped_only_for_logits():
    result = cell_metrics([0, 1, 1, 0], prob=[0.0, 1.0, 0.0, 1.0], subject=list("abcd"))
    assert result["brier"] == 0.5
    mean = {row["subject"]: row["mean_logit"] for row in result["subject"]["per_subject"]}
    assert mean["b"] == pytest.approx(math.log((1 - 1e-7) / 1e-7))
    assert mean["a"] == pytest.approx(-mean["b"])


def test_logit_and_prob_agree():
    label, logit = cells(5)
    subject = np.char.add(label.astype(str), np.char.add("s", (np.arange(300) % 7).astype(str)))
    by_logit = cell_metrics(label, logit=logit, subject=subject)
    by_prob = cell_metrics(label, prob=metrics.sigmoid(logit), subject=subject)
    for name in (*metrics.RATES, *metrics.GRADED):
        assert by_prob[name] == pytest.approx(by_logit[name], rel=1e-9), name
    assert by_prob["subject"]["auroc"] == by_logit["subject"]["auroc"]


def test_subjects_vote_and_a_tie_is_undecided_and_not_right():
    result = cell_metrics(
        [1, 1, 1, 1, 1, 0, 0, 0],
        logit=[2.0, 1.0, -1.0, 3.0, -4.0, -1.0, -2.0, 5.0],
        subject=["7", "7", "7", "8", "8", "H1", "H1", "H2"],
    )
    of_subjects = result["subject"]
    assert result["n_subjects"] == 4
    assert of_subjects["undecided"] == 1
    assert of_subjects["accuracy"] == 0.5
    assert of_subjects["per_subject"][0] == {
        "subject": "7",
        "label": 1,
        "n": 3,
        "correct": 2,
        "accuracy": 2 / 3,
        "mean_logit": pytest.approx(2 / 3),
    }
    # mean logits: 7 = ⅔, 8 = −½ against H1 = −1½, H2 = 5: two of four pairs are in order.
    assert of_subjects["auroc"] == 0.5


def test_subject_auroc_agrees_with_sklearn():
    label, logit = cells(8)
    subject = np.array([f"{'H' if y == 0 else ''}{i % 9}" for i, y in enumerate(label)])
    names = np.unique(subject)
    means = [logit[subject == name].mean() for name in names]
    expected = oracle.roc_auc_score([not name.startswith("H") for name in names], means)
    ours = cell_metrics(label, logit=logit, subject=subject)["subject"]
    assert ours["auroc"] == pytest.approx(expected, **EXACT)
    votes = [
        (2 * ((logit > 0) == label)[subject == name].sum() > (subject == name).sum())
        for name in names
    ]
    assert ours["accuracy"] == pytest.approx(np.mean(votes), **EXACT)


def test_a_subject_of_two_classes_votes_and_has_no_place_in_the_subject_auroc():
    label, logit = [1, 0, 0, 1, 1, 0, 0], [2.0, -1.0, 3.0, 1.0, 2.0, -2.0, -3.0]
    subject = ["both", "both", "both", "a", "a", "b", "b"]
    result = cell_metrics(label, logit=logit, subject=subject)
    alone = cell_metrics(label[3:], logit=logit[3:], subject=subject[3:])
    of_subjects = result["subject"]
    # Two of its three cells are called right.
    assert (result["n_subjects"], of_subjects["accuracy"]) == (3, 1.0)
    (both,) = (row for row in of_subjects["per_subject"] if row["subject"] == "both")
    assert (both["label"], both["n"], both["correct"]) == (None, 3, 2)
    assert of_subjects["auroc"] == alone["subject"]["auroc"] == 1.0
    assert set(result["notes"]) == {"subject.accuracy", "subject.undecided", "subject.auroc"}
    assert all("1 two-class" in note for note in result["notes"].values())
    assert alone["notes"] == {}
    only = cell_metrics([1, 0], logit=[1.0, 1.0], subject=["both", "both"])
    assert only["subject"]["auroc"] is None
    assert "subject.auroc" in only["missing"]


def test_a_partly_unknown_subject_makes_subject_metrics_undefined():
    result = cell_metrics([1, 0], logit=[1.0, -1.0], subject=["5", ""])
    assert result["n_subjects"] is None
    assert result["subject"]["accuracy"] is None
    assert "1 of 2" in result["missing"]["subject.accuracy"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"label": [], "logit": []},
        {"label": [0, 2], "logit": [0.0, 1.0]},
        {"label": [0, -1], "logit": [0.0, 1.0]},
        {"label": [0, 1], "logit": [0.0, math.nan]},
        {"label": [0, 1], "logit": [0.0, math.inf]},
        {"label": [0, 1], "prob": [0.0, 1.5]},
        {"label": [0, 1], "logit": [0.0]},
        {"label": [0, 1], "label_pred": [0, 3]},
        {"label": [0, 1], "logit": [0.0, 1.0], "subject": ["a"]},
    ],
)
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(LeukoclsError):
        cell_metrics(**arguments)


def test_negative_counts_are_a_programming_error():
    with pytest.raises(ValueError, match="negative"):
        metrics.rates(1, -1, 1, 1)
