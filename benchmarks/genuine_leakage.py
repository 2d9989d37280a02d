"""Measure the gain from training on other cells of the scored persons, on genuine cells.

python benchmarks/genuine_leakage.py ROOT [--split-seeds N] [--json FILE]

ROOT holds genuine cells, such as folds 0 and 1 of C-NMC 2019. `split_scheme=leakage` halves the
persons for each split seed; the same cells of both halves are scored by baselines and probes that
were trained without their persons (leak 0), or with the same number of cells, persons and cells of
each class, half of them or all of other cells of the scored persons (leak .5 and 1). What the leak
is worth is the paired difference, with a 95 % interval over persons: of each split seed, as
`leukocls.compare` prints it, and of all of them as one result.

Every half is a run below --outputs, and those that are done are not fitted again. Two
CPU cores took some 20 minutes beside other work, with the networks' features in the cache.
"""

import argparse
import contextlib
import io
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from leukocls import baseline
from leukocls.artifacts import predictions
from leukocls.artifacts.environment import versions
from leukocls.common.files import atomic_write
from leukocls.common.tables import aligned
from leukocls.evaluation.comparison import compare
from leukocls.evaluation.intervals import Interval, paired_difference
from leukocls.evaluation.person_counts import Persons
from leukocls.training.baselines import PACKAGES

# Options of `leukocls.baseline` for each row.
ROWS: dict[str, tuple[str, ...]] = {
    "size": ("size",),
    "mask": ("mask",),
    "colour": ("colour",),
    "handcrafted": ("handcrafted",),
    "Lite0, kNN": ("efficientnetlite0", "--classifier", "knn"),
    "MobileNetV2, kNN": ("mobilenetv2", "--classifier", "knn"),
}
LEAKS = ("0", "0.5", "1")
METRICS = ("auroc", "weighted_f1")


def fitted(options: list[str]) -> Path:
    """The run directory of one baseline, which is fitted unless it is done already."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        baseline.main([*options, "--json"])
    return Path(json.loads(printed.getvalue())["run"])


def persons(frame: pd.DataFrame) -> Persons:
    """The sums that metrics and intervals are computed from."""
    names = predictions.persons(frame).to_numpy(str)
    return Persons.of(frame["label"], frame["logit"] > 0, names, frame["logit"])


def shown(interval: Interval) -> dict[str, float | None]:
    """An interval for JSON; null where nothing varies or a class has one person."""
    limits = interval.limits or dict.fromkeys(("low", "high", "df"))
    return {"value": round(interval.value, 4)} | {
        name: limit if limit is None else round(limit, 4) for name, limit in limits.items()
    }


def row(options: list[str], outputs: Path, seeds: int) -> dict[str, Any]:
    """One row: the metrics by leak, and what each leak is worth."""
    frames: dict[str, list[pd.DataFrame]] = {leak: [] for leak in LEAKS}
    by_seed: list[dict[str, Any]] = []
    for seed in range(seeds):
        runs: dict[str, list[Path]] = {leak: [] for leak in LEAKS}
        for leak in LEAKS:
            for fold in ("0", "1"):
                split = ["--split-scheme", "leakage", "--split-seed", str(seed), "--fold", fold]
                words = [*options, *split, "--leak", leak, "--outputs", str(outputs / str(seed))]
                runs[leak].append(fitted(words))
                frame = predictions.read(runs[leak][-1] / "predictions.parquet")
                # Another split seed may score the cell again.
                frames[leak].append(frame.assign(cell=f"{seed} " + frame["cell"]))
        by_seed.append({
            leak: _differences([*runs[leak], *runs["0"]]) for leak in LEAKS[1:]
        })  # fmt: skip
    sums = {
        leak: persons(pd.concat(of).sort_values("cell", ignore_index=True))
        for leak, of in frames.items()
    }
    return {
        "leak": {leak: {m: round(sums[leak].metric(m)[0], 4) for m in METRICS} for leak in LEAKS},
        "worth": {
            leak: {m: shown(paired_difference([sums["0"]], [sums[leak]], m)) for m in METRICS}
            for leak in LEAKS[1:]
        },
        "by_split_seed": by_seed,
        "cells": len(sums["0"].label),
        "persons": sums["0"].number,
    }


def _differences(runs: list[Path]) -> dict[str, Any]:
    """Difference and interval of each metric, as `compare` computes them."""
    found = {one["metric"]: one for one in compare(runs)["differences"]}
    return {
        name: {"difference": round(found[name]["difference"], 4), **(found[name]["interval"] or {})}
        for name in METRICS
    }


def table(rows: dict[str, Any], metric: str) -> str:
    """One metric by leak, and what the leaks are worth, as text."""

    def worth(one: dict[str, float]) -> str:
        limits = f" ({one['low']:+.3f} to {one['high']:+.3f})" if one["low"] is not None else ""
        return f"{one['value']:+.3f}{limits}"

    lines = [[metric, *(f"leak {leak}" for leak in LEAKS), *(f"worth {x}" for x in LEAKS[1:])]]
    for name, found in rows.items():
        values = [f"{found['leak'][leak][metric]:.3f}" for leak in LEAKS]
        lines.append([name, *values, *(worth(found["worth"][x][metric]) for x in LEAKS[1:])])
    return aligned(lines)


def main() -> None:
    """Fit, compare, print the table, and keep it with --json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("--split-seeds", type=int, default=3, help="draws of the halves")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/genuine_leakage"))
    parser.add_argument("--cache", type=Path, default=Path("outputs/store"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    common = [str(arguments.root), "--partial", "--cache", str(arguments.cache)]
    rows: dict[str, Any] = {}
    for name, features in ROWS.items():
        options = [*common, "--features", *features]
        rows[name] = row(options, arguments.outputs, arguments.split_seeds)
        print(f"{name}: done", file=sys.stderr)
    print("\n\n".join(table(rows, metric) for metric in METRICS))
    if arguments.json:
        document = {
            # Where somebody keeps the data is no part of a result.
            "command": f"python benchmarks/genuine_leakage.py ROOT --split-seeds"
            f" {arguments.split_seeds}",
            "cores": os.cpu_count(),
            "versions": versions() | {name: version(name) for name in PACKAGES},
            "rows": rows,
        }
        atomic_write(arguments.json, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
