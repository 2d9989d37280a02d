"""One run from the command line: which directory, what is refused, done or resumed, how it ends."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from leukocls.artifacts.identity import IN_PATH, arm_name, is_neutral, key_of
from leukocls.artifacts.record import RunState
from leukocls.artifacts.run_dir import RunDir, RunLocked, logged_to, run_weights
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.common.files import sha256_file
from leukocls.evaluation.scoring import ScoringOptions, metrics_of, scored_parts
from leukocls.reporting.tables import result_text
from leukocls.tracking.follow import check_logger, followed

if TYPE_CHECKING:
    from leukocls.training.inputs import ScoreInputs, TrainInputs

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
    since: str = ""  # when the command was given: what force=true replaces is older

    @cached_property
    def directory(self) -> Path:
        """`outputs/<experiment>/<arm>/seed_<nnn>`. Raises LeukoclsError: no such checkpoint."""
        experiment, arm, seed = self.experiment, self.ablation, f"seed_{self.config.seed:03d}"
        if self.config.checkpoint:
            # A scored run stands beside the run that was trained.
            weights = run_weights(self.config.checkpoint).resolve()
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
                override = f"{key}={sha256_file(run_weights(given, key, 'last'))[:8]}"
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

    def chain(self, last: str | None) -> list[Job]:
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
        if self.config.rescore_from:
            raise LeukoclsError(
                "rescore_from: not for a chain of runs; `evaluate RUN --views 0` scores its view 0."
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

    @cached_property
    def source(self) -> Path | None:
        """The run whose view 0 this one is, if it is one."""
        if self.config.rescore_from is None:
            return None
        own = [o for o in self.overrides if key_of(o) != "rescore_from"]
        return replace(self, ablation=self.config.rescore_from, overrides=own).directory


def composed(config: DictConfig, hydra_node: Any, since: str) -> list[Job]:
    """The runs that one composed command, given at `since`, makes, in order.

    Raises:
        LeukoclsError: no such seed; of a chain, a link that cannot be.
    """
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        raise LeukoclsError(f"seed={config.seed}: choose a whole number from 0 to 2**32 - 1.")
    choices, overrides = hydra_node.runtime.choices, _canonical(hydra_node.overrides.task)
    if config.rescore_from is not None:
        config.views = 1  # whatever number the other run was scored with
    job = Job(
        config, choices["experiment"] or "default", choices["ablation"], overrides, since=since
    )
    return job.chain(choices["link"])


def _canonical(overrides: Iterable[str]) -> list[str]:
    """Overrides as a sweep has them: each key once, values spelled alike (False for false, 0.001
    for 1e-3). A run alone and the same run of a sweep are one directory."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    last = {override.get_key_element(): override for override in parsed}
    return [
        key if override.is_delete() else f"{key}={override.get_value_element_as_str()}"
        for key, override in last.items()
    ]


def run_jobs(jobs: list[Job]) -> int:
    """Do one run, or a chain of them. Returns the exit code; what went wrong is printed.

    Raises:
        RunLocked: another process is writing one of them.
    """
    try:
        for job in jobs:
            run_job(job)
    except RunLocked:
        raise
    except Exception as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return exit_code_of(error)
    return 0


def are_done(jobs: list[Job]) -> bool:
    """Whether each run is done and whole. Raises LeukoclsError: another one is in its place."""
    from leukocls.training.inputs import inputs_of

    def is_done(job: Job) -> bool:
        run = _run_dir(job, inputs_of(job.config))
        return run.state(job.config.force, job.since) == RunState.DONE

    return all(map(is_done, jobs))


def run_job(job: Job) -> None:
    """Do one run: skip it if it is done, resume it if it stopped, else start it.

    Raises:
        LeukoclsError: a refusal or a fault, in one message; nothing claims to be finished.
    """
    # Torch and Lightning are imported here so that mistakes in the command are told at once.
    from leukocls.training.inputs import inputs_of

    config = job.config
    check_logger(config.logger)
    if config.checkpoint:
        job.refuse_a_recipe()
    inputs = inputs_of(config)
    run = _run_dir(job, inputs)
    with run.locked():
        state = run.state(config.force, job.since)
        if state == RunState.DONE:
            print(f"{run.directory}: done already, nothing to do (force=true runs it again)")
            print_result(run.directory)
            return
        _execute(job, inputs, run, resume=state == RunState.INTERRUPTED and config.resume)


def _run_dir(job: Job, inputs: TrainInputs | ScoreInputs) -> RunDir:
    """The run directory of a job with these inputs."""
    from leukocls.training.rescore import rescored_input

    digests = inputs.digests | (rescored_input(job.source) if job.source else {})
    return RunDir(job.directory, inputs.config, digests)


def print_result(directory: Path) -> None:
    """Print the metrics of a run's selected epoch, as `evaluate` does, and its directory."""
    for part in scored_parts(directory, ScoringOptions()):
        print("\n" + result_text(metrics_of(part)))
    print(f"\n{directory}")


def _execute(job: Job, inputs: TrainInputs | ScoreInputs, run: RunDir, resume: bool) -> None:
    from leukocls.training.fit import fit, score
    from leukocls.training.inputs import ScoreInputs
    from leukocls.training.rescore import rescore

    if resume:
        run.resume(**inputs.facts())
    else:
        run.start(**inputs.facts())
    # The result is printed before W&B is waited for.
    with logged_to(run.directory / "log.txt"), followed(run.directory, inputs.config.logger):
        try:
            if job.source:
                rescore(run, job.source, inputs.config.selection, inputs.config.threshold)
            elif isinstance(inputs, ScoreInputs):
                score(inputs, run)
            else:
                fit(inputs, run, resume)
        except (Interrupted, SystemExit) as stop:  # the latter when a cluster takes the job back
            run.end(RunState.INTERRUPTED, str(stop))
            raise
        except Exception as error:
            run.end(RunState.FAILED, f"{type(error).__name__}: {error}")
            raise
        print_result(run.directory)


@contextmanager
def signals(*numbers: int) -> Iterator[None]:
    """Let these signals raise Interrupted; Lightning keeps handlers it finds installed."""

    def stop(number: int, frame: Any) -> None:
        raise Interrupted(128 + number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code_of(error: Exception) -> int:
    """2 for what the command or its configuration got wrong, 1 for the rest."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return LeukoclsError.exit_code
    return getattr(error, "exit_code", DataFault.exit_code)


def message_of(error: Exception) -> str:
    """What to tell of an error: file, cause and remedy as far as they are known."""
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
