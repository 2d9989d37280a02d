"""List runs: `python -m leukocls.runs [DIRECTORY]` prints one line for each run."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leukocls.artifacts.record import (
    RunState,
    headline,
    headline_text,
    read_record,
    run_directories,
    state_of,
)
from leukocls.common.errors import ITEMS_SKIPPED, LeukoclsError, run_verb
from leukocls.common.tables import aligned

COLUMNS = ("experiment", "arm", "seed", "status", "weighted F1", "marks", "path")


def run_row(directory: Path) -> dict[str, Any]:
    """One row of the list: a run's path, id, experiment, arm, seed, status, headline and marks.

    Raises:
        LeukoclsError: the run.json is damaged.
    """
    record = read_record(directory)
    experiment, arm, name = ("", "", "", *directory.resolve().parts)[-3:]
    seed = re.fullmatch(r"seed_(\d+)", name)
    selection = record.get("selection")
    return {
        "path": str(directory),
        "id": record.get("id"),
        "experiment": experiment,
        "arm": arm,
        "seed": int(seed[1]) if seed else None,
        "status": state_of(record),
        "epoch": selection.get("epoch") if isinstance(selection, dict) else None,
        "headline": headline(record),
        "marks": list(record.get("marks") or []),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["experiment"],
        row["arm"],
        "–" if row["seed"] is None else str(row["seed"]),
        row["status"],
        headline_text(row["headline"]),
        " ".join(row["marks"]) or "–",
        row["path"],
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the list of runs; returns 3 if a run.json is damaged.

    Raises:
        LeukoclsError: no such directory.
    """
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.runs",
        description="List every run below a directory: its status, weighted F1 and marks.",
    )
    parser.add_argument(
        "outputs", nargs="?", type=Path, default=Path("outputs"), help="default: outputs"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    arguments = parser.parse_args(argv)
    if not arguments.outputs.is_dir():
        raise LeukoclsError(
            f"{arguments.outputs}: no such directory; train a run, or name another directory"
        )
    rows: list[dict[str, Any]] = []
    damaged: list[dict[str, Any]] = []
    for directory in run_directories(arguments.outputs):
        try:
            rows.append(run_row(directory))
        except LeukoclsError as error:
            fault = {"path": str(directory), "status": RunState.DAMAGED, "error": str(error)}
            damaged.append(fault)
    if arguments.json:
        print(json.dumps(rows + damaged, indent=2, allow_nan=False))
        return ITEMS_SKIPPED if damaged else 0
    if rows:
        print(aligned([COLUMNS, *map(_cells, rows)]))
    elif not damaged:
        print(f"no runs in {arguments.outputs}")
    for fault in damaged:
        print(f"damaged: {fault['error']}")
    return ITEMS_SKIPPED if damaged else 0


if __name__ == "__main__":
    run_verb(main)
