"""A job is one run: its configuration and directory; it is skipped, resumed or started."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from leukocls.artifacts.identity import IN_PATH, arm_name, is_neutral, key_of
from leukocls.artifacts.record import RunState, read_record
from leukocls.artifacts.run_dir import RunDir, RunLocked, logged_to, run_weights
from leukocls.common.errors import DataFault, LeukoclsError, own_text, system_message
from leukocls.common.files import sha256_file
from leukocls.common.terminal import printable
from leukocls.launch.phases import phase_configs
from leukocls.launch.settings import check_settings, is_free, no_such_setting
from leukocls.tracking.follow import check_logger, followed

if TYPE_CHECKING:
    from leukocls.training.inputs import ScoreInputs, TrainInputs

# Keys that may be set when a checkpoint is scored, besides those that change no result.
SCORING = {"score", "experiment", "data", "trainer"}
# What to do about errors of PyTorch and Python, by words in them.
SMALLER = "choose a smaller data.batch_size or data.eval_batch_size"
ADVICE = {
    "more than 1 value per channel": "BatchNorm needs a data.batch_size of 2 and more",
    "out of memory": SMALLER,
    "can't allocate memory": SMALLER,
    "MemoryError": SMALLER,
    "DataLoader worker (pid": "a process that reads images ended (out of memory?);"
    " data.workers=0 needs none",
}
FIXED_BY_TRAINING = {"data.crop", "data.size", "data.n_subjects", "data.n_cells"}


@dataclass(frozen=True)
class Job:
    """One run as its command line defines it.

    Attributes:
        config: its composed configuration.
        directory: `outputs/<experiment>/<arm>/seed_<nnn>`.
        overrides: the command line's, each key once.
        since: time of the command (UTC, ISO 8601): force=true replaces only older runs.
        source: the run whose view 0 this one rescores, if it does.
    """

    config: DictConfig
    directory: Path
    overrides: list[str]
    since: str
    source: Path | None = None


def composed(
    config: DictConfig, hydra_node: Any, since: str, swept: Collection[str] = ()
) -> list[Job]:
    """The runs of one composed command, in order: one, or one for each phase.

    Args:
        config: as conf/train.yaml composes it, without its node `hydra`.
        hydra_node: that node.
        since: time of the command.
        swept: keys that the command's sweep varies.

    Raises:
        LeukoclsError: no such seed, checkpoint, weights file or phase; a recipe for a checkpoint.
    """
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        raise LeukoclsError(f"seed={config.seed}: choose a whole number from 0 to 2**32 - 1.")
    check_settings(config)
    choices, overrides = hydra_node.runtime.choices, _canonical(hydra_node.overrides.task)
    if config.checkpoint:
        return [_scoring_job(config, overrides, since)]
    arms = Path(config.outputs) / (choices["experiment"] or "default")
    named, seed = _named(config, overrides), f"seed_{config.seed:03d}"

    def directory(arm: str, kept: list[str]) -> Path:
        return arms / arm_name(arm, kept, swept, (path.name for path in arms.glob("*"))) / seed

    ablation = choices["ablation"]
    job = Job(config, directory(ablation, named), overrides, since)
    configs = phase_configs(config, overrides, choices.keys())
    if config.rescore_from is not None:
        if configs:
            raise LeukoclsError(
                "rescore_from: not for a run in phases; `evaluate RUN --views 0` scores its view 0."
            )
        config.views = 1  # whatever number the other run was scored with
        own = [o for o in named if key_of(o) != "rescore_from"]
        return [replace(job, source=directory(config.rescore_from, own))]
    if not configs:
        return [job]
    jobs: list[Job] = []
    for name, of_phase in configs.items():
        check_settings(of_phase)
        if jobs and "continue_from" not in config.phases[name]:
            of_phase.continue_from = str(jobs[-1].directory)
        final = name == list(config.phases)[-1]
        place = job.directory if final else directory(f"phase={name},{ablation}", named)
        jobs.append(replace(job, config=of_phase, directory=place))
    return jobs


def _scoring_job(config: DictConfig, overrides: list[str], since: str) -> Job:
    """The job that scores a checkpoint; its directory stands beside the run that was trained."""
    for override in overrides:
        key = key_of(override)
        allowed = key.split(".")[0] in SCORING or (is_neutral(key) and key not in IN_PATH)
        if not allowed or key in FIXED_BY_TRAINING:
            raise LeukoclsError(
                f"{override}: a checkpoint is scored by the recipe it was trained with; leave this"
                " out."
            )
    weights = run_weights(config.checkpoint).resolve()
    experiment, arm, seed = weights.parent.parent.parts[-3:]
    which = "" if weights.stem == "best" else f"{weights.stem},"
    scored = ",".join(filter(None, [f"score={config.score}", _data_name(config.data.root)]))
    name = arm_name(f"{scored},{which}{arm}", [o for o in overrides if key_of(o) != "data"])
    return Job(config, Path(config.outputs) / experiment / name / seed, overrides, since)


def _data_name(root: str | None) -> str:
    """Name of a data set: of its folder, or of its CSV with the folder that it is in."""
    path = Path(root or "").resolve()
    named = f"{path.parent.name}-{path.stem}" if path.is_file() else path.name
    return named if root else ""


def _named(config: DictConfig, overrides: list[str]) -> list[str]:
    """The overrides, with weights files named by the digest of their content, not by their path."""
    named = []
    for override in overrides:
        key = key_of(override)
        value = OmegaConf.select(config, key)
        if key == "continue_from" and value:
            override = f"{key}={sha256_file(run_weights(value, key, 'last'))[:8]}"
        elif key == "model.weights" and value:
            # Imported only here, for it brings torch.
            from leukocls.models.weights import PACKAGED, weights_file

            if value not in PACKAGED:
                override = f"{key}={sha256_file(weights_file(value))[:8]}"
        named.append(override)
    return named


def _canonical(overrides: Iterable[str]) -> list[str]:
    """Overrides as a sweep spells them: each key once, False for false, 0.001 for 1e-3.

    A run alone and the same run of a sweep then share one directory.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    last = {override.get_key_element(): override for override in parsed}
    return [
        key if override.is_delete() else f"{key}={override.get_value_element_as_str()}"
        for key, override in last.items()
    ]


