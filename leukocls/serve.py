"""Try a bundle in the browser: `python -m leukocls.serve BUNDLE`; for research, no diagnosis."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from leukocls.common.arguments import add_reading_options
from leukocls.common.errors import LeukoclsError, run_verb
from leukocls.common.processes import Interrupted

# Read when torch is loaded; why: leukocls/train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Read when gradio is loaded: it would ask the network for its newest version.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
CTRL_C = 130  # exit code; it is the way to end the page


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.serve",
        description="Serve a page on this machine: drop images of single cells, and see what a"
        " bundle's networks say and look at. Nothing that is uploaded is kept. For research only.",
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="the folder that `leukocls.bundle` wrote; made"
        " with --data it also shows the nearest training cells")  # fmt: skip
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine"
        " alone; there is no password, so open it only to a network that you trust)")  # fmt: skip
    add("--port", type=int, choices=range(1, 65536), default=7860, metavar="N", help="default:"
        " 7860")  # fmt: skip
    add("--alpha", type=float, help="level of abstention, as `predict` takes it")
    add_reading_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until the process is interrupted.

    Raises:
        LeukoclsError: no bundle, gradio is not installed, or the port is taken.
        DataFault: the bundle is damaged or was changed.
    """
    arguments = _parser().parse_args(argv)
    from leukocls.inference.bundle import open_bundle
    from leukocls.inference.images import Reading
    from leukocls.inference.torch_predictor import TorchPredictor

    try:
        from leukocls.inference.web_page import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise LeukoclsError(
            "the package gradio is not installed. pip install 'leukocls[serve]'"
        ) from error
    predictor = TorchPredictor(open_bundle(arguments.bundle), arguments.device, arguments.alpha)
    reading = Reading(predictor.side, arguments.resize, arguments.segment)
    with tempfile.TemporaryDirectory(prefix="leukocls-serve-") as folder:
        page = serve(predictor, reading, arguments.host, arguments.port, Path(folder))
        try:
            page.block_thread()
        except Interrupted as stop:
            if stop.code != CTRL_C:
                raise
        finally:
            page.close(verbose=False)
    return 0


if __name__ == "__main__":
    run_verb(main)
