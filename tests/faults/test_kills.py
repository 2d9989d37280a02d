"""A run that is killed anywhere and started again ends with the bits of one that was not."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_bench import (
    ELSEWHERE,
    Start,
    assert_nothing_is_left_over,
    assert_nothing_is_torn,
    result,
    run_with,
    whole,
    words_of,
)


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
        ("plain", ["step:4", "scoring:2"]),  # between two batches of a step; of epoch 2
        ("plain", ["after step:6", "file:9"]),
        ("workers", ["step:6", "save:3"]),
        ("workers", ["scoring:2", "rename:9"]),
        ("phases", ["step:19", "joining:1"]),  # the second phase
        ("test", ["testing:1", "joining:1"]),
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(
    kind: str, faults: list[str], once: Callable[..., Path], small_tree: Path, tmp_path: Path,
    command: Start,
) -> None:  # fmt: skip
    outputs = tmp_path / "outputs"
    words = words_of(kind, small_tree, outputs)
    for fault in faults:
        killed = run_with(command, words, f"{fault}:SIGKILL", **ELSEWHERE)
        assert killed.wait() == -9, killed.err
        assert_nothing_is_torn(outputs)
    ended = run_with(command, words, **ELSEWHERE)
    assert ended.wait() == 0, ended.err
    assert result(outputs) == whole(kind, small_tree, once)
    assert_nothing_is_left_over(outputs)
