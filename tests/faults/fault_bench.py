"""The fault bench: starts a run as a process, lets a fault happen, and compares what is left."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from conftest import Command, record, small, train_here
from faults.fault_points import VARIABLE
from safetensors.torch import load_file

from leukocls.artifacts.predictions import PARTS
from leukocls.artifacts.record import read_record
from leukocls.artifacts.run_dir import RESERVE
from leukocls.training.checkpoint_io import ChecksummedIO

# Everything that a resumed run could get wrong: dropout, mixup, an average of the weights, steps
# of several batches, oversampling. Saved whenever the optimiser steps.
EVERYTHING = [
    "trainer.accumulate_grad_batches=2", "ema=0.9", "+augment.mixup=0.4", "sampler=balanced",
    "+model.options.drop_rate=0.3", "data.batch_size=8", "save_minutes=1e-9",
]  # fmt: skip
KINDS = {
    "plain": [],
    "workers": ["data.workers=2"],
    "phases": ["experiment=georgiev_vgg16", "last_phase=stage_2"],
    "test": ["split_scheme=honest", "folds=3"],
}
# Another file system than the run's, where the machine has one.
ELSEWHERE = {"TMPDIR": "/dev/shm"} if Path("/dev/shm").is_dir() else {}
DIGESTS = ("predictions_sha256", "weights_sha256", "last_sha256")
SPEED = "images_per_s"
Start = Callable[..., Command]


def words_of(kind: str, tree: Path, outputs: Path) -> list[str]:
    """The command line of a run that is killed."""
    return [*small(tree, outputs), *KINDS[kind], *EVERYTHING, "save_every=3"]


def run_with(start: Start, words: list[str], fault: str = "", **environment: str) -> Command:
    """A run that meets `fault`, as `fault_points` has it, and has ended."""
    env = os.environ | environment | ({VARIABLE: fault} if fault else {})
    env.pop("LEUKOCLS_DATA", None)
    process = start("train", *words, env=env)
    process.wait(300)
    return process


def result(outputs: Path) -> dict[str, Any]:
    """By run: the digests of what it ended with, and its metrics.csv without the times."""
    found = {}
    for path in sorted(outputs.rglob("run.json")):
        run = path.parent
        assert record(run)["status"] == "done"
        rows = pd.read_csv(run / "metrics.csv", dtype=str).drop(columns=SPEED)
        digests = {key: record(run)[key] for key in DIGESTS}
        found[str(run.relative_to(outputs))] = digests | {"metrics": rows.to_csv(index=False)}
    assert found
    return found


def whole(kind: str, tree: Path, once: Callable[..., Path]) -> dict[str, Any]:
    """The result of such a run that nothing interrupts; it is trained once."""
    kind = "plain" if kind == "workers" else kind

    def make(folder: Path) -> None:
        train_here(*words_of(kind, tree, folder / "outputs"), "save_minutes=null")

    return result(once(f"whole-{kind}", make) / "outputs")


def assert_nothing_is_torn(outputs: Path) -> None:
    """Every file under a final name reads; temporary ones may be left by a process that is gone."""
    for path in outputs.rglob("*"):
        if not path.is_file() or re.fullmatch(r"\.[0-9a-f]{32}\.tmp|\.lock", path.name):
            continue
        if path.suffix == ".ckpt":
            ChecksummedIO().load_checkpoint(path)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".parquet":
            pd.read_parquet(path)
        elif path.suffix == ".csv":
            assert len(pd.read_csv(path))
        elif path.name == "run.json":
            read_record(path.parent)
        elif path.suffix == ".json":
            json.loads(path.read_text())


def assert_nothing_is_left_over(outputs: Path) -> None:
    """Check that finished runs have no temporary file, part of predictions or older weights."""
    for name in (".*.tmp", PARTS, RESERVE, "selected-*"):
        assert not list(outputs.rglob(name))
