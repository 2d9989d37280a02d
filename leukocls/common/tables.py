"""Tables and lists of names as text for a terminal."""

import shutil
import sys
import textwrap
from collections.abc import Iterable
from itertools import zip_longest


def aligned(rows: Iterable[Iterable[object]], width: int | None = None) -> str:
    """Rows as lines of left-aligned columns.

    Args:
        width: the longest line in characters; the widest columns are wrapped to keep it. None sets
            no limit.
    """
    table = [[str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    room = (width or sum(widths) + 2 * len(widths)) - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in table:
        cells = [
            textwrap.wrap(cell, most) if len(cell) > most else [cell]
            for cell, most in zip(row, widths, strict=True)
        ]
        lines += [
            "  ".join(map(str.ljust, parts, widths)).rstrip()
            for parts in zip_longest(*cells, fillvalue="")
        ]
    return "\n".join(lines)


def terminal_width() -> int | None:
    """Columns of the terminal that is printed to; None for a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def listing(names: Iterable[object]) -> str:
    """The first ten names, and how many there are in all."""
    every = [str(name) for name in names]
    return f"{', '.join(every[:10])}{', …' if len(every) > 10 else ''} ({len(every)} in all)"
