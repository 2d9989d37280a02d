"""leukocls: leukemic (ALL) against normal (HEM) cells, and whether the number can be believed."""

import os
import signal
import sys
from typing import Any

__version__ = "0.2.0"
__all__ = ["load_bundle", "load_run"]


def __getattr__(name: str) -> Any:
    """The public functions, imported when first asked for: verbs that need neither start at once.

    `load_run` is `leukocls.evaluation.loaded_run.load_run`, `load_bundle` is
    `leukocls.inference.predictor.load_bundle`.
    """
    if name == "load_run":
        from leukocls.evaluation.loaded_run import load_run

        return load_run
    if name == "load_bundle":
        from leukocls.inference.predictor import load_bundle

        return load_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _end_at_once(number: int, frame: Any) -> None:
    os.write(2, b"error: interrupted\n")
    os._exit(128 + number)


# A command imports for seconds before it handles signals itself: Ctrl-C would print a traceback.
# Where leukocls is imported by another program, that program's handlers stay.
if os.path.basename("".join(sys.argv[:1])) in ("-m", "leukocls"):
    for _number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(_number) != signal.SIG_IGN:
            signal.signal(_number, _end_at_once)
