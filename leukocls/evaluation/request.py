"""What `leukocls.evaluate` is asked for: inputs, how they are combined, and their results."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leukocls.common.errors import LeukoclsError
from leukocls.evaluation.calibration import calibration_of, calibrations
from leukocls.evaluation.ensembles import ensembles
from leukocls.evaluation.metrics import decide
from leukocls.evaluation.neighbourhood import corrected, read_features
from leukocls.evaluation.out_of_fold import pooled_runs
from leukocls.evaluation.prediction_files import challenge_zip, read_truth
from leukocls.evaluation.scoring import ScoredPart, ScoringOptions, scored_parts


@dataclass(frozen=True)
class Request:
    """Inputs to score, each by itself or all as one.

    Attributes:
        inputs: run directories and prediction files.
        options: which split, epoch, threshold and views.
        truth: a file of labels to join.
        pool: whether the inputs are the folds of one cross-validation.
        ensemble: of `ensembles.RULES`, or None.
        features: a file for the neighbourhood correction, or None.
        neighbours: the number of cells of a neighbourhood.
    """

    inputs: Sequence[Path]
    options: ScoringOptions
    truth: Path | None = None
    pool: bool = False
    ensemble: str | None = None
    features: Path | None = None
    neighbours: int = 0

    def parts(self) -> list[list[ScoredPart]]:
        """The parts of each input, or those of all inputs together.

        Raises:
            LeukoclsError: inputs that cannot be scored, or not in this way.
        """
        truth = read_truth(self.truth) if self.truth else None
        found = [scored_parts(source, self.options, truth) for source in self.inputs]
        if self.features:
            # Before folds are pooled: a model of another fold has trained on the cell's label.
            table = read_features(self.features)
            found = [[corrected(part, table, self.neighbours) for part in own] for own in found]
        if self.ensemble:
            return [ensembles(found, self.ensemble)]
        if self.pool:
            every = [part for own in found for part in own]
            return [[pooled_runs(every, self.inputs, self.options)]]
        return found

    def calibrated(
        self, parts: Sequence[Sequence[ScoredPart]], sensitivity: float | None
    ) -> list[dict[str, Any]]:
        """`calibration_of` each of `parts`, by what chose the epoch, even if it is not among them.

        Args:
            parts: the result of `parts`.
            sensitivity: as `calibration_of` takes it.

        Raises:
            LeukoclsError: as `calibrations`.
        """
        whole = parts
        if self.options.split and not (self.pool or self.ensemble):
            whole = replace(self, options=replace(self.options, split=None), truth=None).parts()
        found = zip(parts, calibrations(whole), strict=True)
        return [calibration_of(part, one, sensitivity) for own, one in found for part in own]


def submission(parts: Sequence[ScoredPart]) -> bytes:
    """The challenge's submission file of one part.

    Raises:
        LeukoclsError: several parts, or as `challenge_zip`.
    """
    if len(parts) != 1:
        raise LeukoclsError(
            f"--submission: is for one split and one epoch of one input, not {len(parts)}; choose"
            " with --split and --epoch"
        )
    part = parts[0]
    return challenge_zip(part.frame["cell"], decide(**part.outputs), part.origin["source"])
