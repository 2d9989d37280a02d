"""`python -m leukocls.train`: one run, or with -m a sweep of them. Hydra composes, we run."""

import atexit
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from leukocls.errors import DataFault, LeukoclsError
from leukocls.files import sha256_file
from leukocls.run import IN_PATH, arm_name, is_neutral, key_of, logged, weights_of

# Read when torch is loaded. OpenMP threads that spin while they wait train a small network ten
# times slower as soon as another process wants a core; asleep they cost it a third when none does.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

PACKAGE = Path(__file__).parent
# Inside an installed package, beside it in a checkout.
CONF = next(p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir())
# What may be said when a checkpoint is scored, besides what changes no result.
SCORING = {"score", "experiment", "data", "trainer"}
CELLS_OF_TRAINING = {"data.crop", "data.size", "data.n_subjects", "data.n_cells"}


class Interrupted(BaseException):
    """SIGINT or SIGTERM; `code` is the exit code, 128 + the signal."""

    def __init__(self, code: int) -> None:
        super().__init__(f"interrupted (exit code {code})")
        self.code = code


@dataclass(frozen=True)
class Job:
    """One run as Hydra composed it."""

    config: DictConfig
    experiment: str
    ablation: str
    overrides: list[str]
    link: str | None = None  # of a chain, all but its last

    @cached_property
    def directory(self) -> Path:
        """`outputs/<experiment>/<arm>/seed_<nnn>`. Raises LeukoclsError: no such checkpoint."""
        experiment, arm, seed = self.experiment, self.ablation, f"seed_{self.config.seed:03d}"
        if self.config.checkpoint:
            # A scored run stands beside the run that was trained.
            weights = weights_of(self.config.checkpoint).resolve()
            experiment, arm, seed = weights.parent.parent.parts[-3:]
            which = "" if weights.stem == "best" else f"{weights.stem},"
            arm = f"score={self.config.score},{which}{arm}"
        elif self.link:
            arm = f"link={self.link},{arm}"
        return Path(self.config.outputs) / experiment / arm_name(arm, self._named()) / seed

    def _named(self) -> list[str]:
        """The overrides, with files to start from named by what they hold, not where they lie."""
        named = []
        for override in self.overrides:
            key = key_of(override)
            given = OmegaConf.select(self.config, key)
            if key == "continue_from" and given:
                override = f"{key}={sha256_file(weights_of(given, key, 'last'))[:8]}"
            elif key == "model.weights" and given:
                # Only here, for it brings torch.
                from leukocls.models.weights import PACKAGED, weights_file

                if given not in PACKAGED:
                    override = f"{key}={sha256_file(weights_file(given))[:8]}"
            named.append(override)
        return named

    def refuse_a_recipe(self) -> None:
        """Raises LeukoclsError: an override of what a scored checkpoint was trained with."""
        for override in self.overrides:
            key = key_of(override)
            said = key.split(".")[0] in SCORING or (is_neutral(key) and key not in IN_PATH)
            if not said or key in CELLS_OF_TRAINING:
                raise LeukoclsError(
                    f"{override}: a checkpoint is scored by the recipe it was trained with; leave"
                    " this out."
                )

    def chain(self, last: str | None) -> list["Job"]:
        """The runs that make this one, in order: one by default, each link of `config.chain` else.

        Every link is composed anew, so that what the command line says goes for all of them.

        Args:
            last: the link to end with; None for the chain's own last.

        Raises:
            LeukoclsError: a link that is not in the chain, or that continues none before it.
        """
        links = list(self.config.chain or {})
        if last is not None and last not in links:
            known = f"choose one of {', '.join(links)}" if links else "leave it out"
            raise LeukoclsError(
                f"link={last}: experiment={self.experiment} is no chain of runs with that link;"
                f" {known}."
            )
        if not links or self.config.checkpoint:
            return [self]
        if self.config.view_0_of:
            raise LeukoclsError(
                "view_0_of: not for a chain of runs; `evaluate RUN --views 0` scores its view 0."
            )
        jobs: dict[str, Job] = {}
        for link, before in self.config.chain.items():
            config = hydra.compose("train", [*self.overrides, f"link={link}"])
            jobs[link] = job = replace(
                self, config=config, link=link if link != links[-1] else None
            )
            if before is not None and before not in list(jobs)[:-1]:
                raise LeukoclsError(f"chain.{link}={before}: choose a link that comes before it.")
            if before:
                job.config.continue_from = str(jobs[before].directory)
            if link == last:
                break
        return list(jobs.values())

    @property
    def source(self) -> Path | None:
        """The run whose view 0 this one is, if it is one."""
        if self.config.view_0_of is None:
            return None
        own = [o for o in self.overrides if key_of(o) != "view_0_of"]
        return replace(self, ablation=self.config.view_0_of, overrides=own).directory