def run_jobs(jobs: list[Job]) -> int:
    """Run the phases of one run in order. Returns the exit code; an error is printed.

    Raises:
        RunLocked: another process is writing one of them.
    """
    try:
        for job in jobs:
            run_job(job)
    except RunLocked:
        raise
    except Exception as error:
        print(f"error: {printable(message_of(error))}", file=sys.stderr)
        return exit_code_of(error)
    return 0


def run_job(job: Job) -> None:
    """Skip a run that is done, resume one that stopped, or start it.

    Raises:
        LeukoclsError: a refusal, before anything is written, or a fault; the record says `failed`.
    """
    # Torch and Lightning are imported here, so that mistakes in the command are reported at once.
    from leukocls.training.checkpoints import Checkpoints
    from leukocls.training.fit import check_recipe
    from leukocls.training.inputs import inputs_of

    config = job.config
    check_logger(config.logger)
    inputs = inputs_of(config)
    run = _run_dir(job, inputs)
    with run.locked():
        state = run.state(config.force, job.since)
        if state == RunState.DONE:
            run.tidy()
            Checkpoints(run.directory).discard_others()
            print(f"{run.directory}: done already, nothing to do (force=true runs it again)")
            print_result(run.directory)
            return
        resume = state == RunState.INTERRUPTED and config.resume
        if not (job.source or resume):
            check_recipe(inputs)
        _execute(job, inputs, run, resume)


def are_done(jobs: list[Job]) -> bool:
    """Whether every run is done and complete.

    Raises:
        LeukoclsError: another configuration's run is in its directory.
    """
    from leukocls.training.inputs import inputs_of

    def is_done(job: Job) -> bool:
        run = _run_dir(job, inputs_of(job.config))
        return run.state(job.config.force, job.since) == RunState.DONE

    return all(map(is_done, jobs))


def _run_dir(job: Job, inputs: TrainInputs | ScoreInputs) -> RunDir:
    from leukocls.training.rescore import rescored_input

    digests = inputs.digests | (rescored_input(job.source) if job.source else {})
    return RunDir(job.directory, inputs.config, digests, inputs.cells)


def _execute(job: Job, inputs: TrainInputs | ScoreInputs, run: RunDir, resume: bool) -> None:
    from leukocls.training.fit import fit, score
    from leukocls.training.inputs import ScoreInputs
    from leukocls.training.rescore import rescore

    if resume:
        run.resume(**inputs.facts())
    else:
        run.start(**inputs.facts())
    with (
        # Its log may be what cannot be written.
        run.ended_by_errors(),
        logged_to(run.directory / "log.txt"),
        # The result is printed before W&B is waited for.
        followed(run.directory, inputs.config.logger),
    ):
        with run.ended_by_errors():
            if job.source:
                rescore(run, job.source, inputs.config.selection, inputs.config.threshold)
            elif isinstance(inputs, ScoreInputs):
                score(inputs, run)
            else:
                fit(inputs, run, resume)
        print_result(run.directory)


def print_result(directory: Path) -> None:
    """Print the metrics of a run's selected epoch, as `evaluate` does, and its directory."""
    from leukocls.evaluation.scoring import ScoringOptions, metrics_of, scored_parts
    from leukocls.reporting.tables import result_text

    for part in scored_parts(directory, ScoringOptions()):
        print("\n" + result_text(metrics_of(part)))
    if best := read_record(directory).get("best_auroc"):
        print(f"\nBest possible AUROC from single cells like these, on average: {best:g}")
    print(f"\n{directory}")


def exit_code_of(error: Exception) -> int:
    """2 for errors in the command or its configuration, 1 for the rest."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return LeukoclsError.exit_code
    return getattr(error, "exit_code", DataFault.exit_code)


def message_of(error: Exception) -> str:
    """The message for an error: file, cause and remedy as far as they are known."""
    if os.environ.get("LEUKOCLS_TRACEBACK") == "1":
        traceback.print_exception(error)
    if isinstance(error, LeukoclsError | HydraException | OmegaConfBaseException):
        unknown = getattr(error.__cause__, "full_key", None)
        if isinstance(error, ConfigCompositionException) and unknown and not is_free(unknown):
            return no_such_setting(unknown)
        # Hydra's search path does not help somebody who mistyped a name.
        message = re.split(r"\nConfig search path|\nSee https", own_text(error))[0].strip()
        if isinstance(error, OverrideParseException):
            message += "\nQuote a value with a comma, an equals sign or a space: 'key=\"value\"'"
        return message
    if isinstance(error, OSError) and error.filename is not None:
        told = system_message(error)
        return f"{told} (outputs= or data.cache=)" if told.endswith(" another place") else told
    text, hint = own_text(error) or "no more is known", "LEUKOCLS_TRACEBACK=1 shows where"
    for sign, advice in ADVICE.items():
        if sign in f"{type(error).__name__}: {text}":
            hint = f"{advice}; {hint}"
    return f"{type(error).__name__}: {text} ({hint})"
