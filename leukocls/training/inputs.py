"""Inputs of one run: what is trained on or scored, decided and checked before anything is written.

`inputs_of` turns a configuration into `TrainInputs` or `ScoreInputs`; every refusal that data,
split, weights or numbers of the recipe can cause is raised there.
"""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from leukocls.artifacts.lineage import Lineage, has_seen, lineage_of, read_lineage
from leukocls.artifacts.marks import data_marks, run_marks
from leukocls.artifacts.record import read_record
from leukocls.artifacts.run_dir import run_weights
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import sha256_file
from leukocls.data.index import Index
from leukocls.data.names import PRELIM_TRAINED
from leukocls.data.persons import shared_persons
from leukocls.data.random import continued_seed
from leukocls.data.splits import Split, SplitOptions, as_csv, make_split, part_rows
from leukocls.data.store import data_digest
from leukocls.data.verify import checked_index
from leukocls.data.views import view_weights
from leukocls.evaluation.selection import BEST_THRESHOLD, RULES
from leukocls.models.weights import initial_weights, pretraining
from leukocls.synthetic.tree import SyntheticSpec, write_tree
from leukocls.training.losses import pos_weight

# Groups and keys of a scored run's configuration that stay those of its training.
RECIPE = (
    *("seed", "threads", "model", "augment", "optim", "loss", "views", "selection"),
    *("threshold", "split_scheme", "fold", "folds", "split_seed", "leak"),
)


@dataclass(frozen=True)
class Selection:
    """Which epoch counts: `rule` is a key of `selection.RULES`, applied to the split `set`."""

    rule: str
    set: str


