"""What a run is expected to take."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, TINY, Train, edit_record, small
from hydra import compose, initialize_config_dir

from leukocls.launch.plan import cells, duration

CONF = str(ROOT / "conf")


@pytest.mark.parametrize(
    ("words", "training", "scored"),
    [
        ([], 10_661, 1_867),
        (["split_scheme=all"], 12_528, 12_528),
        (["split_scheme=honest"], 10_661 * 4 / 5, 10_661 / 5),
        (["split_scheme=lofo", "data.n_cells=500"], 500, 10_661 / 3),
        (["data=synthetic"], 54 * 13, 16 * 13),
        (["trainer.limit_train_batches=3", "trainer.limit_val_batches=.5"], 48, 1_867 / 2),
    ],
)
def test_cells(words: list[str], training: float, scored: float) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", words)
    assert cells(config) == pytest.approx((training, scored))


def test_planning_lists_every_run_and_writes_nothing(tmp_path: Path, train: Train) -> None:
    planned = train(
        "experiment=prellberg2019", "ablation=proposal,nospeclr_1e-4", "seed=range(3)",
        "plan=true", f"outputs={tmp_path / 'outputs'}", "data.size=32", *TINY, "-m",
    )  # fmt: skip
    assert planned.code == 0, planned.err
    assert (
        len(re.findall(r"^\S+/seed_\d{3}  missing  [\d.]+ (?:s|min|h|d)$", planned.out, re.M)) == 6
    )
    assert re.search(r"^6 runs, 0 done; the rest takes about [\d.]+ \w+ ", planned.out, re.M)
    assert not list(tmp_path.iterdir())


def test_what_others_of_the_arm_took_is_believed(
    trained: Path, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    outputs = tmp_path / "outputs"
    arm = outputs.joinpath(*trained.parts[-3:-1])
    shutil.copytree(trained, arm / trained.name)
    edit_record(arm / "seed_000", timing={"prepare_s": 200, "run_s": 7000})
    planned = train(*small(small_tree, outputs), "seed=range(3)", "plan=true", "jobs=1", "-m")
    assert planned.out.count("2.0 h") == 2
    assert "3 runs, 1 done; the rest takes about 4.0 h (1 at a time)" in planned.out


def test_duration() -> None:
    spans = [0.2, 59, 60, 5400, 86_400 * 1.5]
    assert [duration(s) for s in spans] == ["0 s", "59 s", "1.0 min", "1.5 h", "1.5 d"]
