"""Comparison of arms over their seeds: statistics of each arm, and tests against one of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leukocls.artifacts.identity import differences
from leukocls.artifacts.marks import merged_marks
from leukocls.artifacts.record import RunState, read_record, run_directories, state_of
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.evaluation import published_results, scoring, seed_tests
from leukocls.evaluation.metrics import RECORDED

METRICS = (*RECORDED, "auroc")
HEADLINE = "weighted_f1"
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


def compare(
    runs: Iterable[Path],
    against: str | None = None,
    seeds: Iterable[int] | None = None,
    incomplete: bool = False,
) -> dict[str, Any]:
    """The document of `compare --json`: arms over their seeds, and tests against one of them.

    Every number is taken anew from the runs' predictions, as fractions.

    Args:
        runs: run directories, or any above them.
        against: the arm that the others are tested against; None for the proposal.
        seeds: those that were planned; None for every seed that any of the arms has.
        incomplete: go on with the runs that are done.

    Raises:
        LeukoclsError: no run, not comparable, or not every planned run is done.
        DataFault: a run.json or predictions that are damaged, or not what the run wrote.
    """
    found = _by_arm(_found(runs))
    seeds = None if seeds is None else list(seeds)
    planned = sorted({seed for arm in found.values() for seed in arm} if seeds is None else seeds)
    _refuse_unplanned(found, planned)
    if not incomplete:
        _refuse_unfinished(found, planned)
    arms = _read(found)
    counted = [one for arm in arms.values() for one in arm.values()]
    if not counted:
        raise LeukoclsError("none of these runs is done; train them first")
    _refuse_mixture(counted)
    reference = _reference(list(arms), against)
    arms = {reference: arms[reference], **arms}
    first = counted[0]
    records = [one.run.record for one in counted]
    return {
        "selection_set": first.run.record["selection"]["set"],
        "test_set": first.result["split"] if first.result["heading"] == "test" else None,
        "marks": merged_marks(record["marks"] for record in records),
        "ddof": seed_tests.DDOF,
        "seeds_planned": None if seeds is None else planned,
        "reference": reference,
        "arms": [
            _arm(name, next(iter(found[name].values())).key, arm, len(planned))
            for name, arm in arms.items()
        ],
        "tests": _tests(arms, reference),
        "sources": {record["id"]: record["predictions_sha256"] for record in records},
    }


def _found(roots: Iterable[Path]) -> list[ArmRun]:
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


def _by_arm(found: list[ArmRun]) -> dict[str, dict[int, ArmRun]]:
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


def _refuse_unplanned(arms: dict[str, dict[int, ArmRun]], planned: list[int]) -> None:
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


def _refuse_unfinished(arms: dict[str, dict[int, ArmRun]], planned: list[int]) -> None:
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


def _read(found: dict[str, dict[int, ArmRun]]) -> Arms:
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


def _refuse_mixture(counted: list[ScoredRun]) -> None:
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


def _reference(names: list[str], against: str | None) -> str:
    """The arm asked for, else the proposal, else a proposal with overrides, else the first."""
    if against is None:
        arms = {name: name.rpartition("/")[2] for name in names}
        plain = [name for name, arm in arms.items() if arm == "proposal"]
        return [*plain, *(n for n, arm in arms.items() if arm.startswith("proposal,")), *names][0]
    if against not in names:
        raise LeukoclsError(f"--against {against}: no such arm; choose one of {' '.join(names)}")
    return against


def _arm(
    name: str, key: tuple[str, str], arm: dict[int, ScoredRun], planned: int
) -> dict[str, Any]:
    """One arm's reductions over its finished runs, and what a paper prints of it."""
    document: dict[str, Any] = {
        "name": name,
        "experiment": key[0],
        "n": len(arm),
        "planned": planned,
        "seeds": list(arm),
        "chosen": _chosen(arm),
    }
    printed = published_results.RESULTS.get(key, {})
    for metric in METRICS:
        values = [one.result[metric] for one in arm.values()]
        document[metric] = {
            "values": values,
            **seed_tests.describe([] if None in values else values),
            "interval": None,
            "reason": _undefined(arm, metric) if arm else "no finished run",
            "paper": printed.get(metric),
        }
    return document


def _undefined(arm: dict[int, ScoredRun], metric: str) -> str | None:
    """Why the metric has no value; the scored cells alone decide, so it is the same for all."""
    reasons = (one.result["missing"].get(metric) for one in arm.values())
    return next((reason for reason in reasons if reason), None)


def _chosen(arm: dict[int, ScoredRun]) -> dict[str, Any] | None:
    """The seed that the selection set would choose, and what it is worth on the test, if any."""
    by = {seed: one.chosen_by for seed, one in arm.items() if one.chosen_by is not None}
    if not by:
        return None
    seed = max(by, key=by.__getitem__)
    return {"seed": seed, "selection": by[seed], "test": arm[seed].result[HEADLINE]}


def _tests(arms: Arms, reference: str) -> list[dict[str, Any]]:
    """Every arm against the reference in every metric; only the headline's are a family."""
    a = arms[reference]
    rows = []
    for name, b in arms.items():
        if name == reference:
            continue
        shared = [seed for seed in a if seed in b]
        paired = any(a[seed].training == b[seed].training for seed in shared)
        n = len(shared) if paired else [len(a), len(b)]
        for metric in METRICS:
            rows.append(
                {"a": reference, "b": name, "metric": metric, "n": n}
                | _test(a, b, shared if paired else None, metric)
                | {"p_holm": None, "family": HEADLINE if metric == HEADLINE else "exploratory"}
                | {"paper": _printed_p(a, b) if metric == HEADLINE else None}
            )
    family = [row for row in rows if row["family"] == HEADLINE]
    for row, p in zip(family, seed_tests.holm([row["p"] for row in family]), strict=True):
        row["p_holm"] = p
    return rows


def _test(
    a: dict[int, ScoredRun], b: dict[int, ScoredRun], shared: list[int] | None, metric: str
) -> dict[str, Any]:
    """By pairs where both arms score the same trainings, else as independent samples."""
    reason = _undefined(a, metric) or _undefined(b, metric)
    x, y = (
        [] if reason else [arm[seed].result[metric] for seed in shared or arm] for arm in (a, b)
    )
    row = seed_tests.mann_whitney(x, y) if shared is None else seed_tests.signed_rank(x, y)
    return row | {"reason": reason or row["reason"]}


def _printed_p(a: dict[int, ScoredRun], b: dict[int, ScoredRun]) -> str | None:
    """What the paper prints of these two arms."""
    keys = tuple(one.run.key for arm in (a, b) for one in list(arm.values())[:1])
    return published_results.P_VALUES.get(keys)
