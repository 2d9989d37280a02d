"""Several devices in one run: one process for each, joined before Lightning's DDP starts.

The run's own process starts and monitors them, and holds the run directory.
"""

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

# Read when torch is loaded, in the process that all ranks are forked from. Without it every rank
# would report that all parameters were used (see DDP in trainer.py).
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

T = TypeVar("T")

HOST = "127.0.0.1"
# No collective timeout: the run's own process monitors the ranks and ends all when one dies.
TIMEOUT = timedelta(days=7)
GRACE_S = 10.0  # seconds between SIGINT and SIGKILL
SETTLE_S = 1.0  # after a first failure, wait this long for one that may have caused it


@dataclass(frozen=True)
class Rank:
    """One of `ranks` processes of a run; they meet at TCP port `port` of this machine."""

    rank: int
    ranks: int
    port: int

    def join(self, device: torch.device) -> None:
        """Join the process group, whose collectives work on tensors on `device`."""
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
def rank_zero_first() -> Iterator[None]:
    """Run the body on rank 0 first and then on the others, which use the files that it wrote."""
    several = distributed.is_initialized()
    if several and distributed.get_rank() > 0:
        distributed.barrier()
    yield
    if several and distributed.get_rank() == 0:
        distributed.barrier()


def spawn_ranks(ranks: int, work: Callable[[Rank], T]) -> T:
    """Call `work` in `ranks` processes at once, and return what it returned on rank 0.

    What rank 0 prints is printed here.

    Args:
        work: can be pickled.

    Raises:
        LeukoclsError, OSError: as `work` raised them, on any rank.
        RuntimeError: it raised anything else; names the rank.
        DataFault: a process died; names the rank.
    """
    context = fork_server(PRELOADED)
    store = distributed.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    processes: list[BaseProcess] = []
    pipes: dict[Connection, BaseProcess] = {}
    try:
        for rank in range(ranks):
            ours, theirs = context.Pipe(duplex=False)
            place = Rank(rank, ranks, store.port)
            arguments = (work, place, theirs, dict(os.environ), sys.stderr.isatty())
            process = context.Process(
                target=_rank_main, args=arguments, name=f"rank {rank} of {ranks}"
            )
            process.start()
            processes.append(process)
            theirs.close()  # so that the pipe ends with the process
            pipes[ours] = process
        return _result(pipes)
    finally:
        _stop(processes)


def _result(pipes: dict[Connection, BaseProcess]) -> Any:
    """The result of rank 0, once all ranks are done; raises the first failure."""
    result, failures = None, list[Exception]()
    while pipes and (ready := wait(list(pipes), SETTLE_S if failures else None)):
        for pipe in ready:
            assert isinstance(pipe, Connection)
            try:
                kind, content = pipe.recv()
            except EOFError:
                kind, content = "died", pipes[pipe]
            if kind in ("stdout", "stderr"):
                stream = getattr(sys, kind)
                stream.write(content)
                stream.flush()
                continue
            process = pipes.pop(pipe)
            if kind == "died":
                process.join()
                # NCCL aborts a process that waits for a dead one: an effect, not the cause.
                effect = process.exitcode == -signal.SIGABRT
                failures.insert(len(failures) if effect else 0, _death(process))
            elif kind == "failed":
                failures.append(content)
            elif content is not None:
                result = content
    if failures:
        raise failures[0]
    return result


def _death(process: BaseProcess) -> DataFault:
    remedy = "the same command resumes from the run's last checkpoint"
    return DataFault(f"{process.name}: {ending(process.exitcode or 0)}; {remedy}.")


def _stop(processes: list[BaseProcess]) -> None:
    """End the processes that are alive: SIGINT first, SIGKILL after GRACE_S."""
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


def _rank_main(
    work: Callable[[Rank], Any],
    rank: Rank,
    pipe: Connection,
    environment: dict[str, str],
    terminal: bool,
) -> None:
    """The main function of a rank's process."""
    signal.signal(signal.SIGINT, _exit)
    os.environ.clear()
    os.environ.update(environment | {"LOCAL_RANK": str(rank.rank), "NODE_RANK": "0"})
    # Otherwise Lightning would set torch's threads by the machine's cores instead of `threads`.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    tqdm.set_lock(threading.RLock())  # a lock between processes would be leaked by a killed one
    end_with_parent(signal.SIGKILL)
    lock = threading.Lock()

    def send(kind: str, content: Any) -> None:
        with lock:
            pipe.send((kind, content))

    if rank.rank == 0:
        sys.stdout = _PipedStream(send, "stdout", False)
        sys.stderr = _PipedStream(send, "stderr", terminal)
    else:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        result = work(rank)
    except Exception as error:
        if os.environ.get("LEUKOCLS_TRACEBACK") == "1":
            traceback.print_exc(file=sys.__stderr__)
        if not isinstance(error, LeukoclsError | OSError):
            error = RuntimeError(f"rank {rank.rank}: {type(error).__name__}: {error}")
        error.add_note(traceback.format_exc())  # which does not pass through a pipe by itself
        send("failed", error)
        sys.exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # this process is ending already
    send("done", result if rank.rank == 0 else None)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _exit(number: int, frame: Any) -> None:
    sys.exit(128 + number)


class _PipedStream(io.TextIOBase):
    """A text stream whose content the run's own process prints."""

    encoding = "utf-8"

    def __init__(self, send: Callable[[str, str], None], name: str, terminal: bool) -> None:
        self.send, self.name, self.terminal = send, name, terminal

    def write(self, text: str) -> int:
        self.send(self.name, text)
        return len(text)

    def isatty(self) -> bool:
        return self.terminal
