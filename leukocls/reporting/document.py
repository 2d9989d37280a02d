"""What a report says, as plain values: report.json, from which the page and figures are drawn."""

import json
from pathlib import Path
from typing import Any

from leukocls.artifacts.identity import BASELINE
from leukocls.artifacts.record import RunState, state_of
from leukocls.common.errors import LeukoclsError
from leukocls.evaluation import curves
from leukocls.evaluation.comparison import Comparison, compared
from leukocls.evaluation.learning_curve import learning_curve, sizes_differ
from leukocls.evaluation.metrics import HEADLINE

FORMAT = 1
FEWEST_PERSONS = 10  # of each class; with fewer, intervals rest on a handful of persons
HARDEST = 24
# Entries of a run.json that say what was run, where and on what.
OF_RUN = (
    *("id", "config_hash", "predictions_sha256", "weights_sha256", "data_digest", "git"),
    *("versions", "device", "threads", "started", "finished", "selection", "threshold"),
    *("pretraining", "best_auroc"),
)


def report_document(comparison: Comparison, robustness: Path | None = None) -> dict[str, Any]:
    """The report of runs, as plain values for JSON.

    Keys: `comparison` (the document of `compare --json`), `checks`, `runs`, `data`, `settings`,
    and what figures show: `courses`, `best`, `persons`, `median`, `learning_curve`, `cells`,
    `robustness`.

    Args:
        robustness: a robustness.json of one of these runs; None leaves it out.

    Raises:
        LeukoclsError: it is no such file, or of another run.
    """
    document = compared(comparison)
    reference = list(comparison.arms[comparison.reference].values())
    best, median = curves.best_run(reference), curves.median_run(reference)
    return {
        "format": FORMAT,
        "comparison": document,
        "checks": checks(comparison, document),
        "runs": [_run(record) for record in comparison.records],
        "data": _data(comparison, document),
        "settings": _settings(comparison),
        "courses": {
            name: found
            for name, arm in comparison.arms.items()
            # A baseline is fitted once, and has no course.
            if arm
            and name not in comparison.baselines
            and (found := curves.courses(list(arm.values())))
        },
        "best": {
            "run": best.run.record["id"],
            "seed": best.run.seed,
            "losses": curves.losses(best),
        },
        "persons": curves.by_person(reference),
        "median": {
            "run": median.run.record["id"],
            "seed": median.run.seed,
            "counts": {name: median.result[name] for name in ("tp", "fp", "tn", "fn")},
            "auroc": median.result["auroc"],
            "average_precision": median.result["average_precision"],
            "ece": median.result["ece"],
            "brier": median.result["brier"],
            "calibration": median.run.record.get("calibration"),
            "curves": curves.thresholds(median),
        },
        "learning_curve": _learning_curve(comparison),
        "cells": curves.hardest_cells(reference, HARDEST),
        "robustness": _robustness(robustness, document) if robustness else None,
    }


def _learning_curve(comparison: Comparison) -> dict[str, Any] | None:
    """Points by size of the training set, or the `reason` why there are none; None for one size."""
    if not sizes_differ(comparison):
        return None
    try:
        return learning_curve(comparison)
    except LeukoclsError as error:
        return {"points": [], "reason": str(error)}


def _robustness(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        run, digest = found["run"], found["predictions_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LeukoclsError(
            f"{path}: no robustness.json ({type(error).__name__}); write one with"
            " `python -m leukocls.robustness RUN --out DIR`"
        ) from error
    if document["sources"].get(run) != digest:
        raise LeukoclsError(
            f"{path}: is of {run}, which is none of the runs of this report or was trained anew;"
            " write it again for one of them"
        )
    return dict(found)


def checks(comparison: Comparison, document: dict[str, Any]) -> list[dict[str, str]]:
    """What a reader should check first: `name`, `state` (pass, fail, not applicable), `detail`."""
    marks, persons = document["marks"], document["persons"]
    unfinished = [
        run.name
        for arm in comparison.runs.values()
        for run in arm.values()
        if state_of(run.record) != RunState.DONE
    ]
    short = [arm["name"] for arm in document["arms"] if arm["n"] < arm["planned"]]
    disjoint = "LEAKY" not in marks and not document["shared_persons"]
    few = persons and min(persons.values()) < FEWEST_PERSONS
    number = f"{persons['ALL']} ALL and {persons['HEM']} HEM" if persons else "unknown"
    test = document["test_set"]
    if short or unfinished:
        seeds = "fail", f"missing runs: {', '.join([*short, *unfinished])}"
    elif document["seeds_planned"] is None:
        seeds = "not applicable", "no number of seeds was planned (--seeds)"
    else:
        seeds = "pass", f"{len(document['seeds_planned'])} planned, all done"
    rows = {
        "No person is on two sides": (
            "pass" if disjoint else "fail",
            "; ".join(document["shared_persons"])
            or (
                "no run is marked LEAKY"
                if disjoint
                else "scored persons or images were also trained on"
            ),
        ),
        "The set that chose is named": (
            "pass",
            f"{document['selection_set']} chose the epoch;"
            f" the numbers are of {test or document['selection_set']} ({document['heading']})",
        ),
        "A test chose nothing": (
            "pass" if test else "fail",
            f"{test} was scored once" if test else f"no test set: headed {document['heading']}",
        ),
        "All planned seeds are here": seeds,
        f"At least {FEWEST_PERSONS} persons of each class": (
            "not applicable" if not persons else "fail" if few else "pass",
            f"{number} persons",
        ),
        "Predictions are as the runs wrote them": (
            "pass",
            f"the sha256 of all ({len(document['sources'])}) holds; an edited one would be refused",
        ),
    }
    return [
        {"name": name, "state": state, "detail": detail} for name, (state, detail) in rows.items()
    ]


def _run(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in OF_RUN if name in record}


def _data(comparison: Comparison, document: dict[str, Any]) -> dict[str, Any]:
    first = comparison.first
    return {
        "digest": first.run.record["data_digest"],
        "split_scheme": first.run.record["split_scheme"],
        "scored": first.result["split"],
        "cells": first.result["n"],
        "prevalence": first.result["prevalence"],
        "persons": document["persons"],
    }


def _settings(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """The settings of each arm's first run; for arms other than the reference, what differs.

    Of a baseline these are its own: it has few of a network's.
    """
    settings = {
        name: dict(next(iter(arm.values())).run.record.get("identity") or {})
        for name, arm in comparison.arms.items()
        if arm
    }
    reference = settings[comparison.reference]
    return {
        name: own
        if name == comparison.reference
        else {
            key: own.get(key)
            for key in (own if name in comparison.baselines else {**reference, **own})
            if own.get(key) != reference.get(key) and key != "seed"
        }
        for name, own in settings.items()
    }


def headline(document: dict[str, Any]) -> dict[str, Any]:
    """The reference arm's entry of the comparison."""
    arms = document["comparison"]["arms"]
    return next(arm for arm in arms if arm["name"] == document["comparison"]["reference"])


def baseline_names(document: dict[str, Any]) -> list[str]:
    """The arms that are classifiers on simple features; none if there is no network beside them."""
    arms = document["comparison"]["arms"]
    found = [arm["name"] for arm in arms if arm["experiment"] == BASELINE and arm["n"]]
    return found if len(found) < len(arms) else []


def has_paper(document: dict[str, Any]) -> bool:
    """True if a paper's printed numbers stand beside an arm's."""
    return any(arm[HEADLINE]["paper"] for arm in document["comparison"]["arms"])
