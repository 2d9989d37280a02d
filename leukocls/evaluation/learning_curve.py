"""Learning curves: a metric by the number of persons and cells that were trained on."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from leukocls.artifacts.identity import name_parts
from leukocls.artifacts.marks import merged_marks
from leukocls.common.errors import LeukoclsError
from leukocls.data.splits import read_split
from leukocls.evaluation import intervals, person_counts, seed_tests
from leukocls.evaluation.arm_runs import ArmRun, ScoredRun
from leukocls.evaluation.comparison import Comparison
from leukocls.evaluation.metrics import HEADLINE

SIZES = ("n_subjects", "n_cells")
# Settings in which the points of one curve, and the runs of one point, may differ. A baseline names
# its sizes without `data.`.
OF_POINT = {*SIZES, *(f"data.{size}" for size in SIZES)}
OF_RUN = {"seed", "split_seed", "fold"}


def learning_curve(comparison: Comparison, metric: str = HEADLINE) -> dict[str, Any]:
    """The learning curves of finished runs that differ in `data.n_subjects` or `data.n_cells`.

    A curve is one recipe, a point one size of its training set. The runs of a point differ in their
    seed, their split seed (which draws other persons to train on) or their fold; the folds of a
    cross-validation are one run. All runs score the same cells.

    Args:
        comparison: the scored runs of all sizes.
        metric: of `person_counts.METRICS`.

    Returns:
        `metric`, `heading` and `marks` of all numbers, `shared_persons`, `persons` (those scored,
        by class), and `points` in the order of a figure. Of each point: `curve` (its name),
        `n_subjects` and `n_cells` as they were set (None: all), `persons` and `cells` that were
        trained on (mean over runs; no persons if unknown), `n` (of runs), `values` of the runs as
        fractions, their `mean` and `sd` (ddof 0), `interval` (95 %, over persons and runs: `low`,
        `high`, `df`; None if undefined) and `reason` (why a metric is undefined, else None).

    Raises:
        LeukoclsError: runs of one size, or another metric.
    """
    if metric not in person_counts.METRICS:
        raise LeukoclsError(f"{metric}: choose one of {', '.join(person_counts.METRICS)}.")
    scored = [one for arm in comparison.arms.values() for one in arm.values()]
    by_id = {run.record["id"]: run for arm in comparison.runs.values() for run in arm.values()}
    points: dict[tuple[str, str], list[ScoredRun]] = {}
    for one in scored:
        points.setdefault((_recipe(one.run), json.dumps(_sizes(one.run))), []).append(one)
    sizes: dict[str, int] = {}
    for recipe, _ in points:
        sizes[recipe] = sizes.get(recipe, 0) + 1
    if alone := [of[0].run.name for (recipe, _), of in points.items() if sizes[recipe] < 2]:
        raise LeukoclsError(
            f"{alone[0]}: no other size of its training set is among these runs. Train some:"
            " data.n_subjects=10,20 -m"
        )
    headings = [one.result["heading"] for one in scored]
    rows = [_point(of, by_id, metric) for of in points.values()]
    return {
        "metric": metric,
        "heading": "leaky" if "leaky" in headings else headings[0],
        "marks": merged_marks(record["marks"] for record in comparison.records),
        "shared_persons": merged_marks(
            record.get("shared_persons", []) for record in comparison.records
        ),
        "persons": scored[0].result["persons"],
        "points": sorted(rows, key=lambda row: (row["curve"], row["cells"])),
    }


def sizes_differ(comparison: Comparison) -> bool:
    """True if the scored runs were given different sizes of their training sets."""
    scored = (one for arm in comparison.arms.values() for one in arm.values())
    return len({json.dumps(_sizes(one.run)) for one in scored}) > 1


def _recipe(run: ArmRun) -> str:
    """A key that all runs of one curve share."""
    left_out = OF_POINT | OF_RUN
    settings = {k: v for k, v in run.record["identity"].items() if k not in left_out}
    ablation, _ = name_parts(run.arm)
    return json.dumps([run.experiment, ablation.partition("…")[0], settings], sort_keys=True)


def _sizes(run: ArmRun) -> dict[str, int | None]:
    """The sizes that the run was given; None for all there are."""
    settings = run.record["identity"]
    return {size: settings.get(f"data.{size}", settings.get(size)) for size in SIZES}


def _name(run: ArmRun) -> str:
    """Experiment and arm, without what the points of a curve and their runs differ in."""
    ablation, overrides = name_parts(run.arm)
    kept = {k: v for k, v in overrides.items() if k not in OF_POINT | OF_RUN}
    arm = ",".join([ablation.partition("…")[0], *(f"{k}={v}" for k, v in kept.items())])
    return f"{run.experiment}/{arm}"


def _point(runs: list[ScoredRun], by_id: dict[str, ArmRun], metric: str) -> dict[str, Any]:
    """One point of a curve."""
    trained = []
    for one in runs:
        origin = one.part.origin
        trained += [_trained(by_id[name].directory) for name in origin.get("runs", [origin["run"]])]
    known = [number for number, _ in trained if number is not None]
    values = [one.result[metric] for one in runs]
    reasons = (one.result["missing"].get(metric) for one in runs)
    found = seed_tests.describe([] if None in values else values)
    persons = [one.part.persons for one in runs if one.part.persons]
    return {
        "curve": _name(runs[0].run),
        **_sizes(runs[0].run),
        "persons": fmean(known) if len(known) == len(trained) else None,
        "cells": fmean(cells for _, cells in trained),
        "n": len(runs),
        "values": values,
        "mean": found["mean"],
        "sd": found["sd"],
        "interval": intervals.jackknife(persons, metric).limits if persons else None,
        "reason": next((reason for reason in reasons if reason), None),
    }


def _trained(directory: Path) -> tuple[int | None, int]:
    """Numbers of persons (None if unknown) and of cells in a run's training set.

    Raises:
        LeukoclsError: no split.csv.
    """
    split = read_split(directory / "split.csv")
    train = split[split["split"] == "train"]
    persons = set(train["group"])
    return None if "" in persons else len(persons), len(train)
