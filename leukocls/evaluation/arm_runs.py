"""Runs to compare: finding and scoring them, grouping by arm, refusing runs that do not match."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leukocls.artifacts.identity import BASELINE, differences
from leukocls.artifacts.record import RunState, read_record, run_directories, state_of
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.common.tables import listing
from leukocls.evaluation import out_of_fold, scoring
from leukocls.evaluation.metrics import HEADLINE, confusion, decide, rates

# Earlier phases (called links before 0.2) and scored checkpoints are compared only if named.
ASIDE = ("phase=", "link=", "score=")
# Keys that may differ between the runs of one arm: the seed and inputs that depend on it.
SEED_KEYS = {"seed", "inputs.weights", "inputs.rescored"}
FOLD = re.compile(r",fold=\d+")  # in the name of an arm
LEAKAGE = "leakage"  # the split scheme whose arms differ in their leak
OF_RUN = ("fold", "seed")  # settings that the folds and seeds of one recipe do not share


@dataclass(frozen=True)
class ArmRun:
    """A run directory with its record, experiment, arm and seed."""

    directory: Path
    experiment: str
    arm: str
    seed: int
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """Experiment, arm and seed, as in the path."""
        return f"{self.experiment}/{self.arm}/{self.directory.name}"

    @property
    def key(self) -> tuple[str, str]:
        """Experiment and arm."""
        return self.experiment, self.arm


@dataclass(frozen=True)
class ScoredRun:
    """A finished run with its results.

    Attributes:
        result: the result of `evaluate` on the test set, or on the selection set without one.
        chosen_by: weighted F1 on the selection set if there is a test set, else None.
        conditions: facts that must be equal for runs to be compared, by name.
        training: digest of view 0 on the selection set in all epochs. It is equal for equal
            trainings, whatever number of views and rule of selection.
        part: the predictions behind `result`.
        by_epoch: the rates on the selection set after each epoch.
    """

    run: ArmRun
    part: scoring.ScoredPart
    result: dict[str, Any]
    chosen_by: float | None
    conditions: dict[str, str]
    training: str
    by_epoch: dict[int, dict[str, float | None]]


Arms = dict[str, dict[int, ScoredRun]]


def find_runs(roots: Iterable[Path]) -> list[ArmRun]:
    """Every run at or below `roots`, once each, in order.

    Raises:
        LeukoclsError: a root without runs, or a run directory without a seed in its name.
        DataFault: damaged records.
    """
    directories: dict[Path, None] = {}
    for root in roots:
        named = root.resolve()
        below = [directory.resolve() for directory in run_directories(root)]
        kept = [d for d in below if not d.parent.name.startswith(ASIDE) or named in (d, d.parent)]
        if not kept:
            aside = " but earlier phases and scored checkpoints, which have to be named"
            raise LeukoclsError(
                f"{root}: no run at or below it{aside if below else ''}; name run directories"
                " (outputs/<experiment>/<arm>/seed_<nnn>), or any directory above them"
            )
        directories |= dict.fromkeys(kept)
    runs, damaged = [], []
    for directory in directories:
        experiment, arm, name = ("", "", "", *directory.parts)[-3:]
        seed = re.fullmatch(r"seed_(\d+)", name)
        if not seed:
            raise LeukoclsError(
                f"{directory}: holds a run.json and is not named seed_<nnn>, so its seed is"
                " unknown; name the run directories themselves"
            )
        try:
            runs.append(ArmRun(directory, experiment, arm, int(seed[1]), read_record(directory)))
        except LeukoclsError as error:
            damaged.append(str(error))
    if damaged:
        raise DataFault("\n".join(damaged))
    return runs


def group_by_arm(runs: list[ArmRun]) -> dict[str, dict[int, ArmRun]]:
    """Runs by arm and seed; with several experiments, names of arms include the experiment's.

    Raises:
        LeukoclsError: two runs of one arm have the same seed.
    """
    several = len({run.experiment for run in runs}) > 1
    arms: dict[str, dict[int, ArmRun]] = {}
    for run in runs:
        arm = arms.setdefault("/".join(run.key) if several else run.arm, {})
        if run.seed in arm:
            raise LeukoclsError(
                f"{run.directory} and {arm[run.seed].directory}: the same seed of the same arm"
                " twice; name one of them"
            )
        arm[run.seed] = run
    return {name: dict(sorted(arm.items())) for name, arm in arms.items()}


def is_baseline(runs: Iterable[ArmRun]) -> bool:
    """True for an arm of classifiers on simple features, which have no seeds."""
    return any(run.experiment == BASELINE for run in runs)


def refuse_unplanned(arms: dict[str, dict[int, ArmRun]], planned: list[int]) -> None:
    """Refuse runs with seeds that are not planned.

    Raises:
        LeukoclsError: there are such runs.
    """
    unplanned = [
        f"{name}: {', '.join(map(str, seeds))}"
        for name, runs in arms.items()
        if not is_baseline(runs.values()) and (seeds := sorted(runs.keys() - set(planned)))
    ]
    if unplanned:
        raise LeukoclsError(
            f"there are runs of seeds that are not planned ({'; '.join(unplanned)}). Leaving them"
            " out could bias the result: add them to --seeds, or name the runs to compare"
        )


def refuse_unfinished(arms: dict[str, dict[int, ArmRun]], planned: list[int]) -> None:
    """Refuse arms whose planned runs are not all done.

    Raises:
        LeukoclsError: planned runs are missing or not done.
    """
    lines = []
    for name, runs in arms.items():
        expected = [] if is_baseline(runs.values()) else planned
        missing = [str(seed) for seed in expected if seed not in runs]
        if missing:
            lines.append(f"arm {name}, seed {', '.join(missing)}: missing")
        lines += [
            f"arm {name}, seed {seed}: {state_of(run.record)}"
            + (f" ({error.splitlines()[0]})" if (error := run.record.get("error")) else "")
            for seed, run in runs.items()
            if state_of(run.record) != RunState.DONE
        ]
    if lines:
        raise LeukoclsError(
            "the sweep is incomplete:\n  " + "\n  ".join(lines) + "\nRun the same training command"
            " again (it trains what is missing), or compare the finished runs with --incomplete."
        )


def score_arms(runs: dict[str, dict[int, ArmRun]]) -> Arms:
    """The results of the finished runs, by arm and seed.

    Raises:
        DataFault: damaged predictions, all in one message.
        LeukoclsError: a run without labelled cells.
    """
    arms: Arms = {name: {} for name in runs}
    damaged = []
    for name, arm in runs.items():
        for seed, run in arm.items():
            if state_of(run.record) != RunState.DONE:
                continue
            try:
                parts = scoring.scored_parts(run.directory, scoring.ScoringOptions(epoch="all"))
            except LeukoclsError as error:
                damaged.append(str(error))
            else:
                arms[name][seed] = _scored(run, parts)
    if damaged:
        raise DataFault("\n".join(damaged))
    return arms


def _scored(run: ArmRun, parts: list[scoring.ScoredPart]) -> ScoredRun:
    """A run with its results, from all epochs of its predictions."""
    epoch = run.record["selection"]["epoch"]
    by_heading = {
        part.origin["heading"]: part
        for part in parts
        if part.origin["epoch"] == epoch and (part.frame["label"] >= 0).any()
    }
    test, selection = by_heading.get("test"), by_heading.get("selection")
    part = test or selection
    if part is None:
        raise LeukoclsError(
            f"{run.directory}: has numbers neither on a selection set nor on a test; leave it out"
        )
    # A scoring of a checkpoint has no selection set; it counts as a training of its own.
    chosen_on = [p for p in parts if p.origin["heading"] == "selection"]
    views = b"".join(p.frame["view_0"].to_numpy().tobytes() for p in chosen_on)
    training = views or str(run.directory).encode()
    return ScoredRun(
        run=run,
        part=part,
        result=scoring.values_of(part),
        chosen_by=scoring.values_of(selection)[HEADLINE] if test and selection else None,
        conditions=_conditions(run, part),
        training=_sha256(training),
        by_epoch={p.origin["epoch"]: _rates(p) for p in chosen_on},
    )


def _rates(part: scoring.ScoredPart) -> dict[str, float | None]:
    label, logit = (part.frame[name].to_numpy() for name in ("label", "logit"))
    known = label >= 0
    called = decide(logit=logit[known], threshold=part.origin["threshold"])
    return rates(**confusion(label[known], called))


def _conditions(run: ArmRun, part: scoring.ScoredPart) -> dict[str, str]:
    cells = part.frame[["cell", "subject", "label"]].to_json(orient="values")
    scheme, heading = str(run.record["split_scheme"]), part.origin["heading"]
    # What this scheme compares is the same cells with and without their persons in training.
    if scheme == LEAKAGE and heading == "leaky":
        heading = "out-of-fold"
    return {
        "data_digest": str(run.record["data_digest"])[:12],
        "split_scheme": scheme,
        "selection set": str(run.record["selection"]["set"]),
        "scored set": f"{part.origin['split']} ({heading})",
        "scored cells": f"{len(part.frame)}, {_sha256(cells.encode())[:12]}",
    }


def pool_folds(arms: Arms, incomplete: bool = False) -> Arms:
    """Arms that differ only in the fold they hold out as one arm each; the others as they are.

    Args:
        incomplete: whether to leave out seeds of which folds are missing.

    Raises:
        LeukoclsError: as `leukocls.evaluation.out_of_fold.pooled`.
    """
    families: dict[str, list[str]] = {}
    for name, arm in arms.items():
        families.setdefault(_recipe(name, arm), []).append(name)
    merged: Arms = {}
    for names in families.values():
        if len(names) == 1:
            merged[names[0]] = arms[names[0]]
            continue
        without = FOLD.sub("", names[0])
        by_seed: dict[int, list[ScoredRun]] = {}
        for name in names:
            for seed, scored in arms[name].items():
                by_seed.setdefault(seed, []).append(scored)
        number = out_of_fold.folds_of(next(iter(by_seed.values()))[0].run.record)
        whole = {seed: runs for seed, runs in by_seed.items() if len(runs) == number}
        merged[without] = {
            seed: _pooled(without, runs)
            for seed, runs in sorted((whole if incomplete and whole else by_seed).items())
        }
    return merged


def _recipe(name: str, arm: dict[int, ScoredRun]) -> str:
    """A key that the folds of one recipe share; the name itself for an arm without folds."""
    scored = next(iter(arm.values()), None)
    if scored is None or out_of_fold.fold_of(scored.run.record) is None:
        return name
    settings = {k: v for k, v in scored.run.record["identity"].items() if k not in OF_RUN}
    ablation = scored.run.arm.partition(",")[0]
    return json.dumps([scored.run.experiment, ablation, settings], sort_keys=True)


def _pooled(recipe: str, runs: list[ScoredRun]) -> ScoredRun:
    """The folds of one recipe and seed as one run."""
    runs = sorted(runs, key=lambda scored: out_of_fold.fold_of(scored.run.record) or 0)
    records = [scored.run.record for scored in runs]
    part = out_of_fold.pooled([scored.part for scored in runs], records, recipe)
    first = replace(runs[0].run, arm=FOLD.sub("", runs[0].run.arm))
    return ScoredRun(
        run=first,
        part=part,
        result=scoring.values_of(part),
        chosen_by=None,
        conditions=_conditions(first, part),
        training=_sha256("".join(scored.training for scored in runs).encode()),
        by_epoch={},  # the epochs of different folds are not those of one training
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def refuse_mixture(scored: list[ScoredRun]) -> None:
    """Refuse runs on different data, splits or cells, and arms with several configurations.

    Raises:
        LeukoclsError: the runs or the keys that differ.
    """
    lines = []
    for condition in scored[0].conditions:
        names_by_value: dict[str, list[str]] = {}
        for result in scored:
            names_by_value.setdefault(result.conditions[condition], []).append(result.run.name)
        if len(names_by_value) > 1:
            lines += [
                f"{condition} {value}: {listing(names)}" for value, names in names_by_value.items()
            ]
    if lines:
        raise LeukoclsError(
            "these runs cannot be compared:\n  " + "\n  ".join(lines) + "\nName those that agree."
        )
    first: dict[tuple[str, str], ArmRun] = {}
    for run in (result.run for result in scored):
        other = first.setdefault(run.key, run)
        keys = [
            f"{key} ({before} and {now})"
            for key, (before, now) in differences(other.record, run.record).items()
            if key not in SEED_KEYS
        ]
        if keys:
            raise LeukoclsError(
                f"{other.name} and {run.name}: one arm, two configurations; these differ:"
                f" {', '.join(keys)}. Train one of them again (force=true)."
            )
