"""NOROT and the other variants of Prellberg & Kramer 2019, through the command line."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome, Train, edit_record, record, small

from leukocls.artifacts import predictions
from leukocls.common.errors import LeukoclsError
from leukocls.data.index import build_index
from leukocls.data.published import subject_counts
from leukocls.data.splits import SplitOptions, make_split
from leukocls.evaluation import scoring


def words_of(tree: Path, outputs: Path) -> list[str]:
    """The demo's recipe with its own number of views."""
    return [word for word in small(tree, outputs) if word != "views=4"]


@pytest.fixture
def outputs(once, small_tree: Path, tmp_path: Path, train: Train) -> Path:
    """A copy of a folder with the proposal's finished run."""

    def make(folder: Path) -> None:
        assert train(*words_of(small_tree, folder / "outputs"), "ablation=proposal").code == 0

    return Path(shutil.copytree(once("proposal", make) / "outputs", tmp_path / "arms" / "outputs"))


def run_of(outputs: Path, arm: str) -> Path:
    (found,) = (p for p in outputs.rglob("run.json") if p.parent.parent.name.startswith(arm))
    return found.parent


def test_rescore_from_a_run_is_the_run_with_one_view(
    small_tree: Path, outputs: Path, train: Train
) -> None:
    """To the bit in what it predicts, with an epoch of its own; and it costs no training."""
    words = words_of(small_tree, outputs)
    derived = train(*words, "ablation=norot")
    assert derived.code == 0, derived.err
    assert "train loss" not in derived.out
    again = train(*words, "ablation=norot", "rescore_from=null")
    assert again.code == 0, again.err
    assert "train loss" in again.out
    norot = [path.parent for path in outputs.rglob("run.json") if "/norot" in str(path)]
    ours, theirs = sorted(norot, key=lambda path: record(path)["identity"]["rescore_from"] is None)
    one, other = record(ours), record(theirs)
    for key in ("predictions_sha256", "selection", "threshold", "metrics", "marks", "view_weights"):
        assert one[key] == other[key], key
    assert one["status"] == "done"
    assert one["weights_sha256"] is None
    for mine, trained in zip(rows(ours), rows(theirs), strict=True):
        assert mine.keys() == trained.keys()
        for name in mine.keys() - {"images_per_s"}:
            assert (mine[name] is None) == (trained[name] is None), name
            if mine[name] is not None:
                assert mine[name] == pytest.approx(trained[name], rel=1e-5, abs=1e-7), name
    assert (ours / "split.csv").read_bytes() == (theirs / "split.csv").read_bytes()
    part = next(p for p in scoring.scored_parts(ours, scoring.ScoringOptions()))
    assert scoring.metrics_of(part)["weighted_f1"] == one["metrics"]["prelim"]["weighted_f1"]
    assert "done already" in train(*words, "ablation=norot").out


