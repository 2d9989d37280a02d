"""Write synthetic cells: `python -m leukocls.synth ROOT` writes a data tree like C-NMC 2019."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from leukocls.common.errors import run_verb
from leukocls.synthetic.spec import SyntheticSpec


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.synth",
        description="Write synthetic cells in the layout, names and file format of C-NMC 2019.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="new directory to write")
    for option in fields(SyntheticSpec):
        choices = option.metadata.get("choices")
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=type(option.default),
            default=option.default,
            choices=choices,
            metavar=None if choices else "N" if isinstance(option.default, int) else "X",
            help=option.metadata["help"],
        )
    parser.add_argument("--masks", action="store_true", help="also write masks of cell and nucleus")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tree.

    Raises:
        LeukoclsError: an option is out of range, or ROOT holds anything else.
    """
    arguments = _parser().parse_args(argv)
    from leukocls.data.published import MANIFEST
    from leukocls.synthetic.tree import MASKS, TRUTH, write_tree

    spec = SyntheticSpec(**{f.name: getattr(arguments, f.name) for f in fields(SyntheticSpec)})
    root = write_tree(arguments.root, spec, masks=arguments.masks)
    manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    if arguments.json:
        print(json.dumps({"root": str(root), **manifest}, indent=2))
    else:
        counts = ", ".join(f"{part} {count}" for part, count in manifest["counts"].items())
        total = sum(manifest["counts"].values())
        masks = f", masks in {MASKS}" if manifest["masks"] else ""
        print(f"{root}: {total:,} cells ({counts}){masks}\ntruth in {TRUTH}\n*** SYNTHETIC ***")
    return 0


if __name__ == "__main__":
    run_verb(main)
