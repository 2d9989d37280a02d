"""`python -m leukocls.train`: one run, or with -m a sweep of them. Hydra composes, we run."""

import atexit
import os
import re
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from leukocls.artifacts.record import now
from leukocls.job import Interrupted, composed, exit_code_of, message_of, run_jobs, signals
from leukocls.sweep import Item, planned

# Read when torch is loaded. OpenMP threads that spin while they wait train a small network ten
# times slower as soon as another process wants a core; asleep they cost it a third when none does.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

PACKAGE = Path(__file__).parent
# Inside an installed package, beside it in a checkout.
CONF = next(p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir())


def _private_directory() -> str:
    """Where Hydra may write what it insists on writing: it holds every override, secrets too."""
    path = tempfile.mkdtemp(prefix="leukocls-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def quoted_path(argument: str) -> str:
    """An override whose value is an existing path, so that Hydra reads `,` and `=` in it as text.

    Run directories hold both.
    """
    key, equals, value = argument.partition("=")
    if equals and re.search(r"[=,\s()\[\]{}]", value) and '"' not in value and Path(value).exists():
        return f'{key}="{value}"'
    return argument


def attempt(config: DictConfig) -> int:
    """What one command is without -m. Returns its exit code."""
    try:
        jobs = composed(config, HydraConfig.get(), now())
        if config.plan:
            print(planned([Item(jobs)]))
            return 0
        return run_jobs(jobs)
    except Exception as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return exit_code_of(error)


def main() -> None:
    """The command line. Exits 0, 1 (a job failed), 2 (usage, refusal), 130 or 143 (interrupted)."""
    codes: list[int] = []

    def task(config: DictConfig) -> None:
        codes.append(attempt(config))

    sys.argv[1:] = [quoted_path(argument) for argument in sys.argv[1:]]
    OmegaConf.register_new_resolver(
        "private_directory", _private_directory, use_cache=True, replace=True
    )
    # Hydra then hands its errors on instead of printing a trace of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    warnings.filterwarnings("ignore", module="hydra")
    entry = hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(task)
    try:
        with signals(signal.SIGINT, signal.SIGTERM):
            entry()
    except Interrupted as stop:
        print(f"error: {stop}", file=sys.stderr)
        sys.exit(stop.code)
    except Exception as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        sys.exit(exit_code_of(error))
    sys.exit(max(codes, default=0))


if __name__ == "__main__":
    main()
