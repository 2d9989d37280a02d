"""Images that a data set holds more than once, and the subjects that share them."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from leukocls.data.images import extent
from leukocls.data.index import Index


@dataclass(frozen=True)
class Duplicates:
    """Cells with the same pixels, up to quarter turns, flips and position in the frame.

    `kind` is "identical" (the files are) or "turned" (also: flipped, moved, saved anew);
    `expected`: a genuine copy or a synthetic tree's manifest has them, or they do no harm.
    """

    rows: tuple[int, ...]
    kind: str
    expected: bool


def pixel_digest(image: np.ndarray) -> str:
    """sha256 of what is not black in uint8 [H, W, 3], the least over quarter turns and flips.

    Equal for copies that are turned by 90°, flipped, moved within the frame or saved in another
    lossless format.

    Raises:
        ValueError: all pixels are black.
    """
    top, left, bottom, right = extent(image)
    tight = np.ascontiguousarray(image[top:bottom, left:right])

    def digest(pixels: np.ndarray) -> str:
        state = hashlib.sha256(f"{pixels.shape[0]} {pixels.shape[1]}\n".encode())
        state.update(np.ascontiguousarray(pixels).data)
        return state.hexdigest()

    return min(digest(np.rot90(half, k)) for half in (tight, tight[::-1]) for k in range(4))


def find_duplicates(index: Index, genuine: dict[str, bool]) -> list[Duplicates]:
    """Every set of cells with the same pixels.

    Args:
        index: one whose files have been read (`pixels` and `sha256`).
        genuine: by part, whether its files are those published: their copies are expected.
    """
    table = index.table
    names = index.part_names()
    sets = table.index[table["pixels"] != ""].to_series().groupby(table["pixels"])
    found = []
    for _, rows in sets:
        if len(rows) > 1:
            kind = "identical" if len(set(table["sha256"][rows])) == 1 else "turned"
            certain = all(genuine.get(part, False) for part in names[rows])
            expected = certain or index.rules.expects_copies(table.loc[rows], kind)
            found.append(Duplicates(tuple(rows), kind, expected))
    return found


def merged_groups(table: pd.DataFrame, duplicates: Iterable[Duplicates]) -> list[str]:
    """`group` of each row once subjects with a cell in common are one: the transitive closure."""
    parent = {group: group for group in table["group"] if group}

    def top(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    for found in duplicates:
        groups = [group for group in table["group"][list(found.rows)] if group]
        for one, other in pairwise(groups):
            parent[top(other)] = top(one)
    members: dict[str, set[str]] = {}
    for group in parent:
        members.setdefault(top(group), set()).update(group.split("+"))
    names = {root: "+".join(sorted(of, key=lambda s: (len(s), s))) for root, of in members.items()}
    return [names[top(group)] if group else "" for group in table["group"]]
