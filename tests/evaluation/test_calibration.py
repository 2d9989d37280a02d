"""Platt's scaling, against scikit-learn, plain loops over persons, and known parameters."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import edit_record, record
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, recall_score

from leukocls import evaluate
from leukocls.artifacts import predictions
from leukocls.artifacts.predictions import sigmoid
from leukocls.artifacts.record import write_record
from leukocls.common.errors import LeukoclsError
from leukocls.evaluation.calibration import Calibration, of_run

WEIGHT = 0.4  # pos_weight of the made-up runs


def cells(split: str, persons: int, seed: int, weight: float = WEIGHT) -> pd.DataFrame:
    """Overconfident logits of persons of unequal size, shifted by the loss's weight of ALL."""
    rng = np.random.default_rng(seed)
    of_cell = np.repeat(np.arange(persons), rng.integers(3, 30, persons))
    label = of_cell % 2
    own = rng.normal(0, 0.6, persons)[of_cell]
    z = 2.5 * (label - 0.5) + own + rng.normal(0, 2, len(label)) + math.log(weight)
    names = [f"{split}{seed}-{k}" for k in of_cell]
    frame = pd.DataFrame({"epoch": 0, "split": split, "subject": names, "person": names})
    frame["cell"] = [f"{split}{seed}_{k}.bmp" for k in range(len(z))]
    frame["label"], frame["view_0"] = label, z.astype(np.float32)
    return frame.assign(logit=frame["view_0"], prob=sigmoid(frame["view_0"]))


def write_run(directory: Path, frame: pd.DataFrame, **changes: Any) -> Path:
    directory.mkdir(parents=True)
    predictions.write(directory / "predictions.parquet", frame)
    entries = {
        "id": directory.name,
        "status": "done",
        "identity": {"seed": 0, "split_scheme": "honest", "fold": None},
        "split_scheme": "honest",
        "selection": {"rule": "last", "set": "val", "epoch": 0},
        "threshold": 0.5,
        "pos_weight": WEIGHT,
        "marks": [],
        "predictions_sha256": predictions.digest(frame),
    }
    write_record(directory, entries | changes)
    return directory


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folds of one recipe, each with its own pos_weight, tested on the same prelim."""
    root = tmp_path_factory.mktemp("folds")
    prelim = cells("prelim", 9, 5)
    runs = []
    for fold, weight in enumerate((WEIGHT, 0.7)):
        frame = pd.concat([cells("val", 10, fold, weight), prelim])
        identity = {"seed": 0, "split_scheme": "honest", "fold": fold}
        run = write_run(root / f"fold{fold}", frame, identity=identity, pos_weight=weight)
        runs.append(run)
    return runs


@pytest.fixture
def js(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, dict[str, Any]]]:
    """The results of `evaluate --calibrate`, by run and split."""

    def call(*words: object) -> dict[str, dict[str, Any]]:
        assert evaluate.main([*map(str, words), "--calibrate", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        results = found if isinstance(found, list) else [found]
        return {f"{one['run']} {one['split']}": one for one in results}

    return call


def read(run: Path, split: str) -> pd.DataFrame:
    """Cells of a run, with the logit as it is without the loss's weight."""
    frame = pd.read_parquet(run / "predictions.parquet")
    own = frame[frame["split"] == split].sort_values("cell")
    return own.assign(z=own["logit"].astype(float) - math.log(record(run)["pos_weight"]))


def platt(frame: pd.DataFrame) -> LogisticRegression:
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000, solver="newton-cholesky")
    return model.fit(frame[["z"]].to_numpy(), frame["label"])


def held_out(frame: pd.DataFrame) -> np.ndarray:
    """Probabilities, each person's by the parameters of the others, in a loop."""
    p = np.empty(len(frame))
    for person in set(frame["person"]):
        own = (frame["person"] == person).to_numpy()
        p[own] = platt(frame[~own]).predict_proba(frame[own][["z"]].to_numpy())[:, 1]
    return p


