"""Score predictions: `python -m leukocls.evaluate INPUT…` prints the metrics of runs and files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukocls.common.errors import LeukoclsError, run_verb

if TYPE_CHECKING:
    from leukocls.evaluation.scoring import ScoredPart


def _write_submission(path: Path, part: ScoredPart) -> None:
    from leukocls.common.files import atomic_write
    from leukocls.evaluation.metrics import decide
    from leukocls.evaluation.prediction_files import challenge_zip

    called = decide(**part.outputs)
    atomic_write(path, challenge_zip(part.frame["cell"], called, part.origin["source"]))
    print(f"{path}: {len(called)} cells", file=sys.stderr)


def _add_calibration(
    results: list[dict[str, Any]],
    by_input: list[list[ScoredPart]],
    whole: list[list[ScoredPart]],
    sensitivity: float | None,
) -> None:
    """Add `calibration` to the results of `by_input`, whose other splits are in `whole`."""
    from leukocls.evaluation.calibration import calibration_of, calibrations

    found = zip(by_input, calibrations(whole), strict=True)
    parts = [(part, one) for parts, one in found for part in parts]
    for result, (part, one) in zip(results, parts, strict=True):
        result["calibration"] = calibration_of(part, one, sensitivity)


def _text(result: dict[str, Any], per_subject: bool) -> str:
    from leukocls.reporting.calibration_text import calibration_text
    from leukocls.reporting.tables import result_text

    text = result_text(result, per_subject)
    return f"{text}\n\n{calibration_text(known)}" if (known := result.get("calibration")) else text


def _views(text: str) -> tuple[int, ...] | None:
    """Views from 0,2; None for all."""
    return None if text == "all" else tuple(int(view) for view in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.evaluate",
        description="Metrics of run directories, of predictions.parquet, of CSV or parquet files"
        " with cell and prob, logit, label_pred or labels, and of challenge files"
        " (isbi_valid.predict, or its zip).",
    )
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT")
    add("--truth", type=Path, help="CSV with cell,label or Patient_ID,new_names,labels")
    add("--split", help="the only split to score; its name if the file has no column split")
    add("--epoch", help="a number, selected (default), last or all")
    add("--threshold", type=float, help="probability above which a cell is called ALL (default: the"
        " run's, or 0.5)")  # fmt: skip
    add("--views", type=_views, default=None, help="all (default), or the views to average: 0,2")
    together = parser.add_mutually_exclusive_group()
    together.add_argument("--pool", action="store_true",
        help="one result of k-fold cross-validation; the inputs are its runs")  # fmt: skip
    together.add_argument("--ensemble", choices=("mean-logit", "mean-prob", "vote", "weighted"),
        help="score the inputs as one classifier, on the cells that all of them score")  # fmt: skip
    add("--submission", type=Path, metavar="FILE.zip", help="also write a challenge submission")
    add("--calibrate", action="store_true",
        help="Platt's scaling, fitted on what chose the epoch, and what it is worth")  # fmt: skip
    add("--sensitivity", type=float, metavar="S",
        help="with --calibrate: a threshold that has this sensitivity there")  # fmt: skip
    add("--per-subject", action="store_true", help="print a line for each subject")
    add("--json", action="store_true", help="print one JSON document: an object, or a list")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the metrics of the inputs.

    Raises:
        LeukoclsError: an input or option that cannot be scored.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if (share := arguments.sensitivity) and not (arguments.calibrate and 0 < share < 1):
        parser.error("--sensitivity: a share between 0 and 1, with --calibrate")
    from leukocls.evaluation.prediction_files import read_truth
    from leukocls.evaluation.scoring import ScoringOptions, metrics_of, scored_parts

    options = ScoringOptions(arguments.split, arguments.epoch, arguments.threshold, arguments.views)
    truth = read_truth(arguments.truth) if arguments.truth else None
    by_input = [scored_parts(source, options, truth) for source in arguments.inputs]
    if arguments.ensemble:
        from leukocls.evaluation.ensembles import ensembles

        by_input = [ensembles(by_input, arguments.ensemble)]
    parts = [part for own in by_input for part in own]
    if arguments.pool:
        from leukocls.evaluation.out_of_fold import pooled_runs

        parts = [pooled_runs(parts, arguments.inputs, options)]
        by_input = [parts]
    if arguments.submission:
        if len(parts) != 1:
            raise LeukoclsError(
                f"{arguments.submission}: a submission is one split and one epoch of one input,"
                f" not {len(parts)}; choose with --split and --epoch"
            )
        _write_submission(arguments.submission, parts[0])
    results = [metrics_of(part) for part in parts]
    if arguments.calibrate:
        whole = by_input
        if arguments.split and not (arguments.pool or arguments.ensemble):
            whole = [
                scored_parts(source, replace(options, split=None)) for source in arguments.inputs
            ]
        _add_calibration(results, by_input, whole, arguments.sensitivity)
    if not arguments.submission and all(result["tp"] is None for result in results):
        raise LeukoclsError(f"{parts[0].origin['source']}: no labels; add them with --truth")
    if arguments.json:
        document = results[0] if len(results) == 1 else results
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        print("\n\n".join(_text(result, arguments.per_subject) for result in results))
    return 0


if __name__ == "__main__":
    run_verb(main)
