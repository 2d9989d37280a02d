"""Failures within a run: their messages and records, and best weights that stay as they were."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Train, edit_record, only_run, record, small
from fault_bench import EVERYTHING, Start, assert_nothing_is_torn, run_with
from faults.fault_points import FILLER
from omegaconf import OmegaConf
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from leukocls.artifacts.record import RunState
from leukocls.artifacts.run_dir import RESERVE, RunDir
from leukocls.common.errors import DataFault
from leukocls.common.files import sha256_file
from leukocls.common.processes import LOST
from leukocls.data.datamodule import Cells, _Loader
from leukocls.launch.job import message_of
from leukocls.launch.worker import SweepJob, Worker
from leukocls.training.checkpoint_io import ChecksummedIO
from leukocls.training.recorder import Recorder

# Epoch 1 is saved; what fails is in epoch 2.
WORDS = [*EVERYTHING, "save_minutes=null"]


@pytest.mark.parametrize(
    ("fault", "more", "told"),
    [
        ("step:9:out of memory", [], "choose a smaller data.batch_size"),
        ("step:11:infinite", [], "is nan in batch 3 of epoch 2 (the one before"),
        ("after step:9:kill a worker", ["data.workers=2"], "data.workers=0 needs none"),
    ],
)
def test_a_failure_says_what_it_was_and_leaves_the_best_weights(
    fault: str, more: list[str], told: str, small_tree: Path, tmp_path: Path, command: Start,
    trained_once: Callable[..., Path],
) -> None:  # fmt: skip
    outputs = tmp_path / "outputs"
    words = [*small(small_tree, outputs), *WORDS, *more]
    failed = run_with(command, words, fault)
    assert (failed.wait(), told in failed.err) == (1, True), failed.err
    run = only_run(outputs)
    found = record(run)
    assert found["status"] == "failed"
    assert found["error"].partition(":")[0] in found["traceback"]
    assert 'File "' in found["traceback"]
    assert_nothing_is_torn(outputs)
    # Those of a run that ended with the epoch before.
    best = sha256_file(run / "checkpoints/best.safetensors")
    assert best == record(trained_once(*WORDS, "trainer.max_epochs=1"))["weights_sha256"]
    ended = run_with(command, words)
    assert ended.wait() == 0, ended.err
    assert record(run)["traceback"] is None


def test_a_run_whose_folder_was_removed_is_not_done(
    small_tree: Path, tmp_path: Path, command: Start
) -> None:
    """Though a later epoch is the best and would have everything that it needs."""
    outputs = tmp_path / "outputs"
    words = [*small(small_tree, outputs), "selection=last", "trainer.max_epochs=3"]
    failed = run_with(command, words, "save:2:remove the run")
    assert (failed.wait(), "epoch000000.parquet: the pred" in failed.err) == (1, True), failed.err
    assert record(only_run(outputs))["status"] == "failed"


@pytest.mark.parametrize("name", ["config.yaml", "split.csv", "metrics.csv"])
def test_a_run_without_what_it_wrote_is_not_done(name: str, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "demo/proposal/seed_000"
    shutil.copytree(trained, copy)
    (copy / name).unlink()
    with pytest.raises(DataFault, match=f"{name}: missing, though the run wrote"):
        RunDir(copy, OmegaConf.create({"seed": 0}), {}).stored_hashes(network=True)


def test_a_run_whose_log_cannot_be_written_has_failed(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    """Also before its first step, when its record says `running` already."""
    outputs = tmp_path / "outputs"
    words = small(small_tree, outputs)
    assert train(*words).code == 0
    run = only_run(outputs)
    edit_record(run, status="interrupted")
    (run / "log.txt").unlink()
    (run / "log.txt").mkdir()
    refused = train(*words)
    assert (refused.code, "log.txt: Is a directory" in refused.err) == (1, True), refused.err
    assert record(run)["status"] == "failed"


def test_no_weights_are_saved_within_an_epoch_whose_loss_is_infinite(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    outputs = tmp_path / "outputs"
    ended = train(*small(small_tree, outputs), *EVERYTHING, "loss.pos_weight=1e38")
    assert (ended.code, "in batch 1 of epoch 1" in ended.err) == (1, True), ended.err
    assert not list(outputs.rglob("resume-*.ckpt"))
    assert record(only_run(outputs))["status"] == "failed"


def test_an_image_that_vanishes_is_named_while_it_is_needed_and_not_missed_later(
    small_tree: Path, tmp_path: Path, train: Train, command: Start
) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(small_tree, tree)
    outputs, gone = tmp_path / "outputs", sorted(tree.rglob("UID_*.bmp"))[3]
    words = [*small(tree, outputs), f"data.cache={tmp_path / 'store'}"]
    content = gone.read_bytes()
    # Packed already: a run does not look at it again.
    running = command("train", *words, "trainer.max_epochs=8")
    assert running.until(lambda: list(outputs.rglob("resume-*.ckpt"))), running.err
    gone.unlink()
    assert running.wait() == 0, running.err
    shutil.rmtree(tmp_path / "store")
    refused = train(*words, "trainer.max_epochs=9")
    assert (refused.code, gone.parent.name in refused.err) == (1, True), refused.err
    gone.write_bytes(content)
    assert train(*words, "trainer.max_epochs=1").code == 0


def test_sums_of_an_epoch_come_back_to_the_device(tmp_path: Path) -> None:
    """As on a GPU, where what was restored and what follows would not go together."""
    recorder = Recorder(tmp_path, None, "last", "prelim")  # type: ignore[arg-type]
    of_epoch = {"norms": torch.ones(2), "losses": torch.ones(2), "rates": {}, "images": 2}
    recorder.load_state_dict({"metrics": [], "epoch": {**of_epoch, "seconds": 1.0}})
    recorder.on_train_start(None, SimpleNamespace(device=torch.device("meta")))  # type: ignore[arg-type]
    kept = [*recorder._norms, *recorder._losses]
    assert [one.device.type for one in kept] == ["meta"] * 4


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_has_a_remedy(error: Exception) -> None:
    assert "(choose a smaller data.batch_size" in message_of(error)


def test_an_error_in_a_worker_is_as_clear_as_one_in_the_run() -> None:
    """As PyTorch hands it to the run: with the worker's traceback before it."""
    try:
        raise DataFault("store.npy: was cut short")
    except DataFault:
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(DataFault, match="Traceback") as error:
        wrapper.reraise()
    assert message_of(error.value) == "store.npy: was cut short"


