"""Pack images: `python -m leukocls.pack ROOT` checks a data set and writes its store."""

import argparse
import json
from collections.abc import Sequence

from leukocls.common.arguments import add_data_options
from leukocls.common.errors import run_verb


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.pack",
        description="Check a data set and decode its images into the store that training reads.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add_data_options(parser)
    side = "side in px of the central square to keep, or box for the cell's own box"
    add("--crop", type=lambda text: text if text == "box" else int(text), default=300, help=side)
    add("--size", type=int, help="side in px to which the crop is resized (default: no resizing)")
    add("--final", action="store_true", help="pack the final part, for runs with score=final")
    add("--json", action="store_true", help="print one JSON document")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Pack a data set.

    Raises:
        LeukoclsError: no data set at ROOT, or an option out of range.
        DataFault: the data has faults.
    """
    arguments = _parser().parse_args(argv)
    from leukocls.artifacts.marks import banner, data_marks
    from leukocls.data.store import data_digest, open_store
    from leukocls.data.summary import image_notes
    from leukocls.data.verify import checked_index

    index = checked_index(
        arguments.root,
        partial=arguments.partial,
        cache=arguments.cache,
        outside=arguments.outside,
    )
    # As for a run that trains, whose store holds the labelled parts alone.
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
        "notes": image_notes(index, arguments.crop),
    }
    if arguments.json:
        print(json.dumps(packed, indent=2))
    else:
        number, side = images.shape[:2]
        print(f"{packed['store']}: {number:,} images of {side}×{side} pixels")
        if packed["incomplete"]:
            print(packed["incomplete"])
        for line in [*packed["notes"], *banner(packed["marks"])]:
            print(line)
    return 0


if __name__ == "__main__":
    run_verb(main)
