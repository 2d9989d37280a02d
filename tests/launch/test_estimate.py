"""What a run is expected to take."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, Train, edit_record, small
from hydra import compose, initialize_config_dir

from leukocls.data.index import build_index
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


@pytest.mark.parametrize(
    ("words", "counts"),
    [
        ([], (55, 30)),
        (["split_scheme=all"], (85, 85)),
        (["data.n_cells=20"], (20, 30)),
        (["split_scheme=SPLIT.csv"], (3, 2)),
        (["checkpoint=RUN", "score=final"], (0, 5)),
    ],
)
def test_the_data_at_hand_is_counted(
    words: list[str], counts: tuple[int, int], small_tree: Path, tmp_path: Path
) -> None:
    names = build_index(small_tree).table
    train, prelim = (names[names["part"] == part] for part in ("train", "prelim"))
    rows = [f"{c},train" for c in [*train["cell"][:2], *train["cell"][-1:]]]
    rows += [f"{c},prelim" for c in [*prelim["cell"][:1], *prelim["cell"][-1:]]]
    (tmp_path / "SPLIT.csv").write_text("\n".join(["cell,split", *rows, ""]))
    words = [word.replace("SPLIT", f"{tmp_path}/SPLIT") for word in words]
    with initialize_config_dir(CONF, version_base="1.3"):
        assert cells(compose("train", [f"data.root={small_tree}", *words])) == counts


def test_planning_lists_every_run_and_writes_nothing(tmp_path: Path, train: Train) -> None:
    planned = train(
        "experiment=prellberg2019", "ablation=proposal,nospeclr_1e-4", "seed=range(3)",
        "plan=true", f"outputs={tmp_path / 'outputs'}", "data.size=32", *TINY, "-m",
    )  # fmt: skip
    assert planned.code == 0, planned.err
    row = r"^(?:proposal|nospeclr_1e-4) +[012] +missing +[\d.]+ (?:s|min|h|d)$"
    assert len(re.findall(row, planned.out, re.M)) == 6
    assert re.search(r"^6 runs, 0 done; the rest takes about [\d.]+ \w+ ", planned.out, re.M)
    assert not list(tmp_path.iterdir())
    assert "timed on cpu" in planned.out or torch.cuda.is_available()


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
