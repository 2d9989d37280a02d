"""How Hydra starts a sweep (-m). It finds launchers in packages of this name, and only there."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, setup_globals
from hydra.plugins.launcher import Launcher

# What is imported here is imported by every Hydra program in this environment: hence so little.
try:
    from hydra_plugins.hydra_submitit_launcher import submitit_launcher as submitit
except ImportError:  # the extra `slurm`
    submitit = None


class ProcessLauncher(Launcher):
    """On this machine, a process a job: `launcher=processes`."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from leukocls import sweep
        from leukocls.artifacts.record import now

        self.since = now()
        items = _items(self, job_overrides)
        if items[0].jobs[0].config.plan:
            print(sweep.planned(items))
        else:
            sweep.run(items)
        return []


if submitit is not None:

    class Submitted:
        """What both of submitit's launchers do here: directories, skipping and ends are ours."""

        def launch(self: Any, job_overrides: Any, initial_job_idx: int) -> Sequence[JobReturn]:
            from submitit.core.utils import FailedJobError, UncompletedJobError

            from leukocls import sweep
            from leukocls.artifacts.identity import SECRET, key_of
            from leukocls.artifacts.record import now
            from leukocls.common.errors import LeukoclsError
            from leukocls.job import Interrupted

            began, self.since = time.monotonic(), now()
            items = _items(self, job_overrides)
            config = items[0].jobs[0].config
            if config.plan:
                print(sweep.planned(items))
                return []
            if config.jobs or config.time_limit:
                raise LeukoclsError(
                    "jobs=, time_limit=: of launcher=processes; a queue has"
                    " hydra.launcher.array_parallelism and hydra.launcher.timeout_min."
                )
            for override in items[0].jobs[0].overrides:
                if SECRET.search(key_of(override)):
                    raise LeukoclsError(
                        f"{key_of(override)}: a job in the queue is kept in a file that others may"
                        " read; set it in the environment instead (WANDB_API_KEY)."
                    )
            try:
                for some in sweep.unfinished(items):
                    if some:
                        super().launch([item.jobs[-1].overrides for item in some], initial_job_idx)  # type: ignore[misc]
            except Interrupted:
                print("error: the jobs in the queue go on without this command", file=sys.stderr)
                raise
            except (FailedJobError, UncompletedJobError) as error:
                *_, last = str(error).strip().splitlines()
                told = "a job died; others may still be in the queue, and go on"
                print(f"error: {told}: {last}", file=sys.stderr)
            sweep.conclude(items, time.monotonic() - began)
            return []

        def __call__(self: Any, overrides: Any, *job: Any) -> int:
            """The life of a job; the last of `job` is what Hydra's singletons were."""
            from leukocls.artifacts.run_dir import RunLocked
            from leukocls.job import run_jobs
            from leukocls.sweep import BUSY

            Singleton.set_state(job[-1])
            (item,) = _items(self, [overrides])
            try:
                return run_jobs(item.jobs)
            except RunLocked as error:
                print(f"error: {error}", file=sys.stderr)
                return BUSY

    class SlurmLauncher(Submitted, submitit.SlurmLauncher):
        """As jobs of a cluster: `launcher=slurm`."""

    class LocalLauncher(Submitted, submitit.LocalLauncher):
        """The same by processes of this machine: `launcher=submitit`."""


def _items(launcher: Any, job_overrides: Sequence[Sequence[str]]) -> list[Any]:
    """The jobs of a sweep, each with a directory of its own.

    Raises:
        LeukoclsError: two that would share one, or as a job raises.
    """
    from leukocls.common.errors import LeukoclsError
    from leukocls.job import composed
    from leukocls.sweep import Item

    if not job_overrides:
        raise LeukoclsError("nothing to run: a list or range of the command line is empty.")
    setup_globals()
    load = launcher.hydra_context.config_loader.load_sweep_config
    items: dict[Any, Item] = {}
    for overrides in job_overrides:
        config = load(launcher.config, list(overrides))
        node = config.hydra
        del config.hydra
        item = Item(composed(config, node, launcher.since))
        same = items.setdefault(item.directory, item)  # it may be named twice, if it is the same
        if same.jobs[-1].config != item.jobs[-1].config:
            two = [set(one.jobs[-1].overrides) for one in (same, item)]
            raise LeukoclsError(
                f"{item.directory}: {' '.join(two[0] - two[1])} and {' '.join(two[1] - two[0])}"
                " would be one run; such keys are no part of a run's directory, so give each"
                " command its own outputs=."
            )
    return list(items.values())
