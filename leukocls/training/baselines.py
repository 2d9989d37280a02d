"""Baselines: a simple classifier on features of each cell, recorded as a run.

Only features of a network need torch.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from leukocls.artifacts import predictions
from leukocls.artifacts.environment import versions
from leukocls.artifacts.identity import BASELINE, arm_name
from leukocls.artifacts.lineage import has_seen, read_lineage
from leukocls.artifacts.marks import data_marks, run_marks
from leukocls.artifacts.predictions import sigmoid
from leukocls.artifacts.record import RunState
from leukocls.artifacts.run_dir import RunDir
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import atomic_write, sha256_file
from leukocls.data import features
from leukocls.data.index import Index
from leukocls.data.names import PRELIM_TRAINED
from leukocls.data.persons import shared_persons
from leukocls.data.splits import Split, SplitOptions, as_csv, make_split
from leukocls.data.store import data_digest
from leukocls.evaluation.calibration import of_run
from leukocls.evaluation.cell_metrics import by_split
from leukocls.training import probes
from leukocls.training.probes import Probe

DEFAULT_SCHEME = "challenge"  # the split scheme that the name of an arm leaves out
EPOCH = 1  # a single fit counts as one epoch, so there is nothing to select
CLASSIFIER = "logistic"  # what the name of an arm leaves out
CROP, SIZE = 300, 224  # px, of the images that a network sees
PACKAGES = ("scikit-learn", "scikit-image")


@dataclass(frozen=True)
class Recipe:
    """Features of a baseline, its classifier, and the network that computes the features.

    Attributes:
        features: a kind of `leukocls.data.features`, or the name of a network.
        classifier: a key of `leukocls.training.probes.GRIDS`.
        network: `backbone_features.settings_of` the network; None for a kind.
        crop, size: in px, of the images that the network sees; not used for a kind.
        weights_given: whether the weights are not the network's usual ones.
    """

    features: str
    classifier: str = CLASSIFIER
    network: Mapping[str, Any] | None = None
    crop: int = CROP
    size: int = SIZE
    weights_given: bool = False

    @property
    def weights(self) -> Path | None:
        """The file of the network's weights; None without one."""
        if self.network is None:
            return None
        from leukocls.models.weights import initial_weights

        return initial_weights(self.network)

    @property
    def device(self) -> str:
        """The device that the features are computed on."""
        if self.network is None:
            return "cpu"
        from leukocls.training.backbone_features import device

        return str(device())

    @property
    def name(self) -> str:
        """The features' name, without the place of a local folder."""
        if not self.features.startswith("local-dir:"):
            return self.features
        return f"local-dir:{Path(self.features.removeprefix('local-dir:')).resolve().name}"

    def settings(self) -> dict[str, Any]:
        """All that determines the result, for the run's record."""
        measured: dict[str, Any] = {"features_version": features.VERSION}
        if self.network is not None:
            from leukocls.models.weights import pretraining

            measured = {
                "network": {k: v for k, v in self.network.items() if k != "weights"}
                | ({"backbone": self.name} if self.name != self.features else {}),
                "pretraining": pretraining(self.network),
                "crop": self.crop,
                "size": self.size,
            }
        grid = list(probes.GRIDS[self.classifier])
        model = {"name": self.classifier, probes.PARAMETERS[self.classifier]: grid}
        return {"features": self.name, **measured, "model": model, "seed": 0}

    def overrides(self) -> list[str]:
        """The choices that differ from the default, for the name of the arm."""
        chosen: dict[str, tuple[object, object]] = {"classifier": (self.classifier, CLASSIFIER)}
        if self.network is not None:
            chosen |= {"crop": (self.crop, CROP), "size": (self.size, SIZE)}
        named = [f"{name}={value}" for name, (value, usual) in chosen.items() if value != usual]
        if self.weights_given and (file := self.weights):
            named.append(f"weights={sha256_file(file)[:8]}")
        return named


@dataclass(frozen=True)
class Baseline:
    """One baseline: cells with their data digest, split, recipe, and run directory.

    `leaky` tells whether the split or the network's weights have scored cells in training.
    """

    index: Index
    digest: str
    split: Split
    recipe: Recipe
    run: RunDir
    leaky: bool


def predict(model: Probe, index: Index, split: Split, table: pd.DataFrame) -> pd.DataFrame:
    """Predictions for every split but train, in the format of predictions.parquet.

    Args:
        table: features, one row for each cell of the index, in its order.
    """
    frames = []
    for name, rows in split.rows.items():
        if name == "train":
            continue
        cells = index.table.iloc[rows][["cell", "subject", "group", "label"]]
        cells = cells.rename(columns={"group": "person"})
        logit = model.logits(table.iloc[rows]).astype("float32")
        frames.append(
            cells.assign(epoch=EPOCH, split=name, view_0=logit, logit=logit, prob=sigmoid(logit))
        )
    return predictions.canonical(pd.concat(frames))


