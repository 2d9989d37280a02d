"""Rules that select an epoch, by the names that run.json records, and a check of their choice."""

from typing import Any

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
        by_epoch = dict(iter(predictions[predictions["split"] == chosen_on].groupby("epoch")))
        if not by_epoch:
            return f"the epoch was chosen on {chosen_on}, of which there are no predictions"
        if rule not in RULES:
            return f"there is no rule {rule}"
        chosen = list(by_epoch)[RULES[rule]([_weighted_f1(cells) for cells in by_epoch.values()])]
        if chosen != epoch:
            return f"{rule} on {chosen_on} gives epoch {chosen}, not {epoch}"
    reported = predictions[~predictions["split"].isin([chosen_on, "train"])]
    others = sorted({str(split) for split in reported["split"][reported["epoch"] != epoch]})
    if others:
        return f"{', '.join(others)} is scored at other epochs than the chosen one, {epoch}"
    return ""


def _weighted_f1(cells: pd.DataFrame) -> float:
    known = cells[cells["label"] >= 0]
    value = rates(**confusion(known["label"], decide(logit=known["logit"])))[HEADLINE]
    assert value is not None  # of any cells at all
    return value
