"""Metrics of prediction files: the splits and epochs to score, and the heading of their numbers."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leukocls.artifacts import predictions
from leukocls.artifacts.predictions import PERSON, sigmoid
from leukocls.artifacts.record import heading, read_record
from leukocls.common.errors import LeukoclsError
from leukocls.common.tables import listing
from leukocls.data.names import PRELIM_OFFICIAL, PRELIM_TRAINED, subject_of
from leukocls.evaluation import cell_metrics, person_level, prediction_files
from leukocls.evaluation.debiased import debiased
from leukocls.evaluation.intervals import jackknife
from leukocls.evaluation.metrics import Floats, decide
from leukocls.evaluation.person_counts import CLASS_OF, METRICS, Persons
from leukocls.evaluation.prediction_files import Truth
from leukocls.evaluation.selection import RULES, contradiction


@dataclass(frozen=True)
class ScoringOptions:
    """The options of `leukocls.evaluate`; None takes the run's own choice.

    Attributes:
        split: the only split to score.
        epoch: a number, "selected", "last" or "all".
        threshold: probability above which a cell is called ALL.
        views: the views to average.
    """

    split: str | None = None
    epoch: str | None = None
    threshold: float | None = None
    views: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ScoredPart:
    """One split of one epoch of one input: its predictions and their origin.

    The column `log_pos_weight` of `frame` says by how much the training loss, which weighed ALL by
    `pos_weight`, has shifted each logit; 0 if unknown.
    """

    frame: pd.DataFrame
    origin: dict[str, Any]

    @property
    def outputs(self) -> dict[str, Any]:
        """Arguments of `cell_metrics`: hard labels, or logits, probabilities and a threshold."""
        if "label_pred" in self.frame:
            return {"label_pred": self.frame["label_pred"].to_numpy()}
        names = [name for name in ("logit", "prob") if name in self.frame]
        columns = {name: self.frame[name].to_numpy() for name in names}
        return columns | {"threshold": self.origin["threshold"]}

    @property
    def logit(self) -> Floats:
        """The logit of each cell, float64 [n], from its probability if there is no other.

        Raises:
            LeukoclsError: the input has hard labels only.
        """
        if "logit" in self.frame:
            return self.frame["logit"].to_numpy(np.float64)
        if "prob" in self.frame:
            return cell_metrics.logit_of(self.frame["prob"])
        raise LeukoclsError(f"{self.origin['source']}: {cell_metrics.HARD_LABELS}")

    @cached_property
    def persons(self) -> Persons | None:
        """The sums that intervals rest on; None if whom a cell is from is unknown."""
        names = predictions.persons(self.frame).to_numpy(str)
        if (names == "").any():
            return None
        order = next(
            (self.outputs[name] for name in ("logit", "prob") if name in self.outputs), None
        )
        return Persons.of(self.frame["label"], decide(**self.outputs), names, order)


def scored_parts(
    source: Path, options: ScoringOptions, truth: Truth | None = None
) -> list[ScoredPart]:
    """The requested splits and epochs of `source`, a run directory or a prediction file.

    Args:
        truth: labels to join; None leaves those of the predictions.

    Raises:
        LeukoclsError: no such split or epoch, edited predictions, unknown cells or bad values.
    """
    if truth is not None and source.exists() and source.samefile(truth.path):
        raise LeukoclsError(f"{source}: is the truth itself; name a file of predictions")
    return parts_of(*load_predictions(source), source, options, truth)


def parts_of(
    frame: pd.DataFrame,
    record: dict[str, Any],
    source: Path,
    options: ScoringOptions,
    truth: Truth | None = None,
) -> list[ScoredPart]:
    """`scored_parts` of predictions that `load_predictions` has read from `source`."""
    selected = record.get("selection") or {}
    splits = _splits(frame, source, options.split)
    if truth is not None and len(splits) > 1:
        raise LeukoclsError(
            f"{source}: holds the splits {', '.join(map(str, splits))}, and --truth is for one;"
            " choose it with --split"
        )
    parts = []
    for split in splits:
        names = ("prelim", PRELIM_TRAINED) if split == PRELIM_OFFICIAL else (split,)
        rows = frame[frame["split"].isin(names)] if "split" in frame else frame
        by_epoch = predictions.by_epoch(rows) if "epoch" in rows else {}
        for epoch in _epochs(list(by_epoch), source, options.epoch, selected.get("epoch")):
            cells = rows if epoch is None else by_epoch[epoch]
            cells = _with_views(cells, source, options.views, record.get("view_weights"))
            cells = cells.assign(log_pos_weight=math.log(record.get("pos_weight") or 1.0))
            if truth is not None:
                cells = prediction_files.join(cells, truth, str(source))
            stored = record.get("threshold")
            if stored is None:
                given = options.threshold is not None
                stored = 0.5 if given else _threshold_of_calls(cells, source)
            threshold = float(stored) if options.threshold is None else options.threshold
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
                "persons_from": PERSON if PERSON in rows else "subject",
                "marks": list(record.get("marks") or []),
                "shared_persons": list(record.get("shared_persons") or []),
                "debiased": None,
            }
            rule = str(selected.get("rule"))
            chosen_here = rule in RULES and split == selected.get("set") and as_selected
            if chosen_here and threshold == 0.5 and len(known := rows[rows["label"] >= 0]):
                origin["debiased"] = debiased(known, rule)
            if epoch is None or truth is not None:
                cells = cells.sort_values("cell")
            parts.append(ScoredPart(cells, origin))
    return parts


def _threshold_of_calls(cells: pd.DataFrame, source: Path) -> float:
    """A threshold that calls cells as their file does: .5 if that does, or if it has no calls.

    Raises:
        LeukoclsError: no threshold calls them so.
    """
    if prediction_files.CALLED not in cells:
        return 0.5
    called = cells[prediction_files.CALLED] == 1
    below, above = cells["logit"][~called].max(), cells["logit"][called].min()
    if below >= above:
        raise LeukoclsError(
            f"{source}: a cell of logit {below:g} is called HEM and one of {above:g} ALL, which no"
            " threshold does; predict the images again, or choose one with --threshold"
        )
    # NaN where no cell is called so.
    if not (below > 0 or above <= 0):
        return 0.5
    below, above = np.nanmax([below, above - 2]), np.nanmin([above, below + 2])
    return float(sigmoid((below + above) / 2))


def metrics_of(part: ScoredPart) -> dict[str, Any]:
    """`values_of` one part with the 95 % intervals over its persons, None where unknown."""
    values = values_of(part)
    known = part.persons if values["persons"] else None
    return values | _intervals(known, values["subject"])


def values_of(part: ScoredPart) -> dict[str, Any]:
    """Origin and metrics of one part, as plain values for JSON; undefined without labels.

    `persons` is their number of each class; None if whom a cell is from is unknown.
    """
    frame, source = part.frame, part.origin["source"]
    unlabelled = frame["cell"][frame["label"] < 0]
    if len(unlabelled) == len(frame):
        return part.origin | cell_metrics.unlabelled(len(frame)) | {"persons": None}
    if len(unlabelled):
        raise LeukoclsError(
            f"{source}: cells without a label: {listing(unlabelled)}; give them with --truth"
        )
    try:
        values = cell_metrics.cell_metrics(
            frame["label"].to_numpy(),
            subject=predictions.persons(frame).to_numpy(dtype=str),
            **part.outputs,
        )
    except LeukoclsError as error:
        raise LeukoclsError(f"{source}: {error}") from error
    both = [row["subject"] for row in values["subject"]["per_subject"] if row["label"] is None]
    if both and frame["cell"].map(subject_of).any():
        raise LeukoclsError(
            f"{source}: a subject of C-NMC has one class, but these have cells of both:"
            f" {listing(both)}; check the labels and the subject column"
        )
    return part.origin | values | {"persons": part.persons and part.persons.number}


def _intervals(persons: Persons | None, by_subject: dict[str, Any]) -> dict[str, Any]:
    if persons is None:
        unknown = dict.fromkeys((*METRICS, *person_level.LIMITS))
        return {"interval": unknown, "averaged": None, "beta_binomial": None}
    found: dict[str, Any] = {name: jackknife([persons], name).limits for name in METRICS}
    return {
        "interval": found | person_level.limits(by_subject),
        "averaged": {name: person_level.averaged(persons, name) for name in CLASS_OF},
        "beta_binomial": {name: person_level.beta_binomial(persons, name) for name in CLASS_OF},
    }


def load_predictions(source: Path, unique: bool = True) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predictions, and the run.json beside them (empty for files from elsewhere).

    Args:
        source: a run directory, its predictions.parquet, or a file from elsewhere.
        unique: whether a duplicate cell in a file from elsewhere is an error.

    Raises:
        LeukoclsError: the file cannot be read, is not the one that the run wrote, or gives another
            selection than run.json says.
    """
    directory = source if source.is_dir() else source.parent
    in_run = source.name == "predictions.parquet" and (directory / "run.json").exists()
    if not (source.is_dir() or in_run):
        return prediction_files.read_predictions(source, unique), {}
    record = read_record(directory)
    recorded = record.get("predictions_sha256")
    if not recorded:
        raise LeukoclsError(
            f"{directory}: no recorded checksum for predictions.parquet (status"
            f" {record.get('status')}); let the run finish"
        )
    frame = predictions.read(directory / "predictions.parquet")
    if predictions.digest_of_canonical(frame) != recorded:
        raise LeukoclsError(
            f"{directory / 'predictions.parquet'}: these are not the predictions the run wrote"
            " (their digest is not run.json's predictions_sha256); they were edited or belong to"
            " another run: restore them or train again"
        )
    if reason := contradiction(frame, record):
        raise LeukoclsError(
            f"{directory / 'run.json'}: its selection does not follow from predictions.parquet:"
            f" {reason}. Restore the file that was edited, or train again"
        )
    return frame, record


