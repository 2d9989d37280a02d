"""Fit a network, or score a finished checkpoint: from a run's inputs to its files on disk."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from leukocls.artifacts.lineage import as_metadata
from leukocls.artifacts.record import RunState
from leukocls.artifacts.run_dir import RunDir
from leukocls.common.files import atomic_write
from leukocls.common.processes import hold_signals
from leukocls.data.datamodule import CellDataModule
from leukocls.data.store import boxes, open_store, stored_side
from leukocls.data.summary import image_notes
from leukocls.evaluation.calibration import of_run
from leukocls.evaluation.cell_metrics import by_split
from leukocls.models.frozen import FrozenFeatures
from leukocls.models.weights import load_weights
from leukocls.training.build import build, untrained
from leukocls.training.checkpoints import Checkpoints, progress_of
from leukocls.training.classifier import CellClassifier
from leukocls.training.ddp import Rank, rank_zero_first, spawn_ranks
from leukocls.training.feature_cache import cached_features
from leukocls.training.inputs import Inputs, ScoreInputs, TrainInputs
from leukocls.training.losses import CellLoss
from leukocls.training.mid_epoch import MidEpochSaves
from leukocls.training.optim import configure
from leukocls.training.recorder import Recorder
from leukocls.training.trainer import device_name, make_trainer


def check_recipe(inputs: Inputs) -> None:
    """Build what the recipe describes once, without images or weights, before anything is written.

    Raises:
        LeukoclsError: an option of data, augmentation, network, loss, optimiser, schedule or
            Trainer that does not exist or is out of range.
    """
    config, data = inputs.config, inputs.config.data
    side = stored_side(inputs.index, data.crop, data.size)
    no_images = np.broadcast_to(np.uint8(0), (len(inputs.index.table), side, side, 3))
    _datamodule(inputs, no_images, make_trainer(config, Path(), []).num_devices)
    _loss(inputs)
    if isinstance(inputs, TrainInputs):
        # Any number of steps that a schedule can be spread over.
        configure(untrained(_plain(config.model), drawn=False), _plain(config.optim), steps=100)


def fit(inputs: TrainInputs, run: RunDir, resume: bool) -> None:
    """Train, score the tests once by the selected epoch's weights, and write the final record.

    Args:
        inputs: what the run reads.
        run: its locked directory, with a record of status `running`.
        resume: continue from the newest checkpoint, if there is one.
    """
    _run(inputs, run, partial(_fit_rank, inputs, run, resume))


def score(inputs: ScoreInputs, run: RunDir) -> None:
    """Score a finished run's checkpoint on another part, and write the final record."""
    _run(inputs, run, partial(_score_rank, inputs, run))


def _run(inputs: Inputs, run: RunDir, work: Any) -> None:
    """Call `work` in this process, or in one process a device; record what it returns."""
    for note in image_notes(inputs.index, inputs.config.data.crop):
        print(note)
    devices = make_trainer(inputs.config, run.directory, []).num_devices
    atomic_write(run.directory / "split.csv", inputs.split_csv)
    if devices == 1:
        results = work()
    else:
        _images(inputs)  # written once, before several processes want it
        results = spawn_ranks(devices, work)
    hashes = run.stored_hashes(network=isinstance(inputs, TrainInputs))
    run.end(RunState.DONE, **hashes, **results)
    # Later than that: until then a run that is resumed may need them.
    Checkpoints(run.directory).discard_others()


@dataclass(frozen=True)
class _Parts:
    """The objects of one process of a run."""

    trainer: pl.Trainer
    classifier: CellClassifier
    datamodule: CellDataModule
    recorder: Recorder
    started: float
    ready: float

    def results(self, run: RunDir) -> dict[str, Any]:
        """The entries that the record gets when the run ends; empty but for rank 0."""
        if not self.trainer.is_global_zero:
            return {}
        prepare, seconds = self.ready - self.started, time.perf_counter() - self.ready
        selected, threshold = self.recorder.selected, self.recorder.threshold
        chosen_on = run.record["selection"]["set"]
        self.recorder.predictions.join()
        return {
            "device": device_name(self.trainer),
            "selection": run.record["selection"] | {"epoch": self.recorder.selected_epoch},
            "threshold": threshold,
            "calibration": of_run(selected, chosen_on, run.record["pos_weight"]),
            "metrics": by_split(selected, threshold),
            "timing": {"prepare_s": round(prepare, 2), "run_s": round(seconds, 2)},
        }


def _fit_rank(
    inputs: TrainInputs, run: RunDir, resume: bool, rank: Rank | None = None
) -> dict[str, Any]:
    """Train in this process, which is `rank` of several or the only one; rank 0 writes files."""
    parts = _parts(inputs, run, rank)
    trainer, classifier, recorder = parts.trainer, parts.classifier, parts.recorder
    checkpoint = _reloaded(recorder) if resume else None
    if checkpoint is None:
        trainer.validate(classifier, parts.datamodule, verbose=False)
    if not (checkpoint and recorder.exhausted):
        train = partial(
            trainer.fit, classifier, parts.datamodule, ckpt_path=checkpoint, weights_only=True
        )
        if rank:  # several devices would have to agree on the step
            train()
        else:
            with hold_signals() as held:
                callbacks: Any = getattr(trainer, "callbacks")  # noqa: B009 (Lightning hides it)
                callbacks.append(MidEpochSaves(recorder, inputs.config.save_minutes, held))
                train()
    if inputs.split.scored_once:
        load_weights(classifier.network, recorder.checkpoints.best, classifier=())
        classifier.score(inputs.split.scored_once)
        trainer.test(classifier, parts.datamodule, verbose=False)
    return parts.results(run)


