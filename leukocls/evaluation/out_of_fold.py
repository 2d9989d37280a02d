"""k-fold cross-validation as one result: every cell scored by the model that held it out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from leukocls.artifacts.identity import differences
from leukocls.artifacts.marks import Mark, merged_marks
from leukocls.artifacts.record import read_record
from leukocls.common.errors import LeukoclsError
from leukocls.evaluation.scoring import ScoredPart, ScoringOptions

HELD_OUT = "val"
SCHEMES = ("subject", "lofo", "cell", "leakage")  # whose folds are all there is to score
# Settings and inputs by which the folds of one recipe differ.
OF_FOLD = {"fold", "inputs.split", "inputs.weights", "inputs.rescored"}
LAST = "last"  # the rule that takes the last epoch, so that no held-out cell chooses


def fold_of(record: dict[str, Any]) -> int | None:
    """The fold that a run has held out, of those that can be pooled; None for other runs."""
    settings = record.get("identity") or {}
    scored = (record.get("selection") or {}).get("set")
    if settings.get("split_scheme") not in SCHEMES or scored != HELD_OUT:
        return None
    fold = settings.get("fold")
    return 0 if fold is None else int(fold)


def pooled_runs(
    parts: Sequence[ScoredPart], sources: Sequence[Path], options: ScoringOptions
) -> ScoredPart:
    """`pooled` of run directories, of which `options` gave one part each.

    Raises:
        LeukoclsError: as `pooled`, or inputs that are no run directories, or have several epochs.
    """
    if len(parts) != len(sources) or not all(source.is_dir() for source in sources):
        raise LeukoclsError("--pool: name run directories, one of each fold, and no --epoch=all")
    names = ", ".join(map(str, sources[:1])) + f" and {len(sources) - 1} more"
    records = [read_record(source) for source in sources]
    as_selected = options.views is None and all(
        part.origin["epoch"] == record["selection"]["epoch"]
        and part.origin["threshold"] == record["threshold"]
        for part, record in zip(parts, records, strict=True)
    )
    return pooled(parts, records, names, as_selected)


def pooled(
    parts: Sequence[ScoredPart],
    records: Sequence[dict[str, Any]],
    source: str,
    as_selected: bool = True,
) -> ScoredPart:
    """The held-out cells of all folds of one recipe, each at the epoch that its run chose.

    The heading is `out-of-fold` if held-out cells chose neither epoch nor threshold, `leaky` if
    persons or images are on both sides of a fold, else `selection`.

    Args:
        parts: of the split HELD_OUT, one for each fold.
        records: their run.json.
        source: names the result.
        as_selected: whether epoch, threshold and views are the runs' own.

    Raises:
        LeukoclsError: runs that are not the folds of one recipe, each once and all of them, or
            whose thresholds differ.
    """
    _check(records, source)
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    if (twice := frame["cell"].duplicated()).any():
        raise LeukoclsError(
            f"{source}: {int(twice.sum())} cells are held out in two folds, first"
            f" {frame['cell'][twice].iloc[0]}; these are not the folds of one split"
        )
    thresholds = {part.origin["threshold"] for part in parts}
    if len(thresholds) > 1:
        shown = ", ".join(f"{value:g}" for value in sorted(thresholds))
        raise LeukoclsError(
            f"{source}: each fold chose a threshold of its own ({shown}); give one with --threshold"
        )
    marks = merged_marks(part.origin["marks"] for part in parts)
    fixed = as_selected and {record["selection"]["rule"] for record in records} == {LAST}
    fixed = fixed and {record.get("threshold") for record in records} == {0.5}
    # Weights of an earlier phase may have been chosen by the held-out cells.
    fixed = fixed and len({record["inputs"].get("weights") for record in records}) == 1
    heading = "selection" if not fixed else "leaky" if Mark.LEAKY in marks else "out-of-fold"
    first = parts[0].origin
    origin = first | {
        "source": source,
        "run": None,
        "predictions_sha256": None,
        "epoch": None,
        "heading": heading,
        "marks": marks,
        "shared_persons": merged_marks(part.origin["shared_persons"] for part in parts),
        "folds": len(parts),
        "debiased": None,
        "runs": [part.origin["run"] for part in parts],
    }
    return ScoredPart(frame.sort_values("cell", ignore_index=True), origin)


def folds_of(record: dict[str, Any]) -> int:
    """The number of folds of a run that `fold_of` gives a fold."""
    settings = record["identity"]
    return {"lofo": 3, "leakage": 2}.get(settings["split_scheme"]) or int(settings["folds"])


def _check(records: Sequence[dict[str, Any]], source: str) -> None:
    folds = [fold_of(record) for record in records]
    if None in folds:
        raise LeukoclsError(
            f"{source}: only runs of split_scheme={', '.join(SCHEMES)} are folds that can be pooled"
        )
    first = records[0]
    number = folds_of(first)
    for record in records[1:]:
        changed = [key for key in differences(first, record) if key not in OF_FOLD]
        if changed:
            raise LeukoclsError(
                f"{source}: {first['id']} and {record['id']} are not folds of one recipe; these"
                f" differ: {', '.join(changed)}"
            )
    if sorted(map(str, folds)) != sorted(map(str, range(number))):
        present = ", ".join(map(str, sorted(fold for fold in folds if fold is not None)))
        raise LeukoclsError(
            f"{source}: a pooled result needs the folds 0 to {number - 1}, each once; here are"
            f" {present}. Train the others: 'fold=range({number})' -m"
        )
