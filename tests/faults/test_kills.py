"""A run that is killed anywhere and started again ends with the bits of one that was not."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import small, train_here
from fault_bench import (
    EVERYTHING,
    Start,
    assert_nothing_is_left_over,
    assert_nothing_is_torn,
    result,
    run_with,
)

PHASES = ["experiment=georgiev_vgg16", "last_phase=stage_2"]
KINDS = {"plain": [], "workers": ["data.workers=2"], "phases": PHASES}


def words_of(kind: str, tree: Path, outputs: Path) -> list[str]:
    return [*small(tree, outputs), *KINDS[kind], *EVERYTHING, "save_every=3"]


@pytest.fixture(scope="session")
def whole(small_tree: Path, once: Callable[..., Path]) -> Callable[[str], dict]:
    """`whole(kind)`: what a run that nothing interrupts ends with."""

    def of(kind: str) -> dict:
        kind = "plain" if kind == "workers" else kind

        def make(folder: Path) -> None:
            words = [*words_of(kind, small_tree, folder / "outputs"), "save_minutes=null"]
            train_here(*words)

        return result(once(f"whole-{kind}", make) / "outputs")

    return of


def test_the_workers_of_a_killed_run_end(small_tree: Path, tmp_path: Path, command: Start) -> None:
    words = [*words_of("workers", small_tree, tmp_path / "outputs"), "save_minutes=null"]
    killed = run_with(command, words, "after step:9:die and name the workers")
    assert killed.wait() == -9, killed.err
    named = re.search(r"workers: (.+)", killed.err)
    assert named
    workers = [Path("/proc", pid) for pid in named[1].split()]
    assert len(workers) == 4  # of training and of evaluation
    deadline = time.monotonic() + 30
    while any(map(Path.exists, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(Path.exists, workers))


@pytest.mark.parametrize(
    ("kind", "faults"),
    [
        ("plain", ["step:3", "scoring:2"]),  # within the first step of two batches; epoch 0
        ("plain", ["after step:6", "file:9"]),
        ("workers", ["step:6", "save:3"]),
        ("workers", ["scoring:2", "rename:9"]),
        ("phases", ["step:19", "joining:1"]),  # the second phase
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(
    kind: str, faults: list[str], whole, small_tree: Path, tmp_path: Path, command: Start
) -> None:
    outputs = tmp_path / "outputs"
    words = words_of(kind, small_tree, outputs)
    # Another file system than the run's, where the machine has one.
    elsewhere = {"TMPDIR": "/dev/shm"} if Path("/dev/shm").is_dir() else {}
    for fault in faults:
        killed = run_with(command, words, f"{fault}:SIGKILL", **elsewhere)
        assert killed.wait() == -9, killed.err
        assert_nothing_is_torn(outputs)
    ended = run_with(command, words, **elsewhere)
    assert ended.wait() == 0, ended.err
    assert result(outputs) == whole(kind)
    assert_nothing_is_left_over(outputs)
