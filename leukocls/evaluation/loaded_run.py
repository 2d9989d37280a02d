"""A finished run for programs: its record, predictions and metrics."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from leukocls.evaluation.scoring import ScoringOptions, load_predictions, metrics_of, parts_of


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A finished run.

    Attributes:
        record: the content of run.json.
        predictions: one row for each epoch, split and cell, as predictions.parquet has them.
        metrics: for each split what `evaluate --json` prints at the selected epoch: values,
            intervals over persons, and `heading`, which says what the numbers may be called.
    """

    record: dict[str, Any]
    predictions: pd.DataFrame
    metrics: dict[str, dict[str, Any]]


def load_run(path: str | os.PathLike[str]) -> LoadedRun:
    """Read a run directory, whose digests are checked.

    Raises:
        LeukoclsError: no finished run, or one whose record or predictions were edited.
    """
    predictions, record = load_predictions(Path(path))
    parts = parts_of(predictions, record, Path(path), ScoringOptions())
    return LoadedRun(record, predictions, {p.origin["split"]: metrics_of(p) for p in parts})
