"""Share a network: `python -m leukocls.bundle RUN… --out DIR` writes what `predict` opens."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from leukocls.common.errors import run_verb

# Read when torch is loaded; why: leukocls/train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.bundle",
        description="Write finished runs as one folder that `predict` opens, and timm where it can"
        " hold the network: weights, threshold, calibration, metrics with what they may be called,"
        " and a model card. Nothing in it is pickled.",
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="directories of finished runs; several"
        " are an ensemble, whose logits are averaged")  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="the new folder")
    add("--out-of-fold", nargs="+", type=Path, default=[], metavar="RUN", help="the folds of a"
        " cross-validation of the same recipe: their held-out cells fit calibration and abstention"
        " (default: the set that chose the epoch)")  # fmt: skip
    add("--data", type=Path, metavar="ROOT", help="the images that the first run has read, so"
        " that `predict` says how far a cell lies from those that it was trained on")  # fmt: skip
    add("--onnx", action="store_true", help="also write the networks as network.onnx, which"
        " `predict` opens without PyTorch")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write a bundle.

    Raises:
        LeukoclsError: a run that cannot be bundled, or a folder that exists.
        DataFault: predictions or weights that are damaged or were changed.
    """
    arguments = _parser().parse_args(argv)
    from leukocls.inference.from_runs import write_bundle

    document = write_bundle(
        arguments.runs, arguments.out, arguments.out_of_fold, arguments.data, arguments.onnx
    )
    for one in document["metrics"]:
        f1 = one["weighted_f1"]
        print(f"{one['split']} ({one['heading']}): weighted F1 {f1:.4f}, {one['n']} cells")
    if document["marks"]:
        print(f"*** {' '.join(document['marks'])} ***")
    if document["calibration"] is None:
        print(f"not calibrated: {document['calibration_reason']}")
    if onnx := document["onnx"]:
        print(f"{onnx['file']}: on {onnx['number']} {onnx['images']} its logits differ from"
              f" PyTorch's by {onnx['difference']:.1g} at most")  # fmt: skip
    print(arguments.out)
    return 0


if __name__ == "__main__":
    run_verb(main)
