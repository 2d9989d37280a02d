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

    Attributes:
        rows: of the index.
        kind: "identical" if the files are, or "turned": turned, flipped, moved or saved anew.
        expected: whether they are no fault (`leukocls.data.rules.DataRules.expects_copies`).
    """

    rows: tuple[int, ...]
    kind: str
    expected: bool


def pixel_digest(image: np.ndarray) -> str:
    """sha256 of the pixels of uint8 [H, W, 3] inside the tight box of those that are not black.

    The smallest over quarter turns and flips: equal for copies that are turned by 90°, flipped,
    moved within the frame or saved in another lossless format.

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
        index: one whose columns `pixels` and `sha256` are filled in.
        genuine: by part, whether its files are those published, so that copies are expected.
    """
    table = index.table
    names = index.part_names()
    sets = table.index[table["pixels"] != ""].to_series().groupby(table["pixels"])
    duplicates = []
    for _, rows in sets:
        if len(rows) > 1:
            kind = "identical" if len(set(table["sha256"][rows])) == 1 else "turned"
            certain = all(genuine.get(part, False) for part in names[rows])
            expected = certain or index.rules.expects_copies(table.loc[rows])
            duplicates.append(Duplicates(tuple(rows), kind, expected))
    return duplicates


def merged_groups(table: pd.DataFrame, duplicates: Iterable[Duplicates]) -> list[str]:
    """The `group` of each row after merging groups that share an image: the transitive closure.

    A merged group is named by its subjects, joined with +.
    """
    # A union-find structure: each group points to another one of its set, the root to itself.
    parent = {group: group for group in table["group"] if group}

    def root_of(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    for copies in duplicates:
        groups = [group for group in table["group"][list(copies.rows)] if group]
        for first, second in pairwise(groups):
            parent[root_of(second)] = root_of(first)
    members: dict[str, set[str]] = {}
    for group in parent:
        members.setdefault(root_of(group), set()).update(group.split("+"))
    names = {
        root: "+".join(sorted(subjects, key=lambda subject: (len(subject), subject)))
        for root, subjects in members.items()
    }
    return [names[root_of(group)] if group else "" for group in table["group"]]
