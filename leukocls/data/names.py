"""Names of cells, subjects, classes and kinds of features, and the spellings that are equal."""

import re
from collections.abc import Iterable

UID = re.compile(r"UID_(H?\d+)_\d+_\d+_(all|hem)", re.IGNORECASE)
LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
DECIMALS = re.compile(r"(?<=\d)\.0+$")  # of a number that a table program wrote
UNKNOWN = -1  # the label of a cell whose class is not known
CLASSES = ("HEM", "ALL")  # by label
# Spellings of a class in a column `label`, in lower case.
LABEL_WORDS = {"1": 1, "1.0": 1, "all": 1, "0": 0, "0.0": 0, "hem": 0}

# Splits beside prelim: its cells whose person is in train, which are no part of the test; and all
# of prelim as published.
PRELIM_TRAINED, PRELIM_OFFICIAL = "prelim_trained", "prelim_official"

# Kinds of features: the keys of `leukocls.data.features.KINDS`, which is slow to import.
FEATURE_KINDS = ("size", "mask", "colour", "handcrafted")


def cell_key(name: str) -> str:
    """A cell's name without `.bmp` and in one case: equal for two spellings of one cell."""
    return name.strip().casefold().removesuffix(".bmp")


def subject_key(subject: str) -> str:
    """A subject in one spelling: P07, p7 and P7 are equal, as are 101 and 101.0.

    Treating one person as two would leak.
    """
    key = DECIMALS.sub("", subject.strip().upper())
    return LEADING_ZEROS.sub("", key)


def subject_of(name: str) -> str:
    """The subject in an original name such as `UID_H3_2_1_hem.bmp`, upper case; "" in others."""
    match = UID.match(_file_name(name))
    return match[1].upper() if match else ""


def label_of(name: str) -> int:
    """The label in an original name, ALL 1 and HEM 0; UNKNOWN in others."""
    match = UID.match(_file_name(name))
    return LABEL_WORDS[match[2].lower()] if match else UNKNOWN


def _file_name(path: str) -> str:
    return path.strip().replace("\\", "/").rpartition("/")[2]


def members(groups: Iterable[str]) -> set[str]:
    """All subjects in `groups`; a merged group is named by its members, joined with +."""
    return {subject for group in groups for subject in group.split("+")}
