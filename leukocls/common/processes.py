"""Child processes of a run or a sweep: started from a fork server, ended with their parent."""

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.context import ForkServerContext
from typing import Any

# Ctrl-C, `kill` and schedulers, a terminal that closes, and what SLURM sends before a time limit.
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
LOST = 255  # exit code that multiprocessing reports when the fork server is gone
GRACE_S = 30.0  # seconds between SIGTERM and SIGKILL: time for a run to write its record
HOLD_S = 20.0  # seconds that a held signal waits at most: less than GRACE_S and SLURM's KillWait


def fork_server(preload: Sequence[str]) -> ForkServerContext:
    """Start the server process that children are forked from, and return its context.

    It imports the modules `preload` once, for all children, and never touches CUDA. The first call
    in a process decides what is preloaded.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    # They are for the processes that hold runs, and reach the whole group. SIGTERM ends a child.
    ignored = [number for number in INTERRUPTS if number != signal.SIGTERM]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    forkserver.ensure_running()
    for number, handler in before.items():
        signal.signal(number, handler)
    return context


def ending(code: int) -> str:
    """A clause that describes how a process with this exit code (negative: a signal) ended."""
    if code == LOST:
        return "its process was lost with the one that all are forked from (out of memory?)"
    if code >= 0:
        return f"its process ended with exit code {code} before the run was done"
    memory = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"its process was killed by {signal.Signals(-code).name}{memory}"


def end_with_parent(number: int) -> None:
    """Send this process signal `number` when its parent has died, and kill it GRACE_S later."""

    def watch() -> None:
        parent: Any = parent_process()
        parent.join()
        os.kill(os.getpid(), number)
        time.sleep(GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


class Interrupted(BaseException):
    """A signal asked this process to end; `code` is its exit code, 128 + the signal."""

    def __init__(self, code: int) -> None:
        super().__init__(f"interrupted (exit code {code})")
        self.code = code


@contextmanager
def interruptible(*numbers: int) -> Iterator[None]:
    """Raise Interrupted in the body when one of these signals arrives.

    A hangup that is ignored already, as under nohup, stays ignored. Lightning keeps signal handlers
    that are installed already.
    """

    def stop(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        if number not in (signal.SIGINT, signal.SIGTERM):
            # A closed terminal sends it twice: the second one would break what the first one began.
            signal.signal(number, signal.SIG_IGN)
        raise Interrupted(128 + number)

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    wanted = [number for number in numbers if number != signal.SIGHUP or not ignored]
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class HeldSignal:
    """The first signal of `hold_signals`, until it is passed on.

    Attributes:
        number: of the signal; None while there is none.
        passed: the signal whose handler was called and raised; None while there is none.
    """

    def __init__(self, handlers: dict[int, Any]) -> None:
        self.number: int | None = None
        self.passed: int | None = None
        self._handlers = handlers

    def listen(self) -> None:
        """Install the handlers again; Lightning replaces them."""
        for number in self._handlers:
            signal.signal(number, self._arrived)

    def stop_timer(self) -> None:
        """Stop the timer of HOLD_S: a save may take longer."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def pass_on(self) -> None:
        """Call the handler that was there before, which may raise; nothing if no signal waits."""
        number, self.number = self.number, None
        self.stop_timer()
        if number is not None:
            self.passed = number
            self._handlers[number](number, None)
            self.passed = None

    def _arrived(self, number: int, frame: Any) -> None:
        asked = number in (signal.SIGINT, signal.SIGTERM)
        if number == signal.SIGALRM:
            self.pass_on()
        elif self.passed is not None:
            if asked:  # others may be sent twice, and would break what the first one began
                self._handlers[number](number, frame)
        elif self.number is None:
            self.number = number
            signal.setitimer(signal.ITIMER_REAL, HOLD_S)
            if number == signal.SIGHUP:
                leave_terminal()
            # Not print, which this may have interrupted; nobody may be there to read it.
            name = signal.Signals(number).name
            with suppress(OSError):
                os.write(2, f"{name}: ends after this step; a second one ends at once\n".encode())
        elif asked and self.number in (signal.SIGINT, signal.SIGTERM):
            self.number = number
            self.pass_on()
        elif number == signal.SIGUSR2:  # a cluster takes the job back, whatever else it sends
            self.number = number


@contextmanager
def hold_signals() -> Iterator[HeldSignal]:
    """Hold back a signal that would interrupt the body, until the body passes it on.

    It is passed on without that after HOLD_S, at a second SIGINT or SIGTERM, and when the body
    ends. Signals without a handler are left as they are, and so are all of them outside the main
    thread.
    """
    before = {number: signal.getsignal(number) for number in (*INTERRUPTS, signal.SIGUSR2)}
    handlers: dict[int, Any] = {n: handler for n, handler in before.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    held = HeldSignal(handlers)
    if handlers:
        alarm = signal.signal(signal.SIGALRM, held._arrived)
    try:
        held.listen()
        yield held
    finally:
        for number, handler in handlers.items():
            repeated = number == held.passed and number not in (signal.SIGINT, signal.SIGTERM)
            signal.signal(number, signal.SIG_IGN if repeated else handler)
        if handlers:
            held.stop_timer()
            signal.signal(signal.SIGALRM, alarm)
    held.pass_on()


def leave_terminal() -> None:
    """Redirect output from a closed terminal, where printing is an error, to /dev/null."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