def test_the_parameters_are_those_of_a_logistic_regression_on_what_chose_the_epoch(
    folds: list[Path], js: Callable[..., dict[str, dict[str, Any]]]
) -> None:
    found = js(folds[0])
    val, prelim = (found[f"fold0 {split}"]["calibration"] for split in ("val", "prelim"))
    cells_of_val = read(folds[0], "val")
    model = platt(cells_of_val)
    for one in (val, prelim):
        assert one["intercept"] == pytest.approx(model.intercept_[0], rel=1e-6)
        assert one["slope"] == pytest.approx(model.coef_[0, 0], rel=1e-6)
        assert one["log_pos_weight"] == pytest.approx(math.log(WEIGHT))
        assert (one["fitted_on"], one["cells"]) == ("val", len(cells_of_val))
        assert one["persons"] == {"ALL": 5, "HEM": 5}
    assert val["slope"] < 1  # they are overconfident


def test_a_person_is_calibrated_by_the_others_and_the_test_by_all(
    folds: list[Path], js: Callable[..., dict[str, dict[str, Any]]]
) -> None:
    found = js(folds[0])
    for split in ("val", "prelim"):
        own, stages = read(folds[0], split), found[f"fold0 {split}"]["calibration"]["stages"]
        model = platt(read(folds[0], "val"))
        after = (
            held_out(own) if split == "val" else model.predict_proba(own[["z"]].to_numpy())[:, 1]
        )
        by_stage = {"before": own["prob"], "without_pos_weight": sigmoid(own["z"]), "after": after}
        for name, p in by_stage.items():
            expected = brier_score_loss(own["label"], p)
            assert stages[name]["brier"]["value"] == pytest.approx(expected, rel=1e-6)
        again = platt(own.assign(z=np.log(after / (1 - after))))
        assert stages["after"]["slope"]["value"] == pytest.approx(again.coef_[0, 0], rel=1e-5)
        # Shifting by the weight changes the intercept by as much, and the slope not at all.
        before, shifted = stages["before"], stages["without_pos_weight"]
        change = shifted["intercept"]["value"] - before["intercept"]["value"]
        assert change == pytest.approx(math.log(WEIGHT))
        assert shifted["slope"]["value"] == pytest.approx(before["slope"]["value"])
        plain = found[f"fold0 {split}"]
        for name in ("intercept", "slope"):
            assert before[name]["value"] == pytest.approx(plain[f"calibration_{name}"])
        assert before["ece"]["value"] == pytest.approx(plain["ece"])


def test_intervals_are_those_of_deleted_persons(
    folds: list[Path], js: Callable[..., dict[str, dict[str, Any]]]
) -> None:
    own = read(folds[0], "prelim")
    found = js(folds[0], "--split", "prelim")["fold0 prelim"]["calibration"]["stages"]
    before = found["without_pos_weight"]
    oracles = {
        "slope": lambda f: platt(f).coef_[0, 0],
        "brier": lambda f: brier_score_loss(f["label"], sigmoid(f["z"])),
    }
    for name, oracle in oracles.items():
        variance = 0.0
        for label in (0, 1):
            persons = own["person"][own["label"] == label].unique()
            without = np.array([oracle(own[own["person"] != person]) for person in persons])
            variance += (len(persons) - 1) ** 2 / len(persons) * without.var(ddof=1)
        half = stats.t.ppf(0.975, before[name]["df"]) * math.sqrt(variance)
        assert before[name]["high"] - before[name]["value"] == pytest.approx(half, rel=1e-4)
        assert before[name]["value"] - before[name]["low"] == pytest.approx(half, rel=1e-4)
        assert 1 < before[name]["df"] <= 9


