"""Send runs to W&B: `python -m leukocls.wandb_sync` uploads every finished run from its files."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from leukocls.common.errors import ITEMS_SKIPPED, run_verb


def main(argv: Sequence[str] | None = None) -> int:
    """Send the runs; returns 3 if some were left out.

    Raises:
        LeukoclsError: no run there; wandb is not installed; the server does not answer.
        DataFault: the server has stopped answering.
    """
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.wandb_sync",
        description="Send every finished run, and a comparison of each experiment's runs, to W&B."
        " Runs that W&B holds already are left alone, so the command can be repeated.",
    )
    add = parser.add_argument
    add("runs", nargs="*", type=Path, default=[Path("outputs")], metavar="RUNS")
    add("--project", help="instead of each run's own (or leukocls)")
    add("--entity", help="instead of each run's own (or the logged-in user's)")
    add("--follow", type=Path, metavar="RUN", help="log one run while it trains: logger=wandb")
    arguments = parser.parse_args(argv)
    if arguments.follow:
        from leukocls.tracking.follow import follow

        follow(arguments.follow)
        return 0
    from leukocls.tracking.sync import sync

    left_out = sync(arguments.runs, arguments.project, arguments.entity)
    for line in left_out:
        print(f"left out: {line}")
    return ITEMS_SKIPPED if left_out else 0


if __name__ == "__main__":
    run_verb(main)
