"""launcher=slurm is hydra-submitit-launcher's; what can be shown of it without a cluster."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Train, copied, record, small
from hydra import compose, initialize_config_dir

pytest.importorskip("submitit")

# A network that waits, once its run has something to go on from, to be taken off its node.
PATIENT = """
import os, time
from pathlib import Path
from torch import nn

class Patient(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, images):
        outputs = os.environ["PATIENT"]
        if list(Path(outputs).rglob("resume-epoch0001.ckpt")):
            taken = Path(outputs, "taken")
            if not taken.exists():
                taken.touch()
                time.sleep(600)
        return self.head(images.mean((2, 3)))
"""


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


def test_a_job_that_is_taken_back_goes_on_where_it_was(small_tree: Path, tmp_path: Path) -> None:
    copied(tmp_path)
    (tmp_path / "leukocls/models/patient.py").write_text(PATIENT)
    (tmp_path / "conf/model/patient.yaml").write_text("_target_: leukocls.models.patient.Patient\n")
    digests = []
    for name, words in (("taken", ["launcher=submitit", "force=true", "-m"]), ("left", [])):
        outputs = tmp_path / name
        outputs.mkdir()
        if name == "left":
            (outputs / "taken").touch()
        overrides = [w for w in small(small_tree, outputs) if not w.startswith("model")]
        process = subprocess.Popen(
            [sys.executable, "-m", "leukocls.train", *overrides, "model=patient", "optim.lr=1e-2",
             "data.batch_size=16", *words],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"PYTHONPATH": str(tmp_path), "PATIENT": str(outputs)},
        )  # fmt: skip
        if name == "taken":
            deadline = time.monotonic() + 180
            while not (outputs / "taken").exists():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            (run,) = outputs.rglob("run.json")
            os.kill(record(run.parent)["pid"], signal.SIGUSR2)
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
        (run,) = outputs.rglob("run.json")
        assert record(run.parent)["status"] == "done"
        assert ("resumed after epoch 1" in (run.parent / "log.txt").read_text()) is (
            name == "taken"
        )
        digests.append(record(run.parent)["predictions_sha256"])
    assert len(set(digests)) == 1


def test_what_is_asked_of_slurm() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        words = ["launcher=slurm", "hydra.launcher.partition=gpu", "threads=4", "outputs=/runs"]
        asked = compose("train", words, return_hydra_config=True).hydra.launcher
    assert asked["_target_"] == "hydra_plugins.leukocls.SlurmLauncher"
    assert (asked.partition, asked.cpus_per_task, asked.gpus_per_node) == ("gpu", 4, 1)
    assert asked.submitit_folder == "/runs/.submitit/%j"
    assert asked.max_num_timeout > 0  # or it would not be put back into the queue
