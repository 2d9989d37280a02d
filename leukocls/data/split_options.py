"""Choices within a split scheme."""

from dataclasses import dataclass

from leukocls.common.errors import LeukoclsError


@dataclass(frozen=True)
class SplitOptions:
    """Choices within a split scheme.

    Attributes:
        fold: the fold that is held out as val; None for the first, and for schemes without folds.
        folds: number of folds; `lofo` always has the three official ones, `leakage` two halves.
        seed: of the split, not of a run.
        n_subjects, n_cells: size of a smaller training set, for learning curves. A smaller set is
            part of every larger one and has about the same share of ALL.
        leak: share of the training cells that are of scored persons, in [0, 1]; None for 0, and for
            schemes other than `leakage`.

    Raises:
        LeukoclsError: a value out of range.
    """

    fold: int | None = None
    folds: int = 5
    seed: int = 0
    n_subjects: int | None = None
    n_cells: int | None = None
    leak: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("folds", 2), ("seed", 0), ("n_subjects", 2), ("n_cells", 2)):
            value = getattr(self, name)
            absent = value is None and name.startswith("n_")
            if not absent and not (type(value) is int and least <= value < 2**64):
                name = {"seed": "split_seed"}.get(name, name)
                raise LeukoclsError(f"{name}={value}: choose a whole number, at least {least}.")
        if self.leak is not None and not (type(self.leak) in (int, float) and 0 <= self.leak <= 1):
            raise LeukoclsError(f"leak={self.leak}: choose a share from 0 to 1.")
