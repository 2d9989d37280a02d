"""Write a bundle as ONNX: `python -m leukocls.export BUNDLE --out FILE.onnx`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from leukocls.common.errors import LeukoclsError, run_verb

# Read when torch is loaded; why: leukocls/train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.export",
        description="Write the networks of a bundle, with views, calibration and threshold, as one"
        " ONNX file that `predict` opens without PyTorch. It is written only if ONNX Runtime"
        " computes the same logits as PyTorch.",
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="the folder that `leukocls.bundle` wrote")
    add("--out", type=Path, required=True, metavar="FILE.onnx", help="the file")
    add("--compare-on", nargs="+", default=[], metavar="IMAGES", help="files, folders or patterns"
        " of images on which both are compared (default: SYNTHETIC cells)")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file.

    Raises:
        LeukoclsError: no bundle, or one that ONNX cannot hold.
        DataFault: the bundle is damaged or was changed, or an image cannot be read.
    """
    arguments = _parser().parse_args(argv)
    from leukocls.inference.bundle import open_bundle
    from leukocls.inference.onnx_export import write_onnx
    from leukocls.inference.predictor import ONNX
    from leukocls.inference.torch_predictor import TorchPredictor

    if arguments.out.suffix != ONNX or arguments.out.is_dir():
        raise LeukoclsError(f"--out {arguments.out}: name a file that ends in {ONNX}.")
    predictor = TorchPredictor(open_bundle(arguments.bundle), "cpu")
    parity = write_onnx(predictor, arguments.out, arguments.compare_on)
    print(f"on {parity.number} {parity.images} the logits of ONNX Runtime and PyTorch differ by"
          f" {parity.difference:.1g} at most"
          f" ({parity.rounding:.1g}: rounding by PyTorch)")  # fmt: skip
    print(f"{predictor.bundle.document['use']}\n{arguments.out}")
    return 0


if __name__ == "__main__":
    run_verb(main)
