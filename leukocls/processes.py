"""Processes that a run or a sweep starts: how they begin, and how it is told why one ended."""

import os
import signal
import threading
import time
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.context import ForkServerContext
from typing import Any

LOST = 255  # exit code that multiprocessing gives when the fork server is gone
GRACE_S = 30.0  # from being asked to end to being made to: time to write down where a run stands


def fork_server() -> ForkServerContext:
    """Where torch and what stands on it is imported once, and CUDA never touched."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["leukocls.session", "leukocls.view_zero"])
    # Ctrl-C is for the processes that hold runs; while it imports it would leave a trace.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, before)
    return context


def ending(code: int) -> str:
    """How a process with this exit code (negative: a signal) ended, as a clause."""
    if code == LOST:
        return "its process was lost with the one that all are forked from (out of memory?)"
    if code >= 0:
        return f"its process ended with exit code {code} before the run was done"
    memory = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"its process was killed by {signal.Signals(-code).name}{memory}"


def end_with_parent(number: int) -> None:
    """Let this process get signal `number` when its parent is gone, and be killed if it stays."""

    def watch() -> None:
        parent: Any = parent_process()
        parent.join()
        os.kill(os.getpid(), number)
        time.sleep(GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
