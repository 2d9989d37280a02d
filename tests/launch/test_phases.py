"""Phases of a run, and runs that start from another run's weights."""

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY, Train, edit_record, record, train_here
from omegaconf import OmegaConf

from leukocls.common.files import sha256_file
from leukocls.data.random import continued_seed
from leukocls.launch.phases import phase_configs

PHASES = ["stage_1", "stage_2", "stage_3", "stage_4"]


def georgiev(tree: Path, folder: Path) -> list[str]:
    """Georgiev's phases with a small network, one epoch each."""
    return [
        "experiment=georgiev_vgg16", f"data.root={tree}", f"outputs={folder / 'outputs'}",
        f"data.cache={folder / 'store'}", "model.backbone=test_resnet", "model.pretrained=false",
        "data.size=48", "data.batch_size=8", "trainer.max_epochs=1",
    ]  # fmt: skip


def directory(outputs: Path, phase: str | None) -> Path:
    arm = f"phase={phase},proposal" if phase else "proposal"
    (found,) = (outputs / "georgiev_vgg16").glob(f"{arm},*/seed_000")
    return found


@pytest.fixture(scope="module")
def chained(small_tree: Path, once: Callable[..., Path]) -> tuple[Path, str]:
    """A folder with the finished phases of one run, and what was printed."""

    def make(folder: Path) -> None:
        printed = train_here(*georgiev(small_tree, folder))
        (folder / "printed.txt").write_text(printed, encoding="utf-8")

    folder = once("phases", make)
    return folder, (folder / "printed.txt").read_text(encoding="utf-8")


def test_one_command_runs_every_phase_and_the_last_is_the_arms_own_run(chained) -> None:
    outputs = chained[0] / "outputs"
    runs = [directory(outputs, phase) for phase in [*PHASES[:3], None]]
    assert len(list(outputs.rglob("run.json"))) == 4
    for run in runs:
        assert record(run)["status"] == "done"
        assert "RECONSTRUCTION" in record(run)["marks"]
        assert len(pd.read_csv(run / "metrics.csv")) == 2  # the command line's one epoch
    crops = [record(run)["identity"]["data.crop"] for run in runs]
    assert crops == [450, 300, 300, 450]
    rotations = [record(run)["identity"]["augment.rotation"] for run in runs]
    assert rotations == [0, 45, 45, 45]
    assert len({record(run)["id"] for run in runs}) == 4


def test_each_phase_starts_from_the_last_weights_of_the_one_before(chained) -> None:
    outputs = chained[0] / "outputs"
    runs = [directory(outputs, phase) for phase in [*PHASES[:3], None]]
    # I and II start anew; III continues II, and IV III.
    assert [record(run)["inputs"]["weights"] for run in runs[:2]] == [None, None]
    for before, after in pairwise(runs[1:]):
        last = before / "checkpoints" / "last.safetensors"
        assert record(after)["inputs"]["weights"] == sha256_file(last)


def test_stage_iiis_first_weights_are_stage_iis_last(chained) -> None:
    """Nothing but the weights decides a logit: the same cells, crop and view."""
    second, third = (directory(chained[0] / "outputs", phase) for phase in PHASES[1:3])
    columns = ["split", "cell", "view_0", "logit"]
    before, after = (pd.read_parquet(run / "predictions.parquet") for run in (second, third))
    last = before[(before["epoch"] == 1) & (before["split"] == "val")][columns]
    first = after[(after["epoch"] == 0) & (after["split"] == "val")][columns]
    pd.testing.assert_frame_equal(
        last.reset_index(drop=True), first.reset_index(drop=True), check_exact=True
    )
    start = before[(before["epoch"] == 0) & (before["split"] == "val")]["logit"]
    assert not (start.to_numpy() == last["logit"].to_numpy()).any()


def test_the_same_command_again_trains_nothing(chained, small_tree: Path, train: Train) -> None:
    folder = chained[0]
    before = {path: path.read_bytes() for path in (folder / "outputs").rglob("run.json")}
    done = train(*georgiev(small_tree, folder))
    assert done.code == 0
    assert done.out.count("done already") == 4
    assert {path: path.read_bytes() for path in before} == before


