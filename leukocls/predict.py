"""Predict images: `python -m leukocls.predict BUNDLE IMAGES… --out FILE`; no diagnosis."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from leukocls.common.arguments import add_reading_options, png_file, whole_number
from leukocls.common.errors import ITEMS_SKIPPED, run_verb
from leukocls.common.files import atomic_write
from leukocls.common.tables import aligned

if TYPE_CHECKING:
    import pandas as pd

    from leukocls.inference.prediction_file import Written
    from leukocls.inference.predictor import Predictor

# Read when torch is loaded; why: leukocls/train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
SHOWN = 20  # images that were skipped, of which the reason is printed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.predict",
        description="Predict images of single cells on black with a bundle. For research only: this"
        " is no diagnosis. Exits 3 if images were skipped, which the file names with the reason.",
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="the folder that `leukocls.bundle` wrote, or an"
        " .onnx file that `leukocls.export` made of one")  # fmt: skip
    add("images", nargs="+", metavar="IMAGES", help="BMP, PNG, TIFF or JPEG files, folders, or"
        " patterns such as 'cells/*.png'")  # fmt: skip
    add("--out", type=Path, required=True, metavar="FILE", help="a .csv or .parquet file; the same"
        " command again resumes one that was stopped")  # fmt: skip
    add("--alpha", type=float, help="abstain where labels are not told apart at this level: of a"
        " new person's cells at most this share, on average, has its own label ruled out (default:"
        " 0.1)")  # fmt: skip
    add_reading_options(parser)
    add("--group-by", choices=("subject", "folder"), help="also sum up by the subject in C-NMC's"
        " names, or by folder, in FILE with .groups in its name")  # fmt: skip
    add("--sheet", type=png_file, metavar="FILE.png", help="also draw the images by probability,"
        " at most 240 of them")  # fmt: skip
    add("--batch-size", type=whole_number, metavar="N", help="images per step (default: 64)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predict images.

    Raises:
        LeukoclsError: no bundle, no image at one of the places, or an output that is no file.
        DataFault: the bundle is damaged or was changed.
    """
    arguments = _parser().parse_args(argv)
    from leukocls.inference.groups import groups_of, summary
    from leukocls.inference.images import Reading, find_images
    from leukocls.inference.prediction_file import check_out, write_predictions, write_table
    from leukocls.inference.prediction_sheet import prediction_sheet
    from leukocls.inference.predictor import BATCH, load_bundle

    check_out(arguments.out)
    images = find_images(arguments.images)
    # Before the long work: names may tell no subject.
    groups = groups_of(images, arguments.group_by) if arguments.group_by else None
    predictor = load_bundle(arguments.bundle, arguments.device, arguments.alpha)
    reading = Reading(predictor.side, arguments.resize, arguments.segment)
    written = write_predictions(
        predictor, images, arguments.out, reading, arguments.batch_size or BATCH
    )
    code = _print_result(predictor, written, arguments.out)
    if groups:
        of_groups = summary(written.table, groups)
        place = arguments.out.with_suffix(f".groups{arguments.out.suffix}")
        write_table(place, of_groups)
        print(_of_groups(of_groups, place))
    if arguments.sheet:
        picture = prediction_sheet(written.table, images, reading, predictor.bundle.heading)
        arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(arguments.sheet, picture)
        print(arguments.sheet)
    return code


def _of_groups(table: "pd.DataFrame", place: Path) -> str:
    shown = [
        [row.group, row.cells, row.called_all, f"{row.share_all:.2f}", f"{row.mean_prob:.2f}"]
        for row in table.head(SHOWN).itertuples()
    ]
    lines = [aligned([["group", "cells", "called ALL", "share", "mean p(ALL)"], *shown])]
    lines += [f"… and {len(table) - SHOWN} more"] if len(table) > SHOWN else []
    about = "Cells are called one by one; a share of them is no diagnosis of a person."
    return "\n".join([*lines, about, str(place)])


def _print_result(predictor: "Predictor", written: "Written", out: Path) -> int:
    """Print what was predicted, and return the exit code."""
    document, level, table = predictor.bundle.document, predictor.level, written.table
    skipped = table[table["reason"] != ""]
    called = table["label"].value_counts()
    print(f"*** {document['use'].upper()} ***")
    if document["marks"]:
        print(f"trained or scored as: {' '.join(document['marks'])}")
    print(f"{len(table) - len(skipped)} images: {called.get('ALL', 0)} called ALL,"
          f" {called.get('HEM', 0)} HEM")  # fmt: skip
    if level:
        number, share = (table["abstain"] == "yes").sum(), 100 * level["alpha"]
        print(f"{number} of them without a single label: of a new person's cells at most"
              f" {share:g} %, on average over persons like those of"
              f" {document['conformal']['fitted_on']}, have their own label ruled out. It says"
              " nothing about the errors among the others.")  # fmt: skip
    else:
        fitted = document["conformal"]
        cause = fitted["reason"] or f"too few persons ({fitted['persons']}) for the usual level"
        print(f"no abstention: {cause}; --alpha takes {predictor.bundle.alphas}")
    if written.resumed:
        print(f"{written.resumed} of them an earlier command had predicted")
    if cut := (table["segmented"] == "yes").sum():
        print(f"{cut} of them were cut out of their background: look at some (leukocls.explain)")
    if document.get("distance"):
        far = (table["distance"] > 1).sum()
        print(f"{far} of them are farther from the training cells than 95 % of the held-out cells"
              " are; about 5 % would be expected")  # fmt: skip
    for name, cause in (
        ("background", "show more than a cell on black, which the networks never saw; take"
         " --segment, or do not believe these rows"),
        ("lossy", "are JPEGs, whose artefacts the networks may never have seen"),
        ("converted", "were grey, of 16 bits or with alpha, and were made 8-bit RGB; do not believe"
         " these rows if the network was trained on colour"),
    ):  # fmt: skip
        if number := written.notes[name]:
            print(f"warning: {number} images {cause}", file=sys.stderr)
    for reason in skipped["reason"].head(SHOWN):
        print(f"skipped: {reason}", file=sys.stderr)
    if len(skipped):
        print(f"{len(skipped)} images were skipped; {out} has the reason of each", file=sys.stderr)
    print(out)
    return ITEMS_SKIPPED if len(skipped) else 0


if __name__ == "__main__":
    run_verb(main)
