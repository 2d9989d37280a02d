"""What is known in advance of one kind of data set: image sizes, names, counts and copies."""

from collections.abc import Mapping
from typing import ClassVar

import pandas as pd


class DataRules:
    """The rules by which one kind of data set is read and checked. The scanner chooses them.

    Attributes:
        cnmc_names: whether cells have C-NMC's names, which state subject and class.
        published: whether the data must be C-NMC 2019 as published.
        synthetic: whether the cells are synthetic, so that no number holds for people.
        sides: side in px of the square images of each part; empty if any size is read.
        largest_crop: the largest `data.crop`, in px.
        listed_parts: the parts whose cells the label file lists.
    """

    cnmc_names: ClassVar[bool] = False
    published: ClassVar[bool] = False
    synthetic: ClassVar[bool] = False
    sides: ClassVar[Mapping[str, int]] = {}
    largest_crop: ClassVar[int]
    listed_parts: ClassVar[tuple[str, ...]]

    def counts(self) -> dict[str, int] | None:
        """Number of cells of each part (folds as fold_0 …) of a complete data set, if known."""
        return None

    def subject_counts(self) -> dict[str, dict[str, int]]:
        """Number of cells of each subject, by part, of a complete data set; empty if unknown."""
        return {}

    def labels_digest(self) -> str | None:
        """The `labels_digest` that the label file must have, if known."""
        return None

    def expects_copies(self, cells: pd.DataFrame, kind: str) -> bool:
        """Whether these rows of the index may show one image.

        Args:
            cells: two or more rows with the same pixels.
            kind: that of `leukocls.data.duplicates.Duplicates`.
        """
        raise NotImplementedError
