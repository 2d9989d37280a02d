"""Several runs as one classifier, against numpy and scikit-learn, through the command line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as oracle

from leukocls import evaluate
from leukocls.artifacts import predictions
from leukocls.artifacts.record import write_record
from leukocls.common.errors import LeukoclsError
from leukocls.evaluation.ensembles import RULES

LABEL = np.tile([1, 1, 0], 20)
SKILL = (1.0, 0.3, 0.6)


def logits(run: int, split: str) -> np.ndarray:
    rng = np.random.default_rng([run, len(split)])
    return (SKILL[run] * (2 * LABEL - 1) + rng.normal(size=len(LABEL))).astype(np.float32)


def frame_of(run: int, split: str) -> pd.DataFrame:
    z = logits(run, split)
    number = np.arange(len(z))
    return pd.DataFrame(
        {
            "epoch": 0,
            "split": split,
            "cell": [f"{split}{k}.bmp" for k in number],
            "subject": [f"{'' if y else 'H'}{k % 15}" for k, y in zip(number, LABEL, strict=True)],
            "label": LABEL,
            "view_0": z,
            "logit": z,
            "prob": predictions.sigmoid(z),
        }
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three runs that chose their epoch on val and are tested on prelim."""
    root, directories = tmp_path_factory.mktemp("runs"), []
    for run in range(3):
        directory = root / f"seed_{run:03d}"
        directory.mkdir()
        frame = pd.concat([frame_of(run, "val"), frame_of(run, "prelim")])
        predictions.write(directory / "predictions.parquet", frame)
        write_record(
            directory,
            {
                "id": f"r{run}",
                "status": "done",
                "identity": {"seed": run},
                "split_scheme": "honest",
                "selection": {"rule": "last", "set": "val", "epoch": 0},
                "threshold": 0.5,
                "marks": ["SYNTHETIC"] if run == 1 else [],
                "predictions_sha256": predictions.digest(frame),
            },
        )
        directories.append(str(directory))
    return directories


def scored(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict]:
    assert evaluate.main([*words, "--json"]) == 0
    return {result["split"]: result for result in json.loads(capsys.readouterr().out)}


def combined(rule: str, split: str) -> np.ndarray:
    """A number for each cell that calls it ALL above .5."""
    z = np.array([logits(run, split) for run in range(3)], np.float64)
    p = 1 / (1 + np.exp(-z))
    if rule == "vote":
        return (z > 0).mean(0)
    if rule == "mean-prob":
        return p.mean(0)
    weights = None
    if rule == "weighted":
        weights = [
            oracle.f1_score(LABEL, logits(run, "val") > 0, average="weighted") for run in range(3)
        ]
    return 1 / (1 + np.exp(-np.average(z, axis=0, weights=weights)))


@pytest.mark.parametrize("rule", RULES)
def test_an_ensemble_is_what_its_rule_says(
    rule: str, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = scored(capsys, *runs, "--ensemble", rule)
    assert set(found) == {"val", "prelim"}
    for split, heading in (("val", "selection"), ("prelim", "test")):
        result, p = found[split], combined(rule, split)
        f1 = oracle.f1_score(LABEL, p > 0.5, average="weighted")
        assert result["weighted_f1"] == pytest.approx(f1)
        assert result["auroc"] == pytest.approx(oracle.roc_auc_score(LABEL, p))
        assert (result["heading"], result["ensemble"]) == (heading, rule)
        assert (result["runs"], result["marks"]) == (["r0", "r1", "r2"], ["SYNTHETIC"])
        assert result["interval"]["auroc"]["low"] < result["auroc"]
    assert evaluate.main([*runs, "--ensemble", rule]) == 0
    assert f"{rule} of 3" in capsys.readouterr().out


def test_a_tie_of_votes_is_called_hem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, called in (("a", [1, 1, 0]), ("b", [1, 0, 0])):
        rows = pd.DataFrame({"cell": ["1", "2", "3"], "label": [1, 1, 0], "label_pred": called})
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    files = [str(tmp_path / f"{name}.csv") for name in ("a", "b")]
    assert evaluate.main([*files, "--ensemble", "vote", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [result[name] for name in ("tp", "fn", "tn", "fp")] == [1, 1, 1, 0]
    with pytest.raises(LeukoclsError, match=r"hard labels.*take --ensemble vote"):
        evaluate.main([*files, "--ensemble", "mean-logit"])


def test_what_is_no_ensemble_is_refused(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        with pytest.raises(LeukoclsError) as caught:
            evaluate.main([*words, "--ensemble", "weighted"])
        return str(caught.value)

    assert "at least two" in refused(runs[0])
    assert "no selection set" in refused(*runs, "--split", "prelim")
    val = frame_of(0, "val").drop(columns=["epoch", "view_0"])
    val.to_csv(tmp_path / "val.csv", index=False)
    other = frame_of(0, "prelim").assign(cell=lambda f: "x" + f["cell"])
    other.drop(columns=["epoch", "view_0"]).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(LeukoclsError, match="its cells on prelim are not those of"):
        evaluate.main([runs[0], str(tmp_path / "other.csv"), "--ensemble", "mean-prob"])
    with pytest.raises(LeukoclsError, match="no split in common"):
        evaluate.main([str(tmp_path / f) for f in ("val.csv", "other.csv")] + ["--ensemble=vote"])
    with pytest.raises(SystemExit):
        evaluate.main([*runs, "--ensemble", "vote", "--pool"])
    assert "not allowed with" in capsys.readouterr().err
