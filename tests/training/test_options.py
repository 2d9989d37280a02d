"""What a recipe may ask of training: losses, samplers, averages, accumulation, patience, views."""

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from conftest import Outcome, Train, edit_record, only_run, record, small
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from torchvision.ops import box_iou

from leukocls.artifacts import predictions
from leukocls.data.store import open_store
from leukocls.data.verify import checked_index
from leukocls.training.build import build
from leukocls.training.checkpoint_io import ChecksummedIO
from leukocls.training.checkpoints import Checkpoints
from leukocls.training.recorder import Recorder
from leukocls.training.trainer import _average


@pytest.fixture
def kept(trained_once):
    """The run of the demo's recipe with these overrides, trained once for all tests."""
    return partial(trained_once, "views=1")


@pytest.fixture
def run(small_tree: Path, tmp_path: Path, train: Train):
    """Trains the demo's recipe with these overrides in a folder of their own; its run directory."""

    def go(name: str, *overrides: str) -> Path:
        done = train(*small(small_tree, tmp_path / name / "outputs"), "views=1", *overrides)
        assert done.code == 0, done.err
        return only_run(tmp_path / name / "outputs")

    return go


def logits(directory: Path, epoch: int, split: str = "prelim") -> np.ndarray:
    frame = pd.read_parquet(directory / "predictions.parquet")
    return frame[(frame["epoch"] == epoch) & (frame["split"] == split)]["logit"].to_numpy()


def scored(directory: Path, which: str, tree: Path, folder: Path, train: Train) -> np.ndarray:
    """prelim's logits by a weights file of the run."""
    file = directory / "checkpoints" / f"{which}.safetensors"
    done: Outcome = train(
        f"checkpoint={file}", "score=prelim", "data=cnmc", f"data.root={tree}",
        f"outputs={folder / 'scored'}", f"data.cache={tree.parent / 'store'}",
    )  # fmt: skip
    assert done.code == 0, done.err
    (found,) = (folder / "scored").rglob("predictions.parquet")
    return pd.read_parquet(found)["logit"].to_numpy()


