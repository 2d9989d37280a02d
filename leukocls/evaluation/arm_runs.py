"""Runs to compare: found, grouped by arm and seed, scored, and refused where they do not match."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leukocls.artifacts.identity import differences
from leukocls.artifacts.record import RunState, read_record, run_directories, state_of
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.evaluation import scoring
from leukocls.evaluation.metrics import HEADLINE

# Earlier phases (called links before 0.2) and scored checkpoints are compared only if named.
ASIDE = ("phase=", "link=", "score=")
# What differs between the runs of one arm: the seed, and what each seed made for itself.
OF_A_SEED = {"seed", "inputs.weights", "inputs.rescored"}


@dataclass(frozen=True)
class ArmRun:
    """A run as it was found."""

    directory: Path
    experiment: str
    arm: str
    seed: int
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.experiment}/{self.arm}/{self.directory.name}"

    @property
    def key(self) -> tuple[str, str]:
        return self.experiment, self.arm


@dataclass(frozen=True)
class ScoredRun:
    """A finished run and what its predictions say.

    Attributes:
        result: what `evaluate` says of the test where there is one, else of the selection set.
        chosen_by: weighted F1 on the selection set, where there is a test too.
        conditions: what has to be the same for two runs to be compared.
        training: digest of view 0 on the selection set in every epoch, which is the same for the
            same training, however many views are used and whichever epoch is chosen.
    """

    run: ArmRun
    result: dict[str, Any]
    chosen_by: float | None
    conditions: dict[str, str]
    training: str


Arms = dict[str, dict[int, ScoredRun]]


def find_runs(roots: Iterable[Path]) -> list[ArmRun]:
    """Every run at or below `roots` once, in order."""
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
    found, damaged = [], []
    for directory in directories:
        experiment, arm, name = ("", "", "", *directory.parts)[-3:]
        seed = re.fullmatch(r"seed_(\d+)", name)
        if not seed:
            raise LeukoclsError(
                f"{directory}: holds a run.json and is not named seed_<nnn>, so its seed is"
                " unknown; name the run directories themselves"
            )
        try:
            found.append(ArmRun(directory, experiment, arm, int(seed[1]), read_record(directory)))
        except LeukoclsError as error:
            damaged.append(str(error))
    if damaged:
        raise DataFault("\n".join(damaged))
    return found


def group_by_arm(found: list[ArmRun]) -> dict[str, dict[int, ArmRun]]:
    """Runs by arm and seed; arms of several experiments are named with theirs."""
    several = len({run.experiment for run in found}) > 1
    arms: dict[str, dict[int, ArmRun]] = {}
    for run in found:
        arm = arms.setdefault("/".join(run.key) if several else run.arm, {})
        if run.seed in arm:
            raise LeukoclsError(
                f"{run.directory} and {arm[run.seed].directory}: the same seed of the same arm"
                " twice; name one of them"
            )
        arm[run.seed] = run
    return {name: dict(sorted(arm.items())) for name, arm in arms.items()}


def refuse_unplanned(arms: dict[str, dict[int, ArmRun]], planned: list[int]) -> None:
    extra = [
        f"{name}: {', '.join(map(str, more))}"
        for name, of in arms.items()
        if (more := sorted(of.keys() - set(planned)))
    ]
    if extra:
        raise LeukoclsError(
            f"seeds that are there and not planned ({'; '.join(extra)}); leaving out seeds that"
            " have been run is a choice: plan them with --seeds, or name the runs that count"
        )


def refuse_unfinished(arms: dict[str, dict[int, ArmRun]], planned: list[int]) -> None:
    lines = []
    for name, of in arms.items():
        missing = [str(seed) for seed in planned if seed not in of]
        if missing:
            lines.append(f"arm {name}, seed {', '.join(missing)}: missing")
        lines += [
            f"arm {name}, seed {seed}: {state_of(run.record)}"
            + (f" ({error.splitlines()[0]})" if (error := run.record.get("error")) else "")
            for seed, run in of.items()
            if state_of(run.record) != RunState.DONE
        ]
    if lines:
        raise LeukoclsError(
            "the sweep is incomplete:\n  " + "\n  ".join(lines) + "\nRun the same training command"
            " again (it does what is missing), or compare what is there with --incomplete."
        )


def score_arms(found: dict[str, dict[int, ArmRun]]) -> Arms:
    """The runs that are done, by arm and seed; every fault is told at once."""
    arms: Arms = {name: {} for name in found}
    damaged = []
    for name, arm in found.items():
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
    epoch = run.record["selection"]["epoch"]
    headed = {
        part.origin["heading"]: part
        for part in parts
        if part.origin["epoch"] == epoch and (part.frame["label"] >= 0).any()
    }
    test, selection = headed.get("test"), headed.get("selection")
    part = test or selection
    if part is None:
        raise LeukoclsError(
            f"{run.directory}: has numbers neither on a selection set nor on a test; leave it out"
        )
    cells = part.frame[["cell", "subject", "label"]].to_json(orient="values")
    # A scoring has none of the cells that chose its epoch, and is a training of its own.
    views = [p.frame["view_0"].to_numpy() for p in parts if p.origin["heading"] == "selection"]
    training = b"".join(view.tobytes() for view in views) or str(run.directory).encode()
    return ScoredRun(
        run=run,
        result=scoring.metrics_of(part),
        chosen_by=scoring.metrics_of(selection)[HEADLINE] if test and selection else None,
        conditions={
            "data_digest": str(run.record["data_digest"])[:12],
            "split_scheme": str(run.record["split_scheme"]),
            "selection set": str(run.record["selection"]["set"]),
            "scored set": f"{part.origin['split']} ({part.origin['heading']})",
            "scored cells": f"{len(part.frame)}, {_sha256(cells.encode())[:12]}",
        },
        training=_sha256(training),
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def refuse_mixture(counted: list[ScoredRun]) -> None:
    differ = []
    for condition in counted[0].conditions:
        having: dict[str, list[str]] = {}
        for one in counted:
            having.setdefault(one.conditions[condition], []).append(one.run.name)
        if len(having) > 1:
            differ += [f"{condition} {value}: {_listed(names)}" for value, names in having.items()]
    if differ:
        raise LeukoclsError(
            "these runs cannot be compared:\n  " + "\n  ".join(differ) + "\nName those that agree."
        )
    first: dict[tuple[str, str], ArmRun] = {}
    for run in (one.run for one in counted):
        other = first.setdefault(run.key, run)
        keys = [
            f"{key} ({before} and {now})"
            for key, (before, now) in differences(other.record, run.record).items()
            if key not in OF_A_SEED
        ]
        if keys:
            raise LeukoclsError(
                f"{other.name} and {run.name}: one arm, two configurations; these differ:"
                f" {', '.join(keys)}. Train one of them again (force=true)."
            )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
