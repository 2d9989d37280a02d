"""Pairs of images of one cell, as a table and as a picture for people to look at."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leukocls.common.files import atomic_write
from leukocls.data.contact_sheet import MOST, Entry, Grid, contact_sheet
from leukocls.data.duplicates import IDENTICAL
from leukocls.data.images import image_sides, read_image
from leukocls.data.index import BOX
from leukocls.data.verify import Examination

COLUMNS = [
    "first", "second", "kind", "similarity", "first_subject", "second_subject", "first_part",
    "second_part", "first_label", "second_label", "person", "known", "fault",
]  # fmt: skip
GRID = Grid(across=6, pictures=2, lines=3)


def pairs_table(examination: Examination) -> pd.DataFrame:
    """All pairs of images of one cell, with COLUMNS, the least similar last.

    `first` and `second` are files below the root; `kind`, `similarity` and `known` as in
    `leukocls.data.duplicates.Duplicates`; `person` is what splits keep together, "" if unknown.
    """
    table = examination.index.table.assign(part=examination.index.part_names())
    rows = []
    for copies in examination.duplicates:
        for one, other in combinations(copies.rows, 2):
            first, second = table.loc[one], table.loc[other]
            both = [(first[name], second[name]) for name in ("file", "subject", "part", "label")]
            (files, subjects, parts, labels) = both
            person = max(first["group"], second["group"])
            what = (copies.kind, round(copies.similarity, 4))
            end = (person, copies.known, not copies.expected)
            rows.append((*files, *what, *subjects, *parts, *labels, *end))
    pairs = pd.DataFrame(rows, columns=COLUMNS)
    return pairs.sort_values(
        ["similarity", "kind", "first", "second"], ascending=[False, True, True, True]
    ).reset_index(drop=True)


def draw_pairs(examination: Examination, path: Path, heading: str) -> int:
    """Write a PNG with the pairs side by side, the least similar last; returns how many it shows.

    Identical files are left out. Of more than MOST pairs, those of two subjects come first, then
    the least similar ones.

    Args:
        heading: first line of the picture.
    """
    pairs = pairs_table(examination)
    pairs = pairs[pairs["kind"] != IDENTICAL]
    one = (pairs["first_subject"] == pairs["second_subject"]) & (pairs["first_subject"] != "")
    shown = pairs.assign(one=one).sort_values(["one", "similarity"]).head(MOST).sort_index()
    index = examination.index
    sides = dict(zip(index.table["file"], image_sides(index), strict=True))
    boxes = dict(zip(index.table["file"], index.table[BOX].to_numpy(), strict=True))

    def tight(file: str) -> np.ndarray:
        top, left, bottom, right = boxes[file]
        return read_image(*sides[file])[top:bottom, left:right]

    def entry(pair: Any) -> Entry:
        who = f"{pair.first_subject or pair.first_part} = {pair.second_subject or pair.second_part}"
        files = (pair.first, pair.second)
        lines = [f"{who}, {pair.similarity:.2f}", *(Path(file).name for file in files)]
        return Entry([tight(file) for file in files], lines)

    entries = map(entry, shown.itertuples())
    atomic_write(path, contact_sheet(entries, len(shown), GRID, heading))
    return len(shown)
