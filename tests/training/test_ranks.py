"""Several devices in one run, on as many CPU processes."""

import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from conftest import Train, only_run, record, small, train_here
from sklearn import metrics as oracle
from torch import distributed, nn

from leukocls.artifacts import predictions
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.data.augment import Augmentation
from leukocls.data.datamodule import CellDataModule
from leukocls.data.index import Index
from leukocls.data.rules import PublishedRules
from leukocls.data.splits import Split
from leukocls.synthetic.tree import SyntheticSpec, write_tree
from leukocls.training.classifier import CellClassifier
from leukocls.training.ddp import Rank, spawn_ranks
from leukocls.training.losses import CellLoss

EPOCHS = 3
TWO = ["trainer.accelerator=cpu", "trainer.devices=2", "threads=1"]
SAID = {name: os.environ.get(name) for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}


def of_ranks() -> list[BaseProcess]:
    """Processes of ours that live; other libraries keep some of theirs."""
    return [child for child in active_children() if child.name.startswith("rank ")]


@pytest.fixture(scope="module")
def tree(once: Callable[..., Path]) -> Path:
    """25 prelim cells: odd."""
    spec = SyntheticSpec(
        train_subjects_all=6, train_subjects_hem=5, prelim_subjects_all=3, prelim_subjects_hem=2,
        cells_per_subject=5, final_cells=5,
    )  # fmt: skip
    return once("odd", lambda at: write_tree(at / "tree", spec, progress=False)) / "tree"


def command(tree: Path, outputs: Path) -> list[str]:
    """Two processes, enough steps to learn something."""
    learn = ["optim.lr=1e-2", "loss.pos_weight=1.5", "data.batch_size=4"]
    return [*small(tree, outputs), *TWO, *learn, f"trainer.max_epochs={EPOCHS}"]


@pytest.fixture(scope="module")
def trained_on_two(tree: Path, once: Callable[..., Path]) -> Path:
    """A finished run of two processes."""

    def make(folder: Path) -> None:
        train_here(*command(tree, folder / "outputs"))
        (folder / "pid").write_text(str(os.getpid()))

    return only_run(once("two", make) / "outputs")


def assert_counts(row: pd.Series, cells: pd.DataFrame) -> None:
    called = (cells["logit"] > 0).astype(int)
    tn, fp, fn, tp = oracle.confusion_matrix(cells["label"], called, labels=[0, 1]).ravel()
    found = row[["prelim_tp", "prelim_fp", "prelim_tn", "prelim_fn"]].tolist()
    assert found == [tp, fp, tn, fn]


def assert_nothing_is_left() -> None:
    assert not distributed.is_initialized()
    assert {name: os.environ.get(name) for name in SAID} == SAID
    assert not of_ranks()


# A run


def test_two_devices_make_one_run(tree: Path, trained_on_two: Path, train: Train) -> None:
    said = record(trained_on_two)
    maker = int((trained_on_two.parents[3] / "pid").read_text())
    assert (said["status"], said["device"], said["pid"]) == ("done", "cpu", maker)
    frame = predictions.read(trained_on_two / "predictions.parquet")
    rows = pd.read_csv(trained_on_two / "metrics.csv")
    assert rows["epoch"].tolist() == list(range(EPOCHS + 1))
    for epoch, cells in frame.groupby("epoch"):
        assert (len(cells), cells["cell"].nunique()) == (25, 25)
        assert_counts(rows.loc[epoch], cells)
    log = (trained_on_two / "log.txt").read_text()
    assert [log.count(f"epoch {epoch} · train loss") for epoch in range(EPOCHS + 1)] == [1] * (
        EPOCHS + 1
    )
    assert not list(trained_on_two.rglob("*.tmp"))
    assert_nothing_is_left()
    again = train(*command(tree, trained_on_two.parents[2]))
    assert (again.code, "done already" in again.out) == (0, True)


