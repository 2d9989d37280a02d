"""Score predictions: `python -m leukocls.evaluate INPUT…` prints the metrics of runs and files."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leukocls.common.errors import LeukoclsError, run_verb


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
    add("--neighbourhood", type=Path, metavar="FEATURES", help="average each cell with those most"
        " like it, by a CSV or parquet of cell and numbers: TRANSDUCTIVE")  # fmt: skip
    add("--neighbours", type=int, default=21, metavar="K", help="cells of a neighbourhood"
        " (default: 21)")  # fmt: skip
    add("--calibrate", action="store_true",
        help="Platt's scaling, fitted on what chose the epoch, and what it is worth")  # fmt: skip
    add("--sensitivity", type=float, metavar="S",
        help="with --calibrate: a threshold that has this sensitivity there")  # fmt: skip
    add("--review", type=Path, metavar="FILE.csv", help="also write the cells that the inputs are"
        " most wrong about, of those they did not train on")  # fmt: skip
    add("--submission", type=Path, metavar="FILE.zip", help="also write a challenge submission")
    add("--per-subject", action="store_true", help="print a line for each subject")
    add("--json", action="store_true", help="print one JSON document: an object, or a list")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the metrics of the inputs.

    Raises:
        LeukoclsError: an input or option that cannot be scored.
    """
    parser = _parser()
    given = parser.parse_args(argv)
    if (share := given.sensitivity) is not None and not (given.calibrate and 0 < share < 1):
        parser.error("--sensitivity: a share between 0 and 1, with --calibrate")
    from leukocls.common.files import atomic_write
    from leukocls.evaluation.request import Request, submission
    from leukocls.evaluation.review import CAUTION, review
    from leukocls.evaluation.scoring import ScoringOptions, metrics_of

    options = ScoringOptions(given.split, given.epoch, given.threshold, given.views)
    request = Request(
        given.inputs, options, given.truth, given.pool, given.ensemble, given.neighbourhood,
        given.neighbours,
    )  # fmt: skip
    by_input = request.parts()
    parts = [part for own in by_input for part in own]
    if given.submission:
        atomic_write(given.submission, submission(parts))
        print(f"{given.submission}: {len(parts[0].frame)} cells", file=sys.stderr)
    if given.review:
        table = review(parts)
        atomic_write(given.review, table.to_csv(index=False))
        said = f"{given.review}: {len(table)} cells, the highest loss first. {CAUTION}"
        print(said, file=sys.stderr)
    results = [metrics_of(part) for part in parts]
    if given.calibrate:
        for result, found in zip(results, request.calibrated(by_input, share), strict=True):
            result["calibration"] = found
    if not given.submission and all(result["tp"] is None for result in results):
        raise LeukoclsError(f"{parts[0].origin['source']}: no labels; add them with --truth")
    if given.json:
        document = results[0] if len(results) == 1 else results
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        print("\n\n".join(_text(result, given.per_subject) for result in results))
    return 0


if __name__ == "__main__":
    run_verb(main)
