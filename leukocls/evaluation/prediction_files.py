"""Reading of prediction and truth files from elsewhere: checks, and joining by cell name.

Every fault is a LeukoclsError that names the file, the cause and the remedy.
"""

import io
import re
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from leukocls.artifacts import predictions
from leukocls.artifacts.predictions import PERSON, sigmoid
from leukocls.common.errors import LeukoclsError
from leukocls.common.tables import listing
from leukocls.data.names import UNKNOWN, cell_key, label_of, subject_of
from leukocls.data.published import person_of
from leukocls.data.text_tables import decoded, parse_csv, read_bytes, read_table

CHALLENGE_FILE = "isbi_valid.predict"
LARGEST_MEMBER = 16 * 2**20  # bytes, of a challenge file in an archive
CALLED = "called"  # column of what `predict` has called, 1 for ALL; in files of it alone
NAME_COLUMNS = ("cell", "new_names", "Patient_ID")
# Columns of the files that `predict` writes.
PREDICT = (
    *("cell", "logit", "prob", "label", "abstain", "view_sd", "distance", "segmented"),
    *("reason", "use"),
)  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """Labels of one split.

    Attributes:
        path: the file.
        rows: the row of each cell, by `cell_key` of each of its names.
        cell, label, subject: columns of the file; labels are 0 or 1, subjects "" if unknown.
        person: `leukocls.data.published.person_of` the subjects, by C-NMC's names in any column.
    """

    path: Path
    rows: dict[str, int]
    cell: list[str]
    label: npt.NDArray[np.int64]
    subject: list[str]
    person: list[str]


def read_predictions(path: Path, unique: bool = True) -> pd.DataFrame:
    """Read predictions: one row for each cell, or for each split, epoch and cell.

    Args:
        unique: whether duplicate cells are an error.

    Returns:
        `cell`, `subject` ("" if unknown), `label` (−1 if unknown), and one of `logit`, `prob` and
        `label_pred`; `person`, `epoch` and `split` if the file has them; `view_*` of a
        predictions.parquet.

    Raises:
        LeukoclsError: not a prediction file, or bad values.
    """
    content = _text_or_table(path)
    if isinstance(content, str):
        lines = content.split()
        if path.suffix == ".predict" or (lines and set(lines) <= {"0", "1"}):
            return _challenge(lines, path)
        return _foreign(parse_csv(content, path), path, unique)
    if unique and {*predictions.COLUMNS, "view_0"} <= set(content.columns):
        return predictions.canonical(content, str(path))
    return _foreign(content, path, unique)


def read_truth(path: Path) -> Truth:
    """Read labels from columns `cell,label[,subject]` or C-NMC's `Patient_ID,new_names,labels`.

    Raises:
        LeukoclsError: not such a file, or labels that contradict names.
    """
    table = read_table(path)
    names = _name_columns(table, path)
    column = next((name for name in ("label", "labels") if name in table), None)
    if column is None:
        raise LeukoclsError(
            f"{path}: no column label or labels among {', '.join(map(str, table))}; truth is"
            " cell,label or Patient_ID,new_names,labels"
        )
    cell = table[names[0]].to_list()
    label = _labels(table, column, cell, path)
    for name in names:
        _refuse_duplicates(table[name].map(cell_key), table[name], path)
        wrong = [
            value
            for value, y in zip(table[name], label, strict=True)
            if label_of(value) not in (UNKNOWN, y)
        ]
        if wrong:
            raise LeukoclsError(
                f"{path}: column {column} contradicts the name of {listing(wrong)};"
                " 1 is ALL and 0 is HEM"
            )
    rows = {cell_key(value): i for name in names for i, value in enumerate(table[name])}
    subject = _subjects(table, names)
    # Prelim's names are numbers; only the column of original names says that they are C-NMC's.
    original = [next(filter(subject_of, row), row[0]) for row in table[names].to_numpy()]
    person = [person_of(*pair) for pair in zip(original, subject, strict=True)]
    return Truth(path, rows, cell, label, subject, person)


