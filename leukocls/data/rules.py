"""Rules for each kind of data set: image sizes, names, expected counts and known copies.

The scanner chooses the rules and the index carries them. A new kind of data set is one more class.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from leukocls.common.errors import LeukoclsError
from leukocls.data.names import UNKNOWN, cell_key
from leukocls.data.published import (
    FINAL_SIDE,
    LABELS_DIGEST,
    SAME_FINAL,
    SHARED_IMAGES,
    SIDE,
    TRAIN_IN_FINAL,
    TRAIN_IN_PRELIM,
    published_counts,
    published_parts,
    published_subjects,
)


class DataRules:
    """Rules for reading and checking one kind of data set.

    Attributes:
        cnmc_tree: whether the data is a folder tree in C-NMC's layout, with its names of files.
        cnmc_subjects: whether subject IDs are C-NMC's; those of other data sets are other people.
        published: whether the data must be C-NMC 2019 as published.
        synthetic: whether the cells are synthetic, so that no number holds for people.
        sides: side in px of the square images, by part; empty if images may have any size.
        largest_crop: upper limit of `data.crop`, in px.
        listed_parts: parts whose cells the label file lists.
    """

    cnmc_tree: ClassVar[bool] = False
    cnmc_subjects: bool = False
    published: ClassVar[bool] = False
    synthetic: ClassVar[bool] = False
    sides: ClassVar[Mapping[str, int]] = {}
    largest_crop: ClassVar[int]
    listed_parts: ClassVar[tuple[str, ...]]

    def counts(self) -> dict[str, int] | None:
        """Number of cells of a complete data set, by part (folds as fold_0 …); None if unknown."""
        return None

    def subject_counts(self) -> dict[str, dict[str, int]]:
        """Number of cells of each subject of a complete data set, by part; empty if unknown."""
        return {}

    def labels_digest(self) -> str | None:
        """Digest that the label file must have (`published.labels_digest`); None if unknown."""
        return None

    def best_auroc(self) -> float | None:
        """The highest AUROC that is possible from single cells, in expectation; None if unknown."""
        return None

    def expects_copies(self, cells: pd.DataFrame) -> bool:
        """True if copies of one image under these names are no fault.

        Args:
            cells: rows of the index with the same pixels, at least two.
        """
        return self.expects_again(cells)

    def expects_again(self, cells: pd.DataFrame) -> bool:
        """True if several images of one cell under these names are no fault.

        They have one class and are in one part, or their persons are expected in all of the parts.
        Their subjects are merged, so none leaks. Cells of final without a label do not count:
        nothing is trained or scored on them.

        Args:
            cells: rows of the index that show one cell, at least two.
        """
        cells = cells[(cells["part"] != "final") | (cells["label"] != UNKNOWN)]
        parts, persons = set(cells["part"]), set(cells["group"])
        known = len(parts) < 2 or all(self.expects_in(person, parts) for person in persons)
        return known and len(set(cells["label"])) < 2

    def expects_in(self, person: str, parts: Collection[str]) -> bool:
        """True if one person may have cells in all of these parts, which else is a fault."""
        return False


@dataclass(frozen=True)
class TableRules(DataRules):
    """Rules for a data set that one CSV describes: images of any size, no published counts."""

    cnmc_subjects: bool
    largest_crop: ClassVar[int] = 2048
    listed_parts: ClassVar[tuple[str, ...]] = ("train", "prelim", "final")

    def expects_in(self, person: str, parts: Collection[str]) -> bool:
        """True if the subject IDs are C-NMC's, and C-NMC has the person in all of these parts."""
        return self.cnmc_subjects and set(parts) <= published_parts(person)


class CnmcRules(DataRules):
    """Rules for a tree with C-NMC's folders and names."""

    cnmc_tree = True
    cnmc_subjects = True
    sides: ClassVar[Mapping[str, int]] = {"train": SIDE, "prelim": SIDE, "final": FINAL_SIDE}
    largest_crop = SIDE
    listed_parts = ("prelim",)


class PublishedRules(CnmcRules):
    """Rules for C-NMC 2019 as published."""

    published = True

    def counts(self) -> dict[str, int]:
        return published_counts()

    def subject_counts(self) -> dict[str, dict[str, int]]:
        return published_subjects()

    def labels_digest(self) -> str:
        return LABELS_DIGEST

    def expects_copies(self, cells: pd.DataFrame) -> bool:
        """True if C-NMC as published holds one image under all of these names."""
        known = {"prelim": TRAIN_IN_PRELIM, "final": TRAIN_IN_FINAL}
        in_train = set(cells["cell"][cells["part"] == "train"].map(cell_key))
        first = [
            cell_key(known.get(part, {}).get(cell.casefold(), ""))
            for part, cell in zip(cells["part"], cells["cell"], strict=True)
        ]
        cells = cells[[name not in in_train for name in first]]
        if len(cells) == 1:
            return True
        if len(set(cells["sha256"])) > 1:
            return False
        if set(cells["part"]) == {"final"}:
            return set(cells["cell"]) in map(set, SAME_FINAL)
        # Three subjects may share one image by two known pairs: 51 = 75 and 51 = 78.
        subjects = sorted(cells["subject"])
        linked = [pair for pair in SHARED_IMAGES if set(pair) <= set(subjects)]
        twice = any(list(pair) == subjects for pair in SHARED_IMAGES if len(set(pair)) == 1)
        return set(cells["part"]) == {"train"} and (
            twice or sorted({subject for pair in linked for subject in pair}) == subjects
        )

    def expects_in(self, person: str, parts: Collection[str]) -> bool:
        """True if C-NMC has the person in all of these parts; 51 of train is also 55 of prelim."""
        return set(parts) <= published_parts(person)


@dataclass(frozen=True)
class SyntheticRules(CnmcRules):
    """Rules for a synthetic tree, read from its manifest.

    Every method raises LeukoclsError if the manifest is damaged or lacks the key.
    """

    manifest: Path
    synthetic: ClassVar[bool] = True

    def counts(self) -> dict[str, int]:
        return dict(self._declared("counts"))

    def subject_counts(self) -> dict[str, dict[str, int]]:
        return self._declared("subjects")

    def labels_digest(self) -> str:
        return self._declared("labels_sha256")

    def best_auroc(self) -> float | None:
        spec = self._declared("spec")
        limited = not (spec["class_nuisance_correlation"] or spec["label_noise"])
        return float(spec["auroc_bayes"]) if limited else None

    def expects_copies(self, cells: pd.DataFrame) -> bool:
        """Whether the manifest lists these cells as copies of one image."""
        return len({self._sources.get(name, name) for name in cells["cell"]}) == 1

    @cached_property
    def _sources(self) -> dict[str, str]:
        """The name of each copied cell's original."""
        return {Path(copy).name: Path(first).name for first, copy in self._declared("duplicates")}

    def _declared(self, key: str) -> Any:
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LeukoclsError(
                f"{self.manifest}: cannot be read ({error}); restore it."
            ) from error
        if key not in manifest:
            raise LeukoclsError(
                f"{self.manifest}: has no key {key}: an older version wrote it. Remove the tree and"
                " write it again."
            )
        return manifest[key]
