"""Metrics of prediction files: which split and epoch to score, and what the numbers are called."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from leukocls.artifacts import predictions
from leukocls.artifacts.marks import Mark
from leukocls.artifacts.predictions import sigmoid
from leukocls.artifacts.record import read_record
from leukocls.common.errors import LeukoclsError
from leukocls.common.tables import listing
from leukocls.evaluation import cell_metrics, prediction_files
from leukocls.evaluation.prediction_files import Truth


@dataclass(frozen=True)
class ScoringOptions:
    """What the command line asks for; None leaves it to the run."""

    split: str | None = None
    epoch: str | None = None
    threshold: float | None = None
    views: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ScoredPart:
    """One split of one epoch of one input: its cells and where they come from."""

    frame: pd.DataFrame
    origin: dict[str, Any]

    @property
    def outputs(self) -> dict[str, Any]:
        """What `metrics` scores: hard labels, or logits or probabilities and their threshold."""
        if "label_pred" in self.frame:
            return {"label_pred": self.frame["label_pred"].to_numpy()}
        names = [name for name in ("logit", "prob") if name in self.frame]
        columns = {name: self.frame[name].to_numpy() for name in names}
        return columns | {"threshold": self.origin["threshold"]}


def heading(record: dict[str, Any], split: str | None, as_selected: bool) -> str:
    """`training`, `selection`, `test` or `unknown`: what the numbers of `split` may be called.

    `test` needs a run that selected on another split, and is left as it was selected: an epoch,
    threshold or set of views from the command line may have been chosen on this very split.
    """
    if not record or split is None:
        return "unknown"
    if split == "train":
        return "training"
    chosen_on = (record.get("selection") or {}).get("set")
    if split == chosen_on:
        return "selection"
    # What was in part trained on or chosen by is no test, whatever its name.
    clean = chosen_on and as_selected and Mark.LEAKY not in (record.get("marks") or [])
    return "test" if clean else "unknown"


def scored_parts(
    source: Path, options: ScoringOptions, truth: Truth | None = None
) -> list[ScoredPart]:
    """The splits and epochs of `source` that `options` asks for, with the labels of `truth`.

    Raises LeukoclsError on anything that cannot be believed: edited or foreign cells, bad values.
    """
    frame, record = load_predictions(source)
    selected = record.get("selection") or {}
    splits = _splits(frame, source, options.split)
    if truth is not None and len(splits) > 1:
        raise LeukoclsError(
            f"{source}: holds the splits {', '.join(map(str, splits))}, and --truth is for one;"
            " choose it with --split"
        )
    found = []
    for split in splits:
        of_split = frame[frame["split"] == split] if "split" in frame else frame
        for epoch in _epochs(of_split, source, options.epoch, selected.get("epoch")):
            cells = of_split[of_split["epoch"] == epoch] if epoch is not None else of_split
            cells = _rescored(cells, source, options.views)
            if truth is not None:
                cells = prediction_files.join(cells, truth, str(source))
            stored = record.get("threshold")
            stored = 0.5 if stored is None else float(stored)
            threshold = stored if options.threshold is None else options.threshold
            as_selected = (
                epoch == selected.get("epoch") and threshold == stored and options.views is None
            )
            origin = {
                "source": str(source),
                "run": record.get("id"),
                "predictions_sha256": record.get("predictions_sha256"),
                "split": split if split is not None else options.split,
                "epoch": epoch,
                "threshold": None if "label_pred" in cells else threshold,
                "heading": heading(record, split, as_selected),
                "marks": list(record.get("marks") or []),
            }
            found.append(ScoredPart(cells.sort_values("cell"), origin))
    return found


def metrics_of(part: ScoredPart) -> dict[str, Any]:
    """Origin and metrics of one part, fit for JSON. Without labels every metric is undefined."""
    frame, source = part.frame, part.origin["source"]
    unlabelled = frame["cell"][frame["label"] < 0]
    if len(unlabelled) == len(frame):
        return part.origin | cell_metrics.unlabelled(len(frame))
    if len(unlabelled):
        raise LeukoclsError(
            f"{source}: cells without a label: {listing(unlabelled)}; give them with --truth"
        )
    try:
        values = cell_metrics.cell_metrics(
            frame["label"].to_numpy(), subject=frame["subject"].to_numpy(dtype=str), **part.outputs
        )
    except LeukoclsError as error:
        raise LeukoclsError(f"{source}: {error}") from error
    return part.origin | values


def load_predictions(source: Path, unique: bool = True) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predictions, and the run.json beside them; empty if no run of ours made them. Other people's
    may hold a cell twice if `unique` is false.

    Raises LeukoclsError unless they are those that the run wrote.
    """
    from leukocls.evaluation import prediction_files

    directory = source if source.is_dir() else source.parent
    in_run = source.name == "predictions.parquet" and (directory / "run.json").exists()
    if not (source.is_dir() or in_run):
        return prediction_files.read_predictions(source, unique), {}
    record = read_record(directory)
    recorded = record.get("predictions_sha256")
    if not recorded:
        raise LeukoclsError(
            f"{directory}: run.json (status {record.get('status')}) has no predictions_sha256, so"
            " nothing vouches for the predictions; let the run finish"
        )
    frame = predictions.read(directory / "predictions.parquet")
    if predictions.digest(frame) != recorded:
        raise LeukoclsError(
            f"{directory / 'predictions.parquet'}: these are not the predictions the run wrote"
            " (their digest is not run.json's predictions_sha256); they were edited or belong to"
            " another run: restore them or train again"
        )
    return frame, record


def _splits(frame: pd.DataFrame, source: Path, wanted: str | None) -> list[str | None]:
    if "split" not in frame:
        return [None]
    present = sorted(set(frame["split"]))
    if wanted is None:
        return list(present)
    if wanted not in present:
        raise LeukoclsError(
            f"{source}: no split {wanted}; --split takes one of {', '.join(present)}"
        )
    return [wanted]


def _epochs(
    frame: pd.DataFrame,
    source: Path,
    wanted: str | None,
    selected: int | None,
) -> list[int | None]:
    present: list[int] = sorted({int(e) for e in frame["epoch"]}) if "epoch" in frame else []
    if wanted == "all":
        return list(present) or [None]
    if wanted == "last":
        return list(present[-1:]) or [None]
    if wanted in (None, "selected"):
        if selected is None and len(present) < 2:
            return list(present) or [None]
        if selected in present:
            return [selected]
        cause = f"no predictions of the selected epoch {selected}"
        if selected is None:
            cause = "no run.json says which of its epochs was selected"
    elif wanted is not None and wanted.isdecimal() and int(wanted) in present:
        return [int(wanted)]
    else:
        cause = f"no epoch {wanted}"
    raise LeukoclsError(
        f"{source}: {cause}; --epoch takes last, all"
        f"{', ' if present else ''}{' or '.join(map(str, present))}"
    )


def _rescored(frame: pd.DataFrame, source: Path, views: tuple[int, ...] | None) -> pd.DataFrame:
    if views is None:
        return frame
    names = [f"view_{view}" for view in views]
    if absent := [name for name in names if name not in frame]:
        raise LeukoclsError(f"{source}: has no column {', '.join(absent)}; --views cannot use it")
    logit = frame[names].to_numpy("float64").mean(axis=1)
    return frame.assign(logit=logit, prob=sigmoid(logit))