def test_an_average_is_scored_and_kept_and_does_not_touch_training(
    kept, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    plain, averaged = kept(), kept("ema=0.9")
    losses = [pd.read_csv(d / "metrics.csv")["train_loss"].dropna() for d in (plain, averaged)]
    assert losses[0].tolist() == losses[1].tolist()
    assert (logits(plain, 2) != logits(averaged, 2)).all()
    for which, epoch in {"best": record(averaged)["selection"]["epoch"], "last": 2}.items():
        again = scored(averaged, which, small_tree, tmp_path / which, train)
        assert np.array_equal(again, logits(averaged, epoch))


def test_an_average_of_what_does_not_change_is_that_to_the_bit() -> None:
    """Constants of the input are buffers that are averaged, but not saved to resume from."""
    average, constants = _average(0.9), torch.rand(1000)
    network = pl.LightningModule()
    network.norm = torch.nn.BatchNorm1d(1)
    network.register_buffer("constants", constants.clone(), persistent=False)
    average.setup(None, network, "fit")
    for step in range(1, 20):
        network.norm(torch.randn(8, 1))
        average.on_train_batch_end(SimpleNamespace(global_step=step), network, None, None, 0)
    kept = average._average_model.module
    assert torch.equal(kept.constants, constants)
    assert not torch.equal(kept.norm.running_mean, network.norm.running_mean)
    assert kept.norm.num_batches_tracked == network.norm.num_batches_tracked == 19


def test_an_averages_test_is_scored_by_the_selected_epoch(
    run, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    honest = run("honest", "ema=0.9", "split_scheme=honest", "selection=last")
    again = scored(honest, "best", small_tree, tmp_path, train)
    assert np.array_equal(again, logits(honest, 2))


ALL_AT_ONCE = [
    "augment=marzahl2019_boxes", "optim=marzahl2019", "optim.lr=1e-3", "sampler=balanced",
    "trainer.accumulate_grad_batches=2", "ema=0.9", "patience=5", "views=corners",
    "model=resnet18_region",
]  # fmt: skip
FROZEN = ["model=frozen_vgg16", "model.backbone=test_resnet", "optim.lr=1e-2"]


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["ema=0.9"],
        ["save_every=2", "trainer.max_epochs=3"],
        ALL_AT_ONCE,
        FROZEN,
        [*FROZEN, "augment=none", "ema=0.9"],
    ],
)
def test_a_stopped_run_ends_as_if_it_had_not_been(
    more: list[str], run, kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = kept(*more)
    whole = record(source)
    metrics = pd.read_csv(source / "metrics.csv").drop(columns="images_per_s")
    save, last = Checkpoints.save_resume_point, int(metrics["epoch"].max())

    def ended_before_the_last(self: Checkpoints, trainer: object, epoch: int, n: int) -> None:
        if epoch == last:
            raise RuntimeError("pulled the plug")
        save(self, trainer, epoch, n)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save_resume_point", ended_before_the_last)
        with pytest.raises(AssertionError, match="pulled the plug"):
            run("run", *more)
    directory = run("run", *more)
    again = record(directory)
    for key in ("predictions_sha256", "weights_sha256", "metrics"):
        assert again[key] == whole[key]
    after = pd.read_csv(directory / "metrics.csv").drop(columns="images_per_s")
    pd.testing.assert_frame_equal(metrics, after)


def test_save_every_saves_less_often_and_loses_nothing_of_a_whole_run(run, kept) -> None:
    often = kept("trainer.max_epochs=3")
    rarely = run("rarely", "trainer.max_epochs=3", "save_every=2")
    found = sorted(path.name for path in (rarely / "checkpoints").glob("resume-*"))
    assert found == ["resume-epoch0002.ckpt", "resume-epoch0003.ckpt"]
    assert record(often)["predictions_sha256"] == record(rarely)["predictions_sha256"]
    assert record(often)["identity"] == record(rarely)["identity"]


def test_patience_ends_training_and_a_resumed_run_does_not_go_on(run) -> None:
    # So slow that no call changes: epoch 0 stays the best.
    still = ["optim.lr=1e-12", "patience=2", "trainer.max_epochs=6"]
    directory = run("still", *still)
    assert pd.read_csv(directory / "metrics.csv")["epoch"].tolist() == [0, 1, 2]
    whole = record(directory)
    assert whole["status"] == "done"
    edit_record(directory, status="interrupted")
    run("still", *still)
    assert record(directory)["predictions_sha256"] == whole["predictions_sha256"]
    assert pd.read_csv(directory / "metrics.csv")["epoch"].tolist() == [0, 1, 2]


def test_a_resumed_run_of_the_version_before_gets_its_persons(
    trained: Path, small_tree: Path, tmp_path: Path
) -> None:
    run = tmp_path / "seed_000"
    shutil.copytree(trained, run)
    frame = predictions.read(run / "predictions.parquet")
    frame.drop(columns="person").to_parquet(run / "predictions.parquet")
    index = checked_index(small_tree, cache=small_tree.parent / "store").only(("train", "prelim"))
    recorder = Recorder(run, index, "best_weighted_f1", "prelim")
    point = recorder.checkpoints.resume_points()[-1]
    recorder.reload(point, ChecksummedIO().load_checkpoint(point))
    for epoch, before in predictions.by_epoch(frame).items():
        if epoch <= 1:
            found = recorder.predictions.of(epoch)
            pd.testing.assert_frame_equal(found, before.reset_index(drop=True), check_dtype=False)
    assert len(list((run / predictions.PARTS).iterdir())) == 2
    recorder.predictions.join()
    kept = frame[frame["epoch"] <= 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        predictions.read(run / "predictions.parquet"), kept, check_dtype=False
    )
    assert not (run / predictions.PARTS).exists()


def test_accumulated_batches_make_fewer_steps(run) -> None:
    found = {}
    for name, batch, accumulated in (("large", 16, 1), ("small", 8, 2)):
        directory = run(
            name, f"data.batch_size={batch}", f"trainer.accumulate_grad_batches={accumulated}",
            "model.backbone=test_vit", "+model.options.img_size=48", "data.size=48",
            "trainer.limit_train_batches=" + str(accumulated * 2),
        )  # fmt: skip
        found[name] = pd.read_csv(directory / "metrics.csv")
    # Without BatchNorm and dropout the same cells give the same steps.
    for column in ("train_loss", "grad_norm", "prelim_loss"):
        large, small_ = (found[name][column].dropna().to_numpy() for name in ("large", "small"))
        assert small_ == pytest.approx(large, rel=1e-4)


@pytest.mark.parametrize(
    "override",
    [
        "sampler=balanced", "loss.focal_gamma=2", "loss.label_smoothing=0.1", "loss.pos_weight=1",
        "optim=marzahl2019", "+optim.layer_decay=0.7", "augment=marzahl2019_boxes",
    ],
)  # fmt: skip
def test_each_option_changes_what_is_learned(override: str, run, kept) -> None:
    one = "trainer.max_epochs=1"
    more = ["++optim.lr=0.003"] if "layer" in override else []
    plain, other = kept(one, *more), run("other", one, override, *more)
    assert (logits(plain, 0) == logits(other, 0)).all()
    assert (logits(plain, 1) != logits(other, 1)).any()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("patience=3 split_scheme=all selection=last", "patience=3: "),
        ("ema=2", "ema=2: choose a decay between 0 and 1"),
        ("patience=0", "patience=0: choose a whole number of at least 1"),
        ("save_every=0", "save_every=0: choose a whole number of at least 1"),
        ("views=0", "views=0"),
        ("views=edges", "views=edges"),
        ("sampler=even", "sampler=even"),
        ("loss.pos_weight=0", "loss.pos_weight=0"),
        ("loss.pos_weight=heavy", "loss.pos_weight=heavy: choose balanced"),
        ("loss.focal_gamma=-1", "loss.focal_gamma=-1"),
        ("loss.label_smoothing=1", "loss.label_smoothing=1"),
        ("+optim.layer_decay=2", "optim.layer_decay=2"),
        ("model.frozen=some", "model.frozen=some: choose null, weights or all"),
    ],
)
def test_what_cannot_be_is_refused(
    override: str, said: str, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    words = override.replace("+optim", "++optim").split()
    done = train(*small(small_tree, tmp_path / "outputs"), *words)
    assert done.code == 2
    assert said in done.err
    for run in (tmp_path / "outputs").rglob("run.json"):
        assert record(run.parent)["status"] == "failed"


def test_corners_are_nine_views_by_their_weights(run) -> None:
    directory = run("corners", "views=corners")
    weights = record(directory)["view_weights"]
    assert weights == pytest.approx([0.4, *[0.075] * 8])
    frame = pd.read_parquet(directory / "predictions.parquet")
    views = frame[[f"view_{v}" for v in range(9)]].to_numpy("float64")
    assert frame["logit"].to_numpy() == pytest.approx(views @ np.array(weights), abs=1e-5)


# Boxes


@pytest.mark.parametrize("model", ["resnet18_boxes", "resnet18_region"])
def test_iou_is_tracked_beside_f1(model: str, run, small_tree: Path, tmp_path: Path) -> None:
    """It is that of the proposed boxes on the images as they are, by torchvision's own."""
    directory = run(
        "boxes", f"model={model}", "model.backbone=test_resnet", "model.pretrained=false",
        "optim.lr=1e-2", "trainer.max_epochs=5", "views=4",
    )  # fmt: skip
    metrics = pd.read_csv(directory / "metrics.csv")
    assert metrics["prelim_weighted_f1"].notna().all()
    network = build(OmegaConf.load(directory / "config.yaml").model).eval()
    network.load_state_dict(load_file(directory / "checkpoints/last.safetensors"))
    index = checked_index(small_tree, cache=tmp_path).only(("prelim",))
    images = torch.from_numpy(np.array(open_store(index, "d" * 64, tmp_path, 300, 32)))
    with torch.no_grad():
        proposed = network(images.permute(0, 3, 1, 2) / 255)[1]
    tight = []
    for file in index.table["file"]:
        image = Image.open(index.root / file).crop((75, 75, 375, 375))
        left, top, right, bottom = image.getbbox()
        tight.append([top, left, bottom, right])
    wanted = torch.tensor(tight) / 150 - 1
    # A box whose edges cross has no area, and torchvision would count a negative one.
    proper = (proposed[:, 2:] > proposed[:, :2]).all(1)
    iou = torch.where(proper, box_iou(proposed, wanted).diagonal(), 0.0)
    assert metrics["prelim_iou"].iloc[-1] == pytest.approx(iou.mean().item(), abs=2e-3)
    assert proper.any()


def test_after_a_demo_sized_training_boxes_are_found(
    tmp_path: Path, train: Train, demo_cells: list[str]
) -> None:
    """On synthetic cells of subjects not seen, from nothing before the first epoch."""
    done = train(
        "experiment=demo", f"outputs={tmp_path / 'outputs'}", *demo_cells, "model=resnet18_region",
        "model.backbone=test_resnet", "model.pretrained=false", "model.dropouts=[0.1,0.1]",
        "optim=marzahl2019", "optim.lr=1e-2", "augment=marzahl2019_submission", "views=1",
        "data.size=32", "data.batch_size=64", "trainer.max_epochs=12",
    )  # fmt: skip
    assert done.code == 0, done.err
    metrics = pd.read_csv(only_run(tmp_path / "outputs") / "metrics.csv")
    assert metrics["prelim_iou"].iloc[0] < 0.1
    assert metrics["prelim_iou"].iloc[-1] > 0.7
