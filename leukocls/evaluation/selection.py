"""Rules that select an epoch, by the names that run.json records, and a check of their choice."""

from typing import Any

import numpy as np
import pandas as pd

from leukocls.evaluation.metrics import HEADLINE, confusion, decide, rates


def best_weighted_f1(history: list[float]) -> int:
    """The epoch with the highest weighted F1, the first of them if there are several."""
    return max(range(len(history)), key=lambda epoch: (history[epoch], -epoch))


def last(history: list[float]) -> int:
    """The last epoch."""
    return len(history) - 1


BEST_THRESHOLD = "best_weighted_f1"  # a threshold that is chosen on the selection set
# Each rule takes the selection set's weighted F1 by epoch (0 = before training).
RULES = {"best_weighted_f1": best_weighted_f1, "last": last}


def contradiction(predictions: pd.DataFrame, record: dict[str, Any]) -> str:
    """The first contradiction between a run's recorded selection and its predictions, or "".

    The selection set is among the predictions, the rule gives the recorded epoch on it, and every
    other set holds that epoch alone. A scored checkpoint holds one epoch, chosen elsewhere.

    Args:
        predictions: those of the run, of all its epochs.
        record: its run.json.
    """
    selection = record.get("selection") or {}
    rule, chosen_on, epoch = (selection.get(key) for key in ("rule", "set", "epoch"))
    if chosen_on is None:
        return ""
    if not (record.get("identity") or {}).get("score"):
        cells = predictions[predictions["split"] == chosen_on]
        epochs, label, logit = (cells[name].to_numpy() for name in ("epoch", "label", "logit"))
        present = np.unique(epochs)
        if not len(present):
            return f"the epoch was chosen on {chosen_on}, of which there are no predictions"
        if rule not in RULES:
            return f"there is no rule {rule}"
        known = label >= 0
        f1 = [_weighted_f1(label[at], logit[at]) for at in (known & (epochs == e) for e in present)]
        chosen = present[RULES[rule](f1)]
        if chosen != epoch:
            return f"{rule} on {chosen_on} gives epoch {chosen}, not {epoch}"
    reported = predictions[~predictions["split"].isin([chosen_on, "train"])]
    others = sorted({str(split) for split in reported["split"][reported["epoch"] != epoch]})
    if others:
        return f"{', '.join(others)} is scored at other epochs than the chosen one, {epoch}"
    return ""


def _weighted_f1(label: np.ndarray, logit: np.ndarray) -> float:
    value = rates(**confusion(label, decide(logit=logit)))[HEADLINE]
    assert value is not None  # of any cells at all
    return value
