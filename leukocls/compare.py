"""Compare arms: `python -m leukocls.compare RUNS…` prints statistics over seeds and tests."""

import argparse
import json
from collections.abc import Sequence

from leukocls.common.arguments import add_comparison_options, whole_number
from leukocls.common.errors import run_verb


def main(argv: Sequence[str] | None = None) -> int:
    """Compare runs.

    Raises:
        LeukoclsError: runs that are missing or cannot be compared.
        DataFault: damaged runs.
    """
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.compare",
        description="Statistics of arms over their seeds, recomputed from the runs' predictions,"
        " and tests of each arm against a reference arm.",
    )
    add_comparison_options(parser)
    add = parser.add_argument
    add(
        "--plan",
        nargs=2,
        type=whole_number,
        metavar=("PERSONS", "SEEDS"),
        help="how wide the intervals of a study of so many persons and seeds would be",
    )
    add("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args(argv)
    from leukocls.evaluation.comparison import compare
    from leukocls.evaluation.intervals import Plan
    from leukocls.reporting.tables import comparison_text

    document = compare(
        arguments.runs,
        arguments.against,
        arguments.seeds,
        incomplete=arguments.incomplete,
        plan=Plan(*arguments.plan) if arguments.plan else None,
    )
    print(
        json.dumps(document, indent=2, allow_nan=False)
        if arguments.json
        else comparison_text(document)
    )
    return 0


if __name__ == "__main__":
    run_verb(main)
