"""Files that are no tables of cells are refused before they are read."""

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from warm import Command


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def absurd(path: Path) -> Path:
    """A few kilobytes that are a table of 300 million values."""
    columns = {name: pyarrow.nulls(10**7) for name in ("cell", "prob", *map(str, range(28)))}
    parquet.write_table(pyarrow.table(columns), path)
    return path


def sparse(path: Path) -> Path:
    with open(path, "wb") as stream:
        stream.truncate(2**40)
    return path


@pytest.mark.parametrize("make", [pipe, absurd, sparse, lambda _: Path("/dev/zero")])
def test_what_has_no_end_is_refused(
    make: Callable[[Path], Path], tmp_path: Path, command: Callable[..., Command]
) -> None:
    path = make(tmp_path / "predictions.parquet")
    for words in ([path], ["cells.csv", "--truth", path]):
        (tmp_path / "cells.csv").write_text("cell,prob\na,0.5\n")
        done = command("evaluate", *words, cwd=tmp_path)
        assert done.wait(20) == 2
        assert done.err.startswith(f"error: {path}: ")
        assert done.err.count("\n") == 1
