"""The file that `predict` writes: kept batch by batch, so that a stopped command resumes."""

import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from leukocls.artifacts.record import DIGEST
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import atomic_write
from leukocls.evaluation.prediction_files import PREDICT
from leukocls.inference.images import Found, Reading
from leukocls.inference.predictor import BATCH, Notes, Predictor

KINDS = (".csv", ".parquet")
_STAMP = ("bytes", "modified")  # of a file, in the rows that are kept until the end
_NUMBERS = ("logit", "prob", "view_sd", "distance")


@dataclass
class Written:
    """The result of `write_predictions`.

    Attributes:
        table: as the file holds it.
        resumed: how many images an earlier command had predicted.
        background: how many images show more than a cell on black.
        lossy: how many are JPEGs.
    """

    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    resumed: int = 0
    background: int = 0
    lossy: int = 0


def check_out(out: Path) -> None:
    """Refuse a name that says no format.

    Raises:
        LeukoclsError: naming the file.
    """
    if out.suffix.lower() not in KINDS or out.is_dir():
        raise LeukoclsError(f"--out {out}: name a file that ends in {' or '.join(KINDS)}.")


def write_predictions(
    predictor: Predictor,
    images: Sequence[Found],
    out: Path,
    reading: Reading,
    batch: int = BATCH,
) -> Written:
    """Predict images and write CSV or parquet, whole or not at all.

    What is done is kept in `OUT.partial` until then; the same command after an interruption
    predicts only the rest. Files that changed since are predicted again.

    Raises:
        OSError: the file cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = out.with_name(out.name + ".partial")
    # The order of images matters in no way; everything else in this line decides what comes out.
    made_by = json.dumps(
        [predictor.bundle.document[DIGEST], predictor.level, reading, list(PREDICT)]
    )
    stamps = {found.cell: _stamp(found.path) for found in images}
    done = _read(kept, made_by)
    done = done[np.array([stamps.get(row[0]) == row[1:] for row in _keys(done)], bool)]
    written = Written(resumed=len(done))
    known = set(done["cell"])
    rest = [found for found in images if found.cell not in known]
    atomic_write(kept, "\n".join([made_by, *_lines(done), ""]))
    with open(kept, "a", encoding="utf-8") as stream:
        for table in _bar(predictor.batches(rest, reading, batch), len(rest), written):
            table = table.assign(
                **{name: [stamps[cell][k] for cell in table["cell"]] for k, name in
                   enumerate(_STAMP)}
            )  # fmt: skip
            stream.write("\n".join([*_lines(table), ""]))
            stream.flush()
    done = _read(kept, made_by).set_index("cell", drop=False)
    written.table = done.loc[[found.cell for found in images], list(PREDICT)]
    write_table(out, written.table)
    kept.unlink()
    return written


def _bar(
    batches: Iterator[tuple[pd.DataFrame, Notes]], number: int, written: Written
) -> Iterator[pd.DataFrame]:
    with tqdm(total=number, desc="predict", unit="image", disable=None, delay=1) as bar:
        for table, notes in batches:
            written.background += notes.background
            written.lossy += notes.lossy
            bar.update(len(table))
            yield table


def _lines(table: pd.DataFrame) -> Iterator[str]:
    """Each row as a JSON list, NaN as null."""
    for row in table[[*PREDICT, *_STAMP]].itertuples(index=False, name=None):
        yield json.dumps([None if value != value else value for value in row])


def _read(path: Path, made_by: str) -> pd.DataFrame:
    """The rows that an earlier command kept; none if it was another command, or there are none."""
    try:
        first, *lines = path.read_text(encoding="utf-8").split("\n")
        # A killed command may have left half a row.
        rows = [json.loads(line) for line in lines[:-1]]
    except (OSError, ValueError):
        first, rows = "", []
    columns = [*PREDICT, *_STAMP]
    if first != made_by or any(len(row) != len(columns) for row in rows):
        rows = []
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(_NUMBERS, "float64"))


def _keys(table: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].tolist() for name in ("cell", *_STAMP)), strict=True)


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file's last change; of one that cannot be read, zeros."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def write_table(out: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV or parquet, by the name, whole or not at all."""
    if out.suffix.lower() == ".csv":
        atomic_write(out, table.to_csv(index=False))
        return
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    atomic_write(out, buffer.getvalue())
