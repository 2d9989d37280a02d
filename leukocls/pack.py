"""`python -m leukocls.pack ROOT`: check and pack a data tree before the first run needs it."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from leukocls.common.errors import run_verb


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.pack",
        description="Decode every image of a data tree once, into the store that training reads.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("root", type=Path, metavar="ROOT", help="data tree in any of the three layouts")
    side = "side in pixels of the central square to keep, or box: the cell's own"
    add("--crop", type=lambda text: text if text == "box" else int(text), default=300, help=side)
    add("--size", type=int, help="resize the crop to this side (default: keep it)")
    add("--final", action="store_true", help="the final part, which runs with score=final read")
    add("--partial", action="store_true", help="go on with an incomplete tree")
    add("--cache", type=Path, default=Path("outputs/store"), help="data.cache of the runs to come")
    add("--json", action="store_true", help="print one JSON document")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Pack the tree. Raises LeukoclsError or DataFault as a run would."""
    arguments = _parser().parse_args(argv)
    from leukocls.artifacts.marks import banner, data_marks
    from leukocls.data.store import data_digest, open_store
    from leukocls.data.verify import checked_index

    index = checked_index(arguments.root, partial=arguments.partial, cache=arguments.cache)
    # A run that trains has a store of the labelled parts alone.
    parts = ("final",) if arguments.final else ("train", "prelim")
    index = index.only(parts)
    digest = data_digest(index)
    images = open_store(index, digest, arguments.cache, arguments.crop, arguments.size)
    packed = {
        "store": str(images.filename),
        "shape": list(images.shape),
        "data_digest": digest,
        "counts": index.counts(),
        "incomplete": index.incomplete(parts),
        "marks": data_marks(index, parts),
    }
    if arguments.json:
        print(json.dumps(packed, indent=2))
    else:
        number, side = images.shape[:2]
        print(f"{packed['store']}: {number:,} images of {side}×{side} pixels")
        if packed["incomplete"]:
            print(packed["incomplete"])
        for line in banner(packed["marks"]):
            print(line)
    return 0


if __name__ == "__main__":
    run_verb(main)