def test_the_threshold_reaches_the_sensitivity_and_each_person_has_that_of_the_others(
    folds: list[Path], js: Callable[..., dict[str, dict[str, Any]]]
) -> None:
    val, prelim = read(folds[0], "val"), read(folds[0], "prelim")
    found = js(folds[0], "--sensitivity", ".9")
    one = found["fold0 val"]["calibration"]
    at, slope, intercept = one["threshold"], one["slope"], one["intercept"]
    p = sigmoid(intercept + slope * val["z"])
    share = (p > at["probability"])[val["label"] == 1].mean()
    assert 0.9 <= share < 0.9 + 1 / (val["label"] == 1).sum()
    called = np.zeros(len(val), bool)
    for person in set(val["person"]):
        own = (val["person"] == person).to_numpy()
        others = np.sort(val["z"][~own & (val["label"] == 1)])[::-1]
        lowest = others[math.ceil(0.9 * len(others)) - 1]
        called[own] = val["z"][own] >= lowest
    assert at["sensitivity"]["value"] == pytest.approx(recall_score(val["label"], called), abs=0.02)
    there = found["fold0 prelim"]["calibration"]["threshold"]
    assert there["probability"] == at["probability"]
    on_test = sigmoid(intercept + slope * prelim["z"]) > at["probability"]
    for name, positive in (("sensitivity", 1), ("specificity", 0)):
        expected = recall_score(prelim["label"], on_test, pos_label=positive)
        assert there[name]["value"] == pytest.approx(expected)
        assert there[name]["low"] < expected < there[name]["high"]


def test_the_labels_of_the_test_move_nothing(
    tmp_path: Path, js: Callable[..., dict[str, dict[str, Any]]]
) -> None:
    val, prelim = cells("val", 10, 0), cells("prelim", 9, 5)
    other = prelim.assign(label=np.random.default_rng(0).permutation(prelim["label"]))
    runs = [
        write_run(tmp_path / name, pd.concat([val, test]))
        for name, test in (("a", prelim), ("b", other))
    ]
    a, b = (js(run, "--sensitivity", ".95") for run in runs)
    assert a["a prelim"]["calibration"]["stages"] != b["b prelim"]["calibration"]["stages"]
    for name in ("intercept", "slope", "log_pos_weight", "fitted_on", "cells", "persons"):
        assert a["a prelim"]["calibration"][name] == b["b prelim"]["calibration"][name]
    first, second = (
        found[key]["calibration"]["threshold"]["probability"]
        for found, key in ((a, "a prelim"), (b, "b prelim"))
    )
    assert first == second


