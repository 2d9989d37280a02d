"""Intervals over persons, against deletion one by one, simulation and closed forms."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

from leukocls.evaluation.intervals import Interval, Plan, jackknife, paired_difference, power
from leukocls.evaluation.person_counts import METRICS, Persons, degrees_of_freedom, icc

ORACLES = {
    "weighted_f1": lambda y, z: f1_score(y, z > 0, average="weighted"),
    "accuracy": lambda y, z: accuracy_score(y, z > 0),
    "sensitivity": lambda y, z: recall_score(y, z > 0),
    "specificity": lambda y, z: recall_score(y, z > 0, pos_label=0),
    "auroc": roc_auc_score,
}


def cells(seed: int = 0, all_persons: int = 7, hem_persons: int = 5) -> pd.DataFrame:
    """Cells of persons of unequal size, whose logits share what is theirs; many logits are tied."""
    rng = np.random.default_rng(seed)
    label = np.repeat([1, 0], [all_persons, hem_persons])
    person = np.repeat(np.arange(len(label)), rng.integers(2, 60, len(label)))
    own = rng.normal(0, 0.7, len(label))
    z = 2 * label[person] - 0.8 + own[person] + rng.normal(0, 1, len(person))
    names = np.array([f"p{p}" for p in person])
    frame = pd.DataFrame({"label": label[person], "logit": z.round(1), "person": names})
    return frame.sample(frac=1, random_state=seed, ignore_index=True)


def persons(frame: pd.DataFrame) -> Persons:
    return Persons.of(frame["label"], frame["logit"] > 0, frame["person"], frame["logit"])


def deleted(frame: pd.DataFrame, metric: str, label: int) -> np.ndarray:
    """The metric without each person of one class, by scikit-learn."""
    own = frame["person"][frame["label"] == label].unique()
    kept = (frame[frame["person"] != person] for person in own)
    return np.array([ORACLES[metric](one["label"], one["logit"]) for one in kept])


def test_metrics_without_a_person_are_those_of_the_other_cells() -> None:
    frame = cells()
    for metric in METRICS:
        value, without = persons(frame).metric(metric)
        assert value == pytest.approx(ORACLES[metric](frame["label"], frame["logit"]), abs=1e-12)
        for person, found in zip(np.unique(frame["person"]), without, strict=True):
            kept = frame[frame["person"] != person]
            assert found == pytest.approx(ORACLES[metric](kept["label"], kept["logit"]), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_variance_is_that_of_deleted_persons_within_each_class(metric: str) -> None:
    frame, classes = cells(1), {"sensitivity": [1], "specificity": [0]}.get(metric, [1, 0])
    found = jackknife([persons(frame)], metric)
    variance = 0.0
    for label in classes:
        own = np.log((p := deleted(frame, metric, label)) / (1 - p))
        variance += (len(own) - 1) ** 2 / len(own) * own.var(ddof=1)
    low, high = (math.log(p / (1 - p)) for p in (found.low, found.high))
    half = stats.t.ppf(0.975, found.df) * math.sqrt(variance)
    assert (high - low) / 2 == pytest.approx(half, rel=1e-9)
    value = ORACLES[metric](frame["label"], frame["logit"])
    assert found.value == pytest.approx(value)
    assert (high + low) / 2 == pytest.approx(math.log(value / (1 - value)))


def test_difference_is_on_the_metrics_own_scale_and_of_the_same_cells() -> None:
    frame = cells(2)
    other = frame.assign(logit=frame["logit"] + np.where(frame["label"] == 1, 0.4, -0.1))
    found = paired_difference([persons(frame)], [persons(other)], "auroc")
    variance = 0.0
    for label in (1, 0):
        own = deleted(other, "auroc", label) - deleted(frame, "auroc", label)
        variance += (len(own) - 1) ** 2 / len(own) * own.var(ddof=1)
    half = stats.t.ppf(0.975, found.df) * math.sqrt(variance)
    assert found.high - found.value == pytest.approx(half)
    assert found.value - found.low == pytest.approx(half)
    assert found.value > 0
    back = paired_difference([persons(other)], [persons(frame)], "auroc")
    assert (back.value, back.low) == pytest.approx((-found.value, -found.high))


def test_nothing_differs_from_itself() -> None:
    frame = cells(3)
    same = paired_difference([persons(frame)], [persons(frame)], "weighted_f1")
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert math.isnan(same.df)


@pytest.mark.parametrize("number", [2, 5, 28])
@pytest.mark.parametrize("rho", [0, 0.1, 0.9])
def test_equal_persons_have_one_degree_of_freedom_less(number: int, rho: float) -> None:
    assert degrees_of_freedom(np.full(number, 17), rho) == pytest.approx(number - 1)


def test_degrees_of_freedom_match_the_variance_simulated() -> None:
    """Twice the squared mean over the variance of the estimator, from Gaussian sums by person."""
    sizes, rho = np.array([262, 240, 120, 60, 30, 20, 10, 5]), 0.1
    rng = np.random.default_rng(0)
    sums = rng.normal(0, np.sqrt(sizes * (1 + (sizes - 1) * rho)), (200_000, len(sizes)))
    h = sizes / sizes.sum()
    estimate = ((sums - h * sums.sum(1, keepdims=True)) ** 2 / (1 - h)).sum(1)
    simulated = 2 * estimate.mean() ** 2 / estimate.var()
    found = degrees_of_freedom(sizes, rho)
    assert found == pytest.approx(simulated, rel=0.02)
    assert found < 4  # of eight persons


def test_icc_of_equal_persons_is_the_textbook_one() -> None:
    """For equal sizes n: (F − 1) / (F + n − 1), F by scipy's one-way ANOVA."""
    rng = np.random.default_rng(0)
    groups = rng.normal(0, 1, (6, 9)) + rng.normal(0, 0.8, (6, 1))
    f = stats.f_oneway(*groups).statistic
    found = icc(np.full(6, 9), groups.sum(1), (groups**2).sum(1))
    assert found == pytest.approx((f - 1) / (f + 9 - 1))
    alike = np.tile(groups[0], (6, 1))
    assert icc(np.full(6, 9), alike.sum(1), (alike**2).sum(1)) == 0
    assert icc([3, 3], [3, 0], [3, 0]) == 0.9  # no variance within
    assert icc([1, 1, 1], [1, 0, 1], [1, 0, 1]) == 0  # nobody has two cells


