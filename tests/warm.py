"""Commands as processes of their own, forked from a server that has imported what they need.

Nothing of pytest is imported here: a command finds what it would find without tests.
"""

import atexit
import os
import runpy
import signal
import sys
import tempfile
import time
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from faults import fault_points

from leukocls.common.processes import fork_server

# The server finds what it preloads by PYTHONPATH.
TESTS = str(Path(__file__).parent)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [TESTS, os.environ.get("PYTHONPATH")]))
ADDRESS = "LEUKOCLS_TESTS_SERVER"

# Whoever starts the server of this process first, it is warm: PyTorch's loaders would start one
# that has imported nothing, from which each later job had to import everything.
forkserver.set_forkserver_preload(["preloaded"])
forkserver.set_forkserver_preload = lambda modules: None


def server() -> ForkServerContext:
    """The process that commands, the jobs of sweeps and workers of loaders are forked from."""
    return fork_server(())


def share() -> None:
    """Start the server that all processes of pytest-xdist use, which import this module later."""
    # What its children print before they are given files of their own is not pytest's to show.
    streams, null = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(null, number)
    server()
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
        os.close(stream)
    os.close(null)
    os.environ[ADDRESS] = forkserver._forkserver._forkserver_address


def _use(address: str) -> None:
    """Connect this process to the fork server at `address`, which then starts its children."""
    forkserver._forkserver._forkserver_address = address
    forkserver._forkserver.ensure_running = forkserver.ensure_running = lambda: None


if address := os.environ.get(ADDRESS):
    _use(address)
    # What keeps the server alive is held by the process that started it.
    forkserver._forkserver._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)


class Command:
    """`python -m MODULE …`, as subprocess.Popen has it.

    Args:
        module: the module that is run.
        arguments: what follows it on the command line.
        folder: an empty folder for what it prints.
        cwd: where it runs; where the tests run by default.
        env: its environment; that of the tests by default.
    """

    def __init__(
        self,
        module: str,
        arguments: list[str],
        folder: Path,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self._out, self._err = folder / "out", folder / "err"
        context, state = server(), forkserver._forkserver
        environment = dict(os.environ) if env is None else env
        self._process = context.Process(
            target=_run,
            args=(
                module, arguments, [str(self._out), str(self._err)], str(cwd or Path.cwd()),
                environment, state._forkserver_address,
            ),
        )  # fmt: skip
        self._process.start()
        assert self._process.pid
        self.pid: int = self._process.pid

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return self._out.read_text(encoding="utf-8") if self._out.exists() else ""

    @property
    def err(self) -> str:
        """What it has printed to standard error so far."""
        return self._err.read_text(encoding="utf-8") if self._err.exists() else ""

    def until(self, holds: Any, seconds: float = 60) -> bool:
        """Wait for something to be so; False if the command ended, or the time, before it was."""
        deadline = time.monotonic() + seconds
        while not (found := holds()) and self._process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        return bool(found)

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = 120) -> int:
        """Its exit code, negative for a signal. Raises TimeoutError: it has not ended by then."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise TimeoutError(f"runs after {seconds} s; it has printed:\n{self.out}{self.err}")
        return self._process.exitcode

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.join()


def _run(
    module: str,
    arguments: list[str],
    streams: list[str],
    cwd: str,
    environment: dict[str, str],
    address: str,
) -> None:
    for number, path in enumerate(streams, 1):
        stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, number)
        os.close(stream)
    for text in (sys.stdout, sys.stderr):
        text.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # As a shell starts a program, and not as a server starts its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # which the server may have asked for already: by this TMPDIR
    # The jobs of a sweep are forked from the server that this process was forked from.
    _use(address)
    fault_points.arm()
    sys.argv[:] = [module, *arguments]
    sys.path.insert(0, cwd)
    sys.modules.pop(module, None)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