def test_folds_of_one_recipe_share_the_calibration_of_all_held_out_cells(
    folds: list[Path], js: Callable[..., dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    found = js(*folds)
    whole = pd.concat([read(run, "val") for run in folds])
    model, after = platt(whole), held_out(whole)
    for key, one in found.items():
        known = one["calibration"]
        assert known["intercept"] == pytest.approx(model.intercept_[0], rel=1e-6), key
        assert known["slope"] == pytest.approx(model.coef_[0, 0], rel=1e-6)
        assert (known["cells"], known["folds"]) == (len(whole), 2)
        assert one["heading"] == ("test" if key.endswith("prelim") else "selection")
    first = read(folds[0], "val")
    expected = brier_score_loss(first["label"], after[: len(first)])
    brier = found["fold0 val"]["calibration"]["stages"]["after"]["brier"]["value"]
    assert brier == pytest.approx(expected, rel=1e-6)
    # Only the test is shown, by the same parameters.
    for one in js(*folds, "--split", "prelim").values():
        assert one["calibration"] == found[f"{one['run']} prelim"]["calibration"]
    # Another seed is another recipe.
    identity = {"seed": 1, "split_scheme": "honest", "fold": 1}
    frame = pd.read_parquet(folds[1] / "predictions.parquet")
    seed = write_run(tmp_path / "seed1", frame, identity=identity)
    assert js(folds[0], seed)["fold0 val"]["calibration"]["folds"] == 1


def test_pooled_folds_and_ensembles_are_calibrated_as_one(
    tmp_path: Path, js: Callable[..., dict[str, dict[str, Any]]]
) -> None:
    pooled, seeds = [], []
    for number, weight in enumerate((WEIGHT, 0.7)):
        identity = {"seed": 0, "split_scheme": "subject", "folds": 2, "fold": number}
        frame, known = cells("val", 10, number, weight), {"pos_weight": weight, "inputs": {}}
        fold = write_run(tmp_path / f"f{number}", frame, identity=identity, **known)
        pooled.append(fold)
        # Two seeds on the same cells.
        held = cells("val", 10, 0, weight)
        noise = np.random.default_rng(number).normal(0, 1, len(held))
        logit = (held["logit"] + noise).astype(np.float32)
        held = held.assign(view_0=logit, logit=logit, prob=sigmoid(logit))
        seeds.append(write_run(tmp_path / f"s{number}", held, identity={"seed": number}, **known))
    (of_pool,) = js("--pool", *pooled).values()
    (of_both,) = js("--ensemble", "mean-logit", *seeds).values()
    whole = pd.concat([read(run, "val") for run in pooled])
    first, second = (read(run, "val") for run in seeds)
    both = first.assign(z=(first["z"] + second["z"]) / 2)
    for result, table in ((of_pool, whole), (of_both, both)):
        found, model = result["calibration"], platt(table)
        assert found["slope"] == pytest.approx(model.coef_[0, 0], rel=1e-5)
        assert found["intercept"] == pytest.approx(model.intercept_[0], rel=1e-5)
        brier = brier_score_loss(table["label"], held_out(table))
        assert found["stages"]["after"]["brier"]["value"] == pytest.approx(brier, rel=1e-5)
    assert of_pool["calibration"]["folds"] == 2


def test_known_parameters_are_found_whatever_the_weight_of_the_loss() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(0, 2, 40_000)
    label = (rng.random(len(z)) < sigmoid(0.7 + 0.6 * z)).astype(int)
    frame = pd.DataFrame({"cell": np.arange(len(z)).astype(str), "subject": "", "label": label})
    found = {}
    for weight in (1.0, 0.2):
        shifted = z + math.log(weight)
        table = frame.assign(log_pos_weight=math.log(weight))
        found[weight] = Calibration.of(table, shifted, "val").record
        assert found[weight]["intercept"] == pytest.approx(0.7, abs=0.05)
        assert found[weight]["slope"] == pytest.approx(0.6, abs=0.03)
    assert found[1.0]["intercept"] == pytest.approx(found[0.2]["intercept"], rel=1e-9)


def test_it_helps_on_other_persons() -> None:
    """Probabilities of new persons have a better Brier score than before, on average."""
    gain = []
    for seed in range(20):
        chosen, new = cells("val", 20, seed), cells("test", 20, 100 + seed)
        one = of_run(chosen, "val", WEIGHT)
        z = new["logit"] - math.log(WEIGHT)
        after = sigmoid(one["intercept"] + one["slope"] * z)
        before = brier_score_loss(new["label"], new["prob"])
        gain.append(before - brier_score_loss(new["label"], after))
    assert np.mean(gain) > 2 * np.std(gain) / math.sqrt(len(gain)) > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"logit": "separated"}, "separate the classes"),
        ({"logit": "reversed"}, "wrong more often than right"),
        ({"label": 1}, "both classes"),
        ({"logit": 0.5}, "equal"),
        ({"label": -1}, "no labels"),
    ],
)
def test_without_a_calibration_there_is_a_reason(changes: dict[str, Any], said: str) -> None:
    frame = cells("val", 10, 0)
    sign = {"separated": 2 * frame["label"] - 1.0, "reversed": -frame["logit"]}
    frame = frame.assign(**{k: sign.get(v, v) for k, v in changes.items()})
    one = of_run(frame, "val", 1.0)
    assert (one["intercept"], one["slope"]) == (None, None)
    assert said in one["reason"]


