"""One run put together: data, network, trainer; then trained or scored, then told."""

import logging
import sys
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import EMAWeightAveraging, TQDMProgressBar, WeightAveraging
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import nn

from leukocls.artifacts.lineage import as_metadata, lineage_of, read_lineage, seen, with_recipe_of
from leukocls.artifacts.marks import data_marks, run_marks
from leukocls.artifacts.record import RunState, read_record
from leukocls.artifacts.run_dir import RunDir, run_weights
from leukocls.build import build
from leukocls.classifier import CellClassifier
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import atomic_write, sha256_file
from leukocls.data.datamodule import CellDataModule
from leukocls.data.feature_cache import cached_features
from leukocls.data.index import Index
from leukocls.data.splits import Split, SplitOptions, as_csv, make_split, part_rows
from leukocls.data.store import boxes, data_digest, open_store
from leukocls.data.verify import checked_index
from leukocls.data.views import view_weights
from leukocls.evaluation import scoring
from leukocls.evaluation.selection import BEST_THRESHOLD
from leukocls.losses import CellLoss
from leukocls.models.frozen import FrozenFeatures
from leukocls.models.weights import load_weights, weights_file
from leukocls.optim import parameter_groups
from leukocls.ranks import Place, first_alone, together
from leukocls.recorder import Recorder
from leukocls.reporting import tables
from leukocls.synthetic.tree import SyntheticSpec, write_tree
from leukocls.tracking import tracking
from leukocls.view_zero import VIEW_0, source_of

# What Lightning says about choices that are ours.
QUIET = (
    ".*does not have many workers.*",
    ".*The number of training batches.*",
    ".*Trying to infer the `batch_size`.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*in eval mode at the start of training.*",
    ".*sync_dist=True.*",  # what is logged is of all ranks already
    ".*find_unused_parameters=True was specified.*",
)
# Whose gradients are added up in an order that a resumed run repeats: without the search for unused
# parameters the first step of every process decides it anew for all that follow.
DDP = "ddp_find_unused_parameters_true"
# Keys of Lightning's that would end or score a run elsewhere than at each epoch's end, or take its
# processes from us.
FOREIGN = {
    "check_val_every_n_epoch": "every epoch is scored once",
    "val_check_interval": "every epoch is scored once",
    "max_steps": "use trainer.max_epochs or trainer.limit_train_batches",
    "max_time": "a stopped run resumes; use trainer.max_epochs",
    "num_nodes": "a run stays on one machine, and takes several of its devices by trainer.devices",
    "strategy": "it is DDP for several trainer.devices",
}