def test_a_class_of_one_person_has_no_interval() -> None:
    frame = cells(4, hem_persons=1)
    found = {metric: jackknife([persons(frame)], metric) for metric in METRICS}
    assert all(math.isnan(found[metric].low) for metric in ("specificity", "weighted_f1", "auroc"))
    assert found["sensitivity"].low < found["sensitivity"].value < found["sensitivity"].high


def test_hard_labels_have_no_auroc_and_the_rest() -> None:
    frame = cells(5)
    hard = Persons.of(frame["label"], frame["logit"] > 0, frame["person"])
    assert math.isnan(jackknife([hard], "auroc").value)
    for metric in set(METRICS) - {"auroc"}:
        assert jackknife([hard], metric) == jackknife([persons(frame)], metric)


def seeds(rng: np.random.Generator, frame: pd.DataFrame, number: int) -> list[Persons]:
    """Runs whose seed moves all cells, each person and each cell."""
    runs, person = [], frame["person"].astype("category").cat.codes.to_numpy()
    for _ in range(number):
        own = rng.normal(0, 0.3) + rng.normal(0, 0.4, person.max() + 1)[person]
        z = frame["logit"] + own + rng.normal(0, 0.5, len(frame))
        runs.append(Persons.of(frame["label"], z > 0, frame["person"], z))
    return runs


def test_several_seeds_are_the_mean_of_their_counts() -> None:
    """For a proportion this is the mean over seeds, and equal runs give the interval of one."""
    frame = cells(6)
    runs = seeds(np.random.default_rng(0), frame, 4)
    for metric in ("sensitivity", "accuracy", "auroc"):
        found = jackknife(runs, metric).value
        assert found == pytest.approx(np.mean([run.metric(metric)[0] for run in runs]))
    one = persons(frame)
    for metric in METRICS:
        again, alone = jackknife([one] * 5, metric), jackknife([one], metric)
        assert (again.low, again.df) == pytest.approx((alone.low, alone.df))


