"""`python -m leukocls.baseline`: how far a shortcut alone gets, scored as a network is."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukocls.artifacts.record import RunState
from leukocls.common.errors import run_verb
from leukocls.split import add_split_options

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.pipeline import Pipeline

    from leukocls.artifacts.run_dir import RunDir
    from leukocls.data.index import Index
    from leukocls.data.splits import Split

EXPERIMENT = "baseline"
KINDS = ("size", "mask", "colour", "handcrafted")
# One fit, so one epoch, which nothing had to choose.
EPOCH = 1
# L2 with C = 1, on standardised features; it draws no random numbers.
REGULARISATION = 1.0
PACKAGES = ("scikit-learn", "scikit-image")
# What a run directory's arm names where it is not the default.
SPLIT_OPTIONS: dict[str, Any] = {
    "split_scheme": "challenge",
    "fold": None,
    "folds": 5,
    "split_seed": 0,
    "n_subjects": None,
    "n_cells": None,
}


def fit(features: pd.DataFrame, label: Any) -> Pipeline:
    """Standardise, then logistic regression: `features` [n, p], `label` [n] with ALL = 1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # By Newton's method: lbfgs stops early, and where depends on the build.
    logistic = LogisticRegression(C=REGULARISATION, solver="newton-cholesky", tol=1e-8)
    return make_pipeline(StandardScaler(), logistic).fit(features, label)


def coefficients(model: Pipeline) -> pd.DataFrame:
    """What the model looks at: logit = Σ coefficient · (feature − mean) / sd, strongest first.

    The intercept is a row of mean 0 and SD 1, whose feature is 1.
    """
    import numpy as np
    import pandas as pd

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


def predict(model: Pipeline, index: Index, split: Split, features: pd.DataFrame) -> pd.DataFrame:
    """Predictions, in their format, for every split but train; `features` as the index's rows."""
    import pandas as pd

    from leukocls.artifacts import predictions
    from leukocls.artifacts.predictions import sigmoid

    frames = []
    for name, rows in split.rows.items():
        if name == "train":
            continue
        cells = index.table.iloc[rows][["cell", "subject", "label"]]
        logit = model.decision_function(features.iloc[rows]).astype("float32")
        frames.append(
            cells.assign(epoch=EPOCH, split=name, view_0=logit, logit=logit, prob=sigmoid(logit))
        )
    return predictions.canonical(pd.concat(frames))


def all_features(index: Index, kind: str, digest: str, cache: Path) -> pd.DataFrame:
    """Features of `kind`, a row a cell of the index; `cache` keeps them by the data's digest."""
    import pandas as pd

    from leukocls.common.files import atomic_write
    from leukocls.data.features import VERSION, extract

    name = f"features-{kind}-{VERSION}-{version('scikit-image')}-{digest[:16]}.parquet"
    stored = cache / name
    if stored.is_file():
        return pd.read_parquet(stored)
    features = extract([index.root / file for file in index.table["file"]], kind)
    cache.mkdir(parents=True, exist_ok=True)
    atomic_write(stored, features.to_parquet())
    return features


def facts(index: Index, split: Split, digest: str) -> dict[str, Any]:
    """What run.json says of the run from its start on."""
    from leukocls.artifacts.environment import versions
    from leukocls.artifacts.marks import data_marks, run_marks

    return {
        "versions": versions() | {name: version(name) for name in PACKAGES},
        "device": "cpu",
        "threads": None,
        "data_digest": digest,
        "split_scheme": split.scheme,
        "selection": {"rule": "last", "set": split.selection, "epoch": None},
        "threshold": 0.5,
        "view_weights": [1.0],
        "marks": run_marks(data_marks(index), leaky=split.leaky),
        "metrics": {},
        "predictions_sha256": None,
        "weights_sha256": None,
        "timing": {},
    }


@contextmanager
def _recorded(run: RunDir) -> Iterator[None]:
    """Leave no run behind that claims to be running."""
    try:
        yield
    except KeyboardInterrupt:
        run.end(RunState.INTERRUPTED, "interrupted")
        raise
    except Exception as error:
        run.end(RunState.FAILED, f"{type(error).__name__}: {error}")
        raise


