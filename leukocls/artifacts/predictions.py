"""predictions.parquet: one row for each epoch, split and cell, with the logit of every view."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from leukocls.common.errors import LeukoclsError
from leukocls.common.files import atomic_write
from leukocls.data.published import person_of
from leukocls.data.text_tables import parquet_table, read_bytes

KEY = ["epoch", "split", "cell"]
COLUMNS = {
    "epoch": "int32",
    "split": "str",
    "cell": "str",
    "subject": "str",
    "label": "int8",
    "logit": "float32",
    "prob": "float64",
}
# Merged subjects, as the split kept them together. Not part of the digest: versions before 0.2
# wrote none.
PERSON = "person"
# The folder with a file for each epoch of a run that is not over.
PARTS = ".predictions"


def sigmoid(logit: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Probability of ALL from its logit, in float64, without overflow."""
    z = np.asarray(logit, dtype=np.float64)
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, small) / (1.0 + small)


def persons(frame: pd.DataFrame) -> "pd.Series[str]":
    """The person that each row's cell is from, "" if unknown.

    The column `person`, or where it says nothing `leukocls.data.published.person_of` the subject.
    """
    known = frame.get(PERSON)
    if known is not None and (known != "").all():
        return known
    names = map(person_of, frame["cell"].tolist(), frame["subject"].tolist())
    by_subject = pd.Series(list(names), index=frame.index, dtype="str")
    return by_subject if known is None else known.where(known != "", by_subject)


def view_columns(frame: pd.DataFrame) -> list[str]:
    """The columns view_0 … view_{V-1} that `frame` has, in numeric order."""
    numbers = [name[5:] for name in map(str, frame.columns) if name.startswith("view_")]
    return [f"view_{v}" for v in sorted(int(number) for number in numbers if number.isdecimal())]


def canonical(frame: pd.DataFrame, source: str = "predictions") -> pd.DataFrame:
    """`frame` with the format's columns, types and row order (epoch, split, cell).

    An unknown subject or person is "", an unknown label −1; `prob` is sigmoid(float64(logit)).
    The column `person` may be missing.

    Raises:
        LeukoclsError: naming `source`, on anything else.
    """

    def refuse(cause: str) -> LeukoclsError:
        return LeukoclsError(
            f"{source}: {cause}; not a predictions.parquet of leukocls, or an edited one"
        )

    views = view_columns(frame)
    if missing := [name for name in (*COLUMNS, "view_0") if name not in frame.columns]:
        raise refuse(f"column {', '.join(missing)} is missing")
    if views != [f"view_{v}" for v in range(len(views))]:
        raise refuse(f"there are gaps in {', '.join(views)}")
    if extra := sorted({str(name) for name in frame.columns} - {*COLUMNS, PERSON, *views}):
        raise refuse(f"unexpected column {', '.join(extra)}")
    if frame.empty:
        raise refuse("no rows")
    texts = ["split", "cell", *(name for name in ("subject", PERSON) if name in frame)]
    names = [*KEY, *texts[2:], "label", *views, "logit", "prob"]
    types = {PERSON: "str"} | COLUMNS | dict.fromkeys(views, "float32")
    # One by one, and numbers in numpy, because pandas is slow on many small tables.
    columns: dict[str, Any] = {}
    for name in names:
        column = frame[name].fillna("") if name in texts[2:] else frame[name]
        if column.isna().any():
            raise refuse(f"column {name} holds missing values or NaN")
        try:
            text = types[name] == "str"
            typed = column.astype("str").array if text else column.to_numpy(types[name])
        except (ValueError, TypeError, OverflowError) as error:
            raise refuse(f"a column has the wrong type ({error})") from error
        columns[name] = typed
    if not np.isin(frame["label"].to_numpy(), (-1, 0, 1)).all():
        raise refuse("a label is none of 1 (ALL), 0 (HEM), -1 (unknown)")
    if not all(np.isfinite(columns[name]).all() for name in (*views, "logit", "prob")):
        raise refuse("a logit is infinite")
    # Conversion truncates and wraps silently.
    if not (columns["epoch"] == frame["epoch"].to_numpy()).all():
        raise refuse("an epoch is no 32-bit integer")
    if not np.allclose(columns["prob"], sigmoid(columns["logit"]), rtol=0, atol=1e-9):
        raise refuse("prob is not the sigmoid of logit")
    key = [columns["epoch"], _ranks(columns["split"]), _ranks(columns["cell"])]
    order = np.lexsort(key[::-1])
    ordered = {name: column[order] for name, column in columns.items()}
    if (twice := np.logical_and.reduce([np.diff(one[order]) == 0 for one in key])).any():
        first = int(np.argmax(twice)) + 1
        row = [ordered["epoch"][first].item(), ordered["split"][first], ordered["cell"][first]]
        raise refuse(f"{int(twice.sum())} cells are there twice, first {row}")
    return pd.DataFrame(ordered)


def by_epoch(frame: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """The rows of each epoch, in order, with the cells in order; at least one row is there."""
    epochs = frame["epoch"].to_numpy()
    order = np.lexsort((_ranks(frame["cell"].array), epochs))
    # Files that a run wrote are in order, and slices of them are no copies.
    if not (np.diff(order) == 1).all():
        frame, epochs = frame.iloc[order], epochs[order]
    present, starts = np.unique(epochs, return_index=True)
    ends = [*starts[1:], len(frame)]
    return {
        int(epoch): frame.iloc[start:end]
        for epoch, start, end in zip(present, starts, ends, strict=True)
    }


def _ranks(texts: Any) -> npt.NDArray[np.int64]:
    """The place of each text among the different ones, [n].

    By code point, so that no locale and no string backend of pandas matters.
    """
    codes, different = pd.factorize(texts)
    ranks = np.empty(len(different), np.int64)
    ranks[np.argsort(np.array(different.tolist(), np.str_))] = np.arange(len(different))
    return ranks[codes]


def write(path: str | os.PathLike[str], frame: pd.DataFrame) -> None:
    """Write `frame` whole.

    Raises:
        LeukoclsError: it is not in the format.
        OSError: it cannot be written; an older file stays as it was.
    """
    buffer = io.BytesIO()
    canonical(frame).to_parquet(buffer, index=False)
    atomic_write(path, buffer.getvalue())


def read(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a predictions.parquet; the frame is canonical.

    Raises:
        LeukoclsError: it is missing or not in the format.
    """
    return canonical(parquet_table(read_bytes(Path(path)), Path(path)), str(path))


def digest(frame: pd.DataFrame) -> str:
    """sha256 over the values in (epoch, split, cell) order, little-endian, column after column.

    Independent of row order, compression and parquet version; one changed value changes it.
    """
    return digest_of_canonical(canonical(frame))


def digest_of_canonical(table: pd.DataFrame) -> str:
    """`digest` of what `canonical` or `read` returned, which is not ordered and checked again."""
    state = hashlib.sha256()
    for name in table.columns.drop(PERSON, errors="ignore"):
        kind = COLUMNS.get(name, "float32")
        state.update(f"{name}:{kind}:{len(table)}\n".encode())
        if kind == "str":
            # As `json.dumps` writes the list; most texts are there many times.
            codes, different = pd.factorize(table[name].array)
            texts = np.array([json.dumps(text) for text in different], object)[codes]
            state.update(f"[{', '.join(texts)}]".encode())
        else:
            state.update(table[name].to_numpy().astype(np.dtype(kind).newbyteorder("<")).tobytes())
    return state.hexdigest()