def _splits(frame: pd.DataFrame, source: Path, wanted: str | None) -> list[str | None]:
    """The splits to score; [None] if the file has no column `split`."""
    if "split" not in frame:
        return [None]
    present = sorted({*frame["split"].unique()})
    if PRELIM_TRAINED in present:
        present = sorted({*present, PRELIM_OFFICIAL} - {PRELIM_TRAINED})
    if wanted is None:
        return list(present)
    if wanted not in present:
        raise LeukoclsError(
            f"{source}: no split {wanted}; --split takes one of {', '.join(present)}"
        )
    return [wanted]


def _epochs(
    present: list[int], source: Path, wanted: str | None, selected: int | None
) -> list[int | None]:
    """The epochs to score of those that are present; [None] if the file has no column `epoch`."""
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


def _with_views(
    frame: pd.DataFrame,
    source: Path,
    views: tuple[int, ...] | None,
    weights: list[float] | None,
) -> pd.DataFrame:
    """The predictions with the mean logit of these views, by the run's weights of views."""
    if views is None:
        return frame
    names = [f"view_{view}" for view in views]
    if absent := [name for name in names if name not in frame]:
        raise LeukoclsError(f"{source}: has no column {', '.join(absent)}; --views cannot use it")
    chosen = [weights[view] for view in views] if weights else None
    logit = np.average(frame[names].to_numpy("float64"), axis=1, weights=chosen)
    return frame.assign(logit=logit, prob=sigmoid(logit))
