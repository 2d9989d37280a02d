"""All metrics of one set of cells and its subjects, with a reason for each undefined one."""

from typing import Any

import numpy as np
import numpy.typing as npt

from leukocls.artifacts.predictions import persons, sigmoid
from leukocls.common.errors import LeukoclsError
from leukocls.evaluation.metrics import (
    BOTH_CLASSES,
    COUNTS,
    GRADED,
    RATES,
    Floats,
    auroc,
    average_precision,
    brier,
    calibration_intercept,
    calibration_slope,
    checked_labels,
    confusion,
    decide,
    ece,
    rates,
    sensitivity_at_specificity,
    slope_reason,
)

# Without logits, probabilities of 0 and 1 count as this far from them: the resolution of float32.
SMALLEST_PROB = 1e-7
HARD_LABELS = "hard labels only: needs prob or logit"
SUBJECT_KEYS = ("subject.accuracy", "subject.auroc", "subject.undecided")

_REASONS = {
    "sensitivity": "no ALL cell",
    "specificity": "no HEM cell",
    "balanced_accuracy": BOTH_CLASSES,
    "f1": "no ALL cell and none called ALL",
    "macro_f1": "a class without a cell, and never called",
    "auroc": BOTH_CLASSES,
    "average_precision": "no ALL cell",
    "sensitivity_at_90_specificity": BOTH_CLASSES,
    "calibration_intercept": BOTH_CLASSES,
}


