"""Time and peak memory of synth, verify and pack at the published size: 15,114 files, 10 GB.

python benchmarks/full.py [FOLDER] [--json FILE]

Each step is the command a user would give, in a process of its own. The small tree (a twentieth)
stands beside the full one, so that what grows with the files can be read off. FOLDER needs
16 GB (default: a temporary folder).
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import command

from leukocls.artifacts.environment import versions
from leukocls.common.files import atomic_write

SMALL = ["--cells-per-subject", "9", "--final-cells", "125"]


def measured(path: Path, *words: str) -> dict[str, float]:
    """Wall seconds and peak resident memory in MiB of `python -m <words>`, with PYTHONPATH=path."""
    seconds, peak = command.measured(*words, PYTHONPATH=str(path))
    return {"seconds": round(seconds, 1), "peak_mib": round(peak)}


def steps(folder: Path, name: str, options: list[str]) -> dict[str, dict[str, float]]:
    """Every step on one tree, in the order a user takes them."""
    tree, cache = str(folder / name), f"--cache={folder / f'{name}-cache'}"
    index = "import sys; from leukocls.data.index import build_index; build_index(sys.argv[1])"
    (folder / "leukocls_index.py").write_text(index)
    return {
        step: measured(folder, *words)
        for step, *words in (
            ["synth", "leukocls.synth", tree, *options],
            ["index", "leukocls_index", tree],
            ["verify", "leukocls.verify", tree, cache],
            ["verify, again", "leukocls.verify", tree, cache],
            ["pack at 300 px", "leukocls.pack", tree, cache],
        )
    }


def main() -> None:
    """Measure both trees and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = {
            name: steps(Path(folder), name, options)
            for name, options in (("small", SMALL), ("full", ["--scale", "full"]))
        }
        files = {name: sum(1 for _ in (Path(folder) / name).rglob("*.bmp")) for name in found}
    for name, of in found.items():
        print(f"{name}: {files[name]:,} files")
        for step, one in of.items():
            print(f"  {step:15} {one['seconds']:8.1f} s {one['peak_mib']:8.0f} MiB")
    if arguments.json:
        document = {
            "command": f"python {sys.argv[0]} FOLDER --json {arguments.json}",
            "cores": os.cpu_count(),
            "versions": versions(),
            "synthetic": True,
            "trees": {name: {"files": files[name], "steps": of} for name, of in found.items()},
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(arguments.json, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