def cached_table(index: Index, recipe: Recipe, digest: str, cache: Path) -> pd.DataFrame:
    """The recipe's features, one row for each cell of the index, read from `cache` or measured."""
    if recipe.network is not None:
        from leukocls.training.backbone_features import backbone_table

        return backbone_table(index, digest, recipe.network, recipe.crop, recipe.size, cache)
    kind = recipe.features
    name = f"features-{kind}-{features.VERSION}-{version('scikit-image')}-{digest[:16]}.parquet"
    stored = cache / name
    if stored.is_file():
        return pd.read_parquet(stored)
    table = features.extract([index.root / file for file in index.table["file"]], kind)
    cache.mkdir(parents=True, exist_ok=True)
    atomic_write(stored, table.to_parquet())
    return table


def write_features(baseline: Baseline, cache: Path, path: Path) -> None:
    """Write the baseline's features as parquet: `cell`, then a column for each feature."""
    table = cached_table(baseline.index, baseline.recipe, baseline.digest, cache)
    cells = baseline.index.table["cell"].to_numpy()
    atomic_write(path, table.assign(cell=cells)[["cell", *table]].to_parquet(index=False))


def open_baseline(
    index: Index, recipe: Recipe, scheme: str, options: SplitOptions, outputs: Path
) -> Baseline:
    """Prepare a baseline with its run directory below `outputs`; nothing is written yet.

    Args:
        index: the parts train and prelim of data that `leukocls.data.verify` has read.

    Raises:
        LeukoclsError: no such split, or no such weights.
    """
    split = make_split(index, scheme, options)
    settings, default = _settings(scheme, options), _settings(DEFAULT_SCHEME, SplitOptions())
    overrides = [f"{name}={value}" for name, value in settings.items() if value != default[name]]
    name = arm_name(recipe.name, [*recipe.overrides(), *overrides])
    digest, cells, weights = data_digest(index), split.table(index), recipe.weights
    inputs: dict[str, str | None] = {
        "data": digest,
        "split": sha256(as_csv(cells).encode()).hexdigest(),
    }
    if recipe.network is not None:
        inputs["weights"] = sha256_file(weights) if weights else None
    config = OmegaConf.create({**recipe.settings(), **settings})
    run = RunDir(outputs / BASELINE / name / "seed_000", config, inputs)
    scored = cells[~cells["split"].isin(["train", PRELIM_TRAINED])]
    lineage, official = read_lineage(weights), index.rules.cnmc_subjects
    if has_seen(lineage, "chose", cells[cells["split"].isin(split.tests)], official):
        raise LeukoclsError(
            f"{weights}: its epoch was chosen on cells that this split reports as its test; choose"
            " another split, or weights that have not seen them."
        )
    seen = has_seen(lineage, "trained", scored, official)
    return Baseline(index, digest, split, recipe, run, split.leaky or seen)


def _settings(scheme: str, options: SplitOptions) -> dict[str, Any]:
    """The options of a split, by the configuration keys of `leukocls.train`."""
    return {
        "split_scheme": scheme,
        "fold": options.fold,
        "folds": options.folds,
        "split_seed": options.seed,
        "n_subjects": options.n_subjects,
        "n_cells": options.n_cells,
        "leak": options.leak,
    }


def start(baseline: Baseline) -> None:
    """Write the first record of the run."""
    index, split = baseline.index, baseline.split
    baseline.run.start(
        versions=versions() | {name: version(name) for name in PACKAGES},
        device=baseline.recipe.device,
        threads=None,
        data_digest=baseline.digest,
        split_scheme=split.scheme,
        selection={"rule": "last", "set": split.selection, "epoch": None},
        threshold=0.5,
        calibration=None,
        view_weights=[1.0],
        marks=run_marks(data_marks(index, ("train", "prelim")), leaky=baseline.leaky),
        shared_persons=shared_persons(split.table(index)),
        metrics={},
        predictions_sha256=None,
        weights_sha256=None,
        chosen=None,
        timing={},
    )


def execute(baseline: Baseline, cache: Path) -> None:
    """Measure the features, fit, score and write all files of the run; the record is last.

    Args:
        cache: folder that keeps the features of each data set.
    """
    index, split, run = baseline.index, baseline.split, baseline.run
    started = time.perf_counter()
    table = cached_table(index, baseline.recipe, baseline.digest, cache)
    ready = time.perf_counter()
    train = index.table.iloc[split.rows["train"]]
    # Whoever splits by cells chooses by cells, too.
    person = pd.Series("", train.index) if split.scheme == "cell" else train["group"]
    name = baseline.recipe.classifier
    model = probes.fit(table.iloc[split.rows["train"]], train["label"], person, name, seed=0)
    frame = predict(model, index, split, table)
    atomic_write(run.directory / "split.csv", as_csv(split.table(index)))
    if (coefficients := model.coefficients()) is not None:
        atomic_write(run.directory / "coefficients.csv", coefficients.to_csv(index=False))
    predictions.write(run.directory / "predictions.parquet", frame)
    run.end(
        RunState.DONE,
        predictions_sha256=predictions.digest_of_canonical(frame),
        selection=run.record["selection"] | {"epoch": EPOCH},
        calibration=of_run(frame, split.selection, pos_weight=1.0),
        metrics=by_split(frame, run.record["threshold"]),
        chosen={probes.PARAMETERS[name]: model.value, "auroc": model.auroc},
        timing={
            "prepare_s": round(ready - started, 2),
            "run_s": round(time.perf_counter() - ready, 2),
        },
    )
