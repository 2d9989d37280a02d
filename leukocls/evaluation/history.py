"""Reading and writing of metrics.csv: one row for each epoch, where epoch 0 is before training."""

import csv
import io
from pathlib import Path
from typing import Any

from leukocls.common.errors import LeukoclsError
from leukocls.common.files import atomic_write
from leukocls.evaluation.metrics import COUNTS, RECORDED

Row = dict[str, Any]


def split_columns(split: str, values: dict[str, Any]) -> Row:
    """The columns of one split, prefixed with its name.

    Args:
        values: `loss`, counts and rates by name, and perhaps `iou` and `auroc`. The column of a
            missing value is empty; missing `iou` and `auroc` have no column.
    """
    row = {f"{split}_{name}": values.get(name) for name in ("loss", *COUNTS, *RECORDED)}
    optional = {f"{split}_{name}": values[name] for name in ("iou", "auroc") if name in values}
    return row | optional


def read_history(directory: Path) -> list[Row]:
    """The rows of a run's metrics.csv; None where a field is empty.

    Raises:
        LeukoclsError: it was cut short or changed.
    """
    path = directory / "metrics.csv"
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            names, *rows = csv.reader(stream)
        return [
            {name: _number(text) for name, text in zip(names, row, strict=True)} for row in rows
        ]
    except ValueError as error:
        raise LeukoclsError(
            f"{path}: cut short or changed since the run wrote it ({error}); restore it, or run"
            " again with force=true."
        ) from error


def write_history(directory: Path, rows: list[Row]) -> None:
    """Write metrics.csv atomically, with the learning rates next to the training loss."""
    columns = dict.fromkeys(name for row in rows for name in row)
    rates = [name for name in columns if name.startswith("lr_")]
    lead = ["epoch", "train_loss", *rates, "grad_norm", "images_per_s"]
    names = [*lead, *(name for name in columns if name not in lead)]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(directory / "metrics.csv", stream.getvalue())


def _number(text: str) -> int | float | None:
    return None if text == "" else int(text) if text.lstrip("-").isdigit() else float(text)
