"""One job of a sweep, and the process that runs it."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from leukocls.artifacts.identity import key_of
from leukocls.artifacts.record import (
    RunState,
    headline,
    headline_text,
    mark_ended,
    read_record,
    state_of,
)
from leukocls.artifacts.run_dir import RunLocked
from leukocls.common.errors import LeukoclsError
from leukocls.common.processes import (
    GRACE_S,
    LOST,
    Interrupted,
    end_with_parent,
    ending,
    interruptible,
)
from leukocls.launch.job import Job, run_jobs

LOCKED = os.EX_TEMPFAIL  # exit code of a job whose run another process is writing


@dataclass
class SweepJob:
    """One job of a sweep: a run, or the phases of one.

    Attributes:
        phases: the runs in order; the last one is the result.
        swept: keys that the sweep varies.
        error: why the job failed in this sweep.
        waits_until: monotonic time before which it is not tried again.
    """

    phases: list[Job]
    swept: Sequence[str] = ()
    error: str | None = None
    waits_until: float = 0.0

    @property
    def result(self) -> Job:
        """The run that is the job's result."""
        return self.phases[-1]

    @property
    def directory(self) -> Path:
        """The run directory of the result."""
        return self.result.directory

    @property
    def settings(self) -> dict[str, str]:
        """The job's values of the keys that the sweep varies; its directory for a job alone."""
        values = {key_of(o): o.partition("=")[2] for o in self.result.overrides}
        return {key: values[key] for key in self.swept} or {"run": str(self.directory)}

    def state(self) -> RunState:
        """State of the result; REFUSED where the job failed and another run is in its place."""
        return self._read()[0]

    def _read(self) -> tuple[RunState, dict[str, Any]]:
        try:
            record = read_record(self.directory)
        except LeukoclsError:
            return RunState.MISSING, {}
        state = state_of(record)
        refused = state == RunState.DONE and self.error
        return RunState.REFUSED if refused else state, record

    def row(self) -> list[str]:
        """State, headline and first error, for a table."""
        state, record = self._read()
        error, number = self.error or record.get("error") or "–", "–"
        if state == RunState.DONE:
            number = " ".join([headline_text(headline(record)), *record.get("marks", [])])
            error = "–"
        return [state, number, error.splitlines()[0]]


@dataclass
class Worker:
    """The process of one job.

    Attributes:
        log: file of everything that it prints.
        slot: number of its slot.
        deadline: monotonic time at which its time limit has passed.
        stopped: why it was asked to end.
    """

    job: SweepJob
    process: BaseProcess
    log: Path
    slot: int
    deadline: float
    stopped: str | None = None
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def start(
        cls,
        job: SweepJob,
        context: ForkServerContext,
        logs: Path,
        slot: int,
        gpus: str | None,
        limit: float,
    ) -> "Worker":
        """Start the job's process; it may run for `limit` seconds and sees the GPUs `gpus`."""
        log = logs / f"{time.monotonic_ns()}.txt"
        log.touch()
        arguments = (job.phases, log, dict(os.environ), gpus)
        process = context.Process(target=_worker_main, args=arguments)
        process.start()  # the first one waits for the fork server's imports
        return cls(job, process, log, slot, time.monotonic() + limit)

    def lines(self) -> list[str]:
        """The lines that the process has printed, without empty ones."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    def enforce(self, minutes: float | None) -> None:
        """Ask the process to end when its time limit has passed, and kill it GRACE_S later."""
        now = time.monotonic()
        if now < self.deadline:
            return
        if self.stopped is None:
            self.stopped = f"ran past time_limit={minutes} minutes"
            self.deadline = now + GRACE_S
            self.process.terminate()
        else:
            self.process.kill()

    def settle(self) -> None:
        """Record how the job ended, once its process has: in `job.error` and in run.json."""
        pid, self.job.error = self.process.ident or 0, None
        if self.process.exitcode == LOST:
            with suppress(ProcessLookupError):  # it may have outlived the fork server
                os.kill(pid, signal.SIGKILL)
        if not self._is_done():
            self.job.error = self._cause()
            state = RunState.INTERRUPTED if self.stopped else RunState.FAILED
            for phase in self.job.phases:
                with suppress(OSError):  # a full disk; the sweep's table shows it all the same
                    mark_ended(phase.directory, pid, state, self.job.error)

    def _is_done(self) -> bool:
        """True if the process finished its job."""
        if self.job.state() != RunState.DONE:
            return False
        if self.process.exitcode == LOST:  # with the fork server: the record says who wrote it
            return bool(read_record(self.job.directory).get("pid") == self.process.ident)
        return self.process.exitcode == 0

    def _cause(self) -> str:
        """Why the job failed."""
        lines, code = self.lines(), self.process.exitcode or 0
        errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
        if self.stopped:
            return self.stopped
        if errors:
            return "\n".join(lines[errors[0] :]).removeprefix("error: ")
        return ending(code) + (f"; its last line: {lines[-1]}" if lines else "")


def stop_all(workers: Sequence[Worker]) -> None:
    """End the processes: SIGTERM first, SIGKILL after GRACE_S."""
    for worker in workers:
        worker.stopped = "the sweep was stopped"
        worker.process.terminate()
    deadline = time.monotonic() + GRACE_S
    try:
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            worker.settle()


def _worker_main(
    phases: list[Job], log: Path, environment: dict[str, str], gpus: str | None
) -> None:
    """The main function of a job's process."""
    # Ctrl-C and the like reach the sweep as well, which ends its jobs.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    stream = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    for text in (sys.stdout, sys.stderr):  # into a file Python would write whole buffers only
        text.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment | ({"CUDA_VISIBLE_DEVICES": gpus} if gpus else {}))
    tqdm.set_lock(threading.RLock())  # a lock between processes would be leaked by a killed one
    end_with_parent(signal.SIGTERM)
    with interruptible(signal.SIGTERM):
        try:
            code = run_jobs(phases)
        except Interrupted as stop:
            code = stop.code
        except RunLocked:
            code = LOCKED
    sys.exit(code)
