"""Time and memory of runs with many epochs: an epoch costs the same however many came before it.

python benchmarks/epochs.py [--epochs N …] [--json FILE]

Trains the head of frozen EfficientNet-B0 features (drawn weights, cached features, no augmentation)
on synthetic cells for each number of epochs, saved after every one, in processes of their own:
seconds without start and end, also divided by the epochs that are scored (one more than those that
train), and the peak memory. SYNTHETIC.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import command

from leukocls.artifacts.environment import versions
from leukocls.artifacts.record import read_record, run_directories
from leukocls.common.files import atomic_write
from leukocls.synthetic.tree import SyntheticSpec, write_tree

CELLS = SyntheticSpec(cells_per_subject=20, final_cells=4)
RECIPE = [
    "experiment=demo", "data=cnmc", "model=frozen_efficientnetb0", "model.pretrained=false",
    "augment=none", "views=1", "data.size=64",
]  # fmt: skip


def trained(words: list[str], outputs: Path) -> dict[str, float]:
    """Train one run in a process of its own; its seconds without start and end, and its memory."""
    _, peak = command.measured("leukocls.train", *words, f"outputs={outputs}")
    (run,) = run_directories(outputs)
    return {"seconds": read_record(run)["timing"]["run_s"], "peak MiB": round(peak)}


def measured(folder: Path, spec: SyntheticSpec, recipe: list[str], epochs: list[int]) -> Any:
    """By number of epochs: seconds, seconds an epoch, and peak memory."""
    tree = folder / "tree"
    write_tree(tree, spec, progress=False)
    words = [*recipe, f"data.root={tree}", f"data.cache={folder / 'store'}"]
    found = {}
    for number in epochs:
        one = trained([*words, f"trainer.max_epochs={number}"], folder / str(number))
        found[number] = one | {"seconds an epoch": round(one["seconds"] / (number + 1), 4)}
        print(f"{number} epochs: {found[number]}", file=sys.stderr)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--epochs", nargs="+", type=int, default=[50, 100, 200, 500])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), CELLS, RECIPE, arguments.epochs)
    document = {
        "command": f"python benchmarks/epochs.py --epochs {' '.join(map(str, arguments.epochs))}",
        "cores": os.cpu_count(),
        "versions": versions(),
        "synthetic": True,
        "epochs": found,
    }
    print(json.dumps(document, indent=2))
    if arguments.json:
        atomic_write(arguments.json, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
