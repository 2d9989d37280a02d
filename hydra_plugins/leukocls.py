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
            from leukocls import sweep

            began = time.monotonic()
            items = _items(self, job_overrides)
            if items[0].jobs[0].config.plan:
                print(sweep.planned(items))
                return []
            to_do = [item.jobs[-1].overrides for item in sweep.unfinished(items)]
            try:
                if to_do:
                    super().launch(to_do, initial_job_idx)  # type: ignore[misc]
            except Exception as error:
                print(
                    f"error: a job died; others may still be in the queue, and go on: {error}",
                    file=sys.stderr,
                )
            sweep.conclude(items, time.monotonic() - began)
            return []

        def __call__(self: Any, overrides: Any, *job: Any) -> int:
            """The life of a job; the last of `job` is what Hydra's singletons were."""
            from leukocls.job import run_jobs

            Singleton.set_state(job[-1])
            (item,) = _items(self, [overrides])
            return run_jobs(item.jobs)

    class SlurmLauncher(Submitted, submitit.SlurmLauncher):
        """As jobs of a cluster: `launcher=slurm`."""

    class LocalLauncher(Submitted, submitit.LocalLauncher):
        """The same by processes of this machine: `launcher=submitit`."""


def _items(launcher: Any, job_overrides: Sequence[Sequence[str]]) -> list[Any]:
    """The jobs of a sweep, each with a directory of its own. Raises LeukoclsError as these do."""
    from leukocls.job import composed
    from leukocls.sweep import Item

    setup_globals()
    load = launcher.hydra_context.config_loader.load_sweep_config
    items: dict[Any, Item] = {}
    for overrides in job_overrides:
        config = load(launcher.config, list(overrides))
        node = config.hydra
        del config.hydra
        item = Item(composed(config, node))
        items.setdefault(item.directory, item)  # the same run may be named twice
    return list(items.values())