def join(frame: pd.DataFrame, truth: Truth, source: str) -> pd.DataFrame:
    """Predictions with the labels, subjects and persons of `truth`, joined by cell name.

    Args:
        frame: one epoch of one split.
        source: its name in error messages.

    Raises:
        LeukoclsError: cells that only one side has, or labels that disagree; they are named.
    """
    index = [truth.rows.get(cell_key(cell), -1) for cell in frame["cell"]]
    row = np.array(index, dtype=np.int64)
    absent = np.setdiff1d(np.arange(len(truth.cell)), row)
    faults = []
    if (row < 0).any():
        faults.append(f"cells unknown to the truth: {listing(frame['cell'][row < 0])}")
    if absent.size:
        faults.append(f"cells without a prediction: {listing(truth.cell[i] for i in absent)}")
    if faults:
        raise LeukoclsError(
            f"{source}: does not match {truth.path}: {'; '.join(faults)};"
            " give predictions and truth of the same cells"
        )
    _refuse_duplicates(pd.Series(row), frame["cell"], source)
    label = truth.label[row]
    differs = (frame["label"].to_numpy() >= 0) & (frame["label"].to_numpy() != label)
    if differs.any():
        raise LeukoclsError(
            f"{source}: its labels contradict {truth.path} for {listing(frame['cell'][differs])};"
            " one of the two files is wrong"
        )
    subject = [truth.subject[i] or own for i, own in zip(row, frame["subject"], strict=True)]
    known = frame[PERSON] if PERSON in frame else [""] * len(frame)
    person = [own or truth.person[i] for i, own in zip(row, known, strict=True)]
    return frame.assign(label=label, subject=subject, person=person)


