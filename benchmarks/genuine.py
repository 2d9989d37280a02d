"""The first table on genuine cells: what baselines and probes reach, and what leaks are worth.

python benchmarks/genuine.py ROOT [--quick] [--json FILE]

ROOT holds folds 0 and 1 of C-NMC 2019 (7,108 images); what else it holds is not used. Each row is a
classifier on features of single cells, each column a way to split the same cells:

  person      five folds of persons: the known families of subjects are one person each
  subject id  five folds of the published subject IDs, which leave these families apart: LEAKY
  cell        five folds of cells: LEAKY
  lofo        one official fold trains and the other is scored, persons kept whole; and
  lofo id     the same with all cells where they were published: LEAKY

All held-out cells of a column are scored as one result. Every fold is a run below --outputs, and
those that are done are not fitted again, so that the command may be stopped and repeated.
"""

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leukocls import baseline
from leukocls.artifacts import predictions
from leukocls.artifacts.environment import versions
from leukocls.artifacts.record import read_record
from leukocls.common.files import atomic_write
from leukocls.common.tables import aligned
from leukocls.data.folds import balanced_folds
from leukocls.data.index import Index
from leukocls.data.verify import checked_index
from leukocls.evaluation.cell_metrics import cell_metrics
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
COLUMNS = ("person", "subject id", "cell", "lofo", "lofo id")
METRICS = ("weighted_f1", "sensitivity", "specificity", "auroc")


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


def result(frames: list[pd.DataFrame]) -> dict[str, Any]:
    """Metrics over the held-out cells of all folds."""
    frame = pd.concat(frames)
    assert not frame["cell"].duplicated().any()
    person = predictions.persons(frame).to_numpy(str)
    label = frame["label"].to_numpy()
    outputs = {name: frame[name].to_numpy() for name in ("logit", "prob")}
    found = cell_metrics(label, subject=person, threshold=0.5, **outputs)
    return {name: round(found[name], 4) for name in METRICS} | {
        "cells": found["n"],
        "persons": found["n_subjects"],
    }


def majority(frames: list[pd.DataFrame]) -> dict[str, Any]:
    """Metrics of a classifier that calls every cell ALL, as most are."""
    constant = [frame.assign(logit=1.0, prob=predictions.sigmoid(1.0)) for frame in frames]
    return result(constant)


def measure(root: Path, outputs: Path, cache: Path, quick: bool) -> dict[str, Any]:
    """Metrics by row and column, and the parameter that each fold chose."""
    index = checked_index(root, partial=True, cache=cache)
    folds = index.table["fold"].isin(OFFICIAL)
    if index.synthetic or not folds.all():
        raise SystemExit(f"{root}: give a folder with the genuine folds 0 and 1, and no other part")
    common = [str(root), "--partial", "--cache", str(cache), "--outputs", str(outputs)]
    jobs = list(splits(index, outputs / "splits", quick))
    found: dict[str, Any] = {}
    for row, features in ROWS.items():
        frames: dict[str, list[pd.DataFrame]] = {column: [] for column in COLUMNS}
        chosen: dict[str, list[Any]] = {column: [] for column in COLUMNS}
        for column, fold, split in jobs:
            run = fitted([*common, "--features", *features, *split])
            frames[column].append(predictions.read(run / "predictions.parquet"))
            chosen[column].append(next(iter(read_record(run)["chosen"].values())))
            print(f"{row}, {column}, fold {fold}: {run}", file=sys.stderr)
        if MAJORITY not in found:
            found[MAJORITY] = {column: majority(of) for column, of in frames.items()}
        found[row] = {
            column: result(of) | {"chosen": chosen[column]} for column, of in frames.items()
        }
    return found


def text(found: dict[str, Any]) -> str:
    """AUROC and weighted F1 of each row and column."""
    header = ["", *(f"{column}" for column in COLUMNS)]
    rows = [
        [row, *(f"{of[c]['auroc']:.3f} / {of[c]['weighted_f1']:.3f}" for c in COLUMNS)]
        for row, of in found.items()
    ]
    return "AUROC / weighted F1\n" + aligned([header, *rows])


def main() -> None:
    """Measure, print the table, and keep it with --json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("--quick", action="store_true", help="one fold of each column only")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/genuine"))
    parser.add_argument("--cache", type=Path, default=Path("outputs/store"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.root, arguments.outputs, arguments.cache, arguments.quick)
    print(text(found))
    if arguments.json:
        document = {
            # Where somebody keeps the data is no part of a result.
            "command": f"python {sys.argv[0]} ROOT" + " --quick" * arguments.quick,
            "cores": os.cpu_count(),
            "versions": versions() | {name: version(name) for name in PACKAGES},
            "folds of a column": 1 if arguments.quick else FOLDS,
            "rows": found,
        }
        atomic_write(arguments.json, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
