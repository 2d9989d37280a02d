"""Audit predictions: `python -m leukocls.audit PREDICTIONS --split FILE` prints its findings."""

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from leukocls.common.errors import DataFault, LeukoclsError, run_verb


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.audit",
        description="Judge predictions by the split they come from: shared subjects and images,"
        " cells scored twice or not at all, selection on the reported set.",
    )
    add = parser.add_argument
    add("predictions", type=Path, metavar="PREDICTIONS", help="a run, or a file as for evaluate")
    add("--split", type=Path, help="CSV or parquet with cell,split (or fold) and maybe subject; of"
        " a run its own split.csv")  # fmt: skip
    add("--data", type=Path, metavar="ROOT", help="the images, to compare pixels")
    add("--cache", type=Path, default=Path("outputs/store"), help="remembers unchanged files")
    add("--json", action="store_true", help="print one JSON document")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Audit predictions; 0 if nothing was found. Raises LeukoclsError on what does not read."""
    arguments = _parser().parse_args(argv)
    from leukocls.artifacts.marks import banner
    from leukocls.common.files import sha256_file
    from leukocls.common.tables import listing
    from leukocls.data.splits import read_split
    from leukocls.evaluation.audit import audit, image_groups, split_of_run
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
            record = {"marks": marks}  # what the run chose by is not of this split
    images = image_groups(arguments.data, arguments.cache) if arguments.data else None
    found = audit(predictions, split, record, images)
    if arguments.json:
        print(json.dumps({"source": str(source), "marks": marks, **found}, indent=2))
    else:
        print("\n".join([str(source), *banner(marks)]))
        for one in found["findings"]:
            sign = {True: "good", False: "BAD", None: "unseen"}[one["ok"]]
            named = f": {listing(one['cells'])}" if one["cells"] and one["ok"] is False else ""
            print(f"  {sign:7}{one['check']:10}{one['text']}{named}")
        print("\n" + textwrap.fill(found["words"], 96))
    return 0 if found["verdict"] in ("honest", "unknown") else DataFault.exit_code


if __name__ == "__main__":
    run_verb(main)
