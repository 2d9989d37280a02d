"""The number that a run is listed with, and whether the run is being written."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from leukocls.artifacts import environment
from leukocls.artifacts.record import headline, is_running_here, process_start
from leukocls.artifacts.run_dir import RunDir


@pytest.mark.parametrize(
    ("chosen_on", "splits", "marks", "expected"),
    [
        ("prelim", ["prelim"], [], ("selection", "prelim")),
        ("val", ["prelim", "val"], [], ("test", "prelim")),
        ("val", ["prelim", "val"], ["LEAKY"], ("selection", "val")),
        ("val", ["val"], [], ("selection", "val")),
        ("train", ["train"], [], ("training", "train")),
    ],
)
def test_the_headline_is_the_tests_if_there_is_one(chosen_on, splits, marks, expected) -> None:
    record = {
        "selection": {"set": chosen_on, "epoch": 1},
        "marks": marks,
        "metrics": {split: {"weighted_f1": 0.5} for split in splits},
    }
    found = headline(record)
    assert found is not None
    assert (found["heading"], found["set"]) == expected
    assert headline({}) is None


def test_asking_whether_a_run_is_written_leaves_its_lock_alone(tmp_path: Path) -> None:
    """A question that takes the lock makes a run fail that starts in the same moment."""
    run = RunDir(tmp_path / "demo" / "proposal" / "seed_000", OmegaConf.create({"seed": 0}), {})
    assert not is_running_here(run.directory)
    with run.locked():
        here = {"status": "running", "pid": os.getpid(), "host": socket.gethostname(),
                "pid_start": process_start(os.getpid())}  # fmt: skip
        (run.directory / "run.json").write_text(json.dumps(here))
        lock = (run.directory / ".lock").stat()
        assert is_running_here(run.directory)
        assert (run.directory / ".lock").stat().st_atime_ns == lock.st_atime_ns
    # After a reboot another process may have the number.
    (run.directory / "run.json").write_text(json.dumps(here | {"pid_start": "an earlier boot 1"}))
    assert not is_running_here(run.directory)
    (run.directory / "run.json").write_text(json.dumps(here | {"host": "elsewhere"}))
    assert not is_running_here(run.directory)


def test_a_package_inside_a_foreign_checkout_has_no_commit(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "venv" / "leukocls"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "theirs.txt").touch()
    subprocess.run(["git", "-C", str(tmp_path), "add", "theirs.txt"], check=True)
    subprocess.run(["git", "-C", str(tmp_path), *name, "commit", "-qm", "theirs"], check=True)
    monkeypatch.setattr(environment, "PACKAGE", package)
    assert environment.git_state() is None
    subprocess.run(["git", "-C", str(tmp_path), "add", "venv"], check=True)
    subprocess.run(["git", "-C", str(tmp_path), *name, "commit", "-qm", "ours"], check=True)
    state = environment.git_state()
    assert state is not None
    assert not state["dirty"]
