"""Errors with a remedy for the user, exit codes, and the entry point of every argparse verb."""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from leukocls.common.processes import INTERRUPTS, Interrupted, interruptible
from leukocls.common.terminal import OutputClosed, printable, printable_output

ITEMS_SKIPPED = 3  # exit code: completed, with items skipped
_ROOM = "make room there, or choose another place"
_RIGHTS = "allow it for this user, or choose another place"
REMEDIES = {
    errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EFBIG: _ROOM,
    errno.EACCES: _RIGHTS, errno.EPERM: _RIGHTS, errno.EROFS: _RIGHTS,
    errno.ENOENT: "restore it, or name one that is there",
}  # fmt: skip


class LeukoclsError(Exception):
    """Usage error or refusal (exit code 2). The message names file, cause and remedy."""

    exit_code = 2


class DataFault(LeukoclsError):
    """Fault in the data or in a job, not in the command (exit code 1)."""

    exit_code = 1


def own_text(error: BaseException) -> str:
    """The text of an error; of one in a worker of a loader, without PyTorch's traceback before."""
    text = str(error)
    if "in DataLoader worker process" in text:
        return text.rpartition(f"{type(error).__name__}: ")[2].strip()
    return text


def system_message(error: OSError) -> str:
    """The message for an error of the operating system: the file, the cause and what helps."""
    if error.filename is None:
        return str(error)
    remedy = REMEDIES.get(error.errno or 0, "see to it, or choose another place")
    return f"{error.filename}: {error.strerror}; {remedy}"


class Fault(NamedTuple):
    """One fault in the data. As text: `path: cause; remedy`."""

    path: Path
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}; {self.remedy}"


def fault_lines(faults: Iterable[Fault]) -> list[str]:
    """The faults as lines, sorted by path; more than three of one cause share a line.

    Such a line holds the first three paths and the number of all.
    """
    alike: dict[tuple[str, str], list[Path]] = {}
    for path, cause, remedy in faults:
        alike.setdefault((cause, remedy), []).append(path)
    lines = []
    for (cause, remedy), paths in alike.items():
        if len(paths) > 3:
            first = " · ".join([str(paths[0]), *(path.name for path in paths[1:3])])
            lines.append(f"{first} · … ({len(paths):,} in all): {cause}; {remedy}")
        else:
            lines += [str(Fault(path, cause, remedy)) for path in paths]
    return sorted(lines)


def report(root: Path, faults: Sequence[Fault], most: int = 20) -> str:
    """One message with the faults below `root`: at most `most` of their lines."""
    lines = fault_lines(faults)
    more = f"\n  … and {len(lines) - most} more lines" if len(lines) > most else ""
    return f"{root}: {len(faults)} fault(s) in the data\n  " + "\n  ".join(lines[:most]) + more


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
        code = _fail(system_message(error), LeukoclsError.exit_code)
    except Exception as error:
        message = f"{type(error).__name__}: {error} (LEUKOCLS_TRACEBACK=1 shows where)"
        code = _fail(message, DataFault.exit_code)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    if os.environ.get("LEUKOCLS_TRACEBACK") == "1":
        traceback.print_exc()
    print(f"error: {printable(message)}", file=sys.stderr)
    return code
