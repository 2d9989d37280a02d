"""Score predictions: `python -m leukocls.evaluate INPUT…` prints the metrics of runs and files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from leukocls.common.errors import LeukoclsError, run_verb

if TYPE_CHECKING:
    from leukocls.evaluation.scoring import ScoredPart, ScoringOptions


def _write_submission(path: Path, part: ScoredPart) -> None:
    from leukocls.common.files import atomic_write
    from leukocls.evaluation.metrics import decide
    from leukocls.evaluation.prediction_files import challenge_zip

    called = decide(**part.outputs)
    atomic_write(path, challenge_zip(part.frame["cell"], called, part.origin["source"]))
    print(f"{path}: {len(called)} cells", file=sys.stderr)


def _pooled(parts: list[ScoredPart], inputs: list[Path], options: ScoringOptions) -> ScoredPart:
    """One part of the held-out cells of the runs.

    Raises:
        LeukoclsError: the inputs are not the folds of one recipe, each at one epoch.
    """
    from leukocls.artifacts.record import read_record
    from leukocls.evaluation.out_of_fold import pooled

    if len(parts) != len(inputs) or not all(source.is_dir() for source in inputs):
        raise LeukoclsError("--pool: name run directories, one of each fold, and no --epoch=all")
    names = ", ".join(map(str, inputs[:1])) + f" and {len(inputs) - 1} more"
    records = [read_record(source) for source in inputs]
    as_selected = options.views is None and all(
        part.origin["epoch"] == record["selection"]["epoch"]
        and part.origin["threshold"] == record["threshold"]
        for part, record in zip(parts, records, strict=True)
    )
    return pooled(parts, records, names, as_selected)


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
    add("--per-subject", action="store_true", help="print a line for each subject")
    add("--json", action="store_true", help="print one JSON document: an object, or a list")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the metrics of the inputs.

    Raises:
        LeukoclsError: an input or option that cannot be scored.
    """
    arguments = _parser().parse_args(argv)
    from leukocls.evaluation.prediction_files import read_truth
    from leukocls.evaluation.scoring import ScoringOptions, metrics_of, scored_parts
    from leukocls.reporting.tables import result_text

    options = ScoringOptions(arguments.split, arguments.epoch, arguments.threshold, arguments.views)
    truth = read_truth(arguments.truth) if arguments.truth else None
    by_input: list[list[ScoredPart]] = []
    for source in arguments.inputs:
        if truth is not None and source.exists() and source.samefile(truth.path):
            raise LeukoclsError(f"{source}: is the truth itself; name a file of predictions")
        by_input.append(scored_parts(source, options, truth))
    if arguments.ensemble:
        from leukocls.evaluation.ensembles import ensembles

        by_input = [ensembles(by_input, arguments.ensemble)]
    parts = [part for own in by_input for part in own]
    if arguments.pool:
        parts = [_pooled(parts, arguments.inputs, options)]
    if arguments.submission:
        if len(parts) != 1:
            raise LeukoclsError(
                f"{arguments.submission}: a submission is one split and one epoch of one input,"
                f" not {len(parts)}; choose with --split and --epoch"
            )
        _write_submission(arguments.submission, parts[0])
    results = [metrics_of(part) for part in parts]
    if not arguments.submission and all(result["tp"] is None for result in results):
        raise LeukoclsError(f"{parts[0].origin['source']}: no labels; add them with --truth")
    if arguments.json:
        document = results[0] if len(results) == 1 else results
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        print("\n\n".join(result_text(result, arguments.per_subject) for result in results))
    return 0


if __name__ == "__main__":
    run_verb(main)
