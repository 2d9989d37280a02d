"""Calibration of one result of `leukocls.evaluate` as text."""

import math
import textwrap
from typing import Any

from leukocls.common.tables import aligned

STAGES = {
    "before": "as predicted",
    "without_pos_weight": "without pos_weight",
    "after": "calibrated",
}
INTERVALS = (
    "In brackets: 95 % interval over other persons like these, by the same parameters. Each person"
    " is calibrated by parameters that were fitted without that person."
)


def calibration_text(calibration: dict[str, Any]) -> str:
    """The entry `calibration` of a result as text: the formula, a table, the threshold."""
    stages, threshold = calibration["stages"], calibration["threshold"]
    if stages is None:
        return "\n".join(textwrap.wrap(f"Calibration: none: {calibration['reason']}.", 98))
    lines = textwrap.wrap(_formula(calibration), 98)
    shifted = calibration["log_pos_weight"] != 0
    shown = {key: name for key, name in STAGES.items() if shifted or key != "without_pos_weight"}
    rows = [["", *shown.values()]]
    rows += [[name, *(_value(stages[key][name]) for key in shown)] for name in stages["before"]]
    lines += [*aligned(rows).split("\n"), *textwrap.wrap(INTERVALS, 98)]
    if threshold and threshold["probability"] is None:
        lines += textwrap.wrap(f"No threshold: {threshold['reason']}.", 98)
    elif threshold:
        lines += textwrap.wrap(
            f"Threshold {threshold['probability']:.4f} of the calibrated probability, for a"
            f" sensitivity of {threshold['wanted']:g} on {calibration['fitted_on']}: here"
            f" sensitivity {_value(threshold['sensitivity'])} and specificity"
            f" {_value(threshold['specificity'])}, each person by the threshold of the others.",
            98,
        )
    return "\n".join(lines)


def _formula(calibration: dict[str, Any]) -> str:
    weight, folds = calibration["log_pos_weight"], calibration["folds"]
    # Each fold's own weight is undone; the record has their mean.
    known = "pos_weight" if folds > 1 else f"{math.exp(weight):.4f}"
    logit = f"(logit − log {known})" if weight else "logit"
    fitted = f"fitted on {calibration['fitted_on']}"
    if folds > 1:
        fitted += f" of {folds} folds"
    persons = calibration["persons"]
    of = f" of {persons['ALL']} ALL and {persons['HEM']} HEM persons" if persons else ""
    return (
        f"Calibration: sigmoid({calibration['intercept']:+.4f} {calibration['slope']:+.4f} ·"
        f" {logit}), {fitted}: {calibration['cells']} cells{of}."
    )


def _value(found: dict[str, float | None]) -> str:
    if found["value"] is None:
        return "–"
    limits = f" ({found['low']:.4f} to {found['high']:.4f})" if found["low"] is not None else ""
    return f"{found['value']:.4f}{limits}"