def test_the_same_weights_count_the_same_on_one_device_and_on_two(
    tree: Path, trained_on_two: Path, tmp_path: Path, train: Train
) -> None:
    """Those of the last epoch: what they were scored by has one BatchNorm, not one a process."""
    last = trained_on_two / "checkpoints" / "last.safetensors"
    frame = predictions.read(trained_on_two / "predictions.parquet")
    trained = frame[frame["epoch"] == EPOCHS].reset_index(drop=True)
    rows = [pd.read_csv(trained_on_two / "metrics.csv").loc[EPOCHS]]
    for devices in (1, 2):
        outputs = tmp_path / str(devices)
        done = train(
            f"checkpoint={last}", "score=prelim", "data=cnmc", f"data.root={tree}",
            f"data.cache={trained_on_two.parents[3] / 'store'}", "data.eval_batch_size=4",
            "trainer.accelerator=cpu", f"trainer.devices={devices}", f"outputs={outputs}",
        )  # fmt: skip
        assert done.code == 0, done.err
        scored = predictions.read(only_run(outputs) / "predictions.parquet")
        assert scored["cell"].tolist() == trained["cell"].tolist()
        np.testing.assert_allclose(scored["logit"], trained["logit"], atol=1e-5)
        rows.append(pd.read_csv(only_run(outputs) / "metrics.csv").loc[0])
        assert_counts(rows[-1], scored)
    names = [f"prelim_{name}" for name in ("tp", "fp", "tn", "fn", "loss", "auroc")]
    for row in rows[1:]:
        assert row[names].tolist() == pytest.approx(rows[0][names].tolist(), rel=1e-5)
    assert 0 < rows[0]["prelim_tp"] < rows[0]["prelim_tp"] + rows[0]["prelim_tn"] < 25


