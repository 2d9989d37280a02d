"""Many runs at a time, a process each: started, watched, told. One that dies harms no other."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from leukocls.artifacts.identity import settings_of
from leukocls.artifacts.record import (
    RunState,
    headline,
    headline_text,
    mark_ended,
    read_record,
    state_of,
)
from leukocls.artifacts.run_dir import RunLocked, is_locked
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.common.processes import GRACE_S, LOST, end_with_parent, ending, fork_server
from leukocls.common.tables import aligned
from leukocls.job import Interrupted, Job, are_done, run_jobs, signals
from leukocls.training import PRELOADED

BUSY = os.EX_TEMPFAIL  # exit code of a job whose run another process is writing
RETRY_S = 1.0
POLL_S = 0.25


@dataclass
class Item:
    """One job of a sweep: a run, or a chain of them."""

    jobs: list[Job]
    error: str | None = None
    waits_until: float = 0.0

    @property
    def directory(self) -> Path:
        """That of the run that is its result."""
        return self.jobs[-1].directory

    def status(self) -> RunState:
        """The state of its run; REFUSED where the job failed and another run is in its place."""
        return self._read()[0]

    def _read(self) -> tuple[RunState, dict[str, Any]]:
        try:
            record = read_record(self.directory)
        except LeukoclsError:
            return RunState.MISSING, {}
        found = state_of(record)
        return (RunState.REFUSED if found == RunState.DONE and self.error else found), record

    def cells(self) -> list[str]:
        """Directory, status, headline and first error, for a table."""
        found, record = self._read()
        error = (self.error or record.get("error") or "–") if found != RunState.DONE else "–"
        number = "–"
        if found == RunState.DONE:
            number = " ".join([headline_text(headline(record)), *record.get("marks", [])])
        return [str(self.directory), found, number, error.splitlines()[0]]


@dataclass
class Worker:
    """A process that does one item."""

    item: Item
    process: BaseProcess
    log: Path
    slot: int
    ends: float  # monotonic time at which its limit has passed
    stopped: str | None = None  # why it was told to end
    started: float = field(default_factory=time.monotonic)

    def lines(self) -> list[str]:
        """What it has printed, without empty lines."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    def cause(self) -> str:
        """Why it did not end well."""
        lines, code = self.lines(), self.process.exitcode or 0
        told = [i for i, line in enumerate(lines) if line.startswith("error: ")]
        if self.stopped:
            return self.stopped
        if told:
            return "\n".join(lines[told[0] :]).removeprefix("error: ")
        return ending(code) + (f"; its last words: {lines[-1]}" if lines else "")

    def settle(self) -> None:
        """See to it that whoever asks is told how the item ended."""
        pid, self.item.error = self.process.ident or 0, None
        if self.process.exitcode == LOST:
            with suppress(ProcessLookupError):  # it may have outlived its server
                os.kill(pid, signal.SIGKILL)
        if self.process.exitcode != 0 or self.item.status() != RunState.DONE:
            self.item.error = self.cause()
            ended = RunState.INTERRUPTED if self.stopped else RunState.FAILED
            for job in self.item.jobs:
                with suppress(OSError):  # a full disk; the table says it all the same
                    mark_ended(job.directory, pid, ended, self.item.error)


