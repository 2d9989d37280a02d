"""Sweeps through the real command line: what one job does to the others, and to a second sweep."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Train, copied, record, small
from extra_networks import FOLDER
from omegaconf import OmegaConf
from warm import Command

from leukocls.artifacts.record import RunState
from leukocls.artifacts.run_dir import RunDir
from leukocls.common.errors import LeukoclsError
from leukocls.launch.slots import slots, visible_gpus


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with a faulty network, for sweeps in process groups of their own."""
    copy = copied(tmp_path_factory.mktemp("faulty"))
    shutil.copy(FOLDER / "faulty.py", copy / "leukocls/models")
    shutil.copy(FOLDER / "conf/model/faulty.yaml", copy / "conf/model")
    return copy


def overrides(root: Path, outputs: Path, *words: str) -> list[str]:
    """A sweep of the faulty network."""
    recipe = [w for w in small(root, outputs) if not w.startswith("model")]
    return [*recipe, "model=faulty", "optim.lr=1e-2", *words, "-m"]


Sweep = Callable[..., Command]


@pytest.fixture
def sweep(command: Callable[..., Command], small_tree: Path, tmp_path: Path) -> Sweep:
    """Starts a sweep of the faulty network as a process of its own, with these faults."""
    search = f"hydra.searchpath=[file://{FOLDER / 'conf'}]"

    def start(*words: str, faults: str = "") -> Command:
        arguments = overrides(small_tree, tmp_path / "outputs", *words)
        return command("train", search, *arguments, env=os.environ | {"FAULTS": faults})

    return start


def test_a_job_that_dies_in_any_way_harms_no_other_and_is_done_next_time(
    sweep: Sweep, tmp_path: Path
) -> None:
    faults = "hang exception os._exit SIGKILL sys.exit memory"
    outputs, number = tmp_path / "outputs", len(faults.split())
    words = [f"seed=range({number + 2})", "trainer.max_epochs=1", "jobs=2", "time_limit=.3"]

    def by_seed() -> dict[int, Path]:
        return {int(p.parent.name[-3:]): p.parent for p in outputs.rglob("run.json")}

    first = sweep(*words, faults=faults)
    assert first.wait() == 1, first.err
    causes = {
        "exception": "the lamp is out",
        "sys.exit": "its process ended with exit code 0 before the run was done",
        "os._exit": "its process ended with exit code 3 before the run was done",
        "SIGKILL": "its process was killed by SIGKILL (out of memory?)",
        "memory": "no room",
        "hang": "ran past time_limit=0.3 minutes",
    }
    assert f"2 of {number + 2} runs done" in first.out
    assert f"error: {number} of {number + 2} runs are not done" in first.err
    runs = by_seed()
    for seed, fault in enumerate(faults.split()):
        said = record(runs[seed])
        assert said["status"] in ("failed", "interrupted")
        row = next(line for line in first.out.splitlines() if line.startswith(f"{seed} "))
        assert causes[fault] in row
        assert causes[fault] in first.err
        if fault in ("os._exit", "SIGKILL"):
            assert causes[fault] in said["error"]
    good = [record(runs[seed]) for seed in (number, number + 1)]
    assert [one["status"] for one in good] == ["done", "done"]

    again = sweep(*words)
    assert again.wait() == 0, again.err
    assert again.out.count("done already") == 2
    assert f"{number + 2} of {number + 2} runs done" in again.out
    assert [record(by_seed()[seed]) for seed in (number, number + 1)] == good
    assert {record(run)["status"] for run in by_seed().values()} == {"done"}