def test_a_killed_device_fails_the_run_which_resumes_bit_for_bit(
    tree: Path, trained_on_two: Path, tmp_path: Path, train: Train
) -> None:
    outputs = tmp_path / "outputs"

    def kill() -> None:
        while not list(outputs.rglob("resume-epoch0001.ckpt")):
            time.sleep(0.01)
        (second,) = (child for child in of_ranks() if child.name == "rank 1 of 2")
        os.kill(second.pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    failed = train(*command(tree, outputs))
    assert failed.code == 1
    assert "rank 1 of 2: its process was killed by SIGKILL (out of memory?)" in failed.err
    said = record(only_run(outputs))
    assert (said["status"], "rank 1 of 2" in said["error"]) == ("failed", True)
    assert_nothing_is_left()
    resumed = train(*command(tree, outputs))
    assert resumed.code == 0, resumed.err
    assert "resumed after epoch" in resumed.out
    for name in ("predictions_sha256", "weights_sha256", "last_sha256", "config_hash"):
        assert record(only_run(outputs))[name] == record(trained_on_two)[name], name


def test_after_two_devices_one_is_as_before(
    trained: Path, trained_on_two: Path, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    again = train(*small(small_tree, tmp_path / "outputs"))
    assert again.code == 0, again.err
    before, after = record(trained), record(only_run(tmp_path / "outputs"))
    assert after["predictions_sha256"] == before["predictions_sha256"]
    assert after["config_hash"] != record(trained_on_two)["config_hash"]


def test_patience_ends_all_devices(tree: Path, tmp_path: Path, train: Train) -> None:
    """At a rate that changes no call, no epoch is better than the one before training."""
    still = [*command(tree, tmp_path / "outputs"), "optim.lr=1e-12", "trainer.max_epochs=9"]
    done = train(*still, "patience=1", "ema=0.9")
    assert done.code == 0, done.err
    said = record(only_run(tmp_path / "outputs"))
    rows = pd.read_csv(only_run(tmp_path / "outputs") / "metrics.csv")
    assert said["selection"]["epoch"] == len(rows) - 2 < 8
    assert_nothing_is_left()


@pytest.mark.parametrize(
    ("override", "words"),
    {
        "data.batch_size=30": "data.batch_size=30 on 2 devices: ",
        "+trainer.num_nodes=2": "trainer.num_nodes: ",
        "+trainer.strategy=fsdp": "trainer.strategy: ",
    }.items(),
)
def test_what_several_devices_cannot_do_is_refused(
    override: str, words: str, tree: Path, tmp_path: Path, train: Train
) -> None:
    refused = train(*command(tree, tmp_path / "outputs"), override)
    assert (refused.code, words in refused.err) == (2, True), refused.err
    assert not list(tmp_path.rglob("run.json"))


# Shards


class Brightness(nn.Module):
    """Logits [B, 1] from the mean of an image: with a parameter, and the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(8.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.mean((1, 2, 3), keepdim=True)[:, :, 0, 0] - 0.5) * self.weight


def score(place: Rank | None = None) -> tuple[dict, dict]:
    """Scores and metrics of parts that leave ranks without a cell, or without a label."""
    label = np.array([0, 1, 0, 1, 1, -1, -1, 1])
    parts = {"prelim": np.arange(5), "val": np.array([3]), "final": np.array([5, 6, 7])}
    images = np.random.default_rng(0).integers(0, 256, (len(label), 8, 8, 3), dtype=np.uint8)
    index = Index(Path(), "tcia", pd.DataFrame({"label": label}), (), None, PublishedRules())
    data = CellDataModule(
        index, images, Split("challenge", parts, "prelim"), Augmentation(),
        seed=0, batch_size=1, eval_batch_size=2, residence="ram", workers=0,
    )  # fmt: skip
    module = CellClassifier(Brightness(), {}, loss=CellLoss(1.0), views=1, seed=0, scored=[*parts])
    trainer = pl.Trainer(
        accelerator="cpu", devices=place.ranks if place else 1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, use_distributed_sampler=False,
    )  # fmt: skip
    if place:
        place.join(torch.device("cpu"))
    trainer.validate(module, data, verbose=False)
    return module.scores, module.rows


def test_ranks_without_a_cell_or_a_label_wait_for_nobody() -> None:
    scores, rows = spawn_ranks(3, score)
    expected_scores, expected_rows = score()
    assert rows["val"]["tp"] + rows["val"]["fn"] == 1
    assert rows["final"]["tp"] + rows["final"]["fn"] == 1
    for part, expected in expected_rows.items():
        known = {name: value for name, value in expected.items() if value is not None}
        assert {k: rows[part][k] for k in known} == pytest.approx(known, rel=1e-6), part
        order = np.argsort(scores[part]["row"])
        for name, values in expected_scores[part].items():
            np.testing.assert_allclose(scores[part][name][order], values, rtol=1e-6)


# Processes


def talk(place: Rank) -> int:
    print(f"rank {place.rank} says out")
    print(f"rank {place.rank} says err", file=sys.stderr)
    return 10 * place.rank + place.ranks


def test_rank_0_speaks_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert spawn_ranks(2, talk) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("rank 0 says out\n", "rank 0 says err\n")


def fail_on_rank_1(error: Exception, place: Rank) -> None:
    """The other waits for it, as it would for a gradient."""
    place.join(torch.device("cpu"))
    if place.rank == 1:
        raise error
    distributed.barrier()


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (DataFault("prelim: logits"), DataFault, "^prelim: logits$"),
        (LeukoclsError("optim.lr=x"), LeukoclsError, "^optim.lr=x$"),
        (OSError(28, "No space left", "metrics.csv"), OSError, "metrics.csv"),
        (MemoryError("CUDA out of memory"), RuntimeError, "^rank 1: MemoryError: CUDA out of mem"),
        (SystemExit(3), DataFault, "^rank 1 of 2: its process ended with exit code 3 before"),
    ],
)
def test_what_fails_on_one_ends_all(error: Exception, kind: type, words: str) -> None:
    with pytest.raises(kind) as raised:
        spawn_ranks(2, partial(fail_on_rank_1, error))
    assert re.search(words, str(raised.value))
    if not isinstance(error, SystemExit):  # where it failed, which run.json's traceback then shows
        assert "in fail_on_rank_1" in "".join(traceback.format_exception(raised.value))
    assert not of_ranks()


def stay(folder: Path, place: Rank) -> None:
    """Until told to end; leaves a trace of both."""
    (folder / f"{place.rank}.pid").write_text(str(os.getpid()))
    try:
        time.sleep(600)
    finally:
        (folder / f"{place.rank}.ended").touch()


def pids(folder: Path) -> list[int]:
    """Of both ranks, once they stay."""
    while len(found := [p for p in folder.glob("*.pid") if p.stat().st_size]) < 2:
        time.sleep(0.01)
    return [int(path.read_text()) for path in found]


def gone(pid: int) -> bool:
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_an_interrupted_run_asks_its_processes_to_end(tmp_path: Path) -> None:
    def interrupt() -> None:
        pids(tmp_path)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        spawn_ranks(2, partial(stay, tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*.ended")) == ["0.ended", "1.ended"]
    assert not of_ranks()


def test_a_killed_run_leaves_no_process(tmp_path: Path) -> None:
    run = get_context("forkserver").Process(target=spawn_ranks, args=(2, partial(stay, tmp_path)))
    run.start()
    found = pids(tmp_path)
    run.kill()
    run.join()
    while not all(map(gone, found)):
        time.sleep(0.01)
