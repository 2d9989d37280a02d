"""Data of a report's figures: metrics by epoch, threshold curves, persons and hardest cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from leukocls.artifacts import predictions
from leukocls.evaluation.arm_runs import ScoredRun
from leukocls.evaluation.history import read_history
from leukocls.evaluation.metrics import BINS, HEADLINE, RECORDED
from leukocls.evaluation.review import TRAINED_ON, review

POINTS = 200  # of a curve: more than a figure can show


def courses(arm: Sequence[ScoredRun]) -> dict[str, Any] | None:
    """Mean and SD (ddof 0) over runs of each metric by epoch, on the selection set.

    From the predictions of all epochs (Prellberg & Kramer 2019, Figure 4). None for pooled folds,
    which have no common epochs, and for runs without a selection set in their predictions.
    """
    by_run = [run.by_epoch for run in arm]
    if not by_run or not all(by_run):
        return None
    epochs = sorted(set.intersection(*(set(of_run) for of_run in by_run)))
    values = {
        name: np.array(
            [[of_run[epoch][name] for epoch in epochs] for of_run in by_run], dtype=np.float64
        )
        for name in RECORDED
    }
    return {
        "epochs": epochs,
        "n": len(arm),
        "metrics": {
            name: {"mean": _plain(of.mean(0)), "sd": _plain(of.std(0))}
            for name, of in values.items()
        },
    }


def losses(run: ScoredRun) -> dict[str, Any] | None:
    """Training loss, and loss and weighted F1 of the selection set, by epoch of one run.

    From metrics.csv (Prellberg & Kramer 2019, Figure 2). None where there is none.
    """
    if run.result.get("folds"):
        return None
    try:
        rows = read_history(run.run.directory)
    except OSError:
        return None
    chosen_on = run.run.record["selection"]["set"]
    columns = {
        "train_loss": "train_loss",
        "loss": f"{chosen_on}_loss",
        HEADLINE: f"{chosen_on}_{HEADLINE}",
    }
    if not rows or columns["loss"] not in rows[0]:
        return None
    found = {name: [row.get(column) for row in rows] for name, column in columns.items()}
    return {"epochs": [row["epoch"] for row in rows], "set": chosen_on, **found}


def thresholds(run: ScoredRun) -> dict[str, Any] | None:
    """ROC and precision-recall curves and the reliability of one run; None for hard labels.

    ROC: `fpr` and `tpr`; precision-recall: `recall` and `precision`; each thinned to POINTS.
    Reliability: for each of the BINS bins with equally many cells (as in the ECE) the mean
    probability, the share of ALL, cells and persons.
    """
    frame = run.part.frame
    if "logit" not in frame or frame["label"].nunique() < 2:
        return None
    y, z = frame["label"].to_numpy(), frame["logit"].to_numpy(np.float64)
    fpr, tpr, _ = roc_curve(y, z)
    precision, recall, _ = precision_recall_curve(y, z)
    return {
        "roc": {"fpr": _thinned(fpr), "tpr": _thinned(tpr)},
        "precision_recall": {"recall": _thinned(recall), "precision": _thinned(precision)},
        "reliability": _reliability(frame),
    }


def _reliability(frame: pd.DataFrame) -> list[dict[str, Any]]:
    order = frame.assign(who=predictions.persons(frame)).sort_values("logit", kind="stable")
    bins = np.array_split(np.arange(len(order)), min(BINS, len(order)))
    parts = [order.iloc[places] for places in bins]
    return [
        {
            "prob": float(part["prob"].mean()),
            "all": float(part["label"].mean()),
            "cells": len(part),
            "persons": int(part["who"].nunique()),
        }
        for part in parts
    ]


def by_person(arm: Sequence[ScoredRun]) -> list[dict[str, Any]]:
    """Each person's cells and the share called rightly: in each run, and the mean over runs.

    Persons are sorted by class and this mean (Prellberg & Kramer 2019, Figure 3, shows the best
    run).
    """
    tables = [pd.DataFrame(run.result["subject"]["per_subject"]) for run in arm]
    if not tables or any(table.empty for table in tables):
        return []
    first = tables[0].set_index("subject")
    shares = pd.concat([table.set_index("subject")["accuracy"] for table in tables], axis=1)
    mean = shares.mean(axis=1)
    order = sorted(first.index, key=lambda who: (-(first["label"][who] or 0), mean[who], who))
    return [
        {
            "person": who,
            "label": None if pd.isna(first["label"][who]) else int(first["label"][who]),
            "cells": int(first["n"][who]),
            "accuracy": float(mean[who]),
            "runs": [float(value) for value in shares.loc[who]],
        }
        for who in order
    ]


def hardest_cells(arm: Sequence[ScoredRun], number: int) -> list[dict[str, Any]]:
    """The first rows of the label review list of an arm's runs; none where a run has hard labels.

    Cells of persons that were trained on are not listed.
    """
    parts = [run.part for run in arm]
    headings = {part.origin["heading"] for part in parts}
    if headings & set(TRAINED_ON) or any("logit" not in part.frame for part in parts):
        return []
    rows = review(parts).head(number)
    return [
        {
            "cell": str(row.cell),
            "person": str(row.person),
            "label": int(row.label),
            "loss": float(row.loss),
            "prob": float(row.mean_prob),
        }
        for row in rows.itertuples()
    ]


def median_run(arm: Sequence[ScoredRun]) -> ScoredRun:
    """The run whose weighted F1 is the median of its arm's, the lower one of two."""
    ordered = sorted(arm, key=lambda run: (run.result[HEADLINE] or 0.0, run.run.seed))
    return ordered[(len(ordered) - 1) // 2]


def best_run(arm: Sequence[ScoredRun]) -> ScoredRun:
    """The run with the largest weighted F1, as the paper's figures show."""
    return max(arm, key=lambda run: (run.result[HEADLINE] or 0.0, -run.run.seed))


def _thinned(values: np.ndarray) -> list[float]:
    places = np.unique(np.linspace(0, len(values) - 1, min(POINTS, len(values))).round())
    return _plain(values[places.astype(int)])


def _plain(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]
