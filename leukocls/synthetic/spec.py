"""The specification of a synthetic data set: every option that determines its cells."""

from dataclasses import dataclass, field, fields
from math import isfinite, sqrt
from typing import Any

from leukocls.common.errors import LeukoclsError

# Shift of each part's means in units of `fold_shift`; prelim is 1 above the mean of train.
SHIFTS = {"fold_0": -0.5, "fold_1": 0.0, "fold_2": 0.5, "prelim": 1.0, "final": 1.0}


def _option(default: Any, least: float, text: str, most: float = float("inf")) -> Any:
    """A dataclass field with its range and help text, which `leukocls.synth` shows."""
    return field(default=default, metadata={"least": least, "most": most, "help": text})


def _share(default: float, text: str, most: float = 1.0) -> Any:
    """A field for a fraction."""
    return _option(default, 0, text, most)


@dataclass(frozen=True)
class SyntheticSpec:
    """Options of a synthetic data set; their metadata holds range and meaning.

    Size is linear in severity, with an SD that depends on severity, so that each class has the
    requested mean and SD. Severity explains at most half of the size variance within a class. If
    the classes overlap too much for the requested difference of mean sizes (auroc_bayes below about
    .92 at the default sizes), the difference is smaller, about the same midpoint; at auroc_bayes=.5
    it is 0. The SDs then differ less than requested as well: at .94 by a factor of 1.9 at most.
    Sizes are clipped to 80-400 px. A cell of more than 298 px reaches outside the central 300 px
    whatever `p_outside_300` is.

    `fold_shift` moves the means of subject stain and focus by SHIFTS times their SD.

    Raises:
        LeukoclsError: a value out of range.
    """

    seed: int = _option(0, 0, "seed of every random number")
    scale: str = field(
        default="demo",
        metadata={
            "choices": ("demo", "full"),
            "help": "full: the published subjects and counts, 15,114 files of 9.6 GB in all",
        },
    )
    train_subjects_all: int = _option(32, 3, "ALL subjects in folds 0 to 2")
    train_subjects_hem: int = _option(22, 3, "HEM subjects in folds 0 to 2")
    prelim_subjects_all: int = _option(8, 1, "ALL subjects in prelim")
    prelim_subjects_hem: int = _option(8, 1, "HEM subjects in prelim")
    cells_per_subject: int = _option(13, 1, "mean over subjects, which vary about threefold")
    final_cells: int = _option(20, 4, "unlabelled cells in final, of four subjects")
    auroc_bayes: float = _option(
        0.94, 0.5, "best AUROC from one cell (for its true class, without the shortcut)", 0.999
    )
    icc_severity: float = _share(0.1, "share of severity's variance between subjects", 0.99)
    sd_nuisance_stain: float = _option(0.12, 0, "SD over subjects of log green intensity", 1)
    sd_nuisance_texture: float = _option(
        0.25, 0, "SD over subjects of log drift, grain, chromatin", 1
    )
    sd_nuisance_focus: float = _option(0.2, 0, "SD over subjects of log blur", 1)
    sd_field: float = _option(0.05, 0, "SD over fields of view of each of these three", 1)
    class_nuisance_correlation: float = _option(
        0.0, -0.99, "correlation of a subject's class with its stain: a shortcut", 0.99
    )
    fold_shift: float = _option(0.0, -5, "shift of stain and focus from train to prelim, in SDs", 5)
    size_mean_all: float = _option(221.0, 120, "px, mean side of an ALL cell's tight box", 300)
    size_mean_hem: float = _option(184.0, 120, "px, mean side of a HEM cell's tight box", 300)
    size_sd_all: float = _option(26.0, 1, "px, SD over ALL cells", 60)
    size_sd_hem: float = _option(28.0, 1, "px, SD over HEM cells", 60)
    icc_size: float = _share(
        0.24, "share between subjects of the size variance that severity leaves", 0.99
    )
    p_cut: float = _share(0.18, "share of cells that are cut off straight")
    p_background: float = _share(0.3, "share of cells with background or a neighbour attached")
    p_outside_300: float = _share(0.067, "share of cells that reach outside the central 300 px")
    label_noise: float = _share(0.0, "share of cells with the wrong label", 0.5)
    duplicates: int = _option(0, 0, "pairs of identical train images across folds and subjects")
    reprocessed: int = _option(
        0, 0, "pairs of train images of one cell, with another stain, focus and outline"
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value, rule = getattr(self, option.name), option.metadata
            if "choices" in rule:
                allowed, valid = " or ".join(rule["choices"]), value in rule["choices"]
            else:
                whole = isinstance(option.default, int)
                allowed = f"at least {rule['least']}"
                allowed += f" and at most {rule['most']}" if isfinite(rule["most"]) else ""
                allowed = f"a {'whole ' * whole}number of {allowed}"
                valid = isinstance(value, int if whole else (int, float))
                valid = valid and rule["least"] <= value <= rule["most"]
            if not valid:
                raise LeukoclsError(f"{option.name}={value}: not allowed; give {allowed}")
            if self.scale == "full" and option.name in DEMO_ONLY and value != option.default:
                raise LeukoclsError(
                    f"{option.name}={value}: not allowed with scale=full, whose structure is the "
                    "published one; leave it out, or give scale=demo"
                )

    @property
    def separation(self) -> float:
        """d: difference of the classes' mean severities, in SDs within a class."""
        from scipy.special import ndtri  # `synth --help` reads this module and needs no SciPy

        return sqrt(2) * float(ndtri(self.auroc_bayes))


DEMO_ONLY = tuple(
    option.name
    for option in fields(SyntheticSpec)
    if option.name.startswith(("train_", "prelim_", "cells_", "final_"))
)
