"""Corrupt images: `python -m leukocls.robustness RUN` scores a run under seven corruptions."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leukocls.common.arguments import whole_number
from leukocls.common.errors import run_verb

# Read when torch is loaded; why: leukocls/train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _views(text: str) -> int | str:
    """Views as the configuration key takes them, which is checked there."""
    return int(text) if text.isdecimal() else text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.robustness",
        description="Score a finished run's cells clean, blurred, noisy, brighter, in another"
        " stain, as JPEG, shifted and smaller, at five severities each: the drop in each metric,"
        " paired by person.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the directory of a finished run")
    add("--data", type=Path, metavar="ROOT", help="the data set, if it lies elsewhere now")
    add("--cache", type=Path, help="folder of decoded images (default: the run's)")
    add("--split", help="whose cells (default: the test, or the selection set without one)")
    add("--corruptions", metavar="NAMES", help="only these: blur,noise,brightness,stain,jpeg,"
        "shift,scale")  # fmt: skip
    add(
        "--cells",
        type=whole_number,
        metavar="N",
        help="only N cells, evenly spaced; marked LIMITED",
    )
    add("--views", type=_views, help="rotated copies to average, as views= of training (default:"
        " the run's); 1 is fastest")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="write robustness.json, .csv and .svg there")
    add("--json", action="store_true", help="print one JSON document")
    return parser


def _write(folder: Path, document: dict[str, Any]) -> None:
    from leukocls.common.files import atomic_write
    from leukocls.reporting.figures import svg_file
    from leukocls.reporting.robustness_figure import robustness_figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = robustness_figure(document)
    files = {
        "json": json.dumps(document, indent=2, allow_nan=False),
        "csv": figure.table.to_csv(index=False),
        "svg": svg_file(figure),
    }
    for kind, text in files.items():
        atomic_write(path := folder / f"robustness.{kind}", text)
        print(path, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Score a run under corruptions.

    Raises:
        LeukoclsError: a run, an option or data that cannot be scored.
        DataFault: the data has faults.
    """
    arguments = _parser().parse_args(argv)
    from leukocls.data.corruptions import CORRUPTIONS, check_names
    from leukocls.reporting.robustness import robustness_text
    from leukocls.training.robustness import Choices, robustness

    chosen = arguments.corruptions.split(",") if arguments.corruptions is not None else CORRUPTIONS
    check_names(tuple(chosen))
    names = tuple(name for name in CORRUPTIONS if name in chosen)
    choices = Choices(
        names, arguments.data, arguments.cache, arguments.split, arguments.cells, arguments.views
    )
    document = robustness(arguments.run, choices)
    if arguments.out:
        _write(arguments.out, document)
    if arguments.json:
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        print(robustness_text(document))
    return 0


if __name__ == "__main__":
    run_verb(main)
