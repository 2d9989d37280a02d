"""The file that `predict` writes: kept batch by batch, so that a stopped command resumes."""

import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import pandas as pd
from tqdm import tqdm

from leukocls.artifacts.record import DIGEST
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import atomic_write, lock
from leukocls.evaluation.prediction_files import PREDICT
from leukocls.inference.images import Found, Reading, text_of
from leukocls.inference.predictor import BATCH, NOTES, Predictor

KINDS = (".csv", ".parquet")
_STAMP = ("path", "bytes", "modified")  # of a file, in the rows that are kept until the end
_COLUMNS = [*PREDICT, *NOTES, *_STAMP]
_NUMBERS = ("logit", "prob", "view_sd", "distance")


class Written(NamedTuple):
    """The result of `write_predictions`.

    Attributes:
        table: as the file holds it.
        resumed: how many images an earlier command had predicted.
        notes: how many images each of NOTES holds for.
    """

    table: pd.DataFrame
    resumed: int
    notes: dict[str, int]


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
    predicts only the rest. Files that changed since, or were skipped, are read again.

    Raises:
        LeukoclsError: another command is writing the file.
        OSError: the file cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = out.with_name(out.name + ".partial")
    # The order of images matters in no way; everything else in this line decides what comes out.
    made_by = json.dumps([predictor.bundle.document[DIGEST], predictor.level, reading, _COLUMNS])
    stamps = {found.cell: _stamp(found.path) for found in images}
    with open(kept, "a+", encoding="utf-8") as stream:
        try:
            lock(stream, out)
        except BlockingIOError:
            raise LeukoclsError(
                f"--out {out}: another command is writing it; wait for it, or name another file."
            ) from None
        done = _kept(stream, made_by)
        same = [stamps.get(row[0]) == row[1:] for row in _keys(done)]
        done = done[np.array(same, bool) & (done["reason"] == "")]
        known = set(done["cell"])
        rest = [found for found in images if found.cell not in known]
        for table in _bar(predictor.batches(rest, reading, batch), len(rest)):
            stamped = [stamps[cell] for cell in table["cell"]]
            table[list(_STAMP)] = pd.DataFrame(stamped, index=table.index, columns=list(_STAMP))
            stream.write("\n".join([*_lines(table), ""]))
            stream.flush()
        rows = _kept(stream, made_by).set_index("cell", drop=False)
        rows = rows.loc[[found.cell for found in images]]
        write_table(out, rows[list(PREDICT)])
        kept.unlink()
    notes = {name: int(rows[name].sum()) for name in NOTES}
    return Written(rows[list(PREDICT)], len(done), notes)


def _bar(batches: Iterator[pd.DataFrame], number: int) -> Iterator[pd.DataFrame]:
    with tqdm(total=number, desc="predict", unit="image", disable=None, delay=1) as bar:
        for table in batches:
            bar.update(len(table))
            yield table


def _lines(table: pd.DataFrame) -> Iterator[str]:
    """Each row as a JSON list, NaN as null."""
    for row in table[_COLUMNS].itertuples(index=False, name=None):
        yield json.dumps([None if value != value else value for value in row])


def _kept(stream: TextIO, made_by: str) -> pd.DataFrame:
    """The last row of each cell that the file keeps; it is begun anew if another command made it.

    Half a row, as a killed command may leave, is cut off.
    """
    try:
        stream.seek(0)
        text = stream.read()
        whole = text[: text.rfind("\n") + 1]
        first, *lines = whole.split("\n")
        rows = [json.loads(line) for line in lines[:-1]]
    except ValueError:
        first, rows, whole = "", [], ""
    if first != made_by or any(len(row) != len(_COLUMNS) for row in rows):
        rows, whole = [], ""
    stream.truncate(len(whole.encode()))
    if not whole:
        stream.write(made_by + "\n")
        stream.flush()
    kinds = dict.fromkeys(_NUMBERS, "float64") | dict.fromkeys(NOTES, "bool")
    table = pd.DataFrame(rows, columns=_COLUMNS).astype(kinds)
    return table.drop_duplicates("cell", keep="last")


def _keys(table: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].tolist() for name in ("cell", *_STAMP)), strict=True)


def _stamp(path: Path) -> tuple[str, int, int]:
    """Place, size and time of the last change of a file; of one that cannot be read, zeros."""
    place = text_of(os.path.abspath(path))
    try:
        status = os.stat(path)
    except OSError:
        return place, 0, 0
    return place, status.st_size, status.st_mtime_ns


def write_table(out: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV or parquet, by the name, whole or not at all."""
    if out.suffix.lower() == ".csv":
        atomic_write(out, table.to_csv(index=False))
        return
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    atomic_write(out, buffer.getvalue())
