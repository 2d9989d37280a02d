"""A resumed run continues with the order, the weights and the losses of the run that stopped."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import Train, edit_record, only_run, record, small

from leukocls.common.files import sha256_file
from leukocls.training.checkpoint_io import ChecksummedIO
from leukocls.training.checkpoints import Checkpoints
from leukocls.training.recorder import Recorder

KEYS = ("predictions_sha256", "weights_sha256", "last_sha256")


def command(tree: Path, outputs: Path, *more: str) -> list[str]:
    return [*small(tree, outputs), "trainer.max_epochs=4", "threads=1", *more]


@pytest.fixture
def stopped(
    small_tree: Path, tmp_path: Path, train: Train, trained_once: Callable[..., Path],
    once: Callable[..., Path],
) -> tuple[dict[str, Any], Path]:  # fmt: skip
    """The record of a whole run, and the outputs of one that stopped after epoch 2."""

    def make(folder: Path) -> None:
        stop(train, small_tree, folder / "outputs")

    outputs = tmp_path / "outputs"
    shutil.copytree(once("stopped-after-2", make) / "outputs", outputs)
    return record(trained_once("trainer.max_epochs=4", "threads=1")), outputs


def stop(train: Train, tree: Path, outputs: Path) -> None:
    """Start a run, and end it when it saves epoch 3."""
    with pytest.MonkeyPatch.context() as patch:
        save = Checkpoints.save_resume_point

        def pull_the_plug(self: Checkpoints, trainer: object, epoch: int, n: int) -> None:
            if epoch == 3:
                raise RuntimeError("pulled the plug")
            save(self, trainer, epoch, n)

        patch.setattr(Checkpoints, "save_resume_point", pull_the_plug)
        assert train(*command(tree, outputs)).code == 1
    edit_record(only_run(outputs), status="interrupted")


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_ahead_in_the_order_of_the_resumed_epoch(
    workers: int, stopped, small_tree: Path, train: Train
) -> None:
    whole, outputs = stopped
    again = train(*command(small_tree, outputs), f"data.workers={workers}")
    assert again.code == 0, again.err
    assert "resumed after epoch 2" in again.out
    assert {key: record(only_run(outputs))[key] for key in KEYS} == {k: whole[k] for k in KEYS}


def test_weights_chosen_after_the_last_resume_point_are_not_those_of_the_point(
    stopped, small_tree: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoch 3 was selected and written, its resume point was not: what if it is not so again?"""
    _, outputs = stopped
    run = only_run(outputs)
    forged = run / "checkpoints" / "selected-epoch0003.safetensors"
    shutil.copy(run / "checkpoints" / "best.safetensors", forged)
    (run / "checkpoints" / "best.safetensors").write_bytes(b"of epoch 3")
    recorder = Recorder(run, None, "best_weighted_f1", "prelim")  # type: ignore[arg-type]
    checkpoint, state = recorder.checkpoints.newest_whole()
    assert checkpoint.name == "resume-epoch0002.ckpt"
    recorder.reload(checkpoint, state)
    assert not forged.exists()
    selected = run / "checkpoints" / f"selected-epoch{recorder.selected_epoch:04d}.safetensors"
    assert recorder.selected_epoch <= 2
    assert recorder.checkpoints.best.read_bytes() == selected.read_bytes()


def test_a_run_that_the_version_before_left_unfinished_is_resumed(
    stopped, small_tree: Path, train: Train
) -> None:
    """0.1 named the weights of no epoch, and wrote other groups and pixels into split.csv.

    Its checkpoints hold no rows of metrics.csv, and have no checksum.
    """
    whole, outputs = stopped
    run = only_run(outputs)
    for path in run.glob("checkpoints/resume-*"):
        state = ChecksummedIO().load_checkpoint(path)
        assert state["callbacks"].pop("Recorder")
        torch.save(state, path)
    for path in run.glob("checkpoints/selected-*"):
        path.unlink()
    split = pd.read_csv(run / "split.csv", dtype=str).assign(group="1+2", pixels="0")
    split.to_csv(run / "split.csv", index=False)
    edit_record(run, inputs=whole["inputs"] | {"split": sha256_file(run / "split.csv")})
    again = train(*command(small_tree, outputs))
    assert again.code == 0, again.err
    assert "resumed after epoch 2" in again.out
    assert {key: record(only_run(outputs))[key] for key in KEYS} == {k: whole[k] for k in KEYS}
    assert record(run)["inputs"] == whole["inputs"]


def test_a_finished_run_keeps_the_best_and_the_last_weights_alone(trained: Path) -> None:
    names = {path.name for path in (trained / "checkpoints").glob("*.safetensors")}
    assert names == {"best.safetensors", "last.safetensors"}


def test_an_infinite_loss_ends_the_run_with_batch_and_rates(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    outputs = tmp_path / "outputs"
    ended = train(*command(small_tree, outputs), "loss.pos_weight=1e38")
    assert ended.code == 1
    assert "batch 1 of epoch 1" in ended.err
    assert "lr_" in ended.err
    assert record(only_run(outputs))["status"] == "failed"