def test_what_has_no_set_to_fit_on(
    folds: list[Path], tmp_path: Path, js: Callable[..., dict[str, dict[str, Any]]]
) -> None:
    assert of_run(cells("train", 10, 0), "train", 1.0)["slope"] is None
    frame = cells("prelim", 9, 5)
    path = tmp_path / "p.csv"
    frame[["cell", "subject", "label", "prob"]].to_csv(path, index=False)
    (found,) = js(path).values()
    assert found["calibration"]["stages"] is None
    assert found["calibration"]["reason"]
    # One of two HEM persons: without the other one a class is missing.
    few = cells("val", 4, 0)
    few = few[few["person"] != "val0-0"]
    run = write_run(tmp_path / "few", pd.concat([few, frame]))
    found = js(run)
    assert "without person val0-2" in found["few val"]["calibration"]["reason"]
    assert found["few prelim"]["calibration"]["stages"]
    with pytest.raises(SystemExit):
        evaluate.main([str(run), "--sensitivity", ".9"])
    both = pd.concat([cells("val", 10, 0), cells("val", 10, 0).assign(epoch=1)])
    selection = {"rule": "last", "set": "val", "epoch": 1}
    two = write_run(tmp_path / "two", both, selection=selection)
    with pytest.raises(LeukoclsError, match="one epoch"):
        evaluate.main([str(two), "--epoch", "all", "--calibrate"])


def test_a_scored_checkpoint_has_the_calibration_of_its_training(
    tmp_path: Path, js: Callable[..., dict[str, dict[str, Any]]]
) -> None:
    frame = cells("prelim", 9, 5)
    stored = of_run(cells("val", 10, 0), "val", WEIGHT)
    scored = {"score": "prelim", "seed": 0}
    run = write_run(tmp_path / "scored", frame, identity=scored, calibration=stored)
    one = js(run, "--sensitivity", ".9")["scored prelim"]["calibration"]
    p = sigmoid(stored["intercept"] + stored["slope"] * read(run, "prelim")["z"])
    brier = brier_score_loss(frame.sort_values("cell")["label"], p)
    assert one["stages"]["after"]["brier"]["value"] == pytest.approx(brier)
    assert (one["threshold"]["probability"], one["cells"]) == (None, stored["cells"])
    # It is not for other views, nor for cells that chose the epoch.
    assert js(run, "--views", "0")["scored prelim"]["calibration"]["stages"] is None
    for changes in ({"selection": {"rule": "last", "set": "prelim", "epoch": 0}},
                    {"calibration": None}):  # fmt: skip
        before = record(run)
        edit_record(run, **changes)
        assert js(run)["scored prelim"]["calibration"]["stages"] is None
        edit_record(run, **before)


def test_the_text_has_the_numbers(folds: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(folds[0]), "--calibrate", "--sensitivity", ".9", "--split", "prelim"]
    assert evaluate.main([*words, "--json"]) == 0
    known = json.loads(capsys.readouterr().out)["calibration"]
    assert evaluate.main(words) == 0
    shown = capsys.readouterr().out
    for stage in known["stages"].values():
        for one in stage.values():
            assert f"{one['value']:.4f} ({one['low']:.4f} to {one['high']:.4f})" in shown
    assert f"{known['slope']:+.4f}" in shown
    assert f"{known['threshold']['probability']:.4f}" in shown


def test_a_finished_run_stores_it(trained: Path) -> None:
    said = record(trained)
    frame = pd.read_parquet(trained / "predictions.parquet")
    chosen = frame[frame["epoch"] == said["selection"]["epoch"]]
    expected = of_run(chosen, said["selection"]["set"], said["pos_weight"])
    assert said["calibration"] == expected
    assert said["calibration"]["fitted_on"] == "prelim"