class View:
    """A bar and a line for each job at work on a terminal; a line as each job ends elsewhere."""

    def __init__(self, total: int, slots: int) -> None:
        self.count, self.causes = 0, set[str]()
        self.bar = tqdm(total=total, desc="sweep", unit="run", position=slots, disable=None)
        self.lines = [tqdm(bar_format="{desc}", position=i, disable=None) for i in range(slots)]

    def show(self, working: Sequence[Worker]) -> None:
        """The last words of each."""
        if self.bar.disable:
            return
        busy = {worker.slot: worker for worker in working}
        width = shutil.get_terminal_size().columns
        for slot, line in enumerate(self.lines):
            said = ""
            if slot in busy:
                *_, arm, seed = busy[slot].item.directory.parts
                said = " ".join([arm[:30], seed, *busy[slot].lines()[-1:]])
            line.set_description_str(said[: width - 1])
        self.bar.refresh()

    def started(self, item: Item) -> None:
        """Tell it where no line of its own does."""
        if self.bar.disable:
            print(f"starting {item.directory}", flush=True)

    def ended(self, worker: Worker) -> None:
        """Tell how."""
        self.bar.update()
        self.count += 1
        item, count = worker.item, f"[{self.count}/{self.bar.total}]"
        path, found, number, error = item.cells()
        if found != RunState.DONE:
            cause = item.error or error
            again = cause in self.causes and "\n" in cause
            self.causes.add(cause)
            told = f"{error} … (as above)" if again else cause
            tqdm.write(f"{count} error: {path}: {found}: {told}", file=sys.stderr)
        elif any("done already" in line for line in worker.lines()):
            tqdm.write(f"{count} {path}: done already, nothing to do, {number}")
        else:
            minutes = (time.monotonic() - worker.started) / 60
            tqdm.write(f"{count} {path}: done in {minutes:.1f} min, {number}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        for line in (*self.lines, self.bar):
            line.leave = False
            line.close()


def run(items: Sequence[Item]) -> None:
    """Do every item that is not done, as many at a time as `slots` gives, and tell how all stand.

    A run that another process is writing is waited for, and so is one whose view 0 is wanted.

    Raises:
        DataFault: not all are done in the end.
        Interrupted: after every job was stopped, with its record saying so.
    """
    began = time.monotonic()
    try:
        _drive(items)
    except Interrupted:
        print(table(items, time.monotonic() - began))
        print("The same command goes on from here, saved epochs included.")
        raise
    conclude(items, time.monotonic() - began)


def _drive(items: Sequence[Item]) -> None:
    config = items[0].jobs[0].config
    devices = slots([item.jobs[-1].config for item in items])[: len(items)]
    free = list(range(len(devices)))
    limit = config.time_limit * 60 if config.time_limit else float("inf")
    context = fork_server(PRELOADED)
    waiting, working, told = list(items), list[Worker](), False
    view = View(len(items), len(devices))
    with tempfile.TemporaryDirectory(prefix="leukocls-") as logs, closing(view):
        try:
            while waiting or working:
                while free and (item := _next(waiting, working)):
                    waiting.remove(item)
                    log = Path(logs) / f"{time.monotonic_ns()}.txt"
                    log.touch()
                    slot = free.pop(0)
                    wanted = (item.jobs, log, dict(os.environ), devices[slot])
                    process = context.Process(target=_work, args=wanted)
                    process.start()  # the first one waits for the imports
                    working.append(Worker(item, process, log, slot, time.monotonic() + limit))
                    view.started(item)
                view.show(working)
                if waiting and not working and not told:
                    told = True
                    print(f"waiting for runs that other processes write: {len(waiting)}")
                ended = wait([worker.process.sentinel for worker in working], POLL_S)
                for worker in [w for w in working if w.process.sentinel in ended]:
                    worker.process.join()
                    working.remove(worker)
                    free.append(worker.slot)
                    if worker.process.exitcode == BUSY:
                        worker.item.waits_until = time.monotonic() + RETRY_S
                        waiting.append(worker.item)
                    else:
                        worker.settle()
                        view.ended(worker)
                for worker in working:
                    _enforce(worker, config.time_limit)
        finally:
            _stop(working)


def conclude(items: Sequence[Item], seconds: float) -> None:
    """Tell how every item stands. Raises DataFault: not all are done."""
    print(table(items, seconds))
    if missing := sum(item.status() != RunState.DONE for item in items):
        raise DataFault(
            f"{missing} of {len(items)} runs are not done; the same command runs just those."
        )


def unfinished(items: Sequence[Item]) -> list[list[Item]]:
    """Those that are not done, looked at as closely as a run looks at itself, and as it raises:
    first what waits for nothing, then what scores runs of the first."""
    first = [item for item in items if item.jobs[-1].source is None]
    with ProcessPoolExecutor(
        len(os.sched_getaffinity(0)), mp_context=fork_server(PRELOADED)
    ) as pool:

        def to_do(some: Sequence[Item]) -> list[Item]:
            done = pool.map(are_done, [item.jobs for item in some])
            return [item for item, is_done in zip(some, done, strict=True) if not is_done]

        missing = to_do(first)
        unmade = {item.directory for item in missing}
        later = [item for item in items if item not in first]
        waiting = [item for item in later if item.jobs[-1].source in unmade]
        at_once = to_do([item for item in later if item not in waiting])
    return [missing + at_once, waiting]


def _next(waiting: Sequence[Item], working: Sequence[Worker]) -> Item | None:
    """The first item that can be started now."""
    unfinished = {item.directory for item in (*waiting, *(worker.item for worker in working))}
    for item in waiting:
        wanted = item.jobs[-1].source
        if wanted in unfinished or item.waits_until > time.monotonic():
            continue
        if is_locked(item.directory):
            item.waits_until = time.monotonic() + RETRY_S
            continue
        return item
    return None


def _work(jobs: list[Job], log: Path, environment: dict[str, str], gpus: str | None) -> None:
    """The life of a job's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep says when to end
    stream = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    for text in (sys.stdout, sys.stderr):  # files, where Python would wait for a full buffer
        text.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment | ({"CUDA_VISIBLE_DEVICES": gpus} if gpus else {}))
    tqdm.set_lock(threading.RLock())  # a lock among processes would be leaked by one that is killed
    end_with_parent(signal.SIGTERM)
    with signals(signal.SIGTERM):
        try:
            code = run_jobs(jobs)
        except Interrupted as stop:
            code = stop.code
        except RunLocked:
            code = BUSY
    sys.exit(code)


def _enforce(worker: Worker, minutes: float) -> None:
    now = time.monotonic()
    if now < worker.ends:
        return
    if worker.stopped is None:
        worker.stopped = f"ran past time_limit={minutes} minutes"
        worker.ends = now + GRACE_S
        worker.process.terminate()
    else:
        worker.process.kill()


def _stop(working: Sequence[Worker]) -> None:
    """End what still works: asked first, then made to."""
    for worker in working:
        worker.stopped = "the sweep was stopped"
        worker.process.terminate()
    deadline = time.monotonic() + GRACE_S
    try:
        for worker in working:
            worker.process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in working:
            worker.process.kill()
            worker.process.join()
            worker.settle()


def table(items: Sequence[Item], seconds: float) -> str:
    """How every item stands, and how many do."""
    rows = [item.cells() for item in items]
    counts = Counter(row[1] for row in rows)
    parts = [f"{counts.pop(RunState.DONE, 0)} of {len(rows)} runs done"]
    parts += [f"{count} {name}" for name, count in counts.items()]
    header = ["run", "status", "weighted F1", "first error"]
    return f"\n{aligned([header, *rows])}\n\n{', '.join(parts)}, {seconds / 60:.1f} min"


def slots(configs: Sequence[DictConfig]) -> list[str | None]:
    """The GPUs that each of the jobs at work sees; None where it is not told what to see.

    Raises:
        LeukoclsError: a number out of range, or several of what is one for a sweep; too few GPUs.
    """
    config = configs[0]
    for name, kind in (("jobs", int), ("jobs_per_gpu", int), ("time_limit", int | float)):
        value = config[name]
        if value is not None and not (isinstance(value, kind) and value > 0):
            raise LeukoclsError(f"{name}={value}: choose more than 0.")
    for one in configs:
        if not (isinstance(one.threads, int) and one.threads > 0):
            raise LeukoclsError(f"threads={one.threads}: choose a whole number of at least 1.")
        if (one.trainer.devices, one.trainer.accelerator) != (
            config.trainer.devices, config.trainer.accelerator,
        ):  # fmt: skip
            raise LeukoclsError("trainer.devices, trainer.accelerator: one for all of a sweep.")
    devices, shared = config.trainer.devices, config.jobs_per_gpu
    each = devices if isinstance(devices, int) and devices > 0 else None
    gpus = visible_gpus() if config.trainer.accelerator in ("auto", "gpu", "cuda") else []
    found: list[str | None]
    if gpus and each:
        groups = [gpus[i : i + each] for i in range(0, len(gpus) - each + 1, each)]
        found = [",".join(group) for _ in range(shared) for group in groups]
    elif gpus:  # all of them, or those that are named
        found = [None] * shared
    else:
        threads = max(one.threads for one in configs) * (each or 1)
        found = [None] * max(1, len(os.sched_getaffinity(0)) // threads)
    if not found:
        raise LeukoclsError(f"trainer.devices={devices}: only {len(gpus)} GPUs are visible here.")
    return [found[i % len(found)] for i in range(config.jobs or len(found))]


def visible_gpus() -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES names them, found without touching CUDA."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() not in ("", "-1")]
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return listed.stdout.split()
    return []


def planned(items: Sequence[Item]) -> str:
    """What would be run, what is done of it by its record, and what the rest takes.

    Nothing is written, and no data looked at.
    """
    from leukocls.estimate import Cost, cost  # it times a batch, which takes torch

    left, rows = Cost(0, 0), []
    for item in items:
        found, about = item.status(), "–"
        if found == RunState.DONE and not as_recorded(item.jobs[-1]):
            found = RunState.REFUSED
        if found != RunState.DONE or item.jobs[-1].config.force:
            jobs = [
                job
                for job in item.jobs
                if job.config.force or Item([job]).status() != RunState.DONE
            ]
            estimated = cost(jobs or item.jobs)
            left += estimated
            about = duration(estimated.seconds)
        rows.append([str(item.directory), found, about])
    done = sum(row[1] == RunState.DONE for row in rows)
    free = shutil.disk_usage(
        next(p for p in items[0].directory.absolute().parents if p.is_dir())
    ).free
    at_once = min(
        len(slots([item.jobs[-1].config for item in items])), max(1, sum(r[2] != "–" for r in rows))
    )
    return (
        f"{aligned([['run', 'status', 'takes about'], *rows])}\n\n"
        f"{len(rows)} {'run' if len(rows) == 1 else 'runs'}, {done} done; the rest takes about"
        f" {duration(left.seconds / at_once)} ({at_once} at a time) and {left.size / 1e9:.1f} GB"
        f" ({free / 1e9:.1f} GB are free)."
        "\nEstimated from the arm's finished runs, or from one timed batch on this machine; no data"
        " was looked at."
    )


def as_recorded(job: Job) -> bool:
    """Whether the run in the job's directory was made with the same settings; of a scored
    checkpoint, whose recipe is its own, that is not asked."""
    recorded = read_record(job.directory).get("identity")
    return bool(job.config.checkpoint) or recorded == settings_of(job.config)


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