def rows(directory: Path) -> list[dict[str, float | None]]:
    with open(directory / "metrics.csv", newline="") as stream:
        return [
            {k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(stream)
        ]


def test_a_run_that_is_not_there_or_was_trained_otherwise_is_refused(
    small_tree: Path, outputs: Path, tmp_path: Path, train: Train
) -> None:
    words = words_of(small_tree, tmp_path / "outputs")
    told = train(*words, "ablation=norot")
    assert told.code == 2
    assert "rescore_from=null" in told.err
    # Somebody moved a run of other settings to where the proposal's belongs.
    source = run_of(outputs, "proposal")
    place = tmp_path / "outputs" / source.relative_to(outputs)
    shutil.copytree(source, place)
    edit_record(place, identity=record(place)["identity"] | {"optim.lr.head": 1.0})
    told = train(*words, "ablation=norot")
    assert told.code == 2
    assert "optim.lr.head" in told.err
    # Nor does it score predictions that were edited.
    shutil.copy(source / "run.json", place)
    frame = predictions.read(place / "predictions.parquet")
    predictions.write(place / "predictions.parquet", frame[frame["epoch"] > 0])
    assert "edited" in train(*words, "ablation=norot").err


def test_a_test_that_another_epoch_scored_is_not_view_0s(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    words = words_of(small_tree, tmp_path / "outputs")
    words += ["split_scheme=honest"]
    assert train(*words, "ablation=proposal").code == 0
    source = run_of(tmp_path / "outputs", "proposal")
    frame = predictions.read(source / "predictions.parquet")
    epoch = record(source)["selection"]["epoch"]

    def norot_after_view_0_is_best_at(best: int) -> Outcome:
        right = np.where(frame["label"] == 1, 9, -9) * np.where(frame["epoch"] == best, 1, -1)
        edited = frame.assign(view_0=np.where(frame["split"] == "val", right, frame["view_0"]))
        predictions.write(source / "predictions.parquet", edited)
        edit_record(source, predictions_sha256=predictions.digest(edited))
        return train(*words, "ablation=norot", "force=true")

    assert norot_after_view_0_is_best_at(epoch).code == 0
    told = norot_after_view_0_is_best_at((epoch + 1) % 3)
    assert told.code == 2
    assert "rescore_from=null" in told.err


@pytest.mark.parametrize("rate", ["1e-3", "1e-4", "1e-5"])
def test_nospeclr_has_one_rate_for_all(
    rate: str, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    words = small(small_tree, tmp_path / "outputs")
    done = train(*words, f"ablation=nospeclr_{rate}", "trainer.max_epochs=1")
    assert done.code == 0, done.err
    run = run_of(tmp_path / "outputs", f"nospeclr_{rate}")
    assert record(run)["identity"]["optim.lr"] == float(rate)
    last = rows(run)[-1]
    assert {last[f"lr_{stage}"] for stage in ("early", "late", "head")} == {float(rate)}


def test_without_h3_the_counts_are_those_of_the_released_code(
    sample_root: Path, small_tree: Path
) -> None:
    """10,625 images, and 3353 / 7272 as the weight of ALL: RECIPES §2."""
    sample = build_index(sample_root)
    small_h3 = sample.table["cell"].str.startswith("UID_h3_")
    assert small_h3.any()
    assert (sample.table["subject"][small_h3] == "H3").all()
    kept = sample.without_h3().table
    assert len(kept) == len(sample.table) - small_h3.sum()
    counts = subject_counts()
    train = counts[counts["split"] == "train"]
    lower_case = train.loc[train["subject"] == "H3", "n_images"].sum()
    assert train["n_images"].sum() - lower_case == 10_625
    healthy = train.loc[train["label"] == "HEM", "n_images"].sum() - lower_case
    assert healthy / train.loc[train["label"] == "ALL", "n_images"].sum() == pytest.approx(
        0.46108, abs=5e-6
    )


def test_dropping_h3_is_another_configuration_and_no_partial_data(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    words = small(small_tree, tmp_path / "outputs")
    done = train(*words, "data.drop_h3=true", "trainer.max_epochs=1")
    assert done.code == 0, done.err
    run = run_of(tmp_path / "outputs", "proposal")
    assert "data.drop_h3=True" in run.parent.name
    assert record(run)["marks"] == ["SYNTHETIC"]


def test_all_labelled_cells_can_train(small_tree: Path, tmp_path: Path, train: Train) -> None:
    index = build_index(small_tree)
    split = make_split(index, "all")
    labelled = index.table.index[index.table["part"] != "final"]
    assert split.rows["train"].tolist() == labelled.tolist()
    with pytest.raises(LeukoclsError, match="has no folds"):
        make_split(index, "all", SplitOptions(fold=0))
    words = small(small_tree, tmp_path / "outputs")
    done = train(*words, "split_scheme=all", "selection=last", "trainer.max_epochs=1", "views=1")
    assert done.code == 0, done.err
    assert "TRAINING " in done.out
    assert "TEST " not in done.out
    assert "SELECTION " not in done.out


def test_a_reconstruction_is_marked(small_tree: Path, tmp_path: Path, train: Train) -> None:
    words = small(small_tree, tmp_path / "outputs")
    done = train(*words, "reconstruction=true", "trainer.max_epochs=1", "views=1")
    assert done.code == 0, done.err
    assert record(run_of(tmp_path / "outputs", "proposal"))["marks"] == [
        "SYNTHETIC",
        "RECONSTRUCTION",
    ]
    assert "*** SYNTHETIC RECONSTRUCTION ***" in done.out


def test_rescore_from_what_was_trained_again_is_not_called_done(
    small_tree: Path, outputs: Path, tmp_path: Path, train: Train
) -> None:
    """The proposal gave other predictions meanwhile, as after force=true with another version."""
    shutil.copytree(outputs, tmp_path / "outputs")
    words = words_of(small_tree, tmp_path / "outputs")
    assert train(*words, "ablation=norot").code == 0
    proposal = run_of(tmp_path / "outputs", "proposal")
    frame = predictions.read(proposal / "predictions.parquet")
    predictions.write(proposal / "predictions.parquet", frame.assign(view_0=frame["view_0"] + 1))
    changed = predictions.digest(predictions.read(proposal / "predictions.parquet"))
    edit_record(proposal, predictions_sha256=changed)
    told = train(*words, "ablation=norot")
    assert told.code == 2
    assert "inputs.rescored" in told.err
    assert train(*words, "ablation=norot", "force=true").code == 0


@pytest.mark.parametrize("cut", ["half a row", "a whole row"])
def test_a_metrics_file_that_was_cut_short_is_refused(
    cut: str, small_tree: Path, outputs: Path, train: Train
) -> None:
    path = run_of(outputs, "proposal") / "metrics.csv"
    *lines, last = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines) + (last[: len(last) // 2] if cut == "half a row" else ""))
    refused = train(*words_of(small_tree, outputs), "ablation=norot")
    said = "metrics.csv: cut short" if cut == "half a row" else "metrics.csv: lacks epoch 2"
    assert (refused.code, said in refused.err) == (2, True), refused.err
