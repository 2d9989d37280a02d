"""The first table on genuine cells: what baselines and probes reach, and what leaks are worth.

python benchmarks/genuine.py ROOT [--quick] [--json FILE]

ROOT holds folds 0 and 1 of C-NMC 2019 (7,108 images), and nothing else. Each row is a classifier,
each column a way to split the same cells:

  person       five folds of persons: the known families of subjects are one person each
  subject id   five folds of the published subject IDs, which leave these families apart: LEAKY
  cell         five folds of cells: LEAKY
  lofo         one official fold trains and the other is scored, persons kept whole; and
  lofo id      the same with all cells where they were published: LEAKY
  half person  two folds of persons; and
  half cell    two folds of cells: LEAKY

All held-out cells of a column are scored as one result, with 95 % intervals over persons, and by
scikit-learn as well. What a leak is worth is the difference of two columns on the same cells.

Networks are trained for the last two columns only: EfficientNet-Lite0 from ImageNet weights at 128
pixels, for --epochs of each recipe, the last of which is scored. Networks take by far the
longest: two CPU cores took 37 minutes without them, and 1 h 45 min for one epoch of all of them,
both beside other work. Every fold is a run below --outputs, and those
that are done are not fitted again, so that the command may be stopped and repeated.
"""

import argparse
import contextlib
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from leukocls import baseline
from leukocls.artifacts import predictions
from leukocls.artifacts.environment import versions
from leukocls.artifacts.record import read_record, run_directories
from leukocls.common.files import atomic_write
from leukocls.common.tables import aligned
from leukocls.data.folds import balanced_folds
from leukocls.data.index import Index
from leukocls.data.verify import checked_index
from leukocls.evaluation.cell_metrics import cell_metrics
from leukocls.evaluation.intervals import Interval, jackknife, paired_difference
from leukocls.evaluation.person_counts import Persons
from leukocls.training.baselines import PACKAGES

FOLDS = 5
OFFICIAL = (0, 1)  # the official folds that are used
# Options of `leukocls.baseline` for each row.
ROWS: dict[str, tuple[str, ...]] = {
    "size": ("size",),
    "mask": ("mask",),
    "colour": ("colour",),
    "handcrafted": ("handcrafted",),
    "Lite0, kNN": ("efficientnetlite0", "--classifier", "knn"),
    "Lite0, logistic": ("efficientnetlite0",),
    "MobileNetV2, kNN": ("mobilenetv2", "--classifier", "knn"),
    "MobileNetV2, logistic": ("mobilenetv2",),
}
MAJORITY = "majority class"
COLUMNS = ("person", "subject id", "cell", "lofo", "lofo id", "half person", "half cell")
LEAKS = {"subject id": "person", "cell": "person", "lofo id": "lofo", "half cell": "half person"}
METRICS = ("weighted_f1", "sensitivity", "specificity", "auroc")
# Options of `leukocls.train` for each network, which is Lite0 where its recipe has another one.
LITE0 = (
    "model.backbone=tf_efficientnet_lite0", "model.pretrained=false", "model.weights=lite0",
    f"model.mean=[{127 / 255},{127 / 255},{127 / 255}]",
    f"model.std=[{128 / 255},{128 / 255},{128 / 255}]",
)  # fmt: skip
NETWORKS: dict[str, tuple[str, ...]] = {
    "Lite0, Georgiev's head": (
        "experiment=georgiev_efficientnet", "model=frozen_efficientnetlite0",
    ),
    "Lite0, Saeed's attention": (
        "experiment=saeed2022_v2s", "model=efficientnetlite0_multiattention",
    ),
    "Lite0, Marzahl": ("experiment=marzahl2019_plain", *LITE0, "views=1"),
    "Lite0, Marzahl with regions": ("experiment=marzahl2019_region", *LITE0, "views=1"),
    "Lite0, Prellberg": ("experiment=prellberg2019", "model=efficientnetlite0"),
}  # fmt: skip
# One phase of recipes that have several; Marzahl's are scored with one view.
# Held-out cells choose nothing.
SHORTENED = ("phases=null", "data.size=128", "selection=last", "threads=1")
QUICK_CELLS, QUICK_SIZE = 400, 96  # training cells, and px for frozen features, with --quick