def test_the_variance_over_persons_and_seeds_is_that_of_the_mean() -> None:
    """Simulated anew each time: persons, seeds, and what a seed does to a person.

    Without the seeds' part the variance is too small; with all of it, it counts some twice.
    """
    rng, found, only_persons = np.random.default_rng(7), [], []
    label = np.repeat([1, 0], 15)
    person = np.repeat(np.arange(30), 40)
    y = label[person]
    values = []
    for _ in range(400):
        own = rng.normal(0, 0.3, 30)[person]
        runs = []
        for _ in range(3):
            moved = rng.normal(0, 0.15) * (2 * y - 1) + rng.normal(0, 0.4, 30)[person]
            z = (2 * y - 1) + own + moved + rng.normal(size=len(y))
            runs.append(Persons.of(y, z > 0, person))
        values.append(Persons.mean(runs).metric("accuracy")[0])
        found.append(paired_difference([perfect(y, person)], runs, "accuracy").se ** 2)
        mean = Persons.mean(runs)
        only_persons.append(paired_difference([perfect(y, person)], [mean], "accuracy").se ** 2)
    truth = np.var(values, ddof=1)
    assert np.mean(found) == pytest.approx(truth, rel=0.2)
    assert np.mean(only_persons) < 0.8 * truth


def perfect(label: np.ndarray, person: np.ndarray) -> Persons:
    return Persons.of(label, label == 1, person)


def test_shared_runs_are_paired_by_seed() -> None:
    """The effect of a seed on both arms cancels if they share runs, and only then."""
    frame = cells(8, 12, 12)
    runs = seeds(np.random.default_rng(1), frame, 6)
    flat = [Persons.of(frame["label"], right_of(run, frame), frame["person"]) for run in runs]
    assert paired_difference(runs, flat, "accuracy", shared=True).se == 0
    alone = paired_difference(runs, flat, "accuracy")
    spread = np.var([run.metric("accuracy")[0] for run in runs], ddof=1)
    assert 0 < alone.se**2 <= 2 * spread / len(runs)


def right_of(run: Persons, frame: pd.DataFrame) -> np.ndarray:
    """The calls of a run, from what it gets right."""
    return np.where(run.right == 1, frame["label"], 1 - frame["label"]) == 1


def test_power_is_that_of_students_t() -> None:
    """Against simulation: a normal difference over an independent chi-square."""
    frame = cells(9)
    worse = frame.assign(logit=frame["logit"] - 0.3 * frame["label"])
    found = paired_difference([persons(frame)], [persons(worse)], "auroc")
    rng, shift = np.random.default_rng(0), 2.5 * found.se
    t = (shift / found.se + rng.normal(size=200_000)) / np.sqrt(
        rng.chisquare(found.df, 200_000) / found.df
    )
    simulated = (np.abs(t) > stats.t.ppf(0.975, found.df)).mean()
    assert power(found, shift) == pytest.approx(simulated, abs=0.005)
    assert power(found, 0) == pytest.approx(0.05)
    assert power(found, 40 * found.se) == pytest.approx(1)
    same = paired_difference([persons(frame)], [persons(frame)], "auroc")
    assert power(same, 0.01) is None


def delong(label: np.ndarray, z: np.ndarray) -> tuple[float, float]:
    """DeLong's 95 % interval of AUROC, which takes cells as independent."""
    above, below = z[label == 1], z[label == 0]
    of_all = np.searchsorted(np.sort(below), above) / len(below)
    of_hem = 1 - np.searchsorted(np.sort(above), below) / len(above)
    half = 1.96 * math.sqrt(of_all.var(ddof=1) / len(above) + of_hem.var(ddof=1) / len(below))
    return float(of_all.mean() - half), float(of_all.mean() + half)


def test_it_covers_the_truth_where_cells_as_independent_do_not() -> None:
    """A quick look: 95 % intervals of AUROC of as many persons as prelim has."""
    rng, covered, narrow, trials = np.random.default_rng(5), 0, 0, 100
    label = np.repeat([1, 0], [13, 15])
    truth = float(stats.norm.cdf(1.6 / math.sqrt(2 * (1 + 0.45**2))))
    for _ in range(trials):
        person = np.repeat(np.arange(28), rng.integers(5, 120, 28))
        z = 1.6 * label[person] + rng.normal(0, 0.45, 28)[person] + rng.normal(size=len(person))
        found = jackknife([Persons.of(label[person], z > 0, person, z)], "auroc")
        covered += found.low <= truth <= found.high
        low, high = delong(label[person], z)
        narrow += low <= truth <= high
    assert covered >= 0.9 * trials
    assert narrow <= 0.7 * trials


