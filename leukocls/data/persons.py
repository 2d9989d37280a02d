"""Persons with cells in both train and prelim: finding them, and keeping them out of the test.

A person is a `group` of the index: one subject, or subjects that share cells.
"""

import numpy as np
import pandas as pd

from leukocls.common.errors import LeukoclsError
from leukocls.data.index import Index, among
from leukocls.data.names import PRELIM_TRAINED


def overlap(table: pd.DataFrame) -> pd.DataFrame:
    """Cells outside train whose group or pixels are in another split as well.

    Args:
        table: columns `cell`, `group`, `pixels` ("" if unknown) and `split`.
    """
    table = table[table["split"] != PRELIM_TRAINED]
    shared = pd.Series(False, index=table.index)
    for column in ("group", "pixels"):
        known = table[column] != ""
        splits = table[known].groupby(column)["split"].transform("nunique")
        shared |= known & (splits.reindex(table.index, fill_value=1) > 1)
    return table[shared & (table["split"] != "train")]


def in_train(index: Index, rows: np.ndarray) -> np.ndarray:
    """Mask of the rows of the index whose person is in the part train, bool [n].

    A person is in train if it has a subject or an image there.
    """
    table, cells = index.table, index.table.iloc[rows]
    train = table[table["part"] == "train"]
    images = among(cells["pixels"], {*train["pixels"].unique()} - {""})
    persons = {*train["group"].unique(), *cells["group"][images].unique()} - {""}
    return images | among(cells["group"], persons)


def apart_from_train(index: Index, prelim: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of prelim, and as PRELIM_TRAINED those whose person is in train, if there are any.

    Raises:
        LeukoclsError: all persons of prelim are in train.
    """
    trained = in_train(index, prelim)
    if trained.all():
        raise LeukoclsError(
            f"{index.source}: every person of prelim is in train too, so split_scheme=honest has no"
            " test. Use subject, or correct the subjects."
        )
    rows = {"prelim": prelim[~trained], PRELIM_TRAINED: prelim[trained]}
    return {name: kept for name, kept in rows.items() if len(kept)}


def leaks_as_published(index: Index, rows: np.ndarray) -> bool:
    """True if some of these rows are of persons in train, and all of those are so as published."""
    table = index.table
    shared = table["group"].iloc[rows[in_train(index, rows)]].unique()
    return len(shared) > 0 and all(
        index.rules.expects_in(person, {*table["part"][table["group"] == person].unique()})
        for person in shared
    )


def shared_persons(table: pd.DataFrame) -> list[str]:
    """A sentence for each person that the parts train and prelim share.

    Args:
        table: columns `subject`, `group` and `split` of a split's cells.
    """
    sentences = []
    known = table[table["group"] != ""]
    train = known[known["split"].isin(["train", "val"])]
    prelim = known[known["split"].isin(["prelim", PRELIM_TRAINED])]
    shared = among(prelim["group"], {*train["group"].unique()})
    for person, cells in prelim[shared].groupby("group"):
        names = listed(set(cells["subject"]))
        others = set(train["subject"][train["group"] == person])
        for side, of_side in cells.groupby("split"):
            if side == PRELIM_TRAINED:
                number, side = f"its {len(of_side):,} cells are left out of the test", "prelim"
            else:
                total = int((table["split"] == side).sum())
                number = f"{len(of_side):,} of {total:,} scored cells are of a trained person"
            sentences.append(f"{names} of {side} is {listed(others)} of train: {number}")
    return sentences


def listed(subjects: set[str]) -> str:
    """Subjects in order, with commas and an `and`."""
    *most, last = sorted(subjects, key=lambda subject: (len(subject), subject))
    return f"{', '.join(most)} and {last}" if most else last
