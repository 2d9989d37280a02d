"""Cells that a data set holds more than once, and the subjects that share them.

In three degrees: the same file, the same pixels, and the same cell processed again.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from leukocls.data.images import extent
from leukocls.data.index import Index
from leukocls.data.near_duplicates import TURNS, Pair, turned

# Kinds of copies: the same file; the same pixels, but turned, flipped, moved or saved anew; the
# same cell, photographed, stain-normalised or segmented again.
IDENTICAL, TURNED, REPROCESSED = "identical", "turned", "reprocessed"


PIXELS_VERSION = 2  # raise it when `pixel_digest` gives other digests of the same pixels


@dataclass(frozen=True)
class Duplicates:
    """Images of one cell.

    Attributes:
        rows: of the index; two if `kind` is REPROCESSED.
        kind: IDENTICAL, TURNED or REPROCESSED.
        similarity: 1 for the same pixels, else the correlation of `near_duplicates.agreement`.
        known: whether the names alone say that the cells are of one person.
        expected: whether they are no fault (`leukocls.data.rules`).
    """

    rows: tuple[int, ...]
    kind: str
    similarity: float
    known: bool
    expected: bool


def pixel_digest(image: np.ndarray) -> str:
    """sha256 of the pixels of uint8 [H, W, 3] inside the tight box of those that are not black.

    Equal for copies that are turned by 90°, flipped, moved within the frame or saved in another
    lossless format: of the eight turns, the one whose bytes come first is taken.

    Raises:
        ValueError: all pixels are black.
    """
    top, left, bottom, right = extent(image)
    turns = [turned(image[top:bottom, left:right], turn) for turn in range(TURNS)]
    starts = [(turn.shape, turn[0].tobytes()) for turn in turns]
    first = min(starts)  # nearly always of one turn only
    pixels = min(
        turn.tobytes() for turn, start in zip(turns, starts, strict=True) if start == first
    )
    height, width, _ = first[0]
    return hashlib.sha256(f"{height} {width}\n".encode() + pixels).hexdigest()


def find_duplicates(
    index: Index, pairs: Iterable[Pair], genuine: Mapping[str, bool]
) -> list[Duplicates]:
    """Every set of images with the same pixels, and every pair of images that show one cell.

    Args:
        index: one whose columns `pixels` and `sha256` are filled in.
        pairs: as `leukocls.data.contents.with_contents` gives them.
        genuine: by part, whether its files are those published, so that copies are expected.
    """
    rules, table = index.rules, index.table
    certain = index.part_names().map(lambda part: genuine.get(part, False)).to_numpy(bool)
    groups = table["group"].to_numpy(str)

    def found(rows: tuple[int, ...], kind: str, similarity: float) -> Duplicates:
        places = list(rows)
        known = bool(groups[places[0]]) and len({*groups[places]}) == 1
        expects = rules.expects_again if kind == REPROCESSED else rules.expects_copies
        expected = certain[places].all() or expects(table.iloc[places])
        return Duplicates(rows, kind, similarity, known, bool(expected))

    duplicates = []
    copied = table[table["pixels"].duplicated(keep=False) & (table["pixels"] != "")]
    for _, cells in copied.groupby("pixels"):
        kind = IDENTICAL if len(set(cells["sha256"])) == 1 else TURNED
        duplicates.append(found(tuple(cells.index), kind, 1.0))
    for pair in pairs:
        duplicates.append(found(pair[:2], REPROCESSED, pair.correlation))
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

    own = table["group"].to_numpy(str)
    for copies in duplicates:
        groups = [str(group) for group in own[list(copies.rows)] if group]
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
