"""Hydra's launchers for sweeps (-m). Hydra finds launchers in packages of this name only."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, setup_globals
from hydra.plugins.launcher import Launcher

# Every Hydra program of the environment imports this module, so leukocls is imported when used.
try:
    from hydra_plugins.hydra_submitit_launcher import submitit_launcher as submitit
except ImportError:  # the extra `slurm`
    submitit = None


class ProcessLauncher(Launcher):
    """Runs each job in a process of this machine: `launcher=processes`."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from leukocls.artifacts.record import now

        self.since, self.swept = now(), _swept(job_overrides)
        jobs = _sweep_jobs(self, job_overrides)
        if jobs[0].result.config.plan:
            _print_plan(jobs)
        else:
            from leukocls.launch.sweep import run_sweep

            run_sweep(jobs)
        return []


if submitit is not None:

    class Submitted:
        """Shared by submitit's two launchers: leukocls decides directories, skips and results."""

        def launch(self: Any, job_overrides: Any, initial_job_idx: int) -> Sequence[JobReturn]:
            from submitit.core.utils import FailedJobError, UncompletedJobError

            from leukocls.artifacts.record import now
            from leukocls.common.errors import LeukoclsError
            from leukocls.common.processes import Interrupted
            from leukocls.launch.sweep import conclude, unfinished

            began, self.since, self.swept = time.monotonic(), now(), _swept(job_overrides)
            jobs = _sweep_jobs(self, job_overrides)
            config = jobs[0].result.config
            if config.plan:
                _print_plan(jobs)
                return []
            if config.jobs or config.time_limit:
                raise LeukoclsError(
                    "jobs=, time_limit=: options of launcher=processes; a queue has"
                    " hydra.launcher.array_parallelism and hydra.launcher.timeout_min."
                )
            try:
                for group in unfinished(jobs):
                    if group:
                        super().launch([job.result.overrides for job in group], initial_job_idx)  # type: ignore[misc]
            except Interrupted:
                print("error: the jobs in the queue go on without this command", file=sys.stderr)
                raise
            except (FailedJobError, UncompletedJobError) as error:
                *_, last = str(error).strip().splitlines()
                message = "a job died; others may still be in the queue, and go on"
                print(f"error: {message}: {last}", file=sys.stderr)
            conclude(jobs, time.monotonic() - began)
            return []

        def __call__(self: Any, overrides: Any, *job: Any) -> int:
            """Run one job of the queue; the last of `job` is the state of Hydra's singletons."""
            from leukocls.artifacts.run_dir import RunLocked
            from leukocls.launch.job import run_jobs
            from leukocls.launch.worker import LOCKED

            Singleton.set_state(job[-1])
            (sweep_job,) = _sweep_jobs(self, [overrides])
            try:
                return run_jobs(sweep_job.phases)
            except RunLocked as error:
                print(f"error: {error}", file=sys.stderr)
                return LOCKED

    class SlurmLauncher(Submitted, submitit.SlurmLauncher):
        """Runs each job as a job of a SLURM cluster: `launcher=slurm`."""

    class LocalLauncher(Submitted, submitit.LocalLauncher):
        """Does what SlurmLauncher does by processes of this machine: `launcher=submitit`."""


def _print_plan(jobs: list[Any]) -> None:
    from leukocls.launch.plan import planned

    print(planned(jobs))


def _swept(job_overrides: Sequence[Sequence[str]]) -> list[str]:
    """The keys in which the jobs of a sweep differ, in the order of the command line."""
    from leukocls.artifacts.identity import key_of

    equal = set[str]().union(*job_overrides).intersection(*job_overrides)
    return [key_of(o) for o in next(iter(job_overrides), []) if o not in equal]


def _sweep_jobs(launcher: Any, job_overrides: Sequence[Sequence[str]]) -> list[Any]:
    """The jobs of a sweep, each with a directory of its own.

    Raises:
        LeukoclsError: two jobs would share a directory, or as a job raises.
    """
    from leukocls.common.errors import LeukoclsError
    from leukocls.launch.job import composed
    from leukocls.launch.worker import SweepJob

    if not job_overrides:
        raise LeukoclsError("nothing to run: a list or range of the command line is empty.")
    setup_globals()
    load = launcher.hydra_context.config_loader.load_sweep_config
    jobs: dict[Any, SweepJob] = {}
    for overrides in job_overrides:
        config = load(launcher.config, list(overrides))
        node = config.hydra
        del config.hydra
        job = SweepJob(composed(config, node, launcher.since, launcher.swept), launcher.swept)
        same = jobs.setdefault(job.directory, job)  # a job may be named twice, if it is the same
        if same.result.config != job.result.config:
            first, second = set(same.result.overrides), set(job.result.overrides)
            raise LeukoclsError(
                f"{job.directory}: {' '.join(first - second)} and {' '.join(second - first)} would"
                " be one run; such keys are no part of a run's directory, so give each command its"
                " own outputs=."
            )
    return list(jobs.values())
