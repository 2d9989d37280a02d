"""Metrics on the selection set without the optimism of the epoch's choice."""

from typing import Any

import numpy as np
import pandas as pd

from leukocls.artifacts import predictions
from leukocls.evaluation.metrics import HEADLINE, auroc, confusion, decide, rates
from leukocls.evaluation.person_counts import METRICS, Persons
from leukocls.evaluation.selection import RULES


def debiased(frame: pd.DataFrame, rule: str) -> dict[str, float | None] | None:
    """Metrics of all cells, each person's at the epoch that the other persons choose.

    None where whom a cell is from is unknown, or nothing was chosen. This is no test: whoever set
    the hyperparameters may have seen these cells.

    Args:
        frame: predictions on the selection set, of all epochs.
        rule: of RULES; the threshold is .5.
    """
    by_epoch = list(predictions.by_epoch(frame).values())
    names = predictions.persons(by_epoch[0]).to_numpy(str)
    if len(by_epoch) < 2 or (names == "").any() or len(set(names)) < 2:
        return None
    label = by_epoch[0]["label"].to_numpy()
    logits = np.stack([cells["logit"].to_numpy() for cells in by_epoch])
    runs = [Persons.of(label, decide(logit=z), names) for z in logits]
    without = np.stack([run.metric(HEADLINE)[1] for run in runs])
    chosen = np.array([RULES[rule](history.tolist()) for history in without.T])
    z = logits[chosen[runs[0].of_cell], np.arange(len(label))]
    values: dict[str, Any] = rates(**confusion(label, decide(logit=z)))
    return {name: (values | {"auroc": auroc(label, z)})[name] for name in METRICS}
