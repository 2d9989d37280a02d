"""Show what a network looks at: `python -m leukocls.explain BUNDLE IMAGES… --out FILE.png`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from leukocls.common.arguments import add_reading_options, png_file
from leukocls.common.errors import ITEMS_SKIPPED, LeukoclsError, run_verb

# Read when torch is loaded; why: leukocls/train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.explain",
        description="Draw images of single cells beside maps of what a bundle's networks look at:"
        " Grad-CAM for the class that each image is called, and the proposed region or attention"
        " masks of networks that have them, averaged over views. A map shows where a network looks;"
        " it does not show that it is right. For research only.",
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="the folder that `leukocls.bundle` wrote")
    add("images", nargs="+", metavar="IMAGES", help="files, folders or patterns, as for `predict`")
    add("--out", type=png_file, required=True, metavar="FILE.png", help="the sheet")
    add_reading_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the sheet.

    Raises:
        LeukoclsError: no bundle, no image, too many, or a network without feature maps.
        DataFault: the bundle is damaged or was changed.
    """
    arguments = _parser().parse_args(argv)
    import io

    from leukocls.common.errors import DataFault
    from leukocls.common.files import atomic_write
    from leukocls.inference.bundle import open_bundle
    from leukocls.inference.images import TOGETHER, Reading, find_images, memory, read_cell
    from leukocls.inference.saliency import maps
    from leukocls.inference.sheet import MOST, sheet
    from leukocls.inference.torch_predictor import TorchPredictor

    found = find_images(arguments.images)
    if len(found) > MOST:
        raise LeukoclsError(f"{len(found)} images: choose at most {MOST} for one sheet.")
    predictor = TorchPredictor(open_bundle(arguments.bundle), arguments.device)
    reading = Reading(predictor.side, arguments.resize, arguments.segment)
    if sum(memory(one.path, reading) for one in found) > TOGETHER:
        raise LeukoclsError(f"{len(found)} images: too large for one sheet; choose fewer.")
    cells, names = [], []
    for one in found:
        try:
            cells.append(read_cell(one.path, reading).pixels)
            names.append(one.cell)
        except DataFault as error:
            print(f"skipped: {error}", file=sys.stderr)
    if not cells:
        raise LeukoclsError("none of the images can be read; see above.")
    table = predictor.predict(cells).assign(cell=names)
    images, drawn = maps(predictor, cells, (table["label"] == "ALL").to_numpy())
    stream = io.BytesIO()
    sheet(images, drawn, table, predictor.bundle.heading).savefig(stream, dpi=120)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(arguments.out, stream.getvalue())
    print(arguments.out)
    return ITEMS_SKIPPED if len(cells) < len(found) else 0


if __name__ == "__main__":
    run_verb(main)
