"""Names of cells, subjects and classes, and when two spellings mean the same."""

import re
from collections.abc import Iterable

UID = re.compile(r"UID_(H?\d+)_\d+_\d+_(all|hem)", re.IGNORECASE)
UNKNOWN = -1  # the label of a cell whose class is not known
# Spellings of a class in a column `label`, in lower case.
LABEL_WORDS = {"1": 1, "1.0": 1, "all": 1, "0": 0, "0.0": 0, "hem": 0}

# What the features of a cell measure, by the names of `leukocls.data.features`.
FEATURE_KINDS = ("size", "mask", "colour", "handcrafted")


def cell_key(name: str) -> str:
    """A cell's name without `.bmp` and in one case: equal for two spellings of one cell."""
    return name.strip().casefold().removesuffix(".bmp")


def subject_of(name: str) -> str:
    """The subject in an original name such as `UID_H3_2_1_hem.bmp`, upper case; else ""."""
    match = UID.match(name.strip())
    return match[1].upper() if match else ""


def members(groups: Iterable[str]) -> set[str]:
    """The subjects in groups; merged subjects are named by their members, joined with +."""
    return {subject for group in groups for subject in group.split("+")}
