"""Comparison of arms over their seeds: statistics of each arm, and tests against one of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from leukocls.artifacts.marks import merged_marks
from leukocls.common.errors import LeukoclsError
from leukocls.evaluation import published_results, seed_tests
from leukocls.evaluation.arm_runs import (
    Arms,
    ScoredRun,
    find_runs,
    group_by_arm,
    refuse_mixture,
    refuse_unfinished,
    refuse_unplanned,
    score_arms,
)
from leukocls.evaluation.metrics import HEADLINE, RECORDED

METRICS = (*RECORDED, "auroc")


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
    found = group_by_arm(find_runs(runs))
    seeds = None if seeds is None else list(seeds)
    planned = sorted({seed for arm in found.values() for seed in arm} if seeds is None else seeds)
    refuse_unplanned(found, planned)
    if not incomplete:
        refuse_unfinished(found, planned)
    arms = score_arms(found)
    counted = [one for arm in arms.values() for one in arm.values()]
    if not counted:
        raise LeukoclsError("none of these runs is done; train them first")
    refuse_mixture(counted)
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