def test_a_job_of_a_sweep_equals_the_job_alone(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    found = set()
    ways = {
        "alone": ["seed=3"],
        "one": ["seed=2,3", "jobs=1", "-m"],
        "two": ["seed=range(4)", "jobs=2", "-m"],
    }
    for name, words in ways.items():
        outputs = tmp_path / name / "outputs"
        assert train(*small(small_tree, outputs), "trainer.max_epochs=1", *words).code == 0
        (run,) = outputs.rglob("seed_003")
        said = record(run)
        found.add((run.relative_to(outputs), said["predictions_sha256"], said["weights_sha256"]))
    assert len(found) == 1


def test_two_identical_sweeps_make_each_run_once(sweep: Sweep, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    both = [sweep("seed=range(4)", "jobs=1") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0], [process.err for process in both]
    runs = sorted(path.parent for path in outputs.rglob("run.json"))
    assert [run.name for run in runs] == [f"seed_{seed:03d}" for seed in range(4)]
    for run in runs:
        assert record(run)["status"] == "done"
        # Each start leaves a line with its date.
        assert sum(line.startswith("# ") for line in (run / "log.txt").open()) == 1
    assert all("4 of 4 runs done" in process.out for process in both)


def test_force_replaces_what_was_there_before(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    words = [*small(small_tree, tmp_path / "outputs"), "seed=0,1", "trainer.max_epochs=1"]
    assert train(*words, "-m").code == 0
    runs = sorted((tmp_path / "outputs").rglob("run.json"))
    first = [path.stat().st_mtime_ns for path in runs]
    forced = train(*words, "force=true", "-m")
    assert "done already" not in forced.out
    second = [path.stat().st_mtime_ns for path in runs]
    assert all(new > old for new, old in zip(second, first, strict=True))
    # Whatever was started since the command was given stays: another sweep's, a job's put back.
    said = record(runs[0].parent)
    run = RunDir(runs[0].parent, OmegaConf.load(runs[0].parent / "config.yaml"), said["inputs"])
    assert run.state(force=True, since=said["started"]) == RunState.DONE
    assert run.state(force=True, since="9999") == RunState.MISSING
    # Every job failing before it starts is not "done already" because an older run is there.
    failed = train(*words, "force=true", "data.cache=/dev/null/x", "-m")
    assert failed.code == 1
    assert "0 of 2 runs done, 2 refused" in failed.out


def test_the_number_of_a_leaky_run_says_so(small_tree: Path, tmp_path: Path, train: Train) -> None:
    words = small(small_tree, tmp_path / "outputs")
    swept = train(*words, "trainer.max_epochs=1", "split_scheme=cell", "seed=0,1", "-m")
    lines = [line for line in swept.out.splitlines() if "selection (val)" in line]
    assert len(lines) == 4
    assert all("SYNTHETIC LEAKY" in line for line in lines)


@pytest.fixture
def hanging(faulty: Path, small_tree: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A sweep of two jobs at work that will not end, in a process group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "leukocls.train",
         *overrides(small_tree, tmp_path / "outputs", "seed=range(2)", "jobs=2")],
        cwd=faulty, env=os.environ | {"PYTHONPATH": str(faulty), "FAULTS": "hang hang"},
        text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    logs = (tmp_path / "outputs").rglob
    try:
        eventually(lambda: ["hanging" in p.read_text() for p in logs("log.txt")] == [True] * 2, 120)
        yield process
    finally:
        if alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def eventually(holds, seconds: float) -> None:
    """Wait for something that will be so."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_ends_every_job_and_says_so(hanging, tmp_path: Path) -> None:
    """Sent to all processes, as a terminal does; tests/faults has signals to the sweep alone."""
    os.killpg(hanging.pid, signal.SIGINT)
    printed, _ = hanging.communicate(timeout=120)
    assert hanging.returncode == 130
    assert "error: interrupted (exit code 130)" in printed
    runs = [*(tmp_path / "outputs").rglob("run.json")]
    assert [record(run.parent)["status"] for run in runs] == ["interrupted"] * 2
    eventually(lambda: not alive(hanging.pid), 60)


def test_a_sweep_that_is_killed_leaves_no_process(hanging) -> None:
    hanging.kill()
    hanging.wait()
    eventually(lambda: not alive(hanging.pid), 90)


def test_what_needs_another_run_of_the_sweep_waits_for_it(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    outputs = tmp_path / "outputs"
    words = ["ablation=norot,proposal", "seed=0,1", "trainer.max_epochs=1", "jobs=2", "-m"]
    swept = train(*small(small_tree, outputs), *words)
    assert swept.code == 0, swept.err
    assert "4 of 4 runs done" in swept.out


def test_no_configuration_lands_in_anothers_directory(
    trained: Path, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    words = small(small_tree, tmp_path / "outputs")
    arms = ["ablation=proposal,noaugment", "optim.lr=1e-3,1e-4", "model.outputs=1,2"]
    planned = train(*words, *arms, "plan=true", "-m")
    assert "8 runs, 0 done" in planned.out, planned
    # A finished run of other settings is in the way.
    words += ["optim.lr=1e-2"]
    planned = train(*words, "plan=true")
    place = Path(next(line.split()[0] for line in planned.out.splitlines() if "/seed_000" in line))
    shutil.copytree(trained, place)
    words += ["seed=0,1"]
    swept = train(*words, "-m")
    assert swept.code == 1
    assert f"{place}: holds a run of another configuration; these differ: optim.lr" in swept.err
    assert "1 of 2 runs done, 1 refused" in swept.out
    assert record(place) == record(trained)
    assert re.search("^0 +refused", train(*words, "plan=true", "-m").out, re.MULTILINE)
    # Nor do two jobs of one sweep share a directory.
    told = train(*words, f"data.root={small_tree},{tmp_path}", "-m")
    assert (told.code, "would be one run" in told.err) == (2, True)
    for bad, cause in (("seed=a,b", "seed=a: choose"), ("seed=range(0)", "nothing to run")):
        told = train(*words[:-1], bad, "-m")
        assert (told.code, cause in told.err) == (2, True)


def test_the_table_has_a_column_for_each_key_that_differs(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    outputs = tmp_path / "outputs"
    words = [*small(small_tree, outputs), "trainer.max_epochs=1", "trainer.limit_train_batches=1"]
    swept = train(*words, "optim.lr=1e-2,1e-3", "seed=0,1", "plan=true", "-m")
    place, header, *rows = swept.out.splitlines()[:6]
    assert Path(place) == outputs / "demo"
    assert header.split() == ["optim.lr", "seed", "status", "takes", "about"]
    assert [row.split()[:3] for row in rows] == [
        [lr, seed, "missing"] for lr in ("0.01", "0.001") for seed in "01"
    ]


def configured(**settings) -> object:
    trainer = {"accelerator": "auto", "devices": settings.pop("devices", 1)}
    usual = {"jobs": None, "jobs_per_gpu": 1, "time_limit": None, "threads": 1}
    return OmegaConf.create(usual | settings | {"trainer": trainer})


def test_slots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    assert slots([configured()]) == [None] * 8
    assert slots([configured(threads=3)]) == [None] * 2
    assert slots([configured(threads=2, devices=2)]) == [None] * 2
    assert slots([configured(threads=99)]) == [None]
    assert slots([configured(jobs=3)]) == [None] * 3

    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho GPU-a\necho GPU-b\necho GPU-c\n")
    tool.chmod(0o755)
    assert visible_gpus() == ["GPU-a", "GPU-b", "GPU-c"]
    assert slots([configured()]) == ["GPU-a", "GPU-b", "GPU-c"]
    assert slots([configured(jobs_per_gpu=2)]) == ["GPU-a", "GPU-b", "GPU-c"] * 2
    assert slots([configured(jobs=2)]) == ["GPU-a", "GPU-b"]
    assert slots([configured(devices=2)]) == ["GPU-a,GPU-b"]
    assert slots([configured(devices="auto")]) == [None]
    with pytest.raises(LeukoclsError, match="only 3 GPUs"):
        slots([configured(devices=4)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, 2")
    assert slots([configured()]) == ["1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots([configured()]) == [None] * 8


@pytest.mark.parametrize("bad", [{"jobs": 0}, {"jobs_per_gpu": 0.5}, {"time_limit": -1}])
def test_limits_out_of_range_are_refused(bad) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(LeukoclsError, match=f"{name}={value}: choose more than 0"):
        slots([configured(**bad)])


def test_what_is_one_for_all_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots([configured(threads=1), configured(threads=4)]) == [None] * 2
    with pytest.raises(LeukoclsError, match=r"trainer\.devices"):
        slots([configured(), configured(devices=2)])
    with pytest.raises(LeukoclsError, match="threads=0: choose"):
        slots([configured(threads=0)])
