"""Safe printing: control characters are escaped, and a closed pipe ends a command quietly."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from leukocls.common.processes import Interrupted

BROKEN_PIPE = 141  # exit code, as a shell reports it for other programs
# C0, DEL and C1, which terminals obey, as Python writes them in a string.
CONTROL = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"
}


class OutputClosed(Interrupted):
    """Whoever read standard output, such as `head`, has closed it."""

    def __init__(self) -> None:
        super().__init__(BROKEN_PIPE)


def printable(text: str) -> str:
    """`text` with its control characters spelled out, apart from tabs and ends of lines."""
    return text.translate(CONTROL)


class _Output:
    """A text stream that writes printable text only."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(printable(text))
        except BrokenPipeError:
            raise OutputClosed from None

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            raise OutputClosed from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def printable_output() -> Iterator[None]:
    """Print printable text only in the body, which ends with OutputClosed if nobody reads it."""
    stream = sys.stdout
    sys.stdout = output = _Output(stream)
    try:
        try:
            yield
        finally:
            output.flush()
    except OutputClosed:
        # Python flushes once more on exit and would complain about the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise
    finally:
        sys.stdout = stream
