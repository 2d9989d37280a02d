"""Many small pictures with captions on one sheet, for people to look at."""

import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

MOST = 240  # entries on one sheet, which would be too long to look at otherwise
SIDE, LINE, GAP = 128, 12, 12  # px: of a picture, of a line of its caption, between entries
TOP = 2 * GAP + 16  # px above the first row, for the heading


class Entry(NamedTuple):
    """Pictures side by side, and the lines of the caption below them; the first one is darker.

    Attributes:
        pictures: uint8 [H, W, 3] each.
        lines: of the caption.
    """

    pictures: Sequence[np.ndarray]
    lines: Sequence[str]


class Grid(NamedTuple):
    """The shape of a sheet.

    Attributes:
        across: entries in a row.
        pictures, lines: in each entry.
    """

    across: int
    pictures: int
    lines: int


def contact_sheet(entries: Iterable[Entry], number: int, grid: Grid, heading: str) -> bytes:
    """The sheet as PNG; pictures are scaled down to SIDE px.

    Args:
        entries: taken one at a time, so that few pictures are in memory.
        number: how many they are.
        heading: the first line.
    """
    width, height = grid.pictures * SIDE + GAP, SIDE + LINE * grid.lines + 6
    rows = -(-number // grid.across)
    sheet = Image.new("RGB", (grid.across * width + GAP, TOP + rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), heading, fill="black")
    for place, (pictures, lines) in enumerate(entries):
        x, y = GAP + place % grid.across * width, TOP + place // grid.across * height
        for at, pixels in enumerate(pictures):
            small = Image.fromarray(np.ascontiguousarray(pixels))
            small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
            sheet.paste(small, (x + at * (SIDE + 2), y))
        for at, line in enumerate(lines):
            short = _fitted(draw, line, width - GAP)
            draw.text((x, y + SIDE + LINE * at), short, fill="gray" if at else "black")
    stream = io.BytesIO()
    sheet.save(stream, "png")
    return stream.getvalue()


def _fitted(draw: ImageDraw.ImageDraw, line: str, room: int) -> str:
    """The line without its middle, where it is wider than `room` px."""
    line = " ".join(line.split())  # the names of files may hold line breaks
    short, kept = line, len(line)
    while draw.textlength(short) > room:
        kept -= 1
        short = f"{line[: kept // 2]}…{line[len(line) - kept + kept // 2 :]}"
    return short
