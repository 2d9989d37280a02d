"""Errors with a remedy for the user, exit codes, and the entry point of every argparse verb."""

import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, NoReturn

from leukocls.common.processes import INTERRUPTS, Interrupted, interruptible
from leukocls.common.terminal import OutputClosed, printable, printable_output

ITEMS_SKIPPED = 3  # exit code: completed, with items skipped


class LeukoclsError(Exception):
    """Usage error or refusal (exit code 2). The message names file, cause and remedy."""

    exit_code = 2


class DataFault(LeukoclsError):
    """Fault in the data or in a job, not in the command (exit code 1)."""

    exit_code = 1


class Fault(NamedTuple):
    """One fault in the data. As text: `path: cause; remedy`."""

    path: Path
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}; {self.remedy}"


def report(root: Path, faults: Iterable[Fault], most: int = 20) -> str:
    """One message with the faults below `root`, sorted by path, a line each, at most `most`."""
    lines = sorted(map(str, faults))
    more = f"\n  … and {len(lines) - most} more" if len(lines) > most else ""
    return f"{root}: {len(lines)} fault(s) in the data\n  " + "\n  ".join(lines[:most]) + more


def run_verb(main: Callable[[], int]) -> NoReturn:
    """Run `main` and exit the process with its exit code.

    An error becomes one message on standard error; LEUKOCLS_TRACEBACK=1 adds the traceback.
    """
    try:
        with interruptible(*INTERRUPTS), printable_output():
            code = main()
    except OutputClosed as stop:
        code = stop.code
    except Interrupted as stop:
        code = _fail(str(stop), stop.code)
    except LeukoclsError as error:
        code = _fail(str(error), error.exit_code)
    except OSError as error:
        where = f"{error.filename}: {error.strerror}; choose another place, or make room there"
        code = _fail(where if error.filename else str(error), LeukoclsError.exit_code)
    except Exception as error:
        message = f"{type(error).__name__}: {error} (LEUKOCLS_TRACEBACK=1 shows where)"
        code = _fail(message, DataFault.exit_code)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    if os.environ.get("LEUKOCLS_TRACEBACK") == "1":
        traceback.print_exc()
    print(f"error: {printable(message)}", file=sys.stderr)
    return code
