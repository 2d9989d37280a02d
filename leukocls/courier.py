"""Calls to W&B on a thread of their own: none of them holds up, changes or ends what calls them."""

import contextlib
import os
import queue
import shutil
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read when wandb is loaded: its telemetry tries to be sent before Python ends, for up to 30 s.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


class Courier:
    """Does one call after the other, in order; after one that fails the others are dropped.

    `failed` is what failed, once something has.
    """

    def __init__(self) -> None:
        self.failed: str | None = None
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="W&B", daemon=True)
        self._thread.start()

    def send(self, doing: str, call: Callable[..., Any], *arguments: Any) -> None:
        """Have `call` done; returns at once. `doing` names it should it fail."""
        self._calls.put((doing, call, arguments))

    def close(self, seconds: float) -> None:
        """Wait until all is done; what takes longer than so many seconds is cut off."""
        self._calls.put(None)
        try:
            self._thread.join(0.9 * seconds)
        finally:  # interrupted: Python would wait for W&B's own process before it ends
            if self._thread.is_alive():
                self.failed = self.failed or f"no answer within {seconds:g} s"
                _kill_service()
                self._thread.join(0.1 * seconds)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            doing, call, arguments = item
            if self.failed:
                continue
            try:
                call(*arguments)
            except Exception:
                reason = traceback.format_exc(limit=0).strip().splitlines()[-1]
                self.failed = self.failed or f"while {doing}: {reason}"
                shut_down()


def shut_down() -> None:
    """End W&B in this process at once, whatever is under way; a later call starts it anew."""
    import wandb

    _kill_service()
    with contextlib.suppress(Exception, SystemExit):  # it wants to tell the service
        wandb.teardown()


def _kill_service() -> None:
    """Kill W&B's service process, a child of this one, which may wait for a server for hours."""
    for service in services():
        with contextlib.suppress(ProcessLookupError):
            os.kill(service, signal.SIGKILL)
        # Its socket, which it cannot remove any more.
        for left in Path(tempfile.gettempdir()).glob(f"wandb-{os.getpid()}-{service}-*"):
            shutil.rmtree(left, ignore_errors=True)


def services() -> Iterator[int]:
    """The process ids of W&B's services among the children of this process."""
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{child}/comm").read_text()
                state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
                if name.startswith("wandb-core") and state != "Z":
                    yield int(child)


@contextlib.contextmanager
def staged_in(directory: Path) -> Iterator[None]:
    """Let files wait for their upload in `directory`, and not in the home directory.

    A WANDB_DATA_DIR that is set already stays.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(directory.resolve())
    try:
        yield
    finally:
        os.environ.pop("WANDB_DATA_DIR", None)
