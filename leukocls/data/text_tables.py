"""CSV and parquet files from users, read as text; every error names the file."""

import codecs
import csv
import io
import stat
import unicodedata
from pathlib import Path

import pandas as pd
import pyarrow
from pyarrow import parquet

from leukocls.common.errors import LeukoclsError
from leukocls.common.tables import listing

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
LARGEST_FILE = 2 * 2**30  # bytes
LARGEST_TABLE = 200_000_000  # values; a run of 2,000 epochs on C-NMC's prelim has 60 million


def read_bytes(path: Path) -> bytes:
    """The file's content.

    Raises:
        LeukoclsError: the file is missing, cannot be read, is larger than LARGEST_FILE, or is a
            pipe or device, which may have no end.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) and not path.is_dir():
            raise LeukoclsError(f"{path}: is a pipe or a device; write its content to a file")
        if found.st_size > LARGEST_FILE:
            raise LeukoclsError(
                f"{path}: has {found.st_size:,} bytes, and a table of cells at most"
                f" {LARGEST_FILE:,}; check what it is"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise LeukoclsError(f"{path}: no such file or directory; check the path") from None
    except OSError as error:
        raise LeukoclsError(f"{path}: cannot be read ({error.strerror})") from error


def decoded(data: bytes, path: Path) -> str | pd.DataFrame:
    """The content of a file: parquet as a table, any other as text.

    The first bytes decide, not the file's name. Text is UTF-8, or UTF-16 with its mark (BOM).

    Raises:
        LeukoclsError: a damaged parquet file, binary data, or an empty file.
    """
    if data.startswith(b"PAR1"):
        return parquet_table(data, path)
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise LeukoclsError(
            f"{path}: neither CSV in UTF-8, parquet nor a challenge file; check what it is, or save"
            " it again (in Excel: CSV UTF-8)"
        )
    if not text.strip():
        raise LeukoclsError(f"{path}: is empty; write it again")
    return text


def parquet_table(data: bytes, path: Path) -> pd.DataFrame:
    """The table in the content of a parquet file.

    Raises:
        LeukoclsError: a damaged file, or one of more than LARGEST_TABLE values: compressed, these
            may take a few bytes.
    """
    try:
        header = parquet.read_metadata(io.BytesIO(data))
        rows, columns = header.num_rows, header.num_columns
        if rows * columns > LARGEST_TABLE:
            raise LeukoclsError(
                f"{path}: has {rows:,} rows of {columns:,} columns, more than a table of cells"
                " takes; check what it is"
            )
        return pd.read_parquet(io.BytesIO(data))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise LeukoclsError(f"{path}: damaged parquet ({error}); write it again") from error


def parse_csv(text: str, path: Path) -> pd.DataFrame:
    """Parse a CSV with a header; columns stay text, so that a cell named 1 does not become 1.0.

    Its first line decides whether commas, semicolons or tabs separate the columns.

    Raises:
        LeukoclsError: not CSV, a duplicate column name, or rows of different lengths.
    """
    separator = max(SEPARATORS, key=text.lstrip().partition("\n")[0].count)
    lines = io.StringIO(text, newline="")
    try:
        rows = [row for row in csv.reader(lines, delimiter=separator, strict=True) if row]
    except csv.Error as error:
        raise LeukoclsError(f"{path}: not a CSV file ({error}); check what it is") from error
    header, body = [name.strip() for name in rows[0]], rows[1:]
    if len(set(header)) < len(header):
        raise LeukoclsError(f"{path}: duplicate column name in {', '.join(header)}; drop one")
    ragged = [k for k, row in enumerate(body, 2) if len(row) != len(header)]
    if ragged:
        raise LeukoclsError(
            f"{path}: the header has {len(header)} columns, row {listing(ragged)} another number;"
            f" separate all columns by {SEPARATORS[separator]}, as in the header"
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
    """Read a CSV or parquet file as text, with the names of columns in lower case.

    Values are stripped, missing ones are "", and letters with accents are single characters (NFC):
    macOS writes them as two.

    Raises:
        LeukoclsError: as `read_table`, or names of columns that differ in case only.
    """
    table = read_table(path).rename(columns=lambda name: str(name).strip().lower())
    if not table.columns.is_unique:
        raise LeukoclsError(f"{path}: duplicate column name in {', '.join(table)}; drop one")
    table = table.astype(object).where(table.notna(), "").astype(str)
    return table.apply(lambda column: column.str.strip().map(_composed))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
