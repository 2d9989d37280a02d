"""Ensembles from predictions on disk: several runs score the same cells as one classifier."""

from collections.abc import Sequence

import numpy as np

from leukocls.artifacts.marks import merged_marks
from leukocls.artifacts.predictions import sigmoid
from leukocls.common.errors import LeukoclsError
from leukocls.common.tables import listing
from leukocls.evaluation.metrics import HEADLINE, Floats, decide
from leukocls.evaluation.scoring import ScoredPart, metrics_of

RULES = ("mean-logit", "mean-prob", "vote", "weighted")


def ensembles(by_run: Sequence[Sequence[ScoredPart]], rule: str) -> list[ScoredPart]:
    """One part for each split that all runs score.

    Args:
        by_run: the parts of each run, one for each split.
        rule: of RULES. "mean-logit" and "mean-prob" average what they say; "vote" takes the share
            of runs that call a cell ALL, each by its own threshold, as its probability, so that a
            tie is called HEM; "weighted" is the mean logit, weighted by each run's weighted F1 on
            its selection set.

    Raises:
        LeukoclsError: fewer than two runs, runs that score other cells or choose other thresholds,
            no probabilities, or no selection set to take weights from.
    """
    if len(by_run) < 2:
        raise LeukoclsError("--ensemble: name at least two runs or files")
    weights = (
        np.array([_on_selection_set(parts) for parts in by_run]) if rule == "weighted" else None
    )
    splits = [[part.origin["split"] for part in parts] for parts in by_run]
    shared = [split for split in splits[0] if all(split in others for others in splits)]
    if not shared or any(len(set(own)) < len(own) for own in splits):
        raise LeukoclsError(
            "--ensemble: the runs have no split in common, or several epochs of one; choose with"
            " --split and --epoch"
        )
    return [
        _combined(
            [parts[own.index(split)] for parts, own in zip(by_run, splits, strict=True)],
            rule,
            weights,
        )
        for split in shared
    ]


def _on_selection_set(parts: Sequence[ScoredPart]) -> float:
    """Weighted F1 of a run on its selection set."""
    for part in parts:
        if part.origin["heading"] == "selection":
            return float(metrics_of(part)[HEADLINE])
    raise LeukoclsError(
        f"{parts[0].origin['source']}: has no selection set among what is scored, so there is no"
        " weight for it; take --ensemble mean-logit, or leave out --split"
    )


def _combined(parts: Sequence[ScoredPart], rule: str, weights: Floats | None) -> ScoredPart:
    first = parts[0]
    for part in parts[1:]:
        for name in ("cell", "label"):
            if part.frame[name].tolist() != first.frame[name].tolist():
                raise LeukoclsError(
                    f"{part.origin['source']}: its {name}s on {part.origin['split']} are not those"
                    f" of {first.origin['source']}; an ensemble scores the same cells"
                )
    thresholds = {part.origin["threshold"] for part in parts}
    if rule != "vote" and (None in thresholds or len(thresholds) > 1):
        shown = listing(sorted(f"{one:g}" for one in thresholds if one is not None))
        raise LeukoclsError(
            f"--ensemble {rule}: the runs have hard labels, or thresholds of their own ({shown});"
            " give one with --threshold, or take --ensemble vote"
        )
    if rule == "vote":
        prob = np.mean([decide(**part.outputs) for part in parts], 0)
        columns = {"prob": prob, "log_pos_weight": 0.0}
    elif rule == "mean-prob":
        prob = np.mean([part.frame["prob"] for part in parts], 0)
        columns = {"prob": prob, "log_pos_weight": 0.0}
    else:
        logit = np.average([part.logit for part in parts], axis=0, weights=weights)
        shift = np.average(
            [part.frame["log_pos_weight"] for part in parts], axis=0, weights=weights
        )
        columns = {"logit": logit, "prob": sigmoid(logit), "log_pos_weight": shift}
    kept = [name for name in ("cell", "subject", "person", "label") if name in first.frame]
    origins = [part.origin for part in parts]
    headings = {origin["heading"] for origin in origins}
    origin = first.origin | {
        "source": f"{first.origin['source']} and {len(parts) - 1} more",
        "run": None,
        "predictions_sha256": None,
        "epoch": None,
        "threshold": 0.5 if rule == "vote" else first.origin["threshold"],
        "heading": headings.pop() if len(headings) == 1 else "unknown",
        "marks": merged_marks(origin["marks"] for origin in origins),
        "shared_persons": merged_marks(origin["shared_persons"] for origin in origins),
        "ensemble": rule,
        "runs": [origin["run"] for origin in origins],
        "debiased": None,
    }
    return ScoredPart(first.frame[kept].assign(**columns), origin)