def run_job(job: Job) -> None:
    """Do one run: skip it if it is done, resume it if it stopped, else start it.

    Raises:
        LeukoclsError: a refusal or a fault, in one message; nothing claims to be finished.
    """
    # Torch and Lightning are imported here so that mistakes in the command are told at once.
    from leukocls.session import Session

    config = job.config
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        raise LeukoclsError(f"seed={config.seed}: choose a whole number from 0 to 2**32 - 1.")
    if config.checkpoint:
        job.refuse_a_recipe()
    if config.view_0_of is not None:
        config.views = 1  # whatever number the other run was scored with
    session = Session(config)
    run = session.run(job.directory)
    with run.locked():
        state = run.earlier(config.force)
        if state == "done":
            print(f"{run.directory}: done already, nothing to do (force=true runs it again)")
            session.print_result(run)
            return
        _do(session, run, job.source, resume=state == "stopped" and config.resume)


def _do(session: Any, run: Any, source: Path | None, resume: bool) -> None:
    from leukocls.view_zero import derive

    facts = session.facts()
    if resume:
        run.resume(**facts)
    else:
        run.start(session.config, **facts)
    with logged(run.directory / "log.txt"):
        try:
            if source:
                derive(run, source, session.config.selection, session.config.threshold)
            else:
                session.execute(run, resume)
        except Interrupted as stop:
            run.end("interrupted", str(stop))
            raise
        except Exception as error:
            run.end("failed", f"{type(error).__name__}: {error}")
            raise
        session.print_result(run)


@contextmanager
def _signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise Interrupted; Lightning keeps handlers it finds installed."""

    def stop(number: int, frame: Any) -> None:
        raise Interrupted(128 + number)

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def _message(error: Exception) -> str:
    if os.environ.get("LEUKOCLS_TRACEBACK") == "1":
        traceback.print_exception(error)
    if isinstance(error, LeukoclsError | HydraException | OmegaConfBaseException):
        # Where Hydra looked for its files helps nobody who mistyped a name.
        told = re.split(r"\nConfig search path|\nSee https", str(error))[0].strip()
        if isinstance(error, OverrideParseException):
            told += "\nA value with a comma, an equals sign or a space is quoted: 'key=\"value\"'"
        return told
    if isinstance(error, OSError) and error.filename is not None:
        advice = "Choose another outputs= or data.cache=, or make room there."
        return f"{error.filename}: {error.strerror}. {advice}"
    hint = "LEUKOCLS_TRACEBACK=1 shows where"
    if "more than 1 value per channel" in str(error):
        hint = "BatchNorm needs a data.batch_size of 2 and more; " + hint
    if "out of memory" in str(error):
        hint = "choose a smaller data.batch_size or data.eval_batch_size; " + hint
    return f"{type(error).__name__}: {error} ({hint})"


def main() -> None:
    """The command line. Exits 0, 1 (a job failed), 2 (usage, refusal), 130 or 143 (interrupted)."""
    codes: list[int] = []
    started = time.monotonic()

    def attempt(config: DictConfig) -> None:
        choices = HydraConfig.get().runtime.choices
        many = HydraConfig.get().mode == RunMode.MULTIRUN
        overrides = list(HydraConfig.get().overrides.task)
        job = Job(config, choices["experiment"] or "default", choices["ablation"], overrides)
        try:
            for one in job.chain(choices["link"]):
                run_job(one)
            codes.append(0)
        except Exception as error:
            # One failed job leaves the others of a sweep alone.
            codes.append(getattr(error, "exit_code", 2 if _is_usage(error) else 1))
            where = f"{' '.join(overrides)}: " if many else ""
            print(f"error: {where}{_message(error)}", file=sys.stderr)

    sys.argv[1:] = [quoted_path(argument) for argument in sys.argv[1:]]
    OmegaConf.register_new_resolver(
        "private_directory", _private_directory, use_cache=True, replace=True
    )
    # Hydra then hands its errors on instead of printing a trace of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    warnings.filterwarnings("ignore", module="hydra")
    entry = hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(attempt)
    try:
        with _signals():
            entry()
    except Interrupted as stop:
        print(f"error: {stop}", file=sys.stderr)
        sys.exit(stop.code)
    except Exception as error:
        print(f"error: {_message(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2 if _is_usage(error) else 1))
    if len(codes) > 1:
        failed = sum(code != 0 for code in codes)
        minutes = (time.monotonic() - started) / 60
        print(
            f"{len(codes) - failed} of {len(codes)} runs done, {failed} failed, {minutes:.1f} min"
        )
        sys.exit(DataFault.exit_code if failed else 0)
    sys.exit(max(codes, default=0))


def _is_usage(error: Exception) -> bool:
    return isinstance(error, HydraException | OmegaConfBaseException)


if __name__ == "__main__":
    main()
