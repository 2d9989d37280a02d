"""A sweep: many jobs, each in a process of its own. A job that dies leaves the others alone."""

import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing.connection import wait
from pathlib import Path

from leukocls.artifacts.record import RunState, is_running_here
from leukocls.common.errors import DataFault
from leukocls.common.processes import Interrupted, fork_server
from leukocls.launch.job import are_done
from leukocls.launch.progress import Progress, table
from leukocls.launch.slots import slots
from leukocls.launch.worker import LOCKED, SweepJob, Worker, stop_all
from leukocls.training import PRELOADED

RETRY_S = 1.0  # seconds until a run that another process writes is tried again
POLL_S = 0.25  # seconds between two looks at the running jobs


def run_sweep(jobs: Sequence[SweepJob]) -> None:
    """Run every job that is not done, as many at a time as `slots` gives, and print all states.

    A run that another process is writing is waited for, and so is one that is to be rescored.

    Raises:
        DataFault: not all jobs are done in the end.
        Interrupted: every job was stopped, and its record says so.
    """
    began = time.monotonic()
    try:
        _drive(jobs)
    except Interrupted:
        print(table(jobs, time.monotonic() - began))
        print("The same command resumes the sweep, saved epochs included.")
        raise
    conclude(jobs, time.monotonic() - began)


def _drive(jobs: Sequence[SweepJob]) -> None:
    config = jobs[0].result.config
    gpus = slots([job.result.config for job in jobs])[: len(jobs)]
    free = list(range(len(gpus)))
    limit = config.time_limit * 60 if config.time_limit else float("inf")
    context = fork_server(PRELOADED)
    waiting, workers, announced = list(jobs), list[Worker](), False
    progress = Progress(len(jobs), len(gpus))
    with tempfile.TemporaryDirectory(prefix="leukocls-") as logs, closing(progress):
        try:
            while waiting or workers:
                while free and (job := _next(waiting, workers)):
                    waiting.remove(job)
                    slot = free.pop(0)
                    workers.append(Worker.start(job, context, Path(logs), slot, gpus[slot], limit))
                    progress.started(job)
                progress.show(workers)
                if waiting and not workers and not announced:
                    announced = True
                    print(f"waiting for runs that other processes write: {len(waiting)}")
                for worker in _ended(workers):
                    workers.remove(worker)
                    free.append(worker.slot)
                    if worker.process.exitcode == LOCKED:
                        worker.job.waits_until = time.monotonic() + RETRY_S
                        waiting.append(worker.job)
                    else:
                        worker.settle()
                        progress.ended(worker)
                for worker in workers:
                    worker.enforce(config.time_limit)
        finally:
            stop_all(workers)


def _ended(workers: Sequence[Worker]) -> list[Worker]:
    """The workers whose processes have ended, waited for up to POLL_S."""
    sentinels = wait([worker.process.sentinel for worker in workers], POLL_S)
    ended = [worker for worker in workers if worker.process.sentinel in sentinels]
    for worker in ended:
        worker.process.join()
    return ended


def _next(waiting: Sequence[SweepJob], workers: Sequence[Worker]) -> SweepJob | None:
    """The first job that can be started now."""
    unfinished = {job.directory for job in (*waiting, *(worker.job for worker in workers))}
    for job in waiting:
        if job.result.source in unfinished or job.waits_until > time.monotonic():
            continue
        if is_running_here(job.directory):
            job.waits_until = time.monotonic() + RETRY_S
            continue
        return job
    return None


def conclude(jobs: Sequence[SweepJob], seconds: float) -> None:
    """Print the state of every job.

    Raises:
        DataFault: not all of them are done.
    """
    print(table(jobs, seconds))
    if missing := sum(job.state() != RunState.DONE for job in jobs):
        raise DataFault(
            f"{missing} of {len(jobs)} runs are not done; the same command runs just those."
        )


def unfinished(jobs: Sequence[SweepJob]) -> list[list[SweepJob]]:
    """The jobs that are not done, in two groups: first those that wait for no other job, then
    those that rescore runs of the first group.

    Every run is checked as thoroughly as when it is run.

    Raises:
        LeukoclsError: as a job raises.
    """
    trained = [job for job in jobs if job.result.source is None]
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, mp_context=fork_server(PRELOADED)) as pool:

        def not_done(some: Sequence[SweepJob]) -> list[SweepJob]:
            done = pool.map(are_done, [job.phases for job in some])
            return [job for job, is_done in zip(some, done, strict=True) if not is_done]

        missing = not_done(trained)
        unmade = {job.directory for job in missing}
        rescored = [job for job in jobs if job not in trained]
        waiting = [job for job in rescored if job.result.source in unmade]
        at_once = not_done([job for job in rescored if job not in waiting])
    return [missing + at_once, waiting]
