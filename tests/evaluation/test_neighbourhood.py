"""Neighbourhood correction, against a plain loop over cells, and what it must not see."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import record
from sklearn.metrics import roc_auc_score

from leukocls import baseline, evaluate
from leukocls.artifacts import predictions
from leukocls.artifacts.predictions import sigmoid
from leukocls.artifacts.record import write_record
from leukocls.common.errors import LeukoclsError

N = 40


def frame_of(split: str) -> pd.DataFrame:
    rng = np.random.default_rng(len(split))
    label = np.arange(N) % 2
    z = (1.0 * (label - 0.5) + rng.normal(0, 1.5, N)).astype(np.float32)
    names = [f"{split}{k % 8}" for k in range(N)]
    frame = pd.DataFrame({"epoch": 0, "split": split, "subject": names, "person": names})
    frame["cell"], frame["label"] = [f"{split}_{k}.bmp" for k in range(N)], label
    return frame.assign(view_0=z, logit=z, prob=sigmoid(z))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that chose its epoch on val and is tested on prelim."""
    directory = tmp_path_factory.mktemp("run")
    frame = pd.concat([frame_of("val"), frame_of("prelim")])
    predictions.write(directory / "predictions.parquet", frame)
    entries = {
        "id": "r",
        "status": "done",
        "identity": {"seed": 0},
        "selection": {"rule": "last", "set": "val", "epoch": 0},
        "threshold": 0.5,
        "marks": ["SYNTHETIC"],
        "predictions_sha256": predictions.digest(frame),
    }
    write_record(directory, entries)
    return directory


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features that tell the classes apart, in another order than the predictions', of one more."""
    rng = np.random.default_rng(3)
    frame = pd.concat([frame_of("val"), frame_of("prelim"), frame_of("other")])
    table = pd.DataFrame({"cell": frame["cell"]})
    table["a"] = 100 + 40 * frame["label"] + rng.normal(0, 10, len(table))
    table["b"], table["same"] = rng.normal(0, 0.01, len(table)), 7
    path = tmp_path_factory.mktemp("features") / "features.parquet"
    table.sample(frac=1, random_state=0).to_parquet(path, index=False)
    return path


