"""Measure what ImageNet weights are worth: one recipe from Lite0's and from random weights.

python benchmarks/transfer.py [--seeds N] [--epochs N] [--size PX] [--json FILE] [KEY=VALUE …]

Both arms see the same cells in the same order with the same augmentation, so that seeds are pairs;
they differ in `model.weights` alone. The last epoch is scored on prelim, which nothing was chosen
by. Rates are those of fine-tuning for both, and epochs are few: this is the worth of the weights
where training is short, not what random weights reach in the end. KEY=VALUE goes to
`leukocls.train` as it is. Cells are SYNTHETIC: they show that the path works and what it saves, and
say nothing about people.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from leukocls.artifacts.environment import versions
from leukocls.artifacts.record import read_record, run_directories
from leukocls.common.files import atomic_write
from leukocls.common.tables import aligned

ARMS = {"lite0": "lite0", "random": "null"}  # model.weights
METRICS = ("auroc", "weighted_f1")
RECIPE = (
    "data=synthetic", "model=efficientnetlite0", "selection=last", "views=4",
    "optim.lr={early: 1e-4, late: 3e-4, head: 3e-3}",
)  # fmt: skip


def trained(folder: Path, arm: str, seeds: int, options: list[str]) -> list[dict[str, float]]:
    """Prelim's metrics and the run's seconds by seed, from the real command line."""
    command = [
        sys.executable, "-m", "leukocls.train", "-m", *RECIPE, f"model.weights={ARMS[arm]}",
        f"seed=range({seeds})", f"outputs={folder / arm}", f"data.root={folder / 'tree'}",
        f"data.cache={folder / 'store'}", *options,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    records = [read_record(run) for run in run_directories(folder / arm)]
    assert len(records) == seeds
    assert all("SYNTHETIC" in record["marks"] for record in records)
    return [
        {name: record["metrics"]["prelim"][name] for name in METRICS}
        | {"seconds": record["timing"]["run_s"]}
        for record in records
    ]


def measure(folder: Path, seeds: int, options: list[str]) -> dict[str, Any]:
    """Of each arm the metrics by seed and their mean; then lite0 less random, paired by seed."""
    by_seed = {arm: trained(folder, arm, seeds, options) for arm in ARMS}
    arms = {
        arm: {"mean": {name: fmean(one[name] for one in of) for name in of[0]}, "by_seed": of}
        for arm, of in by_seed.items()
    }
    pairs = list(zip(by_seed["lite0"], by_seed["random"], strict=True))
    gain: dict[str, Any] = {}
    for name in METRICS:
        gains = [one[name] - other[name] for one, other in pairs]
        gain[name] = {"mean": fmean(gains), "by_seed": gains}
    return {"arms": arms, "gain": gain}


def table(result: dict[str, Any]) -> str:
    """The result as a text table."""
    rows = [["seed", *(f"{arm} {name}" for name in METRICS for arm in ARMS)]]
    arms = [result["arms"][arm] for arm in ARMS]
    for seed in range(len(arms[0]["by_seed"])):
        shown = [f"{arm['by_seed'][seed][name]:.3f}" for name in METRICS for arm in arms]
        rows.append([str(seed), *shown])
    rows.append(["mean", *(f"{arm['mean'][name]:.3f}" for name in METRICS for arm in arms)])
    gains = (f"{name} {result['gain'][name]['mean']:+.3f}" for name in METRICS)
    return f"*** SYNTHETIC ***\n{aligned(rows)}\ngain, mean of pairs: {', '.join(gains)}"


def main() -> None:
    """Train both arms, print and maybe write what they reach."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--size", type=int, default=96, help="side of the images, px")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    options = [f"trainer.max_epochs={arguments.epochs}", f"data.size={arguments.size}"]
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.seeds, [*options, *arguments.overrides])
    print(table(result))
    if arguments.json:
        document = {
            "command": " ".join(["python", *sys.argv]),
            "cores": os.cpu_count(),
            "versions": versions(),
            "synthetic": True,
            "recipe": [*RECIPE, *options, *arguments.overrides],
            **result,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(arguments.json, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