class Session:
    """The parts of one run, from its configuration.

    Args:
        config: as conf/train.yaml composes it.

    Raises:
        LeukoclsError: before anything but the cache is written: data, splits or sizes that
            cannot be.
    """

    def __init__(self, config: DictConfig) -> None:
        if bool(config.checkpoint) != bool(config.score):
            raise LeukoclsError(
                "checkpoint= and score= go together: checkpoint=RUN_DIRECTORY score=final"
            )
        self.weights = run_weights(config.checkpoint) if config.checkpoint else None
        # The run that is scored.
        self.source = self.weights.resolve().parent.parent if self.weights else None
        self.config = with_recipe_of(self.source, config) if self.source else config
        self.start = None if self.source else self._start()  # what training starts from
        self.lineage = read_lineage(self.weights or self.start)
        if self.weights and not self.lineage:
            raise LeukoclsError(
                f"{self.weights}: does not say which cells it has seen; an older version wrote it,"
                " so train it again."
            )
        if self.config.threshold != BEST_THRESHOLD and not (
            isinstance(self.config.threshold, float) and 0 < self.config.threshold < 1
        ):
            raise LeukoclsError(
                f"threshold={self.config.threshold}: a probability between 0 and 1, or"
                f" {BEST_THRESHOLD}."
            )
        for name in ("threads", "save_every", "patience"):
            value = self.config[name]
            missing = value is None and name == "patience"
            if not missing and not (isinstance(value, int) and value >= 1):
                raise LeukoclsError(f"{name}={value}: choose a whole number of at least 1.")
        view_weights(self.config.views)  # refuses what is none
        part = self.config.score
        self.parts = (part,) if part else ("train", "prelim")
        # Whether final is there is nothing to a run that trains.
        self.index = load_index(self.config).only(self.parts)
        self.data_marks = data_marks(self.index, self.parts)
        if self.config.data.drop_h3:
            self.index = self.index.without_h3()
        self.split = self._split()
        if self.config.patience and self.split.selection == "train":
            raise LeukoclsError(
                f"patience={self.config.patience}: split_scheme={self.config.split_scheme} holds no"
                " cell back to judge by; leave patience out."
            )
        self.seen = self._seen()
        if self.start and self.seen[1]:
            raise LeukoclsError(
                f"{self.start}: its epoch was chosen on cells that this split reports as its test;"
                " continue a run of the same split, or choose another split_scheme."
            )
        self.digest = data_digest(self.index)

    def _start(self) -> Path | None:
        """The weights that training starts from, if not from the backbone's own or random ones."""
        if self.config.continue_from:
            return run_weights(self.config.continue_from, "continue_from", "last")
        weights = self.config.model.get("weights")
        return weights_file(weights) if weights else None

    def _split(self) -> Split:
        config, part = self.config, self.config.score
        if part is not None:
            # Scored cells choose nothing: the epoch was chosen where the checkpoint was trained.
            return Split(config.split_scheme, {part: part_rows(self.index, part)}, part)
        choice = SplitOptions(
            config.fold,
            config.folds,
            config.split_seed,
            config.data.n_subjects,
            config.data.n_cells,
        )
        return make_split(self.index, config.split_scheme, choice)

    def run(self, directory: Path, view_0_of: Path | None = None) -> RunDir:
        """The run of this configuration on this data, or view 0 of another run's."""
        weights = self.weights or self.start
        digests = {"data": self.digest, "weights": sha256_file(weights) if weights else None}
        digests["split"] = sha256(self._split_csv().encode()).hexdigest()
        if view_0_of:
            digests[VIEW_0] = source_of(view_0_of)[1]["predictions_sha256"]
        return RunDir(directory, self.config, digests)

    def _split_csv(self) -> str:
        return as_csv(self._cells())

    def _seen(self) -> tuple[bool, bool]:
        """Whether cells that are scored trained the weights that this run takes over, and whether
        they chose in their runs (of the cells that training will score, only tests matter)."""
        if self.config.score == "train":
            return False, False
        scored = tests = self._cells()
        if not self.source:
            scored = scored[scored["split"] != "train"]
            tests = tests[tests["split"].isin(self.split.tests)]
        published = self.index.rules.cnmc_names
        trained = seen(self.lineage, "trained", scored, published)
        return trained, seen(self.lineage, "chose", tests, published)

    def _cells(self) -> pd.DataFrame:
        return self.split.table(self.index)

    def pos_weight(self) -> float:
        """The weight of ALL; `balanced` is n_HEM / n_ALL of what is trained on (Prellberg & Kramer
        2019, released code)."""
        if self.source:
            return float(read_record(self.source)["pos_weight"])
        weight = self.config.loss.pos_weight
        if isinstance(weight, int | float):
            return float(weight)
        if weight == "balanced" and self.config.sampler == "balanced":
            return 1.0  # the batches are balanced already
        if weight != "balanced":
            raise LeukoclsError(f"loss.pos_weight={weight}: choose balanced, or a number above 0.")
        label = self.index.table["label"].to_numpy()[self.split.rows["train"]]
        return float((label == 0).sum() / (label == 1).sum())

    def facts(self) -> dict[str, Any]:
        """What run.json says of the run from its start on."""
        config = self.config
        source = read_record(self.source) if self.source else {}
        rule, chosen_on = config.selection, self.split.selection
        trained, chose = self.seen
        if source:
            rule, chosen_on = source["selection"]["rule"], source["selection"]["set"]
        if source and (trained or chose):  # under whatever name these cells did it
            chosen_on = self.split.selection
        return {
            "device": None,
            "threads": config.threads,
            "data_digest": self.digest,
            "split_scheme": source.get("split_scheme", self.split.scheme),
            "selection": {"rule": rule, "set": chosen_on, "epoch": None},
            "threshold": None,
            "pos_weight": self.pos_weight(),
            "view_weights": view_weights(config.views),
            "marks": run_marks(
                self.data_marks,
                limited=_is_limited(config.trainer),
                leaky=self.split.leaky or trained,
                reconstruction=config.reconstruction,
                inherited=source.get("marks", []),
            ),
            "metrics": {},
            "predictions_sha256": None,
            "weights_sha256": None,
            "last_sha256": None,
            "timing": {},
        }

    def _threshold(self) -> float | str:
        """That of the trained run; else the configured one, or how it is to be chosen."""
        trained = read_record(self.source)["threshold"] if self.source else None
        return self.config.threshold if trained is None else trained

    def execute(self, run: RunDir, resume: bool) -> None:
        """Train (or score), then write the record's last state.

        Several devices take a process each, beside this one, which holds the run. A batch is
        `data.batch_size` images on each of them.
        """
        devices = self._trainer([], run).num_devices
        atomic_write(run.directory / "split.csv", self._split_csv())
        if devices == 1:
            ended = self.work(run, resume)
        else:
            self._images()  # made once, before several want it
            ended = together(devices, partial(self.work, run, resume))
        run.end(RunState.DONE, **run.stored_hashes(), **ended)

    def _images(self) -> np.memmap:
        data = self.config.data
        return open_store(self.index, self.digest, Path(data.cache), data.crop, data.size)

    def work(self, run: RunDir, resume: bool, place: Place | None = None) -> dict[str, Any]:
        """Train or score in this process, one of several if it has a place; what to record of it.

        Rank 0 alone writes files and is tracked.
        """
        config, started = self.config, time.perf_counter()
        torch.set_num_threads(config.threads)
        pl.seed_everything(config.seed, verbose=False)
        images = self._images()
        datamodule = self._datamodule(images, place.ranks if place else 1)
        classifier = self._classifier()
        recorder = Recorder(
            run.directory,
            self.index,
            config.selection,
            self.split.selection,
            self._threshold(),
            patience=config.patience,
            save_every=config.save_every,
            metadata=as_metadata(lineage_of(self._cells(), self.split.selection, self.lineage)),
        )
        tracked: AbstractContextManager[list[pl.Callback]] = nullcontext([])
        if place is None or place.rank == 0:
            tracked = tracking(config.logger, run, recorder, images)
        with tracked as trackers:
            trainer = self._trainer([recorder, *trackers], run, place)
            if place:
                place.join(trainer.strategy.root_device)
            with first_alone():
                self._serve(datamodule, classifier.network, trainer.strategy.root_device)
            ready = time.perf_counter()
            if self.weights:
                trainer.validate(classifier, datamodule, verbose=False)
            else:
                self._fit(trainer, classifier, datamodule, recorder, resume)
                self._test(trainer, classifier, datamodule, recorder)
        done = time.perf_counter()
        return {
            "device": _device(trainer),
            "selection": run.record["selection"] | {"epoch": recorder.selected_epoch},
            "threshold": recorder.threshold,
            "metrics": recorder.selected_metrics(),
            "timing": {"prepare_s": round(ready - started, 2), "run_s": round(done - ready, 2)},
        }

    def _fit(
        self,
        trainer: pl.Trainer,
        classifier: CellClassifier,
        datamodule: CellDataModule,
        recorder: Recorder,
        resume: bool,
    ) -> None:
        points = recorder.resume_points() if resume else []
        checkpoint = None
        if points:
            checkpoint = points[0]
            epoch = int(checkpoint.stem.removeprefix("resume-epoch"))
            recorder.reload(epoch)
            print(f"resumed after epoch {epoch} from {checkpoint}")
            if recorder.exhausted:
                return
        else:
            trainer.validate(classifier, datamodule, verbose=False)
        trainer.fit(classifier, datamodule, ckpt_path=checkpoint, weights_only=True)

    def _test(
        self,
        trainer: Any,
        classifier: CellClassifier,
        datamodule: CellDataModule,
        recorder: Recorder,
    ) -> None:
        """Score the split's tests once, by the weights of the selected epoch."""
        if not self.split.tests:
            return
        load_weights(classifier.network, recorder.best_weights, classifier=())
        # It would score its average instead of what was selected.
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, WeightAveraging)]
        recorder.test_epoch = recorder.selected_epoch
        datamodule.scored = list(self.split.tests)
        classifier.score(datamodule.scored)
        trainer.validate(classifier, datamodule, verbose=False)

    def _datamodule(self, images: np.memmap, devices: int) -> CellDataModule:
        data = self.config.data
        return CellDataModule(
            self.index,
            images,
            self.split,
            build(self.config.augment),
            sampler=self.config.sampler,
            seed=self._draws(),
            batch_size=data.batch_size,
            eval_batch_size=data.eval_batch_size,
            residence=data.residence,
            workers=data.workers,
            devices=devices,
        )

    def _serve(self, datamodule: CellDataModule, network: nn.Module, device: torch.device) -> None:
        """Let `datamodule` give what this network wants: boxes, or features instead of images."""
        data = self.config.data
        if getattr(network, "proposes_box", False):
            datamodule.boxes = torch.from_numpy(boxes(self.index, data.crop))
        exact = self.config.trainer.precision == "32-true" and not self.source
        if isinstance(network, FrozenFeatures) and datamodule.augmentation.is_identity and exact:
            # Nothing random comes before the backbone: once is enough for all epochs.
            datamodule.store = cached_features(
                network, datamodule.store, self.config.views, Path(data.cache),
                batch_size=data.eval_batch_size, device=device,
            )  # fmt: skip

    def _classifier(self) -> CellClassifier:
        config = self.config
        loss = CellLoss(**{**_plain(config.loss), "pos_weight": self.pos_weight()})
        whole = self.weights or (self.start if config.continue_from else None)
        if whole:
            fresh = {"pretrained": False, "weights": None}
            network = build({k: fresh.get(k, v) for k, v in _plain(config.model).items()})
            load_weights(network, whole, (), "checkpoint" if self.weights else "continue_from")
        else:
            network = build(config.model)
        optim = _plain(config.optim)
        if not self.source:
            parameter_groups(network, optim["lr"], optim.get("layer_decay"))  # told before scoring
        return CellClassifier(
            network,
            optim,
            loss=loss,
            views=config.views,
            seed=self._draws(),
            scored=self.split.scored,
        )

    def _trainer(
        self, callbacks: list[pl.Callback], run: RunDir, place: Place | None = None
    ) -> pl.Trainer:
        for message in QUIET:
            warnings.filterwarnings("ignore", message)
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        options = _plain(self.config.trainer)
        if not isinstance(options["max_epochs"], int) or options["max_epochs"] < 1:
            raise LeukoclsError(f"trainer.max_epochs={options['max_epochs']}: choose at least 1.")
        for key in FOREIGN.keys() & options.keys():
            raise LeukoclsError(f"trainer.{key}: not here; {FOREIGN[key]}.")
        for key in ("limit_train_batches", "limit_val_batches"):
            if options[key] is not None and not options[key] > 0:
                raise LeukoclsError(f"trainer.{key}={options[key]}: choose more than 0, or null.")
        if place:
            # Whatever cluster this is on, the processes of this run are ours.
            options |= {"strategy": DDP, "plugins": [LightningEnvironment()]}
        if self.config.ema is not None:
            # After the recorder, which keeps the average that is scored before it is swapped back.
            callbacks.append(self._average())
        # A bar is for people; a pipe or a log gets one line an epoch.
        if options["enable_progress_bar"] and sys.stderr.isatty():
            callbacks.append(TQDMProgressBar())
        else:
            options["enable_progress_bar"] = False
        try:
            return pl.Trainer(
                **options,
                callbacks=callbacks,
                default_root_dir=run.directory,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                # Metrics that are updated before training are updated again while it runs.
                inference_mode=False,
                # Batches are sharded by our own sampler, which repeats no cell.
                use_distributed_sampler=False,
            )
        except (TypeError, ValueError, pl.utilities.exceptions.MisconfigurationException) as error:
            raise LeukoclsError(f"trainer: {error}") from error

    def _draws(self) -> int:
        """Seed of order, augmentation and dropout. A run that continues others counts its epochs
        from 0 again, and must not see the same draws again."""
        if not self.lineage:
            return self.config.seed
        key = [self.config.seed, len(self.lineage)]
        return int(np.random.SeedSequence(key).generate_state(1)[0])

    def _average(self) -> EMAWeightAveraging:
        decay = self.config.ema
        if not isinstance(decay, float) or not 0 < decay < 1:
            raise LeukoclsError(f"ema={decay}: choose a decay between 0 and 1, such as .999.")
        return EMAWeightAveraging(decay=decay)

    def print_result(self, run: RunDir) -> None:
        """The metrics of the selected epoch, as `evaluate` gives them, and where they are."""
        choice = scoring.ScoringOptions()
        for part in scoring.scored_parts(run.directory, choice):
            print("\n" + tables.result_text(scoring.metrics_of(part)))
        print(f"\n{run.directory}")