def challenge_zip(cell: Iterable[str], called: Iterable[bool], source: str) -> bytes:
    """The submission file of ISBI 2019: a zip of one 0 or 1 per line, for 1.bmp … N.bmp.

    Equal predictions give equal bytes.

    Args:
        called: whether each cell is called ALL.
        source: name of the predictions in error messages.

    Raises:
        LeukoclsError: the cells are not exactly 1.bmp … N.bmp.
    """
    keys = [cell_key(name) for name in cell]
    foreign = [key for key in keys if not re.fullmatch("[1-9][0-9]{0,8}", key)]
    if foreign:
        raise LeukoclsError(
            f"{source}: a submission holds 1.bmp, 2.bmp, …, not {listing(foreign)};"
            " choose the challenge's split with --split"
        )
    by_number = dict(zip(map(int, keys), called, strict=True))
    missing = [f"{k}.bmp" for k in range(1, max(by_number) + 1) if k not in by_number]
    if missing:
        raise LeukoclsError(
            f"{source}: a submission needs every cell; missing: {listing(missing)};"
            " predict them first"
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        # Date, system and rights are fixed and nothing is compressed, so that bytes are repeatable.
        member = zipfile.ZipInfo(CHALLENGE_FILE, (1980, 1, 1, 0, 0, 0))
        member.create_system, member.external_attr = 3, 0o644 << 16
        archive.writestr(member, "".join(f"{by_number[k]:d}\n" for k in sorted(by_number)))
    return buffer.getvalue()


def _foreign(table: pd.DataFrame, path: Path, unique: bool) -> pd.DataFrame:
    """Predictions from a table in any of the accepted forms."""
    called = None
    if set(PREDICT) <= set(table.columns):
        # There `label` is what was called, and `prob` is calibrated.
        table = table[table["reason"].fillna("") == ""]
        called = (table["label"] == "ALL").astype(np.int64).to_list()
        table = table[["cell", "logit"]].copy()
    names = _name_columns(table, path)
    cell = table[names[0]].to_list()
    frame = pd.DataFrame({"cell": cell, "subject": _subjects(table, names)})
    scored = [name for name in ("logit", "prob", "label_pred") if name in table]
    # A column `labels` is truth beside other predictions; alone it holds predicted hard labels.
    truth = next((name for name in ("label", "labels" if scored else "") if name in table), None)
    hard = "labels" if not scored and "labels" in table else "label_pred"
    if not scored and hard not in table:
        raise LeukoclsError(
            f"{path}: no column prob, logit, label_pred or labels among"
            f" {', '.join(map(str, table))}; predictions need one of them"
        )
    frame["label"] = _labels(table, truth, cell, path) if truth else -1
    for name in {"logit", "prob"} & {*scored}:
        frame[name] = _numbers(table, name, cell, path)
    if "prob" in scored:
        outside = ~frame["prob"].between(0, 1)
        if outside.any():
            raise LeukoclsError(
                f"{path}: prob is not between 0 and 1 for {listing(frame['cell'][outside])};"
                " call the column logit if it holds logits"
            )
    if {"logit", "prob"} <= {*scored}:
        apart = np.abs(frame["prob"] - sigmoid(frame["logit"])) > 1e-3
        if apart.any():
            raise LeukoclsError(
                f"{path}: prob is not the sigmoid of logit for {listing(frame['cell'][apart])};"
                " drop the column that is wrong"
            )
    if not {"logit", "prob"} & {*scored}:
        frame["label_pred"] = _labels(table, hard, cell, path)
    if called is not None:
        frame[CALLED] = called
    if PERSON in table:
        frame[PERSON] = table[PERSON].fillna("").astype(str).str.strip()
    if "split" in table:
        frame["split"] = table["split"].astype(str)
    if "epoch" in table:
        frame["epoch"] = _numbers(table, "epoch", cell, path).astype(np.int64)
    if unique:
        key = frame[[name for name in ("split", "epoch") if name in frame]]
        _refuse_duplicates(key.assign(cell=frame["cell"].map(cell_key)), frame["cell"], path)
    return frame


def _challenge(lines: list[str], path: Path) -> pd.DataFrame:
    """Predictions from a challenge file, whose line k holds the label of k.bmp."""
    wrong = [f"line {k}: {line}" for k, line in enumerate(lines, 1) if line not in ("0", "1")]
    if wrong or not lines:
        raise LeukoclsError(
            f"{path}: {'not 0 or 1: ' + listing(wrong) if wrong else 'is empty'};"
            " a challenge file holds one 0 or 1 per line, for 1.bmp, 2.bmp, …"
        )
    cell = [f"{k}.bmp" for k in range(1, len(lines) + 1)]
    return pd.DataFrame(
        {"cell": cell, "subject": "", "label": -1, "label_pred": [int(line) for line in lines]}
    )


def _text_or_table(path: Path) -> str | pd.DataFrame:
    """The content of a file as text or table; for a zip archive, of the challenge file in it."""
    data = read_bytes(path)
    return decoded(_unzip(data, path) if data.startswith(b"PK") else data, path)


def _unzip(data: bytes, path: Path) -> bytes:
    """The challenge file in an archive, read into memory up to LARGEST_MEMBER."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [n for n in archive.namelist() if n.split("/")[-1] == CHALLENGE_FILE]
            if len(members) != 1:
                raise LeukoclsError(
                    f"{path}: {len(members)} files {CHALLENGE_FILE} inside; exactly one is needed"
                )
            with archive.open(members[0]) as member:
                text = member.read(LARGEST_MEMBER + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise LeukoclsError(f"{path}: cannot be unzipped ({error}); zip it again") from error
    if len(text) > LARGEST_MEMBER:
        raise LeukoclsError(
            f"{path}: {CHALLENGE_FILE} is larger than {LARGEST_MEMBER >> 20} MiB, so it is refused;"
            " check what it is"
        )
    return text


def _name_columns(table: pd.DataFrame, path: Path) -> list[str]:
    """The columns that name cells, the preferred one first; they are converted to text in place."""
    names = [name for name in NAME_COLUMNS if name in table]
    if not names:
        raise LeukoclsError(
            f"{path}: no column cell or new_names among {listing(str(n)[:40] for n in table)};"
            " cells are matched by name"
        )
    if table.empty:
        raise LeukoclsError(f"{path}: a header but no rows; write it again")
    for name in names:
        nameless = table[name].isna() | (table[name].astype(str).str.strip() == "")
        if nameless.any():
            raise LeukoclsError(
                f"{path}: column {name} is empty in row {listing(np.flatnonzero(nameless) + 1)};"
                " every cell needs its name"
            )
        table[name] = table[name].astype(str)
    return names


def _subjects(table: pd.DataFrame, names: list[str]) -> list[str]:
    """Subjects from the column `subject`, or else from the names of the cells; "" if unknown."""
    if "subject" in table:
        return [value.strip() for value in table["subject"].fillna("").astype(str)]
    return [next(filter(None, map(subject_of, row)), "") for row in table[names].to_numpy()]


def _numbers(
    table: pd.DataFrame, column: str, cell: list[str], path: Path
) -> npt.NDArray[np.float64]:
    """A column as float64; LeukoclsError if a value is not finite."""
    values = np.asarray(pd.to_numeric(table[column], errors="coerce"), dtype=np.float64)
    wrong = [name for name, value in zip(cell, values, strict=True) if not np.isfinite(value)]
    if wrong:
        raise LeukoclsError(
            f"{path}: column {column} holds no finite number for {listing(wrong)}; correct them"
        )
    return values


def _labels(table: pd.DataFrame, column: str, cell: list[str], path: Path) -> npt.NDArray[np.int64]:
    """A column as int64; LeukoclsError if a value is neither 0 nor 1."""
    values = np.asarray(pd.to_numeric(table[column], errors="coerce"), dtype=np.float64)
    wrong = [name for name, value in zip(cell, values, strict=True) if value not in (0, 1)]
    if wrong:
        raise LeukoclsError(
            f"{path}: column {column} is neither 1 (ALL) nor 0 (HEM) for {listing(wrong)};"
            " correct them"
        )
    return values.astype(np.int64)


def _refuse_duplicates(
    key: "pd.Series[Any] | pd.DataFrame", name: "pd.Series[str]", source: Path | str
) -> None:
    """Raise LeukoclsError if a key is there more than once."""
    twice = key.duplicated().to_numpy()
    if twice.any():
        raise LeukoclsError(
            f"{source}: cells named twice: {listing(name[twice])}; keep one of each"
        )
