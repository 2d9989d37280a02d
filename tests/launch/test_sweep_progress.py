"""What a sweep draws on a terminal of 80 columns."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from leukocls.launch.job import Job
from leukocls.launch.progress import Progress, table
from leukocls.launch.worker import SweepJob

LINE = "epoch 12 · train loss 0.4713 · prelim loss 0.3616 weighted_f1 0.7546 *"


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two workers of a sweep over two long keys, which have printed a line."""
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: SimpleNamespace(columns=80))
    keys = ["model.options.drop_path_rate", "optim.lr"]
    jobs = [
        SweepJob([Job(OmegaConf.create(), tmp_path / f"{i}", [f"{k}={i}" for k in keys], "")], keys)
        for i in range(2)
    ]
    printed = ["\x1b[31mloading", LINE]
    return [
        SimpleNamespace(job=job, slot=i, lines=lambda last=last: [last])
        for i, (job, last) in enumerate(zip(jobs, printed, strict=True))
    ]


def test_the_last_line_of_a_job_shows_its_value(
    workers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress(2, 2)
    progress.show(workers)
    shown = [line.desc for line in progress.lines]
    progress.close()
    assert max(map(len, shown)) < 80
    assert "\x1b" not in shown[0]
    assert shown[1].endswith("weighted_f1 0.7546 *")
    assert "lr=1" in shown[1]
    assert "epoch 12" in shown[1]


def test_the_table_fits_the_terminal(
    workers: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jobs = [worker.job for worker in workers]
    jobs[1].error = "RuntimeError: " + "no room " * 20
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    text = table(jobs, 60)
    assert max(len(line) for line in text.splitlines() if line != str(tmp_path)) <= 80
    assert text.count("room") == 20