@dataclass(frozen=True)
class Inputs:
    """Everything that one run reads, with the decisions that follow from it.

    Attributes:
        config: the composed configuration; of a scored checkpoint with its training's recipe.
        index: the cells of the parts that the run uses.
        split: which of them train, choose the epoch, and are reported.
        weights: the file that training starts from, or that is scored; None for the backbone's own
            pretrained or random ones.
        lineage: the cells that the runs behind `weights` have seen.
        selection: rule and set that choose the epoch.
        split_scheme: the scheme of the training, for the record.
        pos_weight: weight of ALL in the loss.
        threshold: probability above which a cell is ALL, or BEST_THRESHOLD.
        marks: labels that the run's numbers carry.
    """

    config: DictConfig
    index: Index
    split: Split
    weights: Path | None
    lineage: Lineage
    selection: Selection
    split_scheme: str
    pos_weight: float
    threshold: float | str
    marks: list[str]

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row for each cell of the split: what split.csv holds."""
        return self.split.table(self.index)

    @cached_property
    def split_csv(self) -> str:
        """The text of split.csv."""
        return as_csv(self.cells)

    @cached_property
    def data_digest(self) -> str:
        """sha256 over all image files and labels of the index."""
        return data_digest(self.index)

    @cached_property
    def digests(self) -> dict[str, str | None]:
        """sha256 of everything the run reads, by name: `inputs` of run.json."""
        return {
            "data": self.data_digest,
            "weights": sha256_file(self.weights) if self.weights else None,
            "split": sha256(self.split_csv.encode()).hexdigest(),
        }

    @property
    def lineage_after(self) -> Lineage:
        """The lineage of the weights that the run leaves."""
        official = self.index.rules.cnmc_subjects
        return lineage_of(self.cells, self.split.selection, official, self.lineage)

    @property
    def draws_seed(self) -> int:
        """Seed of order, augmentation and dropout."""
        return continued_seed(self.config.seed, len(self.lineage))

    def facts(self) -> dict[str, Any]:
        """The entries of run.json at the start of the run; results are empty until it ends."""
        return {
            "device": None,
            "threads": self.config.threads,
            "data_digest": self.data_digest,
            "split_scheme": self.split_scheme,
            "selection": {"rule": self.selection.rule, "set": self.selection.set, "epoch": None},
            "threshold": None,
            "calibration": None,
            "pos_weight": self.pos_weight,
            "view_weights": view_weights(self.config.views),
            "pretraining": pretraining(self.config.model),
            "marks": self.marks,
            "shared_persons": shared_persons(self.cells),
            "image_side": next(iter(self.index.rules.sides.values()), None),
            "best_auroc": self.index.rules.best_auroc(),
            "metrics": {},
            "predictions_sha256": None,
            "weights_sha256": None,
            "last_sha256": None,
            "timing": {},
        }


@dataclass(frozen=True)
class TrainInputs(Inputs):
    """Inputs of a run that trains."""


@dataclass(frozen=True)
class ScoreInputs(Inputs):
    """Inputs of a run that scores a finished run's checkpoint on another part.

    Attributes:
        calibration: that of the finished run; None if a version before 0.2 trained it.
    """

    calibration: dict[str, Any] | None


def inputs_of(config: DictConfig) -> TrainInputs | ScoreInputs:
    """The checked inputs of one run. Nothing is written but the cache of `data.cache`.

    Args:
        config: as conf/train.yaml composes it.

    Raises:
        LeukoclsError: data, split, weights or a number of the recipe that cannot be used.
        DataFault: the data has faults, as `leukocls.verify` lists them.
    """
    if bool(config.checkpoint) != bool(config.score):
        raise LeukoclsError(
            "checkpoint= and score= go together: checkpoint=RUN_DIRECTORY score=final"
        )
    return _score_inputs(config) if config.checkpoint else _train_inputs(config)


def _train_inputs(config: DictConfig) -> TrainInputs:
    weights = _initial_weights(config)
    lineage = read_lineage(weights)
    _check_numbers(config)
    index, of_data = index_of(config, ("train", "prelim"))
    split = make_split(index, config.split_scheme, split_options(config))
    if config.patience and split.selection == "train":
        raise LeukoclsError(
            f"patience={config.patience}: split_scheme={config.split_scheme} holds no cell back,"
            " so early stopping has nothing to judge by; leave patience out."
        )
    cells = split.table(index)
    official = index.rules.cnmc_subjects
    evaluated = cells[~cells["split"].isin(["train", PRELIM_TRAINED])]
    tests = cells[cells["split"].isin(split.tests)]
    if has_seen(lineage, "chose", tests, official):
        raise LeukoclsError(
            f"{weights}: its epoch was chosen on cells that this split reports as its test;"
            " continue a run of the same split, or choose another split_scheme."
        )
    marks = run_marks(
        of_data,
        limited=is_limited(config.trainer),
        leaky=split.leaky or has_seen(lineage, "trained", evaluated, official),
        reconstruction=config.reconstruction,
    )
    label = index.table["label"].to_numpy()[split.rows["train"]]
    return TrainInputs(
        config=config,
        index=index,
        split=split,
        weights=weights,
        lineage=lineage,
        selection=Selection(config.selection, split.selection),
        split_scheme=split.scheme,
        pos_weight=pos_weight(config.loss.pos_weight, config.sampler, label),
        threshold=config.threshold,
        marks=marks,
    )


def _score_inputs(config: DictConfig) -> ScoreInputs:
    weights = run_weights(config.checkpoint)
    directory = weights.resolve().parent.parent
    config = _with_recipe_of(directory, config)
    lineage = read_lineage(weights)
    if not lineage:
        raise LeukoclsError(
            f"{weights}: does not record which cells it was trained on; an older version wrote it,"
            " so train it again."
        )
    _check_numbers(config)
    trained, part = read_record(directory), config.score
    index, of_data = index_of(config, (part,))
    # Scored cells choose nothing: the epoch was chosen where the checkpoint was trained.
    split = Split(config.split_scheme, {part: part_rows(index, part)}, part)
    cells, official = split.table(index), index.rules.cnmc_subjects
    trained_on = chose = False
    if part != "train":
        trained_on = has_seen(lineage, "trained", cells, official)
        chose = has_seen(lineage, "chose", cells, official)
    marks = run_marks(
        of_data,
        limited=is_limited(config.trainer),
        leaky=trained_on,
        reconstruction=config.reconstruction,
        inherited=trained.get("marks", []),
    )
    # Cells that trained or chose, whatever their set was called then, give selection numbers.
    chosen_on = part if trained_on or chose else trained["selection"]["set"]
    return ScoreInputs(
        config=config,
        index=index,
        split=split,
        weights=weights,
        lineage=lineage,
        selection=Selection(trained["selection"]["rule"], chosen_on),
        split_scheme=trained.get("split_scheme", split.scheme),
        pos_weight=float(trained["pos_weight"]),
        threshold=config.threshold if trained["threshold"] is None else trained["threshold"],
        marks=marks,
        calibration=trained.get("calibration"),
    )


def _initial_weights(config: DictConfig) -> Path | None:
    if config.continue_from:
        return run_weights(config.continue_from, "continue_from", "last")
    return initial_weights(config.model)


def _with_recipe_of(directory: Path, config: DictConfig) -> DictConfig:
    """`config` with the network, image geometry and views that the run was trained with."""
    trained: Any = OmegaConf.load(directory / "config.yaml")
    recipe = {name: trained.get(name) for name in RECIPE}  # older runs lack the newest keys
    kept = {"crop": trained.data.crop, "size": trained.data.size}
    recipe["data"] = OmegaConf.merge(config.data, kept)
    merged: Any = OmegaConf.merge(config, dict.fromkeys(recipe))
    OmegaConf.set_struct(merged, False)
    for name, value in recipe.items():
        merged[name] = value
    return merged


def _check_numbers(config: DictConfig) -> None:
    threshold = config.threshold
    if threshold != BEST_THRESHOLD and not (isinstance(threshold, float) and 0 < threshold < 1):
        raise LeukoclsError(
            f"threshold={threshold}: choose a probability between 0 and 1, or {BEST_THRESHOLD}."
        )
    if config.selection not in RULES:
        raise LeukoclsError(f"selection={config.selection}: choose one of {', '.join(RULES)}.")
    for name in ("threads", "save_every", "patience"):
        value = config[name]
        absent = value is None and name == "patience"
        if not absent and not (isinstance(value, int) and value >= 1):
            raise LeukoclsError(f"{name}={value}: choose a whole number of at least 1.")
    minutes = config.save_minutes
    if minutes is not None and not (isinstance(minutes, int | float) and minutes > 0):
        raise LeukoclsError(f"save_minutes={minutes}: choose more than 0, or null.")
    view_weights(config.views)  # raises on a number of views that is out of range


def index_of(config: DictConfig, parts: tuple[str, ...]) -> tuple[Index, list[str]]:
    """The index of `parts` alone as a run reads it, and the marks of that data."""
    index = load_index(config.data).only(parts)
    marks = data_marks(index, parts)
    return (index.without_h3() if config.data.drop_h3 else index), marks


def load_index(data: DictConfig) -> Index:
    """The checked index of the configured data; synthetic data is written first.

    Args:
        data: the configuration group `data`.

    Raises:
        LeukoclsError: no data root is configured.
        DataFault: the data has faults, as `leukocls.verify` lists them.
    """
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
            "  2. data=synthetic, synthetic cells that need no download."
        )
    return checked_index(root, data.layout, data.partial, Path(data.cache), data.outside)


def split_options(config: DictConfig) -> SplitOptions:
    """The options of the configured split."""
    sizes = (config.data.n_subjects, config.data.n_cells)
    return SplitOptions(config.fold, config.folds, config.split_seed, *sizes, config.leak)


def is_limited(trainer: DictConfig) -> bool:
    """Whether Lightning is configured to leave batches out (its 1 means one batch, its 1.0 all)."""
    stages = ("train", "val", "test")
    limits = [trainer.get(f"limit_{stage}_batches") for stage in stages]
    kept = any(not (limit is None or (isinstance(limit, float) and limit == 1)) for limit in limits)
    return kept or bool(trainer.get("overfit_batches")) or bool(trainer.get("fast_dev_run"))