def cell_metrics(
    label: npt.ArrayLike,
    *,
    logit: npt.ArrayLike | None = None,
    prob: npt.ArrayLike | None = None,
    label_pred: npt.ArrayLike | None = None,
    subject: npt.ArrayLike | None = None,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """All metrics of n cells and of their subjects, as plain Python values for JSON.

    Undefined metrics are None, with a reason under `missing`. `notes` says of each metric by
    subject how subjects with cells of both classes count; it is empty without such subjects.

    Args:
        label: 0 or 1, [n].
        logit: finite, [n].
        prob: in [0, 1], [n].
        label_pred: hard labels, 0 or 1, [n]. At least one of the three is needed; the first has
            priority.
        subject: the person that each cell is from, "" if unknown, [n]. Metrics of subjects count
            persons.
        threshold: probability in (0, 1) above which a cell is called ALL.

    Raises:
        LeukoclsError: values out of range.
    """
    y = checked_labels(label)
    z = None if logit is None else _floats("logit", logit, y.size)
    p = None if prob is None else _floats("prob", prob, y.size)
    if p is not None and ((p < 0) | (p > 1)).any():
        raise LeukoclsError("prob must lie between 0 and 1")
    called = decide(logit=z, prob=p, label_pred=label_pred, threshold=threshold)
    order = z if z is not None else p
    p = sigmoid(z) if p is None and z is not None else p
    if z is None and p is not None:
        z = logit_of(p)

    counts = confusion(y, called)
    values = rates(**counts)
    reasons = dict(_REASONS)
    if order is None or z is None or p is None:
        values |= dict.fromkeys(GRADED)
        reasons |= dict.fromkeys(GRADED, HARD_LABELS)
    else:
        values |= _graded_metrics(y, order, z, p)
        reasons["calibration_slope"] = slope_reason(y, z)
    missing = {name: reasons[name] for name, value in values.items() if value is None}
    by_subject, subject_reasons, notes = _subject_metrics(y, called, z, subject)
    unknown = "n_subjects" in subject_reasons
    return {
        "n": y.size,
        "n_subjects": None if unknown else len(by_subject["per_subject"]),
        "prevalence": float(y.mean()),
        **counts,
        **values,
        "subject": by_subject,
        "missing": missing | subject_reasons,
        "notes": notes,
    }


def logit_of(prob: npt.ArrayLike) -> Floats:
    """The logit of probabilities in [0, 1], of which 0 and 1 count as SMALLEST_PROB from them."""
    p = np.clip(np.asarray(prob, np.float64), SMALLEST_PROB, 1 - SMALLEST_PROB)
    return np.log(p) - np.log1p(-p)


def _graded_metrics(
    y: npt.NDArray[np.int64], order: Floats, z: Floats, p: Floats
) -> dict[str, float | None]:
    """The metrics in GRADED, from labels, ranking values, logits and probabilities, [n] each."""
    return {
        "auroc": auroc(y, order),
        "average_precision": average_precision(y, order),
        "sensitivity_at_90_specificity": sensitivity_at_specificity(y, order),
        "brier": brier(y, p),
        "ece": ece(y, p),
        "calibration_intercept": calibration_intercept(y, z),
        "calibration_slope": calibration_slope(y, z),
    }


def by_split(frame: Any, threshold: float) -> dict[str, dict[str, Any]]:
    """`cell_metrics` of the labelled cells of each split, without the list of subjects.

    Args:
        frame: predictions of one epoch.
    """
    results = {}
    for split, cells in frame[frame["label"] >= 0].groupby("split"):
        values = cell_metrics(
            cells["label"],
            logit=cells["logit"],
            subject=persons(cells),
            threshold=threshold,
        )
        values["subject"].pop("per_subject")
        results[str(split)] = values
    return results


def unlabelled(n: int) -> dict[str, Any]:
    """The result of `cell_metrics` for `n` cells without labels: every metric is undefined."""
    names = ("n_subjects", "prevalence", *COUNTS, *RATES, *GRADED)
    return {
        "n": n,
        **dict.fromkeys(names),
        "subject": _no_subjects(),
        "missing": dict.fromkeys((*names, *SUBJECT_KEYS), "no labels"),
        "notes": {},
    }


def _no_subjects() -> dict[str, Any]:
    return {"accuracy": None, "auroc": None, "undecided": None, "per_subject": []}


def _floats(name: str, values: npt.ArrayLike, n: int) -> Floats:
    """Values as float64 [n]; LeukoclsError if they are not finite or not n."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (n,):
        raise LeukoclsError(f"{name} has shape {array.shape}, the labels ({n},)")
    if not np.isfinite(array).all():
        raise LeukoclsError(f"{name} holds NaN or infinite values")
    return array


def _subject_metrics(
    y: npt.NDArray[np.int64],
    called: npt.NDArray[np.bool_],
    z: Floats | None,
    subject: npt.ArrayLike | None,
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Metrics of subjects (majority vote, mean logit, AUROC), reasons for undefined ones, notes."""
    names = np.full(y.size, "") if subject is None else np.asarray(subject).astype(str)
    if names.shape != y.shape:
        raise LeukoclsError(f"subject has shape {names.shape}, the labels {y.shape}")
    unknown = int((names == "").sum())
    if unknown:
        reason = f"the subject of {unknown} of {y.size} cells is unknown"
        return _no_subjects(), dict.fromkeys(("n_subjects", *SUBJECT_KEYS), reason), {}

    distinct, index, n = np.unique(names, return_inverse=True, return_counts=True)
    n_all = np.bincount(index, weights=y)
    both = (n_all > 0) & (n_all < n)
    correct = np.bincount(index, weights=called == (y == 1)).astype(np.int64)
    label = (n_all > 0).astype(np.int64)
    mean_logit = None if z is None else np.bincount(index, weights=z) / n
    area = None
    if mean_logit is not None and not both.all():
        area = auroc(label[~both], mean_logit[~both])
    per_subject = [
        {
            "subject": str(distinct[i]),
            "label": None if both[i] else int(label[i]),
            "n": int(n[i]),
            "correct": int(correct[i]),
            "accuracy": float(correct[i] / n[i]),
            "mean_logit": None if mean_logit is None else float(mean_logit[i]),
        }
        for i in range(distinct.size)
    ]
    values = {
        "accuracy": float((2 * correct > n).mean()),
        "auroc": area,
        "undecided": int((2 * correct == n).sum()),
        "per_subject": per_subject,
    }
    notes = {}
    if both.any():
        who = f"{both.sum()} two-class subjects"
        voting = f"{who} vote with all their cells"
        notes = dict.fromkeys(SUBJECT_KEYS, voting) | {"subject.auroc": f"{who} left out"}
    if area is not None:
        return values, {}, notes
    reason = HARD_LABELS if z is None else "needs subjects of both classes"
    return values, {"subject.auroc": reason}, notes