def execute(run: RunDir, index: Index, split: Split, arguments: argparse.Namespace) -> None:
    """Measure, fit, score and write; the record's last state comes last."""
    from leukocls.artifacts import predictions
    from leukocls.common.files import atomic_write
    from leukocls.data.splits import as_csv
    from leukocls.evaluation.metrics import by_split

    started = time.perf_counter()
    digest = run.record["data_digest"]
    features = all_features(index, arguments.features, digest, arguments.cache)
    ready = time.perf_counter()
    train = split.rows["train"]
    model = fit(features.iloc[train], index.table["label"].to_numpy()[train])
    frame = predict(model, index, split, features)
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


def show(run: RunDir, as_json: bool) -> None:
    """What `evaluate` says of every scored split, and where the run is."""
    from leukocls.evaluation import scoring
    from leukocls.reporting import tables

    results = [
        scoring.metrics_of(part)
        for part in scoring.scored_parts(run.directory, scoring.ScoringOptions())
    ]
    if as_json:
        document = {"run": str(run.directory), "id": run.id, "results": results}
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        print("\n\n".join(tables.result_text(one) for one in results))
        print(f"\n{run.directory}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.baseline",
        description="Logistic regression on a few features of each cell: what size, outline, or"
        " colour alone give away, as a run that evaluate and compare read like any other.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("root", type=Path, metavar="ROOT", help="data root")
    add("--features", required=True, choices=KINDS, help="what the model sees of a cell")
    add_split_options(parser, scheme=SPLIT_OPTIONS["split_scheme"])
    add("--partial", action="store_true", help="go on with an incomplete tree (marked PARTIAL)")
    add("--outputs", type=Path, default=Path("outputs"), help="runs go below it")
    add("--cache", type=Path, default=Path("outputs/store"), help="what is kept between runs")
    add("--force", action="store_true", help="run again what is done already")
    add("--json", action="store_true", help="print one JSON document")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one baseline. Raises LeukoclsError on what train refuses too, and on another's run."""
    arguments = _parser().parse_args(argv)
    from omegaconf import OmegaConf

    from leukocls.artifacts.identity import arm_name
    from leukocls.artifacts.run_dir import RunDir, logged_to
    from leukocls.data.features import VERSION
    from leukocls.data.splits import SplitOptions, as_csv, make_split
    from leukocls.data.store import data_digest
    from leukocls.data.verify import checked_index

    index = checked_index(arguments.root, partial=arguments.partial, cache=arguments.cache)
    # As for a run that trains a network, so that both name the data by one digest.
    index = index.only(("train", "prelim"))
    options = {name: getattr(arguments, name) for name in SPLIT_OPTIONS}
    scheme, *choice = options.values()
    split = make_split(index, scheme, SplitOptions(*choice))
    chosen = [f"{name}={value}" for name, value in options.items() if value != SPLIT_OPTIONS[name]]
    directory = arguments.outputs / EXPERIMENT / arm_name(arguments.features, chosen) / "seed_000"
    recipe = {
        "features": arguments.features,
        "features_version": VERSION,
        "model": {"name": "logistic", "C": REGULARISATION},
        "seed": 0,
    }
    config = OmegaConf.create({**recipe, **options})
    digest = data_digest(index)
    split_digest = sha256(as_csv(split.table(index)).encode()).hexdigest()
    run = RunDir(directory, config, {"data": digest, "split": split_digest})
    with run.locked():
        if run.state(arguments.force) == RunState.DONE:
            if not arguments.json:
                print(f"{directory}: done already, nothing to do (--force runs it again)")
            show(run, arguments.json)
            return 0
        run.start(**facts(index, split, digest))
        with logged_to(directory / "log.txt"):
            with _recorded(run):
                execute(run, index, split, arguments)
            show(run, arguments.json)
    return 0


if __name__ == "__main__":
    run_verb(main)