def test_a_stopped_phase_is_resumed(
    chained, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(chained[0], folder)
    outputs = folder / "outputs"
    whole = record(directory(outputs, None))
    shutil.rmtree(directory(outputs, None))
    third = directory(outputs, "stage_3")
    edit_record(third, status="interrupted")
    done = train(*georgiev(small_tree, folder))
    assert done.code == 0, done.err
    assert done.out.count("done already") == 2
    assert "resumed after epoch 1" in done.out
    again = record(directory(outputs, None))
    for key in ("predictions_sha256", "weights_sha256", "config_hash"):
        assert again[key] == whole[key]


def test_last_phase_ends_early(small_tree: Path, tmp_path: Path, train: Train) -> None:
    anew = "+phases.stage_2.continue_from=null"
    done = train(*georgiev(small_tree, tmp_path), "last_phase=stage_2", anew)
    assert done.code == 0, done.err
    runs = sorted((tmp_path / "outputs").rglob("run.json"))
    assert [run.parent.parent.name.split(",")[0] for run in runs] == [
        "phase=stage_1",
        "phase=stage_2",
    ]
    # II starts anew where its overlay says so.
    assert [record(run.parent)["inputs"]["weights"] for run in runs] == [None, None]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("last_phase=nothing", "last_phase=nothing"),
        ("phases.stage_2=nothing", "phases.stage_2"),
        ("ablation=norot", "rescore_from"),
    ],
)
def test_phases_that_cannot_be_are_refused(
    override: str, key: str, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    done = train(*georgiev(small_tree, tmp_path), override)
    assert done.code == 2
    assert key in done.err
    assert not list(tmp_path.rglob("run.json"))


def test_a_phase_is_recipe_then_overlay_then_command_line() -> None:
    config = OmegaConf.create(
        {
            "optim": {"lr": {"early": 1.0, "head": 2.0}, "decay": 0.0},
            "data": {"size": 64, "crop": 300},
            "phases": {
                "first": {"optim": {"lr": 0.5}, "data": {"size": 32}, "augment": {"rotation": 0}},
                "second": {"data": {"size": 48, "crop": 450}},
            },
            "last_phase": None,
            "augment": {"name": "none"},
        }
    )
    config.data.size = 128
    phases = phase_configs(config, ["augment=none", "data.size=128"], {"augment"})
    assert list(phases) == ["first", "second"]
    assert phases["first"].optim == {"lr": 0.5, "decay": 0.0}
    assert phases["first"].augment == {"name": "none", "rotation": 0}
    assert [one.data.size for one in phases.values()] == [128, 128]
    assert phases["second"].optim.lr == {"early": 1.0, "head": 2.0}
    assert phases["second"].data.crop == 450
    config.last_phase = "first"
    assert list(phase_configs(config, [], ())) == ["first"]


# continue_from


def demo(tree: Path, folder: Path, *more: str) -> list[str]:
    return [
        *TINY, "experiment=demo", "data=cnmc", f"data.root={tree}", f"outputs={folder}",
        f"data.cache={folder.parent / 'store'}", "data.size=48", "data.batch_size=8",
        "trainer.max_epochs=1", "views=1", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["continue_from", "model.weights"])
def test_weights_that_have_seen_the_scored_subjects_make_a_run_leaky(
    key: str, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    first = tmp_path / "first"
    assert train(*demo(small_tree, first, "split_scheme=subject")).code == 0
    (source,) = first.rglob("run.json")
    start = (
        source.parent if key == "continue_from" else source.parent / "checkpoints/best.safetensors"
    )
    start = f"{key}='{start}'"
    for fold, marks in ((0, ["SYNTHETIC"]), (1, ["SYNTHETIC", "LEAKY"])):
        outputs = tmp_path / f"fold{fold}"
        done = train(*demo(small_tree, outputs, "split_scheme=subject", f"fold={fold}", start))
        assert done.code == 0, done.err
        (run,) = outputs.rglob("run.json")
        assert record(run.parent)["marks"] == marks
        assert ("LEAKY" in done.out) is (fold == 1)


def test_weights_chosen_on_what_is_to_be_the_test_are_refused(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    """Under `challenge` prelim chose the epoch; `honest` may not report it as a test then."""
    assert train(*demo(small_tree, tmp_path / "first")).code == 0
    (source,) = (tmp_path / "first").rglob("run.json")
    done = train(
        *demo(small_tree, tmp_path / "second", "split_scheme=honest"),
        f"continue_from='{source.parent}'",
    )
    assert done.code == 2
    assert "chosen on cells that this split reports as its test" in done.err
    assert not list((tmp_path / "second").rglob("predictions.parquet"))


def test_continue_from_nowhere_is_refused(small_tree: Path, tmp_path: Path, train: Train) -> None:
    done = train(*demo(small_tree, tmp_path / "x"), "continue_from=nowhere")
    assert done.code == 2
    assert "continue_from=nowhere: neither a run directory" in done.err


def test_a_run_that_continues_another_does_not_see_its_draws_again() -> None:
    assert continued_seed(3, 0) == 3
    found = [continued_seed(seed, runs) for seed in (3, 4) for runs in (1, 2, 3)]
    assert found == [continued_seed(seed, runs) for seed in (3, 4) for runs in (1, 2, 3)]
    assert len({3, 4, *found}) == 8


def only(folder: Path) -> Path:
    (found,) = folder.rglob("run.json")
    return found.parent


@pytest.mark.parametrize("copied", [False, True])
def test_what_weights_have_seen_is_not_forgotten_on_the_way(
    copied: bool, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    """A is trained on all, B continues it, C continues B: prelim is no test of C."""

    def run(name: str, *more: str) -> Path:
        done = train(*demo(small_tree, tmp_path / name, *more))
        assert done.code == 0, done.err
        return only(tmp_path / name)

    first = run("a", "split_scheme=all", "selection=last")
    second = run("b", "split_scheme=subject", f"continue_from='{first}'")
    shutil.rmtree(tmp_path / "a")
    start = f"continue_from='{second}'"
    if copied:
        shutil.copy(second / "checkpoints" / "best.safetensors", tmp_path / "w.safetensors")
        shutil.rmtree(tmp_path / "b")
        start = f"model.weights={tmp_path / 'w.safetensors'}"
    third = run("c", "split_scheme=honest", start)
    assert record(third)["marks"] == ["SYNTHETIC", "LEAKY"]
    done = train(
        f"checkpoint={third}", "score=prelim", "data=cnmc", f"data.root={small_tree}",
        f"data.cache={tmp_path / 'store'}", f"outputs={tmp_path / 'scored'}",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "LEAKY" in done.out
    assert "TEST" not in done.out


def test_weights_chosen_on_prelim_stay_so_through_another_run(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    assert train(*demo(small_tree, tmp_path / "a")).code == 0
    start = f"continue_from='{only(tmp_path / 'a')}'"
    assert train(*demo(small_tree, tmp_path / "b", "split_scheme=subject", start)).code == 0
    start = f"continue_from='{only(tmp_path / 'b')}'"
    done = train(*demo(small_tree, tmp_path / "c", "split_scheme=honest", start))
    assert done.code == 2
    assert "chosen on cells that this split reports as its test" in done.err


def test_a_run_and_what_continues_it_do_not_share_a_directory(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    words = demo(small_tree, tmp_path / "runs", "split_scheme=subject")
    assert train(*words).code == 0
    first = only(tmp_path / "runs")
    before = (first / "run.json").read_bytes()
    for start in (first, first / "checkpoints" / "best.safetensors"):
        done = train(*words, f"continue_from='{start}'")
        assert done.code == 0, done.err
    assert len(list((tmp_path / "runs").rglob("run.json"))) == 3
    assert (first / "run.json").read_bytes() == before


def test_phases_may_start_from_a_run_and_may_be_left_out(
    chained, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    first = directory(chained[0] / "outputs", "stage_1")
    words = georgiev(small_tree, tmp_path)
    done = train(*words, "last_phase=stage_1", f"continue_from='{first}'")
    assert done.code == 0, done.err
    digest = sha256_file(first / "checkpoints" / "last.safetensors")
    assert record(only(tmp_path / "outputs"))["inputs"]["weights"] == digest
    shutil.rmtree(tmp_path / "outputs")
    done = train(*words, "phases=null")
    assert done.code == 0, done.err
    assert not only(tmp_path / "outputs").parent.name.startswith("phase=")


def test_changed_weights_are_not_continued(small_tree: Path, tmp_path: Path, train: Train) -> None:
    assert train(*demo(small_tree, tmp_path / "a")).code == 0
    last = only(tmp_path / "a") / "checkpoints" / "last.safetensors"
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    done = train(*demo(small_tree, tmp_path / "b"), f"continue_from='{last.parent.parent}'")
    assert done.code == 2
    assert "changed since the run ended (last_sha256 differs)" in done.err


def test_another_networks_weights_are_refused_by_the_key_that_named_them(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    assert train(*demo(small_tree, tmp_path / "a")).code == 0
    start = f"continue_from='{only(tmp_path / 'a')}'"
    done = train(*demo(small_tree, tmp_path / "b"), start, "model.backbone=test_vit")
    assert done.code == 2
    assert "error: continue_from=" in done.err


@pytest.mark.parametrize(
    "override",
    ["ema=0.5", "loss.focal_gamma=2", "sampler=balanced", "patience=1", "continue_from=nowhere"],
)
def test_options_of_training_are_refused_while_scoring(
    override: str, chained, train: Train
) -> None:
    run = directory(chained[0] / "outputs", None)
    done = train(f"checkpoint={run}", "score=prelim", override)
    assert done.code == 2
    assert f"{override}: a checkpoint is scored by the recipe" in done.err
