"""Marks: the labels that every number of a run must carry."""

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pandas, which a list of runs does without
    from leukocls.data.index import Index


class Mark(StrEnum):
    """One label. A run, and every artefact that its numbers reach, carries all that apply.

    SYNTHETIC: the cells are synthetic. PARTIAL: images of the data set are missing. LIMITED:
    batches were left out (`trainer.limit_*_batches`). LEAKY: scored subjects or images were trained
    on. RECONSTRUCTION: the recipe fills in what its source does not state. TRANSDUCTIVE: scored
    cells were used, unlabelled, to decide on each other.
    """

    SYNTHETIC = "SYNTHETIC"
    PARTIAL = "PARTIAL"
    LIMITED = "LIMITED"
    LEAKY = "LEAKY"
    RECONSTRUCTION = "RECONSTRUCTION"
    TRANSDUCTIVE = "TRANSDUCTIVE"


MEANINGS = {
    Mark.SYNTHETIC: "the cells are synthetic",
    Mark.PARTIAL: "images of the data set are missing",
    Mark.LIMITED: "batches were left out",
    Mark.LEAKY: "scored persons or images were also trained on",
    Mark.RECONSTRUCTION: "the recipe fills in details that its source does not state",
    Mark.TRANSDUCTIVE: "scored cells were used, without labels, to decide on each other",
}


def data_marks(index: "Index", parts: Collection[str]) -> list[str]:
    """The marks of data that `leukocls.data.verify` has read; `parts` should be complete."""
    return _ordered({Mark.SYNTHETIC: index.synthetic, Mark.PARTIAL: index.incomplete(parts)})


def run_marks(
    data: Collection[str],
    *,
    limited: bool = False,
    leaky: bool = False,
    reconstruction: bool = False,
    inherited: Collection[str] = (),
) -> list[str]:
    """The marks of a run.

    Args:
        data: the marks of its data.
        limited, leaky, reconstruction: whether these marks hold for the run itself.
        inherited: the marks of the run that this one scores.
    """
    own = {Mark.LIMITED: limited, Mark.LEAKY: leaky, Mark.RECONSTRUCTION: reconstruction}
    return _ordered(own | dict.fromkeys([*data, *inherited], True))


def _ordered(holds: Mapping[str, object]) -> list[str]:
    return [mark.value for mark in Mark if holds.get(mark)]


def merged_marks(marks: Iterable[Iterable[str]]) -> list[str]:
    """The marks of several runs together, each once, in order of appearance."""
    return list(dict.fromkeys(mark for of_run in marks for mark in of_run))


def banner(marks: Collection[str]) -> list[str]:
    """The line that stands above marked numbers, as a list: empty without marks."""
    return [f"*** {' '.join(marks)} ***"] if marks else []
