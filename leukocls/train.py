"""Train: `python -m leukocls.train key=value …` makes one run, and with -m a sweep of runs.

Hydra composes the configuration; leukocls runs it.
"""

import atexit
import os
import re
import shutil
import sys
import tempfile
import warnings
from functools import wraps
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from leukocls.artifacts.record import now
from leukocls.common.processes import INTERRUPTS, Interrupted, interruptible
from leukocls.common.terminal import OutputClosed, printable, printable_output
from leukocls.launch.job import composed, exit_code_of, message_of, run_jobs
from leukocls.launch.settings import CONF, check_hydra, check_secrets

# Read when torch is loaded. OpenMP threads that spin while they wait train a small network ten
# times slower as soon as another process wants a core; sleeping ones cost a third when none does.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _private_directory() -> str:
    """A directory for the files that Hydra must write: they hold every override, secrets too."""
    path = tempfile.mkdtemp(prefix="leukocls-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def quoted_path(argument: str) -> str:
    """Quote the value of an override that is an existing path: run directories hold `,` and `=`."""
    key, equals, value = argument.partition("=")
    if (
        equals
        and re.search(r"[=,\s()\[\]{}]", value)
        and '"' not in value
        and os.path.exists(value)
    ):
        return f'{key}="{value}"'
    return argument


def _checked(compose: Any) -> Any:
    """Hydra's composition, followed by our checks; Hydra has no place for them before it acts."""

    @wraps(compose)
    def compose_and_check(*args: Any, overrides: list[str], **options: Any) -> DictConfig:
        config = compose(*args, overrides=overrides, **{**options, "with_log_configuration": False})
        check_secrets(OmegaConf.masked_copy(config, [k for k in config if k != "hydra"]), overrides)
        check_hydra(config.hydra, overrides)
        return config

    return compose_and_check


def run_once(config: DictConfig) -> int:
    """Run a command without -m, or print its plan. Returns the exit code."""
    try:
        jobs = composed(config, HydraConfig.get(), now())
        if config.plan:
            from leukocls.launch.plan import planned
            from leukocls.launch.worker import SweepJob

            print(planned([SweepJob(jobs)]))
            return 0
        return run_jobs(jobs)
    except Exception as error:
        print(f"error: {printable(message_of(error))}", file=sys.stderr)
        return exit_code_of(error)


def main() -> None:
    """The command line. Exits 0, 1 (a job failed), 2 (usage, refusal), or 128 + a signal."""
    codes: list[int] = []

    def task(config: DictConfig) -> None:
        codes.append(run_once(config))

    sys.argv[1:] = [quoted_path(argument) for argument in sys.argv[1:]]
    OmegaConf.register_new_resolver(
        "private_directory", _private_directory, use_cache=True, replace=True
    )
    # Hydra then raises its errors instead of printing a traceback of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    warnings.filterwarnings("ignore", module="hydra")
    entry = hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(task)
    composes: Any = Hydra.compose_config
    setattr(Hydra, "compose_config", _checked(composes))  # noqa: B010
    try:
        with interruptible(*INTERRUPTS), printable_output():
            entry()
    except OutputClosed as stop:
        sys.exit(stop.code)
    except Interrupted as stop:
        print(f"error: {stop}", file=sys.stderr)
        sys.exit(stop.code)
    except Exception as error:
        print(f"error: {printable(message_of(error))}", file=sys.stderr)
        sys.exit(exit_code_of(error))
    finally:
        setattr(Hydra, "compose_config", composes)  # noqa: B010
    sys.exit(max(codes, default=0))


if __name__ == "__main__":
    main()