@pytest.mark.parametrize("seen", [ConnectionResetError, ConnectionRefusedError, EOFError])
def test_a_worker_that_ends_while_it_sends_a_batch_is_told_as_any_other(
    seen: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection may end before PyTorch sees that its process has."""

    def ends(_: DataLoader) -> Iterator[int]:
        yield 1
        raise seen(104, "Connection reset by peer")

    monkeypatch.setattr(DataLoader, "__iter__", ends)
    batches = iter(_Loader([1, 2]))
    assert next(batches) == 1
    with pytest.raises(RuntimeError) as error:
        next(batches)
    assert "data.workers=0 needs none" in message_of(error.value)


def test_a_store_that_is_cut_short_in_use_is_an_error_and_not_a_dead_process(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.npy"
    np.save(path, np.zeros((8, 64, 64, 3), np.uint8))
    cells = Cells(np.load(path, mmap_mode="r"), np.zeros(8, np.int64))
    assert cells[np.arange(8)]["image"].shape == (8, 64, 64, 3)
    os.truncate(path, 1000)
    with pytest.raises(DataFault, match=f"{path}: was cut short.*packs it again"):
        cells[np.arange(8)]
    path.unlink()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system, for whoever may mount one."""
    at = tmp_path / "disk"
    at.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(at)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield at
    subprocess.run(["umount", "-l", str(at)], check=True)


def test_a_full_disk_ends_a_run_loudly_and_room_lets_it_go_on(
    tiny_disk: Path, small_tree: Path, tmp_path: Path, command: Start
) -> None:
    """Filled to the last byte after the first checkpoint."""
    outputs = tiny_disk / "outputs"
    words = small(small_tree, outputs)
    process = run_with(command, words, "save:2:fill the disk")
    assert process.wait() == 1, process.err
    assert "No space left on device" in process.err
    assert "make room there" in process.err
    found = record(only_run(outputs))
    assert (found["status"], "No space left" in found["error"]) == ("failed", True)
    assert_nothing_is_torn(outputs)
    (tiny_disk / FILLER).unlink()
    ended = run_with(command, words)
    assert ended.wait() == 0, ended.err
    assert "resumed after epoch" in ended.out
    assert not list(outputs.rglob(RESERVE))


def test_a_limit_on_the_size_of_files_is_loud(
    small_tree: Path, tmp_path: Path, command: Start
) -> None:
    """As a quota is, where no file system can be mounted: after the first checkpoint."""
    outputs = tmp_path / "outputs"
    words = small(small_tree, outputs)
    process = run_with(command, words, "save:2:limit the size of files")
    assert process.wait() == 1, process.err
    assert "File too large" in process.err
    assert record(only_run(outputs))["status"] == "failed"
    assert_nothing_is_torn(outputs)
    ended = run_with(command, words)
    assert ended.wait() == 0, ended.err


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become an ordinary user")
def test_a_folder_that_became_read_only_is_loud_for_an_ordinary_user() -> None:
    """Root may write everywhere."""
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "resume-epoch0001.ckpt"
        ChecksummedIO().save_checkpoint({"epoch": 1}, path)
        folder.chmod(0o555)
        if not (child := os.fork()):
            code = 6
            try:
                os.setuid(65534)
                code = 5
                ChecksummedIO().save_checkpoint({"epoch": 2}, path)
            except PermissionError as error:
                code = 3 if str(path) in str(error) else code
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 6:
            pytest.skip("this root may not become an ordinary user")
        assert code == 3
        assert ChecksummedIO().load_checkpoint(path) == {"epoch": 1}
        assert os.listdir(folder) == [path.name]


def test_a_job_that_was_done_before_the_fork_server_died_is_done(
    trained: Path, tmp_path: Path
) -> None:
    run, nobody = tmp_path / "seed_000", 2**22 + 1  # larger than any process's number
    shutil.copytree(trained, run)
    for writer, state in ((nobody, RunState.DONE), (nobody + 1, RunState.REFUSED)):
        edit_record(run, pid=writer)
        job = SweepJob([SimpleNamespace(directory=run, overrides=[])])  # type: ignore[list-item]
        process = SimpleNamespace(ident=nobody, exitcode=LOST)
        Worker(job, process, run / "log.txt", 0, 0.0).settle()  # type: ignore[arg-type]
        assert job.state() == state
