"""Pairs of images of one cell, as a table and as a picture for people to look at."""

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from leukocls.common.files import atomic_write
from leukocls.data.duplicates import IDENTICAL
from leukocls.data.images import image_sides, read_image
from leukocls.data.index import BOX
from leukocls.data.verify import Examination

COLUMNS = [
    "first", "second", "kind", "similarity", "first_subject", "second_subject", "first_part",
    "second_part", "first_label", "second_label", "person", "known", "fault",
]  # fmt: skip
MOST = 240  # pairs in a picture
ACROSS = 6  # pairs in a row of it
SIDE, CAPTION, GAP = 128, 42, 12  # px: of an image, of the text below it, between pairs


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

    def tight(file: str) -> Image.Image:
        top, left, bottom, right = boxes[file]
        crop = Image.fromarray(
            np.ascontiguousarray(read_image(*sides[file])[top:bottom, left:right])
        )
        crop.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
        return crop

    width, height = 2 * SIDE + GAP, SIDE + CAPTION
    lines = -(-len(shown) // ACROSS)
    sheet = Image.new("RGB", (ACROSS * width + GAP, 2 * GAP + 16 + lines * height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), heading, fill="black")
    for place, pair in enumerate(shown.itertuples()):
        x, y = GAP + place % ACROSS * width, 2 * GAP + 16 + place // ACROSS * height
        for at, file in enumerate((pair.first, pair.second)):
            sheet.paste(tight(file), (x + at * (SIDE + 2), y))
            draw.text((x, y + SIDE + 12 * (at + 1)), Path(file).name[:40], fill="gray")
        who = f"{pair.first_subject or pair.first_part} = {pair.second_subject or pair.second_part}"
        draw.text((x, y + SIDE), f"{who}   {pair.similarity:.2f}", fill="black")
    stream = io.BytesIO()
    sheet.save(stream, "png")
    atomic_write(path, stream.getvalue())
    return len(shown)