@pytest.mark.parametrize("metric", ["weighted_f1", "sensitivity", "auroc"])
def test_a_plan_of_the_present_size_is_the_present_interval(metric: str) -> None:
    frame = cells(10)
    runs = seeds(np.random.default_rng(2), frame, 4)
    other = seeds(np.random.default_rng(3), frame, 4)
    same = Plan(persons=12, seeds=4)
    now, planned = jackknife(runs, metric), jackknife(runs, metric, plan=same)
    assert (planned.se, planned.df) == pytest.approx((now.se, now.df))
    now = paired_difference(runs, other, metric)
    planned = paired_difference(runs, other, metric, plan=same)
    assert planned.half_width == pytest.approx(now.half_width)
    more = paired_difference(runs, other, metric, plan=Plan(persons=48, seeds=40))
    assert now.half_width > 1.2 * more.half_width


def test_a_plan_for_more_seeds_needs_two_runs() -> None:
    runs = [persons(cells(11))]
    assert jackknife(runs, "accuracy", plan=Plan(24, 3)).half_width is None
    alone = jackknife(runs, "accuracy", plan=Plan(12, 1))
    assert alone.half_width == pytest.approx(jackknife(runs, "accuracy").half_width)


def test_what_was_planned_is_what_comes() -> None:
    """From 20 persons and 3 seeds: the standard error of 60 persons and 12 seeds, simulated."""
    expected = np.mean(
        [one.se for one in simulated(10, 3, trials=40, plan=Plan(persons=60, seeds=12))]
    )
    came = np.mean([one.se for one in simulated(30, 12, trials=40)])
    now = np.mean([one.se for one in simulated(10, 3, trials=40)])
    assert expected == pytest.approx(came, rel=0.1)
    assert expected < 0.7 * now


def simulated(of_class: int, runs: int, trials: int, plan: Plan | None = None) -> list[Interval]:
    """Intervals of accuracy against a perfect classifier's, with new persons and seeds each time.

    Most of what varies between runs is what a seed does to each person.
    """
    rng, found = np.random.default_rng(12), []
    label = np.repeat([1, 0], of_class)
    person = np.repeat(np.arange(len(label)), 30)
    y = label[person]
    for _ in range(trials):
        own, several = rng.normal(0, 0.3, len(label))[person], []
        for _ in range(runs):
            moved = rng.normal(0, 0.1) * (2 * y - 1) + rng.normal(0, 0.6, len(label))[person]
            z = (2 * y - 1) + own + moved + rng.normal(size=len(y))
            several.append(Persons.of(y, z > 0, person))
        truth = [perfect(y, person)] * runs
        found.append(paired_difference(truth, several, "accuracy", plan=plan))
    return found


def test_the_seeds_share_of_the_variance_is_that_of_a_loop() -> None:
    """The variance between runs, without the interaction of seeds and persons, over all of it."""
    frame, number = cells(3), 5
    runs = seeds(np.random.default_rng(4), frame, number)
    logits = []
    for run in runs:
        value, without = run.metric("sensitivity")
        own = without[run.mostly_all]
        logits.append([math.log(p / (1 - p)) for p in (value, *own)])
    values = [row[0] for row in logits]
    moved = np.array([[one - np.mean(row[1:]) for one in row[1:]] for row in logits])
    persons = moved.shape[1]
    alone = sum(
        (moved[r, k] - np.mean([moved[s, k] for s in range(number)])) ** 2
        for r in range(number)
        for k in range(persons)
    )
    alone *= (persons - 1) / persons / (number - 1)
    common = max(0.0, np.var(values, ddof=1) - alone)
    found = jackknife(runs, "sensitivity")
    assert 0 < found.by_seeds < 1
    assert found.by_seeds == pytest.approx(common / number / found.se**2)
    assert jackknife(runs[:1], "sensitivity").by_seeds is None