def scored(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, dict[str, Any]]:
    assert evaluate.main([*map(str, words), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return {one["split"]: one for one in (found if isinstance(found, list) else [found])}


def averaged(table: pd.DataFrame, cells: pd.DataFrame, neighbours: int) -> list[float]:
    """The correction in a loop over cells."""
    x = table.set_index("cell").loc[cells["cell"], ["a", "b"]].to_numpy()
    x = (x - x.mean(0)) / x.std(0)
    x = x / np.sqrt((x**2).sum(1, keepdims=True))
    p, found = cells["prob"].to_numpy(), []
    for k in range(len(x)):
        likeness = [float(x[k] @ x[other]) if other != k else 2.0 for other in range(len(x))]
        nearest = sorted(range(len(x)), key=lambda other: -likeness[other])[:neighbours]
        weights = [1.0 if other == k else max(likeness[other], 0) for other in nearest]
        found.append(float(np.average(p[nearest], weights=weights)))
    return found


@pytest.mark.parametrize("neighbours", [2, 9, N])
def test_each_probability_is_the_weighted_mean_of_the_nearest_cells(
    neighbours: int, run: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (run, "--neighbourhood", features, "--neighbours", neighbours)
    before, after = scored(capsys, run), scored(capsys, *words)
    for split, heading in (("val", "selection"), ("prelim", "test")):
        cells, result = frame_of(split), after[split]
        p = averaged(pd.read_parquet(features), cells, neighbours)
        assert result["brier"] == pytest.approx(np.mean((p - cells["label"]) ** 2))
        assert result["auroc"] == pytest.approx(roc_auc_score(cells["label"], p))
        assert (result["heading"], result["marks"]) == (heading, ["SYNTHETIC", "TRANSDUCTIVE"])
        assert before[split]["marks"] == ["SYNTHETIC"]
        known = result["neighbourhood"]
        assert (known["neighbours"], known["columns"]) == (neighbours, 3)
        if neighbours == 9:  # features that know the class
            assert result["auroc"] > before[split]["auroc"] + 0.1
    assert evaluate.main([*map(str, words)]) == 0
    shown = capsys.readouterr().out
    assert "*** SYNTHETIC TRANSDUCTIVE ***" in shown
    assert f"neighbourhood of {neighbours} by features.parquet" in shown


def test_no_label_is_used(
    run: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cells without labels have the same corrected probabilities, seen in their submission."""
    cells = frame_of("prelim").assign(cell=[f"{k + 1}.bmp" for k in range(N)])
    table = pd.read_parquet(features)
    table = table[table["cell"].isin(frame_of("prelim")["cell"])]
    names = dict(zip(frame_of("prelim")["cell"], cells["cell"], strict=True))
    table.assign(cell=table["cell"].map(names)).to_csv(tmp_path / "f.csv", index=False)
    written = []
    for name, columns in (("a", ["cell", "prob", "label"]), ("b", ["cell", "prob"])):
        cells[columns].to_csv(tmp_path / f"{name}.csv", index=False)
        words = [str(tmp_path / f"{name}.csv"), "--neighbourhood", str(tmp_path / "f.csv")]
        out = tmp_path / f"{name}.zip"
        assert evaluate.main([*words, "--neighbours", "9", "--submission", str(out)]) == 0
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_folds_are_corrected_before_they_are_pooled(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of another fold has trained on the cell: it must not vote on it."""
    runs, expected = [], []
    for fold in range(2):
        cells = frame_of(("val", "prelim")[fold]).assign(split="val")
        directory = tmp_path / f"fold{fold}"
        directory.mkdir()
        predictions.write(directory / "predictions.parquet", cells)
        identity = {"split_scheme": "subject", "fold": fold, "folds": 2, "seed": 0}
        entries = {
            "id": f"r{fold}",
            "status": "done",
            "identity": identity,
            "inputs": {},
            "selection": {"rule": "last", "set": "val", "epoch": 0},
            "threshold": 0.5,
            "marks": [],
            "predictions_sha256": predictions.digest(cells),
        }
        write_record(directory, entries)
        runs.append(directory)
        p = np.array(averaged(pd.read_parquet(features), cells, 5))
        expected += list((p - cells["label"]) ** 2)
    words = ("--pool", *runs, "--neighbourhood", features, "--neighbours", 5)
    (result,) = scored(capsys, *words).values()
    assert result["brier"] == pytest.approx(np.mean(expected))
    assert (result["heading"], result["marks"]) == ("out-of-fold", ["TRANSDUCTIVE"])


def test_tables_that_cannot_be_features(run: Path, features: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(features)
    for changed, said in (
        (table.drop(columns="cell"), "needs a column cell"),
        (table.assign(label=1), "label is no feature"),
        (table.assign(Person="x"), "person is no feature"),
        (table.assign(a="many"), "no finite number"),
        (table.assign(a=np.nan), "no finite number"),
        (pd.concat([table, table[:1]]), "named twice"),
        (table[table["cell"] != "val_3.bmp"], r"val_3\.bmp"),
    ):
        path = tmp_path / "f.csv"
        changed.to_csv(path, index=False)
        with pytest.raises(LeukoclsError, match=said) as caught:
            evaluate.main([str(run), "--neighbourhood", str(path)])
        assert str(path) in str(caught.value)
    for number in ("1", str(N + 1)):
        with pytest.raises(LeukoclsError, match="--neighbours"):
            evaluate.main([str(run), "--neighbourhood", str(features), "--neighbours", number])


def test_a_baseline_writes_the_features_of_all_cells(
    small_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "size.parquet"
    words = [str(small_tree), "--features", "size", "--features-out", str(path)]
    words += ["--cache", str(tmp_path / "store"), "--outputs", str(tmp_path / "outputs")]
    assert baseline.main(words) == 0
    table = pd.read_parquet(path)
    (found,) = (tmp_path / "outputs").rglob("run.json")
    split = pd.read_csv(found.parent / "split.csv")
    assert sorted(table["cell"]) == sorted(split["cell"])
    assert list(table) == ["cell", "area", "log_area", "box_long", "box_short"]
    path.unlink()
    assert baseline.main(words) == 0  # done already
    pd.testing.assert_frame_equal(pd.read_parquet(path), table)
    capsys.readouterr()
    result = scored(capsys, found.parent, "--neighbourhood", path, "--neighbours", 5)
    assert "TRANSDUCTIVE" in result["prelim"]["marks"]
    assert record(found.parent)["calibration"]["fitted_on"] == "prelim"
