"""Compare arms: `python -m leukocls.compare` prints their statistics over seeds, and tests."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from leukocls.common.errors import run_verb


def _seeds(text: str) -> list[int]:
    first, to, last = text.partition("-")
    try:
        if "," in text:
            return sorted(map(int, text.split(",")))
        seeds = range(int(first), int(last) + 1) if to else range(int(first))
    except ValueError:
        seeds = range(0)
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text}: give 24 (for 0 to 23), 0-23, or 7,42,1337")
    return list(seeds)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare runs. Raises LeukoclsError on what cannot be compared, DataFault on damaged runs."""
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.compare",
        description="Arms over their seeds, recomputed from the runs' predictions, and each tested"
        " against one of them.",
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUNS", help="run directories, or any above them")
    add("--against", metavar="ARM", help="what the others are tested against (the proposal)")
    add("--seeds", type=_seeds, help="those planned: 24, 0-23 or 7,42 (every seed of any arm)")
    add("--incomplete", action="store_true", help="go on with the runs that are done")
    add("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args(argv)
    from leukocls.evaluation.comparison import compare
    from leukocls.reporting.tables import comparison_text

    document = compare(
        arguments.runs, arguments.against, arguments.seeds, incomplete=arguments.incomplete
    )
    print(
        json.dumps(document, indent=2, allow_nan=False)
        if arguments.json
        else comparison_text(document)
    )
    return 0


if __name__ == "__main__":
    run_verb(main)
