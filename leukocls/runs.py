"""`python -m leukocls.runs`: every run under a directory, one line each."""

import argparse
import csv
import json
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leukocls.common.errors import LeukoclsError, run_verb
from leukocls.common.tables import aligned

ITEMS_SKIPPED = 3


def read_record(directory: Path) -> dict[str, Any]:
    """The run.json of a run directory. Raises LeukoclsError if it is missing or damaged."""
    path = directory / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LeukoclsError(
            f"{directory}: not a run directory (no run.json); name one, or a predictions file"
        ) from None
    except OSError as error:
        raise LeukoclsError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise LeukoclsError(f"{path}: damaged ({error}); train this run again") from error
    if not isinstance(record, dict):
        raise LeukoclsError(f"{path}: damaged (no JSON object); train this run again")
    return record


def metrics_rows(directory: Path) -> list[dict[str, Any]]:
    """metrics.csv of a run, a row an epoch; None where a field is empty."""
    with open(directory / "metrics.csv", newline="", encoding="utf-8") as stream:
        return [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(stream)]


def _number(text: str) -> int | float | None:
    return None if text == "" else int(text) if text.lstrip("-").isdigit() else float(text)


def find(outputs: Path) -> list[Path]:
    """Every directory at or below `outputs` that holds a run.json, sorted."""
    return sorted(Path(here) for here, _, files in os.walk(outputs) if "run.json" in files)


def status(record: dict[str, Any]) -> str:
    """The run's status; `dead` for one that says `running` when its process is gone from this host.

    A run on another host is believed.
    """
    said = str(record.get("status") or "unknown")
    if said == "running" and record.get("host") == socket.gethostname():
        return said if _alive(record.get("pid")) else "dead"
    return said


def _alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def summary(directory: Path) -> dict[str, Any]:
    """One run as a row. Raises LeukoclsError if its run.json is damaged."""
    record = read_record(directory)
    experiment, arm, name = ("", "", "", *directory.resolve().parts)[-3:]
    seed = re.fullmatch(r"seed_(\d+)", name)
    return {
        "path": str(directory),
        "id": record.get("id"),
        "experiment": experiment,
        "arm": arm,
        "seed": int(seed[1]) if seed else None,
        "status": status(record),
        "epoch": _object(record, "selection").get("epoch"),
        "headline": of_record(record),
        "marks": list(record.get("marks") or []),
    }


def of_record(record: dict[str, Any]) -> dict[str, Any] | None:
    """The weighted F1 that a run is known by, with its heading and set; None without one."""
    chosen_on = _object(record, "selection").get("set")
    value = _object(_object(record, "metrics"), str(chosen_on)).get("weighted_f1")
    if value is None:
        return None
    return {"heading": "selection", "set": chosen_on, "weighted_f1": value}


def _object(record: dict[str, Any], key: str) -> dict[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def headline(of: dict[str, Any] | None) -> str:
    """What `of_record` gives, in a table; a dash for None."""
    return f"{of['weighted_f1']:.4f} {of['heading']} ({of['set']})" if of else "–"


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["experiment"],
        row["arm"],
        "–" if row["seed"] is None else str(row["seed"]),
        row["status"],
        headline(row["headline"]),
        " ".join(row["marks"]) or "–",
        row["path"],
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """List the runs; 3 if a run.json is damaged. Raises LeukoclsError without a directory."""
    parser = argparse.ArgumentParser(prog="python -m leukocls.runs", description=__doc__)
    parser.add_argument("outputs", nargs="?", type=Path, default=Path("outputs"))
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    arguments = parser.parse_args(argv)
    if not arguments.outputs.is_dir():
        raise LeukoclsError(
            f"{arguments.outputs}: no such directory; train a run, or name the directory of runs"
        )
    rows, damaged = [], []
    for directory in find(arguments.outputs):
        try:
            rows.append(summary(directory))
        except LeukoclsError as error:
            damaged.append({"path": str(directory), "status": "damaged", "error": str(error)})
    if arguments.json:
        print(json.dumps(rows + damaged, indent=2, allow_nan=False))
    elif rows:
        header = ["experiment", "arm", "seed", "status", "weighted F1", "marks", "path"]
        print(aligned([header, *map(_cells, rows)]))
    elif not damaged:
        print(f"no runs in {arguments.outputs}")
    if not arguments.json:
        for fault in damaged:
            print(f"damaged: {fault['error']}")
    return ITEMS_SKIPPED if damaged else 0


if __name__ == "__main__":
    run_verb(main)
