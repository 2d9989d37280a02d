"""Baselines: logistic regression on features of each cell, recorded as a run. No torch."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from omegaconf import OmegaConf
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from leukocls.artifacts import predictions
from leukocls.artifacts.environment import versions
from leukocls.artifacts.identity import arm_name
from leukocls.artifacts.marks import data_marks, run_marks
from leukocls.artifacts.predictions import sigmoid
from leukocls.artifacts.record import RunState
from leukocls.artifacts.run_dir import RunDir
from leukocls.common.files import atomic_write
from leukocls.common.processes import Interrupted
from leukocls.data import features
from leukocls.data.index import Index
from leukocls.data.persons import shared_persons
from leukocls.data.splits import Split, SplitOptions, as_csv, make_split
from leukocls.data.store import data_digest
from leukocls.evaluation.cell_metrics import by_split

EXPERIMENT = "baseline"
DEFAULT_SCHEME = "challenge"  # the split scheme that the name of an arm leaves out
EPOCH = 1  # a single fit counts as one epoch, so there is nothing to select
REGULARISATION = 1.0  # C of the L2 penalty on standardised features
PACKAGES = ("scikit-learn", "scikit-image")


@dataclass(frozen=True)
class Baseline:
    """One baseline: cells with their data digest, split, kind of features, and run directory."""

    index: Index
    digest: str
    split: Split
    kind: str
    run: RunDir


def fit(table: pd.DataFrame, label: npt.ArrayLike) -> Pipeline:
    """Fit standardisation and logistic regression.

    Args:
        table: features [n, p].
        label: [n], ALL = 1.
    """
    # Newton's method, because lbfgs stops early, at a point that depends on the build.
    logistic = LogisticRegression(C=REGULARISATION, solver="newton-cholesky", tol=1e-8)
    return make_pipeline(StandardScaler(), logistic).fit(table, label)


def coefficients(model: Pipeline) -> pd.DataFrame:
    """Coefficients of the model, the largest first: logit = Σ coefficient · (feature − mean) / sd.

    The intercept is the row of a feature that is always 1, with mean 0 and SD 1.
    """
    scaler, logistic = model
    order = np.argsort(-np.abs(logistic.coef_[0]), kind="stable")
    return pd.DataFrame(
        {
            "feature": ["intercept", *scaler.feature_names_in_[order]],
            "mean": [0.0, *scaler.mean_[order]],
            "sd": [1.0, *scaler.scale_[order]],
            "coefficient": [*logistic.intercept_, *logistic.coef_[0][order]],
        }
    )


def predict(model: Pipeline, index: Index, split: Split, table: pd.DataFrame) -> pd.DataFrame:
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
        logit = model.decision_function(table.iloc[rows]).astype("float32")
        frames.append(
            cells.assign(epoch=EPOCH, split=name, view_0=logit, logit=logit, prob=sigmoid(logit))
        )
    return predictions.canonical(pd.concat(frames))


def cached_table(index: Index, kind: str, digest: str, cache: Path) -> pd.DataFrame:
    """Features of `kind`, one row for each cell of the index, read from `cache` or measured."""
    name = f"features-{kind}-{features.VERSION}-{version('scikit-image')}-{digest[:16]}.parquet"
    stored = cache / name
    if stored.is_file():
        return pd.read_parquet(stored)
    table = features.extract([index.root / file for file in index.table["file"]], kind)
    cache.mkdir(parents=True, exist_ok=True)
    atomic_write(stored, table.to_parquet())
    return table


def open_baseline(
    index: Index, kind: str, scheme: str, options: SplitOptions, outputs: Path
) -> Baseline:
    """Prepare a baseline with its run directory below `outputs`; nothing is written yet.

    Args:
        index: the parts train and prelim of data that `leukocls.data.verify` has read.
        kind: a key of `leukocls.data.features.KINDS`.

    Raises:
        LeukoclsError: no such split.
    """
    split = make_split(index, scheme, options)
    settings, default = _settings(scheme, options), _settings(DEFAULT_SCHEME, SplitOptions())
    overrides = [f"{name}={value}" for name, value in settings.items() if value != default[name]]
    directory = outputs / EXPERIMENT / arm_name(kind, overrides) / "seed_000"
    recipe = {
        "features": kind,
        "features_version": features.VERSION,
        "model": {"name": "logistic", "C": REGULARISATION},
        "seed": 0,
    }
    digest = data_digest(index)
    split_digest = sha256(as_csv(split.table(index)).encode()).hexdigest()
    inputs: dict[str, str | None] = {"data": digest, "split": split_digest}
    run = RunDir(directory, OmegaConf.create({**recipe, **settings}), inputs)
    return Baseline(index, digest, split, kind, run)


def _settings(scheme: str, options: SplitOptions) -> dict[str, Any]:
    """The options of a split, by the configuration keys of `leukocls.train`."""
    return {
        "split_scheme": scheme,
        "fold": options.fold,
        "folds": options.folds,
        "split_seed": options.seed,
        "n_subjects": options.n_subjects,
        "n_cells": options.n_cells,
    }


def start(baseline: Baseline) -> None:
    """Write the first record of the run."""
    index, split = baseline.index, baseline.split
    baseline.run.start(
        versions=versions() | {name: version(name) for name in PACKAGES},
        device="cpu",
        threads=None,
        data_digest=baseline.digest,
        split_scheme=split.scheme,
        selection={"rule": "last", "set": split.selection, "epoch": None},
        threshold=0.5,
        view_weights=[1.0],
        marks=run_marks(data_marks(index, ("train", "prelim")), leaky=split.leaky),
        shared_persons=shared_persons(split.table(index)),
        metrics={},
        predictions_sha256=None,
        weights_sha256=None,
        timing={},
    )


def execute(baseline: Baseline, cache: Path) -> None:
    """Measure the features, fit, score and write all files of the run; the record is last.

    Args:
        cache: folder that keeps the features of each data set.
    """
    with _recorded(baseline.run):
        _execute(baseline, cache)


def _execute(baseline: Baseline, cache: Path) -> None:
    index, split, run = baseline.index, baseline.split, baseline.run
    started = time.perf_counter()
    table = cached_table(index, baseline.kind, baseline.digest, cache)
    ready = time.perf_counter()
    train = split.rows["train"]
    model = fit(table.iloc[train], index.table["label"].to_numpy()[train])
    frame = predict(model, index, split, table)
    atomic_write(run.directory / "split.csv", as_csv(split.table(index)))
    atomic_write(run.directory / "coefficients.csv", coefficients(model).to_csv(index=False))
    predictions.write(run.directory / "predictions.parquet", frame)
    run.end(
        RunState.DONE,
        predictions_sha256=predictions.digest(frame),
        selection=run.record["selection"] | {"epoch": EPOCH},
        metrics=by_split(frame, run.record["threshold"]),
        timing={
            "prepare_s": round(ready - started, 2),
            "run_s": round(time.perf_counter() - ready, 2),
        },
    )


@contextmanager
def _recorded(run: RunDir) -> Iterator[None]:
    """Record an exception as the end of the run, so that its state does not stay `running`."""
    try:
        yield
    except Interrupted as stop:
        run.end(RunState.INTERRUPTED, str(stop))
        raise
    except Exception as error:
        run.end(RunState.FAILED, f"{type(error).__name__}: {error}")
        raise
