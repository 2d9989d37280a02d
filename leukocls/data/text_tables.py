"""CSV and parquet files from users, read as text; every error names the file."""

import csv
import io
from pathlib import Path

import pandas as pd

from leukocls.common.errors import LeukoclsError
from leukocls.common.tables import listing


def read_bytes(path: Path) -> bytes:
    """The file's content.

    Raises:
        LeukoclsError: the file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise LeukoclsError(f"{path}: no such file or directory; check the path") from None
    except OSError as error:
        raise LeukoclsError(f"{path}: cannot be read ({error.strerror})") from error


def decoded(data: bytes, path: Path) -> str | pd.DataFrame:
    """The content of a file: parquet as a table, any other as text.

    The first bytes decide, not the file's name.

    Raises:
        LeukoclsError: a damaged parquet file, binary data, or an empty file.
    """
    if data.startswith(b"PAR1"):
        try:
            return pd.read_parquet(io.BytesIO(data))
        except (OSError, ValueError) as error:
            raise LeukoclsError(f"{path}: damaged parquet ({error}); write it again") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise LeukoclsError(
            f"{path}: neither CSV (UTF-8), parquet nor a challenge file; check what it is"
        )
    if not text.strip():
        raise LeukoclsError(f"{path}: is empty; write it again")
    return text


def parse_csv(text: str, path: Path) -> pd.DataFrame:
    """Parse a CSV with a header; columns stay text, so that a cell named 1 does not become 1.0.

    Raises:
        LeukoclsError: not CSV, a duplicate column name, or rows of different lengths.
    """
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise LeukoclsError(f"{path}: not a CSV file ({error}); check what it is") from error
    header, body = [name.strip() for name in rows[0]], rows[1:]
    if len(set(header)) < len(header):
        raise LeukoclsError(f"{path}: duplicate column name in {', '.join(header)}; drop one")
    ragged = [k for k, row in enumerate(body, 2) if len(row) != len(header)]
    if ragged:
        raise LeukoclsError(
            f"{path}: the header has {len(header)} columns, row {listing(ragged)} another number;"
            " separate columns by commas"
        )
    return pd.DataFrame(body, columns=header, dtype=str)


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV or parquet file; the columns of a CSV are text.

    Raises:
        LeukoclsError: as `read_bytes`, `decoded` and `parse_csv`.
    """
    content = decoded(read_bytes(path), path)
    return parse_csv(content, path) if isinstance(content, str) else content


def read_words(path: Path) -> pd.DataFrame:
    """Read a CSV or parquet file as stripped text; missing values are "".

    Raises:
        LeukoclsError: as `read_table`.
    """
    table = read_table(path)
    table = table.astype(object).where(table.notna(), "").astype(str)
    return table.apply(lambda column: column.str.strip())