def splits(index: Index, folder: Path, quick: bool) -> Iterator[tuple[str, int, list[str]]]:
    """Column, fold, and the options of `leukocls.baseline` for it."""
    folder.mkdir(parents=True, exist_ok=True)
    table = index.table
    by_id = balanced_folds(table["subject"], table["label"], FOLDS, 0)
    for fold in range(1 if quick else FOLDS):
        held = ["--folds", str(FOLDS), "--fold", str(fold)]
        yield "person", fold, ["--split-scheme", "subject", *held]
        yield "cell", fold, ["--split-scheme", "cell", *held]
        yield "subject id", fold, _file(table["cell"], by_id == fold, folder / f"id-{fold}.csv")
    for fold in range(1 if quick else 2):
        held = ["--folds", "2", "--fold", str(fold)]
        yield "half person", fold, ["--split-scheme", "subject", *held]
        yield "half cell", fold, ["--split-scheme", "cell", *held]
    for fold in OFFICIAL[: 1 if quick else None]:
        yield "lofo", fold, ["--split-scheme", "lofo", "--fold", str(fold)]
        held_out = (table["fold"] == fold).to_numpy()
        yield "lofo id", fold, _file(table["cell"], held_out, folder / f"lofo-{fold}.csv")


def _file(cells: pd.Series, held_out: np.ndarray, path: Path) -> list[str]:
    """A split by a file, which nothing but the names of its cells decides."""
    split = pd.DataFrame({"cell": cells, "split": np.where(held_out, "val", "train")})
    atomic_write(path, split.to_csv(index=False))
    return ["--split-scheme", str(path)]


