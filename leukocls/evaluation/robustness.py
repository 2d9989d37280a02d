"""Metrics of a run under corruptions of its images, and their drop from the clean ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from leukocls.artifacts import predictions
from leukocls.evaluation.intervals import jackknife, paired_difference
from leukocls.evaluation.metrics import Floats, decide
from leukocls.evaluation.person_counts import METRICS, Persons


def measured(
    frame: pd.DataFrame,
    threshold: float,
    clean: Floats,
    corrupted: Mapping[str, Sequence[Floats]],
    amounts: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """Metrics of the clean and of the corrupted images, with 95 % intervals over persons.

    A drop is the clean metric less the corrupted one, on the same cells: its interval is that of a
    paired difference. All intervals are None where whom a cell is from is unknown, where a class
    has fewer than two persons, or where nothing varies.

    Args:
        frame: the cells' predictions: columns cell, subject, label, and perhaps person, n rows.
        threshold: probability above which a cell is called ALL.
        clean: logits [n].
        corrupted: for each corruption, the logits [n] of each of its severities, from 1 on.
        amounts: for each corruption, the amount of each of these severities.
    """
    names = predictions.persons(frame).to_numpy(str)
    known = bool((names != "").all())
    # One person for all cells has the same metrics, and no interval.
    person = names if known else np.full(len(names), "all")

    def counted(logit: Floats) -> Persons:
        called = decide(logit=logit, threshold=threshold)
        return Persons.of(frame["label"], called, person, logit)

    unchanged = counted(clean)
    rows = []
    for name, logits in corrupted.items():
        for severity, logit in enumerate(logits, start=1):
            amount, changed = amounts[name][severity - 1], counted(logit)
            values = {metric: _drop(unchanged, changed, metric) for metric in METRICS}
            at = {"corruption": name, "severity": severity, "amount": amount}
            rows.append({**at, "metrics": values})
    return {
        "persons": unchanged.number if known else None,
        "clean": {metric: _value(unchanged, metric) for metric in METRICS},
        "rows": rows,
    }


def _value(persons: Persons, metric: str) -> dict[str, Any]:
    found = jackknife([persons], metric)
    return {"value": found.value, "interval": found.limits}


def _drop(clean: Persons, corrupted: Persons, metric: str) -> dict[str, Any]:
    drop = paired_difference([corrupted], [clean], metric)
    return {**_value(corrupted, metric), "drop": drop.value, "drop_interval": drop.limits}
