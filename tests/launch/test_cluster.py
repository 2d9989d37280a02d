"""launcher=slurm is hydra-submitit-launcher's; what can be shown of it without a cluster."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Train, record, small
from hydra import compose, initialize_config_dir
from warm import Command

pytest.importorskip("submitit")


def test_a_sweep_through_submitit_is_the_same_sweep_even_if_a_job_is_taken_back(
    small_tree: Path, tmp_path: Path, train: Train, command: Callable[..., Command]
) -> None:
    """As before a time limit, or when another job has the node first: by submitit's signal."""

    def words(name: str) -> list[str]:
        many = ["seed=range(2)", "trainer.max_epochs=12"]
        return ["-m", *small(small_tree, tmp_path / name), *many]

    def runs(name: str) -> list[Path]:
        return sorted(path.parent for path in (tmp_path / name).rglob("run.json"))

    sweep = command("train", *words("taken"), "launcher=submitit", "force=true")
    saved = "seed_001/checkpoints/resume-epoch0001.ckpt"
    assert sweep.until(lambda: list(tmp_path.rglob(saved)), 180), sweep.err
    [second] = [run for run in runs("taken") if run.name == "seed_001"]  # the other may not be yet
    os.kill(record(second)["pid"], signal.SIGUSR2)
    assert sweep.wait(300) == 0, sweep.out + sweep.err
    assert "2 of 2 runs done" in sweep.out
    assert "resumed after epoch" in (second / "log.txt").read_text()

    assert train(*words("left")).code == 0
    names = [f"seed_{seed:03d}" for seed in range(2)]
    digests = []
    for name in ("taken", "left"):
        assert [run.name for run in runs(name)] == names
        assert all(record(run)["status"] == "done" for run in runs(name))
        digests.append([record(run)["predictions_sha256"] for run in runs(name)])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 2

    jobs = len(list((tmp_path / "taken/.submitit").iterdir()))
    again = train(*words("taken"), "launcher=submitit")
    assert (again.code, "2 of 2 runs done" in again.out) == (0, True)
    assert len(list((tmp_path / "taken/.submitit").iterdir())) == jobs  # nothing was submitted


def test_what_is_asked_of_slurm() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        words = ["launcher=slurm", "hydra.launcher.partition=gpu", "threads=4", "outputs=/runs"]
        asked = compose("train", words, return_hydra_config=True).hydra.launcher
    assert asked["_target_"] == "hydra_plugins.leukocls.SlurmLauncher"
    assert (asked.partition, asked.cpus_per_task, asked.gpus_per_node) == ("gpu", 4, 1)
    assert asked.submitit_folder == "/runs/.submitit/%j"
    assert asked.max_num_timeout > 0  # or it would not be put back into the queue
