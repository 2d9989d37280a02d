"""Notes on a data set that a CSV describes: image sizes, cut cells, subjects, missing parts."""

import numpy as np
import pandas as pd

from leukocls.common.tables import listing
from leukocls.data.folds import scheme_without_prelim
from leukocls.data.index import BOX, Index
from leukocls.data.names import CLASSES, UNKNOWN
from leukocls.data.store import windows


def image_notes(index: Index, crop: int | str) -> list[str]:
    """Sizes of the images, how many cells the crop cuts, and how many images were converted.

    Args:
        index: one whose columns `leukocls.data.verify` has filled in.
        crop: as `leukocls.data.store.open_store`.

    Returns:
        Nothing for C-NMC, where all of this is known.
    """
    table = index.table[index.table["height"] > 0]
    if index.rules.cnmc_tree or table.empty:
        return []
    width, height = table["width"], table["height"]
    sizes = [f"{width.min()}×{height.min()}", f"{width.max()}×{height.max()}"]
    span = " to ".join(dict.fromkeys(sizes))
    notes = [f"{len(table):,} images of {span} pixels (width × height)"]
    if crop != "box":
        number = int(_is_cut(table, int(crop)).sum())
        note = f"data.crop={crop} cuts {number:,} of {len(table):,} cells"
        notes.append(note + (f"; data.crop={_whole_crop(table)} cuts none" if number else ""))
    if converted := table["converted"][table["converted"] != ""].value_counts().to_dict():
        forms = ", ".join(f"{number:,} {form}" for form, number in sorted(converted.items()))
        notes.append(f"converted to 8-bit RGB: {forms}")
    return notes


def _is_cut(table: pd.DataFrame, crop: int) -> np.ndarray:
    """Mask of the cells that extend beyond the central crop × crop pixels, bool [N]."""
    window, box = windows(table, crop), table[BOX].to_numpy()
    first, last = window[:, :2], window[:, :2] + window[:, 2:]
    return ((box[:, :2] < first) | (box[:, 2:] > last)).any(1)


def _whole_crop(table: pd.DataFrame) -> int:
    """The smallest central square, in px, that cuts no cell."""
    box, sides = table[BOX].to_numpy(), table[["height", "width"]].to_numpy()
    side = int(np.maximum(sides - 2 * box[:, :2], 2 * box[:, 2:] - sides).max())
    # An odd margin is rounded, so that one pixel less may do, or one more be needed.
    return next(crop for crop in (side - 1, side, side + 1) if not _is_cut(table, crop).any())


def subject_notes(index: Index) -> list[str]:
    """Notes on unknown and two-class subjects, missing classes and missing parts.

    Returns:
        Nothing for C-NMC, where all of this is known.
    """
    table = index.table[index.table["label"] != UNKNOWN]
    if index.rules.cnmc_tree or table.empty:
        return []
    notes = []
    if unknown := int((table["group"] == "").sum()):
        notes.append(f"{unknown:,} cells without a subject: only split_scheme=cell can split them")
    if both := two_class_subjects(index):
        notes.append(
            f"subjects with cells of both classes: {listing(both)}. They stay together in every"
            " split; metrics by subject say how they count"
        )
    for label, name in enumerate(CLASSES):
        subjects = set(table["group"][table["label"] == label])
        if not subjects:
            notes.append(f"no cell is {name}: nothing can be trained on one class")
        elif len(subjects) == 1 and subjects != {""}:
            notes.append(
                f"all {name} cells are of one subject, {min(subjects)}: no split by subject is"
                " possible"
            )
    parts, classes = set(table["part"]), set(table["label"])
    if "prelim" not in parts and "train" in parts and len(classes) == len(CLASSES):
        notes.append(f"no cell is of the part prelim: train with {scheme_without_prelim(table)}")
    return notes


def two_class_subjects(index: Index) -> list[str]:
    """Subjects, merged ones as one, with cells of both classes, sorted."""
    known = index.table[(index.table["group"] != "") & (index.table["label"] != UNKNOWN)]
    classes = known.groupby("group")["label"].nunique()
    return sorted(classes.index[classes > 1])