def _reloaded(recorder: Recorder) -> Path | None:
    """The checkpoint to resume from, whose history the recorder then has; None without any."""
    found = recorder.checkpoints.newest_whole()
    if found is None:
        return None
    checkpoint, state = found
    epoch, batches = progress_of(checkpoint)
    with rank_zero_first():  # it puts the best weights back in their place
        recorder.reload(checkpoint, state)
    within = f" and {batches} batches of the next" if batches else ""
    print(f"resumed after epoch {epoch}{within} from {checkpoint}")
    return checkpoint


def _score_rank(inputs: ScoreInputs, run: RunDir, rank: Rank | None = None) -> dict[str, Any]:
    """Score in this process, which is `rank` of several or the only one."""
    parts = _parts(inputs, run, rank)
    parts.trainer.validate(parts.classifier, parts.datamodule, verbose=False)
    return parts.results(run) | {"calibration": inputs.calibration}


def scoring_parts(inputs: ScoreInputs) -> tuple[pl.Trainer, CellClassifier, CellDataModule]:
    """What scores the cells of `inputs` in this process and writes nothing."""
    torch.set_num_threads(inputs.config.threads)
    datamodule, classifier = _datamodule(inputs, _images(inputs), 1), _classifier(inputs)
    trainer = make_trainer(inputs.config, Path(), [])
    _prepare_batches(inputs, datamodule, classifier.network, trainer.strategy.root_device)
    return trainer, classifier, datamodule


def _parts(inputs: Inputs, run: RunDir, rank: Rank | None) -> _Parts:
    config, started = inputs.config, time.perf_counter()
    torch.set_num_threads(config.threads)
    pl.seed_everything(config.seed, verbose=False)
    datamodule = _datamodule(inputs, _images(inputs), rank.ranks if rank else 1)
    classifier = _classifier(inputs)
    recorder = Recorder(
        run.directory,
        inputs.index,
        inputs.config.selection,
        inputs.split.selection,
        inputs.threshold,
        patience=config.patience,
        save_every=config.save_every,
        metadata=as_metadata(inputs.lineage_after),
    )
    trainer = make_trainer(config, run.directory, [recorder], rank)
    if rank:
        rank.join(trainer.strategy.root_device)
    with rank_zero_first():
        _prepare_batches(inputs, datamodule, classifier.network, trainer.strategy.root_device)
    return _Parts(trainer, classifier, datamodule, recorder, started, time.perf_counter())


def _images(inputs: Inputs) -> np.memmap:
    data = inputs.config.data
    return open_store(inputs.index, inputs.data_digest, Path(data.cache), data.crop, data.size)


def _datamodule(inputs: Inputs, images: np.ndarray, devices: int) -> CellDataModule:
    config, data = inputs.config, inputs.config.data
    return CellDataModule(
        inputs.index,
        images,
        inputs.split,
        build(config.augment),
        sampler=config.sampler,
        seed=inputs.draws_seed,
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        residence=data.residence,
        workers=data.workers,
        devices=devices,
    )


def _prepare_batches(
    inputs: Inputs, datamodule: CellDataModule, network: nn.Module, device: torch.device
) -> None:
    """Give the batches what this network wants: boxes, or cached features instead of images."""
    config, data = inputs.config, inputs.config.data
    if getattr(network, "proposes_box", False):
        datamodule.boxes = torch.from_numpy(boxes(inputs.index, data.crop))
    exact = config.trainer.precision == "32-true" and isinstance(inputs, TrainInputs)
    if isinstance(network, FrozenFeatures) and datamodule.augmentation.is_identity and exact:
        # Nothing random comes before the backbone: once is enough for all epochs.
        datamodule.store = cached_features(
            network, datamodule.store, config.views, Path(data.cache),
            batch_size=data.eval_batch_size, device=device,
        )  # fmt: skip


def _classifier(inputs: Inputs) -> CellClassifier:
    config, training = inputs.config, isinstance(inputs, TrainInputs)
    if inputs.weights and (config.continue_from or not training):
        # A whole network, head included, and no weights of the backbone's own.
        network = untrained(_plain(config.model), drawn=False)
        key = "continue_from" if training else "checkpoint"
        load_weights(network, inputs.weights, (), key)
    else:
        network = build(config.model)
    return CellClassifier(
        network,
        _plain(config.optim),
        loss=_loss(inputs),
        views=config.views,
        seed=inputs.draws_seed,
        scored=inputs.split.scored,
    )


def _loss(inputs: Inputs) -> CellLoss:
    return CellLoss(**{**_plain(inputs.config.loss), "pos_weight": inputs.pos_weight})


def _plain(config: DictConfig) -> dict[str, Any]:
    container: Any = OmegaConf.to_container(config, resolve=True)
    return container
