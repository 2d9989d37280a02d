"""launcher=slurm is hydra-submitit-launcher's; what can be shown of it without a cluster."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Train, only_run, record, small
from hydra import compose, initialize_config_dir
from warm import Command

pytest.importorskip("submitit")


def test_a_sweep_through_submitit_is_the_same_sweep(
    trained: Path, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    outputs = tmp_path / "outputs"
    command = [*small(small_tree, outputs), "seed=range(2)", "launcher=submitit", "-m"]
    swept = train(*command)
    assert swept.code == 0, swept.err
    assert "2 of 2 runs done" in swept.out
    runs = sorted(path.parent for path in outputs.rglob("run.json"))
    assert [run.name for run in runs] == [f"seed_{seed:03d}" for seed in range(2)]
    assert record(runs[0])["predictions_sha256"] == record(trained)["predictions_sha256"]
    assert len({record(run)["predictions_sha256"] for run in runs}) == 2
    jobs = len(list((outputs / ".submitit").iterdir()))
    again = train(*command)
    assert (again.code, "2 of 2 runs done" in again.out) == (0, True)
    assert len(list((outputs / ".submitit").iterdir())) == jobs  # nothing was submitted


def test_a_job_that_is_taken_back_goes_on_where_it_was(
    small_tree: Path, tmp_path: Path, train: Train, command: Callable[..., Command]
) -> None:
    """As before a time limit, or when another job has the node first: by submitit's signal."""

    def words(name: str) -> list[str]:
        return [*small(small_tree, tmp_path / name), "trainer.max_epochs=12"]

    sweep = command("train", *words("taken"), "launcher=submitit", "force=true", "-m")
    saved = "checkpoints/resume-epoch0001.ckpt"
    assert sweep.until(lambda: list(tmp_path.rglob(saved)), 180), sweep.err
    run = only_run(tmp_path / "taken")
    os.kill(record(run)["pid"], signal.SIGUSR2)
    assert sweep.wait(300) == 0, sweep.out + sweep.err
    assert "resumed after epoch" in (run / "log.txt").read_text()
    assert train(*words("left")).code == 0
    left = only_run(tmp_path / "left")
    assert record(run)["status"] == record(left)["status"] == "done"
    assert record(run)["predictions_sha256"] == record(left)["predictions_sha256"]


def test_what_is_asked_of_slurm() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        words = ["launcher=slurm", "hydra.launcher.partition=gpu", "threads=4", "outputs=/runs"]
        asked = compose("train", words, return_hydra_config=True).hydra.launcher
    assert asked["_target_"] == "hydra_plugins.leukocls.SlurmLauncher"
    assert (asked.partition, asked.cpus_per_task, asked.gpus_per_node) == ("gpu", 4, 1)
    assert asked.submitit_folder == "/runs/.submitit/%j"
    assert asked.max_num_timeout > 0  # or it would not be put back into the queue
