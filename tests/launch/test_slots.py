"""What is one for a whole sweep, and phases whose order is their authors'."""

import pytest
from conftest import ROOT, hydra_of
from hydra import compose, initialize_config_dir

from leukocls.common.errors import LeukoclsError
from leukocls.launch.job import composed
from leukocls.launch.slots import slots


def config(*words: str):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(words), return_hydra_config=True)


@pytest.mark.parametrize("key", ["time_limit", "jobs", "jobs_per_gpu"])
def test_options_of_the_sweep_cannot_be_swept(key: str) -> None:
    with pytest.raises(LeukoclsError) as refused:
        slots([config(f"{key}=1"), config(f"{key}=2")])
    assert str(refused.value).startswith(f"{key}:")
    assert len(slots([config(f"{key}=1"), config(f"{key}=1")])) >= 1


def test_georgievs_second_stage_starts_anew() -> None:
    """II, III and IV are 500 + 800 + 700 = 2,000 epochs in all: I is not among them."""
    whole = config("experiment=georgiev_vgg16")
    node = hydra_of(whole)
    node.runtime.choices = {"experiment": "georgiev_vgg16", "ablation": "proposal"}
    jobs = composed(whole, node, "")
    starts = [job.config.continue_from for job in jobs]
    assert starts[:2] == [None, None]
    assert starts[2:] == [str(job.directory) for job in jobs[1:3]]
    assert sum(job.config.trainer.max_epochs for job in jobs[1:]) == 2000


def test_phases_that_continue_a_run_are_named_by_their_own_command(trained) -> None:
    """Each seed had an arm of its own, for the arm was named after the phase before."""
    arms = set()
    for seed in (0, 1):
        words = ["experiment=georgiev_vgg16", f"seed={seed}", f"continue_from='{trained}'"]
        whole = config(*words)
        node = hydra_of(whole)
        node.runtime.choices = {"experiment": "georgiev_vgg16", "ablation": "proposal"}
        node.overrides.task = words
        arms |= {job.directory.parent for job in composed(whole, node, "")}
    assert len(arms) == 4
