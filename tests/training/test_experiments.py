"""Every published recipe through the real command line, and every file of the configuration."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import SAMPLE, Train, record
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import leukocls
from leukocls.data.augment import Augmentation
from leukocls.data.views import view_weights
from leukocls.launch.phases import phase_configs
from leukocls.training.build import build
from leukocls.training.losses import CellLoss
from leukocls.training.optim import configure

CONF = Path(leukocls.__file__).parents[1] / "conf"
# Runs that one command makes; the rest of its marks.
PUBLISHED = {
    "prellberg2019": (1, set()),
    "marzahl2019_plain": (4, set()),
    "marzahl2019_boxes": (4, set()),
    "marzahl2019_region": (4, {"RECONSTRUCTION"}),
    "saeed2022_v2s": (1, {"RECONSTRUCTION"}),
    "saeed2022_b3": (1, {"RECONSTRUCTION"}),
    "georgiev_vgg16": (4, {"RECONSTRUCTION"}),
    "georgiev_efficientnet": (4, {"RECONSTRUCTION"}),
}
# Recipes that share a backbone: one trains it, the others a small one in its place.
SMALL_INSTEAD = {"marzahl2019_plain", "marzahl2019_boxes"}
# An experiment in which each ablation means something.
ABLATIONS = {
    "proposal": "prellberg2019", "norot": "prellberg2019", "nospeclr_1e-3": "prellberg2019",
    "nospeclr_1e-4": "prellberg2019", "nospeclr_1e-5": "prellberg2019",
    "noattention": "saeed2022_b3", "noregion": "marzahl2019_region", "noaugment": "georgiev_vgg16",
}  # fmt: skip
SMALL = ["model.pretrained=false", "model.backbone=test_resnet"]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


@pytest.fixture(scope="module")
def store(once: Callable[..., Path]) -> str:
    """Images that are decoded once for all of these runs."""
    return f"data.cache={once('experiments', lambda folder: None)}"


@pytest.fixture(scope="module")
def data(small_tree: Path) -> list[str]:
    """Where the cells are: genuine ones where there are any."""
    if SAMPLE.is_dir():
        return [f"data.root={SAMPLE}", "data.partial=true"]
    return [f"data.root={small_tree}"]


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_every_recipe_runs_end_to_end_within_limits_of_the_command_line(
    experiment: str, data: list[str], store: str, tmp_path: Path, train: Train
) -> None:
    """With the backbone of each."""
    small = ["model.backbone=test_resnet"] if experiment in SMALL_INSTEAD else []
    done = train(
        f"experiment={experiment}", *small, *data, f"outputs={tmp_path / 'outputs'}", store,
        "model.pretrained=false", "data.size=32", "data.batch_size=4", "trainer.max_epochs=1",
        "trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "threads=1",
    )  # fmt: skip
    assert done.code == 0, done.err
    runs = [path.parent for path in (tmp_path / "outputs").rglob("run.json")]
    number, marks = PUBLISHED[experiment]
    assert len(runs) == number
    (result,) = [run for run in runs if not run.parent.name.startswith("phase=")]
    partial = "data.partial=true" in data
    for run in runs:
        said = record(run)
        assert said["status"] == "done"
        assert set(said["marks"]) == marks | {"LIMITED", "PARTIAL" if partial else "SYNTHETIC"}
        assert len(pd.read_csv(run / "metrics.csv")) == 2
    assert f"{result}\n" in done.out
    for mark in marks:
        assert mark in done.out
    # Hundreds of MB that pytest would keep.
    shutil.rmtree(tmp_path)


def test_no_experiment_or_ablation_is_left_out() -> None:
    # The demo is run by test_demo.py, and its smaller one, less its size, is the demo;
    # `leakage` is planned by test_leakage_lab.py.
    assert set(options("experiment")) == {*PUBLISHED, "demo", "demo_ablation", "leakage"}
    demo, smaller = (composed(f"experiment={name}") for name in ("demo", "demo_ablation"))
    smaller.data.size, smaller.trainer.max_epochs = demo.data.size, demo.trainer.max_epochs
    assert smaller == demo
    assert set(options("ablation")) == set(ABLATIONS)


def assert_built(config) -> None:
    """The parts of a run come out of the configuration and fit together."""
    network = build(config.model)
    optim = OmegaConf.to_container(config.optim)
    optimizer, _ = configure(network, optim, 10)
    found = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    assert isinstance(build(config.augment), Augmentation)
    assert sum(view_weights(config.views)) == pytest.approx(1)
    CellLoss(**(OmegaConf.to_container(config.loss) | {"pos_weight": 1.0}))


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_every_ablation_is_built(ablation: str) -> None:
    experiment = f"experiment={ABLATIONS[ablation]}"
    proposal = composed(experiment, *SMALL)
    config = composed(experiment, f"ablation={ablation}", *SMALL)
    assert_built(config)
    assert (config == proposal) is (ablation == "proposal")


@pytest.mark.parametrize("experiment", [*PUBLISHED, "demo"])
def test_every_phase_is_built(experiment: str) -> None:
    config = composed(f"experiment={experiment}", *SMALL, "model.weights=null")
    assert_built(config)
    for phase in phase_configs(config, SMALL, ()).values():
        assert phase != config
        assert_built(phase)


def pairwise(*options: list[str]) -> list[tuple[str, ...]]:
    """Combinations in which each option of one list meets each of another (of three, one in three
    does): what any two of them do to each other is seen."""
    numbered = itertools.product(*map(enumerate, options))
    return [
        tuple(name for _, name in one)
        for one in numbered
        if sum(place for place, _ in one) % 3 == 0
    ]


SOME = ["prellberg2019", "marzahl2019_boxes", "demo"]


@pytest.mark.parametrize(
    ("experiment", "model", "optim"),
    pairwise(SOME, ["seresnext50", "resnet18_region", "frozen_vgg16"], options("optim")),
)
def test_networks_and_schedules_are_interchangeable(
    experiment: str, model: str, optim: str
) -> None:
    assert_built(composed(f"experiment={experiment}", f"model={model}", f"optim={optim}", *SMALL))


@pytest.mark.parametrize(("experiment", "augment"), pairwise(SOME, options("augment")))
def test_augmentations_are_interchangeable(experiment: str, augment: str) -> None:
    config = composed(f"experiment={experiment}", f"augment={augment}")
    alone = OmegaConf.load(CONF / "augment" / f"{augment}.yaml")
    assert config.augment == alone
    assert_built(composed(f"experiment={experiment}", f"augment={augment}", *SMALL, "model=timm"))


@pytest.mark.parametrize(
    "more",
    [
        ["experiment=prellberg2019", "model=resnet18_region", "augment=marzahl2019_boxes"],
        ["experiment=saeed2022_b3", "model=frozen_vgg16", "optim=marzahl2019"],
        ["experiment=marzahl2019_boxes", "model=seresnext50", "augment=prellberg2019"],
        ["experiment=georgiev_vgg16", "model=resnet18_plain", "optim=prellberg2019"],
    ],
)
def test_swapped_parts_train(
    more: list[str], small_tree: Path, store: str, tmp_path: Path, train: Train
) -> None:
    done = train(
        *more, *SMALL, f"data.root={small_tree}", f"outputs={tmp_path / 'outputs'}", store,
        "data.size=48", "data.batch_size=4", "trainer.max_epochs=1", "phases=null",
        "trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "threads=1",
    )  # fmt: skip
    assert done.code == 0, done.err
