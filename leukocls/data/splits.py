"""Splits by name: which cells train, which choose, which are only reported."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from leukocls.data.index import UNKNOWN, Index
from leukocls.errors import LeukoclsError


@dataclass(frozen=True)
class Split:
    """Rows of the index by split name.

    `selection` names the split whose metrics choose the epoch; its numbers are never a test.
    """

    scheme: str
    rows: dict[str, np.ndarray]
    selection: str
    leaky: bool = False

    @property
    def scored(self) -> list[str]:
        """The splits that are evaluated after each epoch; train only if it is all there is."""
        return [name for name in self.rows if name != "train"] or ["train"]


def challenge(index: Index) -> Split:
    """Train on folds 0-2, select on prelim: Prellberg & Kramer 2019. No test number can exist."""
    return Split("challenge", {p: part_rows(index, p) for p in ("train", "prelim")}, "prelim")


SCHEMES: dict[str, Callable[[Index], Split]] = {"challenge": challenge}


def part_rows(index: Index, part: str) -> np.ndarray:
    """Rows int64 [n] of one part of the data, in the index's order.

    Raises:
        LeukoclsError: the part is not one of train, prelim, final, or holds no image.
    """
    rows = np.flatnonzero(index.table["part"].to_numpy() == part)
    if not len(rows):
        raise LeukoclsError(
            f"{index.root}: part {part!r} holds no image (present: "
            f"{', '.join(index.table['part'].unique())}). Add it, or name another part."
        )
    return rows


def make_split(scheme: str, index: Index) -> Split:
    """The split named `scheme`.

    Raises:
        LeukoclsError: unknown scheme, a part without images, or training cells of one class only.
    """
    if scheme not in SCHEMES:
        raise LeukoclsError(f"split_scheme={scheme}: choose one of {', '.join(SCHEMES)}.")
    split = SCHEMES[scheme](index)
    labels = index.table["label"].to_numpy()
    classes = set(labels[split.rows["train"]].tolist())
    # Cells without a known class can be scored, never trained or selected on.
    assert UNKNOWN not in classes | set(labels[split.rows[split.selection]].tolist())
    if classes != {0, 1}:
        raise LeukoclsError(
            f"{index.root}: the training cells are of one class only; training needs ALL and HEM."
        )
    return split