def fitted(options: list[str]) -> Path:
    """The run directory of one baseline, which is fitted unless it is done already."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        baseline.main([*options, "--json"])
    return Path(json.loads(printed.getvalue())["run"])


def trained(options: list[str], outputs: Path, quick: bool) -> dict[str, list[pd.DataFrame]]:
    """Predictions by column of one network on the halves that it held out."""
    command = [
        sys.executable, "-m", "leukocls.train", "-m", *options, f"outputs='{outputs}'",
        "split_scheme=subject,cell", "folds=2", f"fold=range({1 if quick else 2})",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=sys.stderr)
    frames: dict[str, list[pd.DataFrame]] = {"half person": [], "half cell": []}
    for run in run_directories(outputs):
        record = read_record(run)
        column = "half cell" if record["split_scheme"] == "cell" else "half person"
        frame = predictions.read(run / "predictions.parquet")
        frames[column].append(frame[frame["epoch"] == record["selection"]["epoch"]])
    return frames


def result(frame: pd.DataFrame) -> dict[str, Any]:
    """Metrics over the held-out cells of all folds, which scikit-learn finds too, and intervals."""
    assert not frame["cell"].duplicated().any()
    label = frame["label"].to_numpy()
    outputs = {name: frame[name].to_numpy() for name in ("logit", "prob")}
    names = predictions.persons(frame).to_numpy(str)
    persons = by_person(frame)
    found = cell_metrics(label, subject=names, threshold=0.5, **outputs)
    called = outputs["logit"] > 0
    others = {
        "weighted_f1": f1_score(label, called, average="weighted"),
        "sensitivity": recall_score(label, called),
        "specificity": recall_score(label, called, pos_label=0),
        "auroc": roc_auc_score(label, outputs["logit"]),
    }
    assert all(abs(found[name] - other) < 1e-9 for name, other in others.items())
    return {name: round(found[name], 4) for name in METRICS} | {
        "interval": {name: shown(jackknife([persons], name)) for name in METRICS},
        "cells": found["n"],
        "persons": found["n_subjects"],
    }


def by_person(frame: pd.DataFrame) -> Persons:
    """The sums that intervals are computed from."""
    names = predictions.persons(frame).to_numpy(str)
    return Persons.of(frame["label"], frame["logit"] > 0, names, frame["logit"])


def worth(leaky: pd.DataFrame, honest: pd.DataFrame) -> dict[str, Any] | None:
    """Difference of each metric, leaky column less honest one, on the cells that both score.

    None without cells of both classes that both score, as of single folds.
    """
    cells = set(leaky["cell"]) & set(honest["cell"])
    if leaky["label"][leaky["cell"].isin(cells)].nunique() < 2:
        return None
    honest_cells, leaky_cells = (
        by_person(frame[frame["cell"].isin(cells)].sort_values("cell", ignore_index=True))
        for frame in (honest, leaky)
    )
    found = {
        name: shown(paired_difference([honest_cells], [leaky_cells], name)) for name in METRICS
    }
    return found | {"cells": len(cells)}


def shown(interval: Interval) -> dict[str, float | None]:
    """An interval for JSON; null where nothing varies or a class has one person."""
    values = {
        "value": interval.value, "low": interval.low, "high": interval.high, "df": interval.df,
    }  # fmt: skip
    known = math.isfinite(interval.df)
    return {
        name: round(value, 4) if known or name == "value" else None
        for name, value in values.items()
    }


def described(frames: dict[str, list[pd.DataFrame]]) -> dict[str, Any]:
    """A row: its result by column, and the worth of each leak."""
    whole = {column: pd.concat(frames[column]) for column in COLUMNS if column in frames}
    return {column: result(frame) for column, frame in whole.items()} | {
        "leak": {
            leaky: worth(whole[leaky], whole[honest])
            for leaky, honest in LEAKS.items()
            if leaky in whole
        }
    }


def measure(root: Path, outputs: Path, cache: Path, quick: bool, epochs: int) -> dict[str, Any]:
    """Each row's metrics by column, and the parameter that each fold of a probe chose.

    Networks are left out if `epochs` is 0.
    """
    index = checked_index(root, partial=True, cache=cache)
    folds = index.table["fold"].isin(OFFICIAL)
    if index.synthetic or not folds.all():
        raise SystemExit(f"{root}: give a folder with the genuine folds 0 and 1, and no other part")
    common = [str(root), "--partial", "--cache", str(cache), "--outputs", str(outputs)]
    smaller = ["--size", str(QUICK_SIZE), "--n-cells", str(QUICK_CELLS)] if quick else []
    jobs = list(splits(index, outputs / "splits", quick))
    found: dict[str, Any] = {}
    for row, features in ROWS.items():
        frames: dict[str, list[pd.DataFrame]] = {column: [] for column in COLUMNS}
        chosen: dict[str, list[Any]] = {column: [] for column in COLUMNS}
        for column, fold, split in jobs:
            run = fitted([*common, "--features", *features, *split, *smaller])
            frames[column].append(predictions.read(run / "predictions.parquet"))
            chosen[column].append(next(iter(read_record(run)["chosen"].values())))
            print(f"{row}, {column}, fold {fold}: {run}", file=sys.stderr)
        if MAJORITY not in found:  # every cell is called ALL, as most are
            found[MAJORITY] = described({
                column: [one.assign(logit=1.0, prob=predictions.sigmoid(1.0)) for one in of]
                for column, of in frames.items()
            })  # fmt: skip
        found[row] = described(frames) | {"chosen": chosen}
    options = [*SHORTENED, f"trainer.max_epochs={epochs}"]
    if quick:
        options += [f"data.n_cells={QUICK_CELLS}", "views=1"]
    places = [f"data.root='{root}'", "data.partial=true", f"data.cache='{cache}'"]
    for number, (row, recipe) in enumerate(NETWORKS.items() if epochs else ()):
        folder = outputs / f"network-{number}-{epochs}{'-quick' * quick}"
        frames = trained([*recipe, *options, *places], folder, quick)
        found[row] = described(frames) | {"options": [*recipe, *options]}
    return found


def text(found: dict[str, Any]) -> str:
    """Metrics of each row and column, then intervals and the worth of the leaks."""

    def table(columns: tuple[str, ...], cell: Any) -> str:
        rows = [
            [row, *(cell(of, column) if column in of else "" for column in columns)]
            for row, of in found.items()
        ]
        return aligned([["", *columns], *rows])

    def limits(one: dict[str, Any]) -> str:
        return "" if one["low"] is None else f" ({one['low']:.3f} to {one['high']:.3f})"

    def metrics(of: dict[str, Any], column: str) -> str:
        return f"{of[column]['auroc']:.3f} / {of[column]['weighted_f1']:.3f}"

    def interval(of: dict[str, Any], column: str) -> str:
        return f"{of[column]['auroc']:.3f}{limits(of[column]['interval']['auroc'])}"

    def leak(of: dict[str, Any], column: str) -> str:
        if of["leak"][column] is None:
            return ""
        one = of["leak"][column]["auroc"]
        return f"{one['value']:+.3f}{limits(one)}"

    return "\n\n".join([
        "AUROC / weighted F1\n" + table(COLUMNS, metrics),
        "AUROC with 95 % interval over persons\n" + table(("person", "half person"), interval),
        "Worth of each leak in AUROC, with 95 % interval\n" + table(tuple(LEAKS), leak),
    ])  # fmt: skip


def main() -> None:
    """Measure, print the table, and keep it with --json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one fold of each column, few training cells, small images for frozen features, and"
        " one view for networks",
    )
    parser.add_argument(
        "--epochs", type=int, default=1, help="of each network; 0 leaves them out (default: 1)"
    )
    parser.add_argument("--outputs", type=Path, default=Path("outputs/genuine"))
    parser.add_argument("--cache", type=Path, default=Path("outputs/store"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure(
        arguments.root, arguments.outputs, arguments.cache, arguments.quick, arguments.epochs
    )
    print(text(found))
    if arguments.json:
        document = {
            # Where somebody keeps the data is no part of a result.
            "command": f"python benchmarks/genuine.py ROOT --epochs {arguments.epochs}"
            + " --quick" * arguments.quick,
            "cores": os.cpu_count(),
            "versions": versions() | {name: version(name) for name in PACKAGES},
            "folds of a column": 1 if arguments.quick else FOLDS,
            "rows": found,
        }
        atomic_write(arguments.json, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
