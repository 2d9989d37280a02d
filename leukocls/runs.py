"""List runs: `python -m leukocls.runs [DIRECTORY]` prints one line for each run."""

import argparse
import json
import re
import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from leukocls.artifacts.identity import name_parts
from leukocls.artifacts.marks import Mark
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

WIDTH = 100  # columns of the tables
HEADINGS = ("test", "selection", "training", "unknown")  # numbers of two are not compared


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


def by_f1(row: dict[str, Any]) -> tuple[int, float]:
    """Sorts rows by weighted F1, the best first, tests before selections, and none last."""
    shown = row["headline"]
    if not shown:
        return len(HEADINGS), 0.0
    return HEADINGS.index(shown["heading"]), -shown["weighted_f1"]


def best_runs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The finished run of each arm with the highest weighted F1; `of` is their number."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] == RunState.DONE and row["headline"]:
            arms.setdefault(str(Path(row["path"]).parent), []).append(row)
    return [min(of_arm, key=by_f1) | {"of": len(of_arm)} for of_arm in arms.values()]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The runs of one experiment below their directory, with a column for each key that differs."""
    names = [name_parts(row["arm"]) for row in rows]
    values = {
        key: [overrides.get(key, "…" if "…" in head else "–") for head, overrides in names]
        for key in dict.fromkeys(key for _, overrides in names for key in overrides)
    }
    differing = {key: column for key, column in values.items() if len(set(column)) > 1}
    equal = [f"{key}={column[0]}" for key, column in values.items() if key not in differing]
    arms = {"arm": [head for head, _ in names]}
    columns = {
        "seed": ["–" if row["seed"] is None else row["seed"] for row in rows],
        "status": [row["status"] for row in rows],
        "weighted F1": [_number(row) for row in rows],
        "marks": [" ".join(row["marks"]) or "–" for row in rows],
    }
    narrowest = _aligned(
        {**arms, **differing, **columns, "marks": [max(Mark, key=len)] * len(rows)}
    )
    if max(map(len, narrowest.split("\n"))) > WIDTH:  # too many keys for a column each
        known = [
            [
                f"{key}={column[i]}"
                for key, column in differing.items()
                if column[i] not in ("–", "…")
            ]
            for i in range(len(rows))
        ]
        differing = {"settings": list(map(" ".join, known))}
    lines = _aligned({**arms, **differing, **columns}, WIDTH)
    heading = textwrap.wrap(
        " ".join(["all:", *equal]), WIDTH, initial_indent="  ", subsequent_indent="    "
    )
    return "\n".join([_experiment(rows[0]), *(heading if equal else []), lines])


def _aligned(columns: dict[str, list[Any]], width: int | None = None) -> str:
    return aligned([columns, *zip(*columns.values(), strict=True)], width)


def _number(row: dict[str, Any]) -> str:
    return headline_text(row["headline"]) + (f", best of {row['of']}" if "of" in row else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.runs",
        description="List every run below a directory: its status, weighted F1 and marks.",
    )
    add = parser.add_argument
    add("outputs", nargs="?", type=Path, default=Path("outputs"), help="default: outputs")
    add("--experiment", metavar="NAME", help="the runs of this experiment only")
    add("--sort", choices=("name", "f1"), default="name", help="f1: the best of each experiment"
        " first, tests before selections")  # fmt: skip
    add("--best", action="store_true", help="the best finished run of each arm, and its path")
    add("--json", action="store_true", help="print one JSON list")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the list of runs; returns 3 if a run.json is damaged.

    Raises:
        LeukoclsError: no such directory or experiment.
    """
    arguments = _parser().parse_args(argv)
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
    if arguments.experiment:
        known = sorted({row["experiment"] for row in rows})
        rows = [row for row in rows if row["experiment"] == arguments.experiment]
        if not rows:
            raise LeukoclsError(
                f"--experiment {arguments.experiment}: none of its runs is in {arguments.outputs};"
                f" choose one of {', '.join(known)}"
            )
    if arguments.best:
        rows = best_runs(rows)
    if arguments.sort == "f1":
        rows.sort(key=lambda row: (_experiment(row), by_f1(row)))
    if arguments.json:
        print(json.dumps(rows + damaged, indent=2, allow_nan=False))
    else:
        _show(rows, damaged, arguments)
    return ITEMS_SKIPPED if damaged else 0


def _show(
    rows: list[dict[str, Any]], damaged: list[dict[str, Any]], arguments: argparse.Namespace
) -> None:
    experiments = [list(of_one) for _, of_one in groupby(rows, _experiment)]
    print("\n\n".join(map(table, experiments)), end="\n" if rows else "")
    if not rows and not damaged:
        print(f"no {'finished ' * arguments.best}runs in {arguments.outputs}")
    if rows and arguments.best:
        print("", *(row["path"] for row in rows), sep="\n")
        print(
            "\nThe best of several seeds is too good on average: `compare` gives means and tests."
        )
    for fault in damaged:
        print(f"damaged: {fault['error']}")


def _experiment(row: dict[str, Any]) -> str:
    """The directory of a row's experiment; two may have one name."""
    path = Path(row["path"])
    return str((path if len(path.parts) > 2 else path.resolve()).parent.parent)


if __name__ == "__main__":
    run_verb(main)
