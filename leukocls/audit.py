"""Audit predictions: `python -m leukocls.audit PREDICTIONS --split FILE` prints findings."""

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from leukocls.common.errors import DataFault, LeukoclsError, run_verb


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.audit",
        description="Check predictions against their split: shared subjects and images, cells that"
        " are scored twice or not at all, selection on the reported set.",
    )
    add = parser.add_argument
    add("predictions", type=Path, metavar="PREDICTIONS", help="a run, or a file as for evaluate")
    add("--split", type=Path, help="CSV or parquet with cell,split (or fold) and perhaps subject"
        " (default for a run: its split.csv)")  # fmt: skip
    add("--data", type=Path, metavar="ROOT", help="the data set, to compare images and labels")
    add("--outside", action="store_true", help="its images may lie outside the CSV's folder")
    add("--cache", type=Path, default=Path("outputs/store"), help="what is known of each file")
    add("--json", action="store_true", help="print one JSON document")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Audit predictions; returns 1 if the verdict is leaky, broken or selection.

    Raises:
        LeukoclsError: a file cannot be read, or predictions and split do not match.
    """
    arguments = _parser().parse_args(argv)
    from leukocls.artifacts.marks import banner
    from leukocls.common.files import sha256_file
    from leukocls.common.tables import listing
    from leukocls.data.splits import read_split
    from leukocls.evaluation.audit import audit, split_of_run
    from leukocls.evaluation.audited_cells import data_cells
    from leukocls.evaluation.scoring import load_predictions

    source: Path = arguments.predictions
    predictions, record = load_predictions(source, unique=False)
    marks = list(record.get("marks") or [])
    if arguments.split is None:
        if not record:
            raise LeukoclsError(f"{source}: name its split with --split (CSV with cell,split)")
        split = split_of_run(source if source.is_dir() else source.parent, record)
    else:
        split = read_split(arguments.split)
        if sha256_file(arguments.split) != (record.get("inputs") or {}).get("split"):
            record = {"marks": marks}  # the run's selection does not refer to this split
    data = None
    if arguments.data:
        data = data_cells(arguments.data, arguments.cache, arguments.outside)
    result = audit(predictions, split, record, data)
    if arguments.json:
        print(json.dumps({"source": str(source), "marks": marks, **result}, indent=2))
    else:
        print("\n".join([str(source), *banner(marks)]))
        for finding in result["findings"]:
            ok, cells = finding["ok"], finding["cells"]
            sign = {True: "good", False: "BAD", None: "unseen"}[ok]
            names = f": {listing(cells)}" if cells and ok is False else ""
            print(f"  {sign:7}{finding['check']:12}{finding['text']}{names}")
        print("\n" + textwrap.fill(result["words"], 96))
    return 0 if result["verdict"] in ("honest", "unknown") else DataFault.exit_code


if __name__ == "__main__":
    run_verb(main)
