"""Several devices in one run: a process each, which Lightning's DDP finds joined already."""

import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch import distributed
from tqdm import tqdm

from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.common.processes import end_with_parent, ending, fork_server
from leukocls.training import PRELOADED

# Read when torch is loaded, in the process that all ranks are forked from: that every parameter was
# used (see DDP in session.py) would be told by each of them.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

T = TypeVar("T")

HOST = "127.0.0.1"
# Nobody waits in vain: the run's own process notices one that is gone, and ends them all.
TIMEOUT = timedelta(days=7)
GRACE_S = 10.0  # from being asked to end to being made to
SETTLE_S = 1.0  # from a first failure, which may be another's consequence, to the verdict


@dataclass(frozen=True)
class Place:
    """Which of `ranks` processes this one is; they meet at `port` of this machine."""

    rank: int
    ranks: int
    port: int

    def join(self, device: torch.device) -> None:
        """Meet the others; what they say to each other concerns tensors on `device`."""
        cuda = device.type == "cuda"
        if cuda:
            torch.cuda.set_device(device)
        distributed.init_process_group(
            "nccl" if cuda else "gloo",
            store=distributed.TCPStore(HOST, self.port, timeout=TIMEOUT),
            rank=self.rank,
            world_size=self.ranks,
            timeout=TIMEOUT,
            device_id=device if cuda else None,
        )


@contextmanager
def first_alone() -> Iterator[None]:
    """Let rank 0 through first and the others after it, who find what it made."""
    several = distributed.is_initialized()
    if several and distributed.get_rank() > 0:
        distributed.barrier()
    yield
    if several and distributed.get_rank() == 0:
        distributed.barrier()


def together(ranks: int, work: Callable[[Place], T]) -> T:
    """Call `work` in `ranks` processes at once; what it gave on rank 0, whose print is ours.

    Args:
        work: can be pickled.

    Raises:
        LeukoclsError, OSError: as `work` raised them, on any rank.
        RuntimeError: it raised anything else; names the rank.
        DataFault: a process died; names the rank.
    """
    context = fork_server(PRELOADED)
    meeting = distributed.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    processes: list[BaseProcess] = []
    told: dict[Connection, BaseProcess] = {}
    try:
        for rank in range(ranks):
            ours, theirs = context.Pipe(duplex=False)
            place = Place(rank, ranks, meeting.port)
            given = (work, place, theirs, dict(os.environ), sys.stderr.isatty())
            process = context.Process(target=_live, args=given, name=f"rank {rank} of {ranks}")
            process.start()
            processes.append(process)
            theirs.close()  # so that it ends with the process
            told[ours] = process
        return _verdict(told)
    finally:
        _stop(processes)


def _verdict(told: dict[Connection, BaseProcess]) -> Any:
    """What rank 0 gave, once all are done; raises what first went wrong."""
    given, failures = None, list[Exception]()
    while told and (ready := wait(list(told), SETTLE_S if failures else None)):
        for pipe in ready:
            assert isinstance(pipe, Connection)
            try:
                kind, what = pipe.recv()
            except EOFError:
                kind, what = "died", told[pipe]
            if kind in ("stdout", "stderr"):
                stream = getattr(sys, kind)
                stream.write(what)
                stream.flush()
                continue
            process = told.pop(pipe)
            if kind == "died":
                process.join()
                # NCCL aborts a process that waits for one that is gone: no cause, but its effect.
                effect = process.exitcode == -signal.SIGABRT
                failures.insert(len(failures) if effect else 0, _death(process))
            elif kind == "failed":
                failures.append(what)
            elif what is not None:
                given = what
    if failures:
        raise failures[0]
    return given


def _death(process: BaseProcess) -> DataFault:
    remedy = "the same command goes on from the run's last checkpoint"
    return DataFault(f"{process.name}: {ending(process.exitcode or 0)}; {remedy}.")


def _stop(processes: list[BaseProcess]) -> None:
    """End what still lives: asked first, then made to."""
    deadline = time.monotonic() + GRACE_S
    try:
        for process in processes:
            if process.is_alive():
                with suppress(ProcessLookupError):
                    os.kill(process.pid or 0, signal.SIGINT)
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.join()


def _live(
    work: Callable[[Place], Any],
    place: Place,
    pipe: Connection,
    environment: dict[str, str],
    terminal: bool,
) -> None:
    """The life of a rank's process."""
    signal.signal(signal.SIGINT, _leave)
    os.environ.clear()
    os.environ.update(environment | {"LOCAL_RANK": str(place.rank), "NODE_RANK": "0"})
    # Else Lightning would set torch's threads by the machine's cores; `threads` says how many.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    tqdm.set_lock(threading.RLock())  # a lock among processes would be leaked by one that is killed
    end_with_parent(signal.SIGKILL)
    lock = threading.Lock()

    def say(kind: str, what: Any) -> None:
        with lock:
            pipe.send((kind, what))

    if place.rank == 0:
        sys.stdout = _Said(say, "stdout", False)
        sys.stderr = _Said(say, "stderr", terminal)
    else:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        given = work(place)
    except Exception as error:
        if os.environ.get("LEUKOCLS_TRACEBACK") == "1":
            traceback.print_exc(file=sys.__stderr__)
        if not isinstance(error, LeukoclsError | OSError):
            named = f"rank {place.rank}: {type(error).__name__}: {error}"
            error = RuntimeError(named)
        say("failed", error)
        sys.exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is leaving already
    say("done", given if place.rank == 0 else None)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _leave(number: int, frame: Any) -> None:
    sys.exit(128 + number)


class _Said(io.TextIOBase):
    """A stream whose text the run's own process prints."""

    encoding = "utf-8"

    def __init__(self, say: Callable[[str, str], None], name: str, terminal: bool) -> None:
        self.say, self.name, self.terminal = say, name, terminal

    def write(self, text: str) -> int:
        self.say(self.name, text)
        return len(text)

    def isatty(self) -> bool:
        return self.terminal
