"""Tables and lists of names as text for a terminal."""

from collections.abc import Iterable


def aligned(rows: Iterable[Iterable[object]]) -> str:
    """Rows as lines of left-aligned columns."""
    table = [[str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def listing(names: Iterable[object]) -> str:
    """The first ten names, and how many there are in all."""
    every = [str(name) for name in names]
    return f"{', '.join(every[:10])}{', …' if len(every) > 10 else ''} ({len(every)} in all)"
