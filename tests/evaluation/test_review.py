"""The list of labels to review, against a loop over the predictions of several runs."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from leukocls import evaluate
from leukocls.artifacts import predictions
from leukocls.artifacts.predictions import sigmoid
from leukocls.artifacts.record import write_record
from leukocls.common.errors import LeukoclsError
from leukocls.evaluation.review import COLUMNS, review
from leukocls.evaluation.scoring import ScoringOptions, scored_parts

WEIGHT = 0.5


def write_run(directory: Path, seed: int, splits: dict[str, str]) -> Path:
    """A run with `splits`, each with cells named after its value."""
    rng, frames = np.random.default_rng([seed, *map(len, splits.values())]), []
    for split, name in splits.items():
        label = np.arange(12) // 2 % 2
        z = rng.normal(0, 2, 12).astype(np.float32)
        names = [f"{name}{k // 2}" for k in range(12)]
        frame = pd.DataFrame({"epoch": 0, "split": split, "subject": names, "person": names})
        frame["cell"] = [f"{name}_{k}.bmp" for k in range(12)]
        frames.append(frame.assign(label=label, view_0=z, logit=z, prob=sigmoid(z)))
    directory.mkdir()
    whole = pd.concat(frames)
    predictions.write(directory / "predictions.parquet", whole)
    entries = {
        "id": directory.name,
        "status": "done",
        "identity": {"seed": seed},
        "selection": {"rule": "last", "set": "val", "epoch": 0},
        "threshold": 0.5,
        "pos_weight": WEIGHT,
        "marks": [],
        "predictions_sha256": predictions.digest(whole),
    }
    write_record(directory, entries)
    return directory


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two seeds of two folds; the second fold's cells trained the first one's runs."""
    return [
        write_run(tmp_path / f"fold{fold}_seed{seed}", 10 * fold + seed, splits)
        for fold, splits in enumerate(
            ({"val": "x", "train": "y", "prelim": "test"}, {"val": "y", "prelim": "test"})
        )
        for seed in range(2)
    ]


def test_cells_are_in_order_of_their_mean_loss_over_the_runs_that_held_them_out(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "review.csv"
    assert evaluate.main([*map(str, runs), "--review", str(out)]) == 0
    assert str(out) in capsys.readouterr().err
    found = pd.read_csv(out)
    assert tuple(found) == COLUMNS
    losses: dict[str, list[float]] = {}
    probs: dict[str, list[float]] = {}
    for run in runs:
        for row in pd.read_parquet(run / "predictions.parquet").itertuples():
            if row.split == "train":
                continue
            p = 1 / (1 + math.exp(-(row.logit - math.log(WEIGHT))))
            losses.setdefault(row.cell, []).append(-math.log(p if row.label else 1 - p))
            probs.setdefault(row.cell, []).append(p)
    assert len(found) == len(losses) == 36
    ranks: dict[str, int] = {}
    for row in found.itertuples():
        ranks[row.person] = ranks.get(row.person, 0) + 1
        assert row.loss == pytest.approx(np.mean(losses[row.cell]))
        assert row.mean_prob == pytest.approx(np.mean(probs[row.cell]))
        assert row.runs == len(losses[row.cell]) == (4 if row.cell.startswith("test") else 2)
        assert row.rank_in_person == ranks[row.person]
    assert found["loss"].is_monotonic_decreasing


def test_what_cannot_be_reviewed(runs: list[Path], tmp_path: Path) -> None:
    parts = scored_parts(runs[0], ScoringOptions(split="train"))
    with pytest.raises(LeukoclsError, match="no labelled cells"):
        review(parts)
    val = scored_parts(runs[0], ScoringOptions(split="val"))
    other = scored_parts(runs[1], ScoringOptions(split="val"))
    other[0].frame["label"] = 1 - other[0].frame["label"]
    with pytest.raises(LeukoclsError, match=r"two labels.*x_0\.bmp"):
        review([*val, *other])
    path = tmp_path / "hard.csv"
    pd.DataFrame({"cell": ["a", "b"], "label": [0, 1], "label_pred": [0, 0]}).to_csv(path)
    with pytest.raises(LeukoclsError, match="hard labels"):
        evaluate.main([str(path), "--review", str(tmp_path / "r.csv")])
    assert not (tmp_path / "r.csv").exists()