def load_index(config: DictConfig) -> Index:
    """The index of the configured data, checked; embedded data is written first.

    Raises:
        LeukoclsError: no data root, with both ways on.
        DataFault: whatever `leukocls.verify` finds.
    """
    data = config.data
    root = data.root
    if data.synthetic is not None:
        try:
            spec = SyntheticSpec(**data.synthetic)
        except TypeError as error:
            raise LeukoclsError(f"data.synthetic: {error}; see conf/data/synthetic.yaml") from error
        root = write_tree(Path(root), spec)
    elif not root:
        raise LeukoclsError(
            "no data: neither data.root nor LEUKOCLS_DATA is set. Two ways on:\n"
            "  1. fetch C-NMC 2019 (TCIA, doi 10.7937/tcia.2019.dc64i46r, or Kaggle"
            " 'leukemia-classification'), unpack it, and set data.root=FOLDER;\n"
            "  2. data=synthetic, embedded cells that need no download."
        )
    return checked_index(root, data.layout, data.partial, Path(data.cache))


def _is_limited(trainer: DictConfig) -> bool:
    """Whether Lightning is told to leave batches out (its 1 means one batch, its 1.0 all)."""
    limits = [trainer.get(f"limit_{stage}_batches") for stage in ("train", "val")]
    kept = any(not (limit is None or (isinstance(limit, float) and limit == 1)) for limit in limits)
    return kept or bool(trainer.get("overfit_batches")) or bool(trainer.get("fast_dev_run"))


def _plain(config: DictConfig) -> dict[str, Any]:
    container: Any = OmegaConf.to_container(config, resolve=True)
    return container


def _device(trainer: pl.Trainer) -> str:
    root = trainer.strategy.root_device
    return torch.cuda.get_device_name(root) if root.type == "cuda" else root.type
