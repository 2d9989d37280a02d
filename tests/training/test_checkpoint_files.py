"""Damaged checkpoints: they are refused, the one before serves, and a failed save loses nothing."""

import errno
import os
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Train, edit_record, only_run, record, small

from leukocls.common.errors import DataFault
from leukocls.training.checkpoint_io import ChecksummedIO
from leukocls.training.checkpoints import Checkpoints
from leukocls.training.prediction_parts import PredictionParts

KEYS = ("predictions_sha256", "weights_sha256", "last_sha256")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, whose newest checkpoint is that of epoch 2."""
    copy = tmp_path / "outputs" / Path(*trained.parts[-3:])
    shutil.copytree(trained, copy)
    return copy


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut short at 20 places, with 20 bytes flipped, empty, and a folder of that name."""
    checkpoints = Checkpoints(run)
    newest, older = checkpoints.resume_points()
    good = newest.read_bytes()
    assert checkpoints.newest_whole()[0] == newest  # type: ignore[index]
    rng = np.random.default_rng(0)
    cut = [good[:n] for n in rng.integers(0, len(good) - 100, 20)]
    flipped = []
    for place in rng.integers(0, len(good) - 80, 20):
        changed = bytearray(good)
        changed[place] ^= 1 << int(rng.integers(8))
        flipped.append(bytes(changed))
    capsys.readouterr()
    for content in [*cut, *flipped, b""]:
        newest.write_bytes(content)
        assert checkpoints.newest_whole()[0] == older  # type: ignore[index]
        told = capsys.readouterr().err
        assert str(newest) in told
        assert older.name in told
    newest.unlink()
    newest.mkdir()
    assert checkpoints.newest_whole()[0] == older  # type: ignore[index]
    older.write_bytes(b"")
    with pytest.raises(DataFault, match=rf"{older}.*force=true"):
        checkpoints.newest_whole()


@pytest.mark.parametrize("damage", ["cut short", "a folder"])
def test_a_run_resumes_from_the_checkpoint_before_to_the_same_bits(
    damage: str, run: Path, trained: Path, small_tree: Path, train: Train
) -> None:
    """Its metrics.csv is cut short as well: the checkpoint has the rows."""
    newest = Checkpoints(run).resume_points()[0]
    content = newest.read_bytes()
    newest.unlink()
    if damage == "a folder":
        newest.mkdir()
    else:
        newest.write_bytes(content[:-1000])
    text = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(text[: len(text) // 2])
    edit_record(run, status="interrupted")
    resumed = train(*small(small_tree, run.parents[2]))
    assert resumed.code == 0, resumed.err
    assert "resumed after epoch 1" in resumed.out
    assert newest.name in resumed.err
    assert {key: record(run)[key] for key in KEYS} == {key: record(trained)[key] for key in KEYS}
    before, after = (
        [line.split(",") for line in (at / "metrics.csv").read_text().splitlines()]
        for at in (trained, run)
    )
    speed = before[0].index("images_per_s")
    assert [row[:speed] + row[speed + 1 :] for row in after] == [
        row[:speed] + row[speed + 1 :] for row in before
    ]


def test_predictions_of_a_killed_run_are_whole_or_missed(
    run: Path, trained: Path, small_tree: Path, train: Train
) -> None:
    """The writer of a part was killed; and then a part is gone."""
    parts = PredictionParts(run)
    parts.reload(2, None)  # type: ignore[arg-type]
    assert not parts.whole.exists()
    torn = parts.folder / f".{uuid.uuid4().hex}.tmp"
    torn.write_bytes(b"half a file")
    edit_record(run, status="interrupted")
    words = small(small_tree, run.parents[2])
    lost = parts.folder / "epoch000001.parquet"
    content = lost.read_bytes()
    lost.unlink()
    refused = train(*words)
    assert (refused.code, lost.name in refused.err) == (1, True), refused.err
    lost.write_bytes(content)
    resumed = train(*words)
    assert resumed.code == 0, resumed.err
    assert not parts.folder.exists()
    assert {key: record(run)[key] for key in KEYS} == {key: record(trained)[key] for key in KEYS}


def test_a_run_whose_files_are_removed_is_not_done(
    small_tree: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = small(small_tree, tmp_path / "outputs")
    join = PredictionParts.join

    def removed(self: PredictionParts) -> None:
        join(self)
        (self.whole.parent / "checkpoints/best.safetensors").unlink()

    monkeypatch.setattr(PredictionParts, "join", removed)
    ended = train(*words)
    run = only_run(tmp_path / "outputs")
    assert (ended.code, "best.safetensors: missing" in ended.err) == (1, True), ended.err
    assert record(run)["status"] == "failed"
    monkeypatch.undo()
    again = train(*words)  # its weights have a second name until it is done
    assert (again.code, record(run)["status"]) == (0, "done")


def test_a_file_system_without_locks_is_said(
    small_tree: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("leukocls.common.files.fcntl.flock", no_locks)
    done = train(*small(small_tree, tmp_path / "outputs"))
    assert (done.code, "has no locks" in done.err) == (0, True), done.err


def test_a_failed_save_leaves_the_older_file_whole(tmp_path: Path) -> None:
    """A disk that is full after some kilobytes, by the limit on the size of files."""
    import resource
    import signal

    path, state = tmp_path / "resume-epoch0001.ckpt", {"weights": torch.arange(10)}
    ChecksummedIO().save_checkpoint(state, path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(OSError, match="resume-epoch0001"):
            ChecksummedIO().save_checkpoint({"weights": torch.arange(10_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert torch.equal(ChecksummedIO().load_checkpoint(path)["weights"], state["weights"])
    assert os.listdir(tmp_path) == [path.name]
