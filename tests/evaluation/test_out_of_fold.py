"""k-fold cross-validation is one result: every person once, by a model that did not see it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Train, record, small
from sklearn.metrics import f1_score, roc_auc_score

from leukocls import baseline, compare, evaluate
from leukocls.common.errors import LeukoclsError

Folds = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def folds(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Folds:
    """Runs of one baseline, three folds each."""
    root = tmp_path_factory.mktemp("folds")

    def made(features: str, scheme: str = "subject", seed: int = 0) -> list[Path]:
        words = [str(small_tree), "--features", features, "--split-scheme", scheme]
        words += ["--folds", "3", "--split-seed", str(seed), "--cache", str(root / "store")]
        runs = []
        for fold in range(3):
            before = set(root.rglob("run.json"))
            outputs = root / f"outputs-{scheme}-{seed}"
            baseline.main([*words, "--fold", str(fold), "--outputs", str(outputs)])
            new = set(root.rglob("run.json")) - before
            runs += [path.parent for path in new] or sorted(
                path.parent for path in outputs.rglob("run.json")
                if record(path.parent)["identity"]["fold"] == fold
                and record(path.parent)["identity"]["features"] == features
            )  # fmt: skip
        return runs

    return made


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert evaluate.main([*map(str, words), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_every_cell_is_scored_once_by_the_model_that_held_it_out(
    folds: Folds, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = folds("size")
    result = evaluated(capsys, "--pool", *runs)
    held_out = pd.concat([pd.read_parquet(run / "predictions.parquet") for run in runs])
    splits = [pd.read_csv(run / "split.csv", dtype=str) for run in runs]
    for run, split in zip(runs, splits, strict=True):
        own = set(pd.read_parquet(run / "predictions.parquet")["person"])
        assert own.isdisjoint(split["group"][split["split"] == "train"])
    assert sorted(held_out["cell"]) == sorted(splits[0]["cell"])
    called = (held_out["prob"] > 0.5).astype(int)
    expected = f1_score(held_out["label"], called, average="weighted")
    assert result["weighted_f1"] == pytest.approx(expected)
    assert result["auroc"] == pytest.approx(roc_auc_score(held_out["label"], held_out["logit"]))
    assert result["n"] == len(splits[0])
    assert result["n_subjects"] == splits[0]["group"].nunique()
    assert (result["heading"], result["folds"]) == ("out-of-fold", 3)
    # Options that change nothing take nothing away.
    same = ("--split", "val", "--epoch", "selected", "--threshold", "0.5")
    assert evaluated(capsys, "--pool", *runs, *same)["heading"] == "out-of-fold"
    assert result["runs"] == [record(run)["id"] for run in runs]


def test_splits_by_cells_are_headed_leaky(folds: Folds, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluated(capsys, "--pool", *folds("size", "cell"))
    assert (result["heading"], "LEAKY" in result["marks"]) == ("leaky", True)


def test_compare_takes_them_as_one_arm(folds: Folds, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [*folds("size"), *folds("colour")]
    capsys.readouterr()
    assert compare.main([*map(str, runs), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["heading"] == "out-of-fold"
    names = {arm["name"]: arm for arm in document["arms"]}
    assert set(names) == {f"{kind},folds=3,split_scheme=subject" for kind in ("size", "colour")}
    for kind in ("size", "colour"):
        arm = names[f"{kind},folds=3,split_scheme=subject"]
        pooled = evaluated(capsys, "--pool", *folds(kind))
        assert (arm["n"], arm["folds"]) == (1, 3)
        assert arm["weighted_f1"]["values"] == [pooled["weighted_f1"]]
    assert len(document["sources"]) == 6
    capsys.readouterr()
    compare.main(list(map(str, runs)))
    shown = capsys.readouterr().out
    assert "OUT-OF-FOLD" in shown
    assert "3 folds pooled" in shown


def test_what_is_no_whole_cross_validation_is_refused(
    folds: Folds, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, other = folds("size"), folds("colour")
    for words, said in (
        (runs[:2], r"needs the folds 0 to 2.*here are 0, 1"),
        ([*runs, runs[0]], "cells are held out in two folds|needs the folds"),
        ([*runs[:2], other[2]], r"not folds of one recipe.*features"),
        ([*runs[:2], folds("size", seed=1)[2]], r"not folds of one recipe.*split_seed"),
    ):
        with pytest.raises(LeukoclsError, match=said):
            evaluate.main(["--pool", *map(str, words)])
    with pytest.raises(LeukoclsError, match="--pool: name run directories"):
        evaluate.main(["--pool", str(runs[0] / "predictions.parquet"), str(runs[1])])
    with pytest.raises(LeukoclsError, match="needs the folds 0 to 2"):
        compare.main([str(runs[0]), str(runs[1])])
    with pytest.raises(LeukoclsError, match="needs the folds 0 to 2"):
        compare.main(["--incomplete", str(runs[0]), str(runs[1])])
    # One fold alone is compared as before.
    capsys.readouterr()
    assert compare.main([str(runs[0]), str(other[0])]) == 0


def test_networks_that_chose_their_epoch_by_the_held_out_cells_are_headed_selection(
    small_tree: Path, tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*small(small_tree, tmp_path), "split_scheme=subject", "folds=2"]
    for rule in ("best_weighted_f1", "last"):
        for fold in range(2):
            assert train(*words, f"fold={fold}", f"selection={rule}").code == 0
    by_rule: dict[str, list[Path]] = {}
    for path in sorted(tmp_path.rglob("run.json")):
        by_rule.setdefault(record(path.parent)["selection"]["rule"], []).append(path.parent)
    headings = {
        rule: evaluated(capsys, "--pool", *runs)["heading"] for rule, runs in by_rule.items()
    }
    assert headings == {"best_weighted_f1": "selection", "last": "out-of-fold"}
    # A threshold from the command line may have been chosen on these cells.
    changed = evaluated(capsys, "--pool", *by_rule["last"], "--threshold", "0.4")
    assert changed["heading"] == "selection"
