"""Measure what a job of a sweep costs before it trains, beside one command for each job.

python benchmarks/sweep.py [--json FILE]

Tiny runs on synthetic cells, whose own record says how long they computed (`timing`); the rest of
their wall time is their start. Of a sweep the time that one more job adds is taken, so that the
imports, paid once, stand apart. Both ways alternate in one run; medians of REPEATS.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from leukocls.artifacts.environment import versions
from leukocls.common.files import atomic_write

JOBS, REPEATS = 8, 3
TINY = [
    "experiment=demo", "model=timm", "model.backbone=test_resnet", "model.pretrained=false",
    "data.size=48", "data.batch_size=8", "trainer.max_epochs=1",
    "data.synthetic.train_subjects_all=6", "data.synthetic.train_subjects_hem=5",
    "data.synthetic.cells_per_subject=5",
]  # fmt: skip


def timed(folder: Path, name: str, *words: str) -> tuple[float, float]:
    """Wall seconds of a training command, and the seconds that its runs computed."""
    outputs = folder / name
    command = [sys.executable, "-m", "leukocls.train", *TINY, f"outputs={outputs}"]
    places = [f"data.root={folder / 'cells'}", f"data.cache={folder / 'cache'}"]
    started = time.perf_counter()
    subprocess.run([*command, *places, *words], check=True, capture_output=True)
    wall = time.perf_counter() - started
    records = [json.loads(path.read_text()) for path in outputs.rglob("run.json")]
    return wall, sum(record["timing"]["run_s"] for record in records)


def measure(folder: Path, jobs: int, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds from asking for a run to its training, and of what a sweep pays once."""
    timed(folder, "cells are written", "seed=0")
    found: dict[str, list[float]] = {"first job of a sweep": [], "each further": [], "alone": []}
    for i in range(repeats):
        first, first_ran = timed(folder, f"one{i}", "seed=range(1)", "jobs=1", "-m")
        many, ran = timed(folder, f"many{i}", f"seed=range({jobs})", "jobs=1", "-m")
        alone, alone_ran = timed(folder, f"alone{i}", "seed=0")
        found["first job of a sweep"].append(first - first_ran)
        found["each further"].append((many - ran - first + first_ran) / (jobs - 1))
        found["alone"].append(alone - alone_ran)
    return {
        name: {"median": median(seconds), "min": min(seconds), "max": max(seconds)}
        for name, seconds in found.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), JOBS, REPEATS)
    for name, seconds in found.items():
        print(
            f"{name:20} {seconds['median']:6.2f} s ({seconds['min']:.2f} to {seconds['max']:.2f})"
        )
    ratio = found["alone"]["median"] / found["each further"]["median"]
    print(f"a command of its own costs {ratio:.1f} times as much as one more job of a sweep")
    if arguments.json:
        document = {
            "command": f"python {sys.argv[0]} --json {arguments.json}",
            "cores": os.cpu_count(),
            "versions": versions(),
            "synthetic": True,
            "jobs": JOBS,
            "repeats": REPEATS,
            "start_s": found,
            "ratio": ratio,
        }
        atomic_write(arguments.json, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
