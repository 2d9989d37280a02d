"""Comparison of arms over their seeds: statistics of each arm, and tests against a reference."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from leukocls.artifacts.identity import BASELINE
from leukocls.artifacts.marks import merged_marks
from leukocls.common.errors import LeukoclsError
from leukocls.evaluation import (
    intervals,
    person_counts,
    published_results,
    seed_tests,
    subject_tests,
)
from leukocls.evaluation.arm_runs import (
    ArmRun,
    Arms,
    ScoredRun,
    find_runs,
    group_by_arm,
    is_baseline,
    pool_folds,
    refuse_mixture,
    refuse_unfinished,
    refuse_unplanned,
    score_arms,
)
from leukocls.evaluation.metrics import HEADLINE, RECORDED
from leukocls.evaluation.person_counts import Persons

METRICS = (*RECORDED, "auroc")
# True differences, of which the power is given: the paper's are .007 to .010.
DIFFERENCES = (0.015, 0.03)


@dataclass(frozen=True)
class Comparison:
    """Scored runs that can be compared.

    Attributes:
        arms: finished runs by arm and seed, the reference arm first; folds are pooled.
        runs: all runs by arm and seed, before pooling.
        records: the records of the finished runs.
        reference: the arm that the others are tested against.
        planned: the seeds that each arm should have.
        seeds_given: whether somebody said so, or they are those of any arm.
    """

    arms: Arms
    runs: dict[str, dict[int, ArmRun]]
    records: list[dict[str, Any]]
    reference: str
    planned: list[int]
    seeds_given: bool

    @property
    def first(self) -> ScoredRun:
        """A finished run; what must be equal to be compared is the same in all."""
        return next(iter(self.arms[self.reference].values()))

    @property
    def baselines(self) -> set[str]:
        """The names of the arms that are classifiers on simple features."""
        return {name for name, arm in self.arms.items() if _baseline(arm)}


def scored_comparison(
    runs: Iterable[Path],
    against: str | None = None,
    seeds: Iterable[int] | None = None,
    incomplete: bool = False,
) -> Comparison:
    """Find runs and score them; the folds of a cross-validation become one arm.

    Args:
        runs: run directories, or directories above them.
        against: the reference arm of all tests; None for the proposal.
        seeds: the planned seeds; None for every seed of any arm.
        incomplete: whether to compare the finished runs if others are missing.

    Raises:
        LeukoclsError: no run, runs that do not match, or a planned run that is not done.
        DataFault: a run.json or predictions that are damaged, or not what the run wrote.
    """
    run_arms = group_by_arm(find_runs(runs))
    with_seeds = [arm for arm in run_arms.values() if not is_baseline(arm.values())]
    present = {seed for arm in with_seeds or run_arms.values() for seed in arm}
    planned = sorted(present if seeds is None else seeds)
    refuse_unplanned(run_arms, planned)
    if not incomplete:
        refuse_unfinished(run_arms, planned)
    runs_of_arms = score_arms(run_arms)
    records = [one.run.record for arm in runs_of_arms.values() for one in arm.values()]
    arms = pool_folds(runs_of_arms, incomplete)
    scored = [result for arm in arms.values() for result in arm.values()]
    if not scored:
        raise LeukoclsError("none of these runs is done; train them first")
    refuse_mixture(scored)
    reference = _reference(arms, against)
    arms = {reference: arms[reference], **arms}
    return Comparison(arms, run_arms, records, reference, planned, seeds is not None)


def compare(
    runs: Iterable[Path],
    against: str | None = None,
    seeds: Iterable[int] | None = None,
    incomplete: bool = False,
    plan: intervals.Plan | None = None,
) -> dict[str, Any]:
    """Compare arms over their seeds: `compared` of `scored_comparison`."""
    return compared(scored_comparison(runs, against, seeds, incomplete), plan)


def compared(comparison: Comparison, plan: intervals.Plan | None = None) -> dict[str, Any]:
    """Statistics of each arm over its seeds, and tests: the document of `compare --json`.

    All metrics are recomputed from the runs' predictions, as fractions.

    Args:
        plan: the persons and seeds of a study to come, for which to say how wide intervals will be.
    """
    arms, records, first = comparison.arms, comparison.records, comparison.first
    reference, planned = comparison.reference, comparison.planned
    headings = {one.result["heading"] for arm in arms.values() for one in arm.values()}
    heading = "leaky" if "leaky" in headings else first.result["heading"]
    persons = {name: _persons(arm) for name, arm in arms.items()}
    return {
        "selection_set": first.run.record["selection"]["set"],
        "heading": heading,
        "test_set": first.result["split"] if heading == "test" else None,
        "marks": merged_marks(record["marks"] for record in records),
        "shared_persons": merged_marks(record.get("shared_persons", []) for record in records),
        "ddof": seed_tests.DDOF,
        "seeds_planned": planned if comparison.seeds_given else None,
        "reference": reference,
        "arms": [
            _arm(name, _key(name, arm, comparison.runs), arm, persons[name], len(planned), plan)
            for name, arm in arms.items()
        ],
        "persons": first.result["persons"],
        "plan": asdict(plan) if plan else None,
        "differences": _differences(arms, persons, reference, plan),
        "tests": _tests(arms, reference),
        "sources": {record["id"]: record["predictions_sha256"] for record in records},
    }


def _key(
    name: str, arm: dict[int, ScoredRun], runs: dict[str, dict[int, ArmRun]]
) -> tuple[str, str]:
    """Experiment and arm, also of an arm without finished runs."""
    scored = next(iter(arm.values()), None)
    return scored.run.key if scored else next(iter(runs[name].values())).key


def _reference(arms: Arms, against: str | None) -> str:
    """The reference arm: `against`, or the proposal, or a proposal with overrides, or the first.

    Of the leakage lab's arms it is the one with the largest leak, so that differences are what the
    leak is worth. An arm without finished runs is none, nor is a baseline beside networks.
    """
    names = [name for name, runs in arms.items() if runs]
    if against is None:
        names = [name for name in names if not _baseline(arms[name])] or names
        leak = {name: _leak(next(iter(arms[name].values()))) for name in names}
        if any(leak.values()):
            return max(names, key=leak.__getitem__)
        plain = [name for name in names if name.rpartition("/")[2] == "proposal"]
        changed = [name for name in names if name.rpartition("/")[2].startswith("proposal,")]
        return [*plain, *changed, *names][0]
    if against not in names:
        cause = "none of its runs is done" if against in arms else "no such arm"
        raise LeukoclsError(f"--against {against}: {cause}; choose one of {' '.join(names)}")
    return against


def _baseline(arm: dict[int, ScoredRun]) -> bool:
    return is_baseline(scored.run for scored in arm.values())


def _leak(scored: ScoredRun) -> float:
    """The share of training cells that are of scored persons, in a run of the leakage lab."""
    return float((scored.run.record.get("identity") or {}).get("leak") or 0)


def _persons(arm: dict[int, ScoredRun]) -> dict[int, Persons]:
    """Counts by person of each seed's run; empty if the person of a cell is unknown."""
    found = {seed: scored.part.persons for seed, scored in arm.items()}
    return {seed: persons for seed, persons in found.items() if persons}


def _arm(
    name: str,
    key: tuple[str, str],
    arm: dict[int, ScoredRun],
    persons: dict[int, Persons],
    planned: int,
    plan: intervals.Plan | None,
) -> dict[str, Any]:
    """Statistics of one arm over its finished runs, next to a paper's printed ones."""
    document: dict[str, Any] = {
        "name": name,
        "experiment": key[0],
        "n": len(arm),
        "planned": 1 if key[0] == BASELINE else planned,
        "seeds": list(arm),
        "chosen": _chosen(arm),
        "folds": next((one.result.get("folds") for one in arm.values()), None),
    }
    printed = published_results.RESULTS.get(key, {})
    for metric in METRICS:
        values = [scored.result[metric] for scored in arm.values()]
        runs = list(persons.values()) if metric in person_counts.METRICS else []
        found = intervals.jackknife(runs, metric) if runs else None
        document[metric] = {
            "values": values,
            **seed_tests.describe([] if None in values else values),
            "interval": found and found.limits,
            "variance_by_seeds": found and found.by_seeds,
            "debiased": _mean_debiased(arm, metric),
            "reason": _undefined(arm, metric) if arm else "no finished run",
            "paper": printed.get(metric),
        }
        if plan:
            expected = intervals.jackknife(runs, metric, plan=plan) if runs else None
            document[metric]["expected_half_width"] = expected and expected.half_width
    return document


def _mean_debiased(arm: dict[int, ScoredRun], metric: str) -> float | None:
    """Mean over seeds of the metric without the optimism of the epoch's choice; None without it."""
    found = [(scored.result["debiased"] or {}).get(metric) for scored in arm.values()]
    known = [value for value in found if value is not None]
    return fmean(known) if known and len(known) == len(found) else None


def _undefined(arm: dict[int, ScoredRun], metric: str) -> str | None:
    """The reason why a metric is undefined; it depends on the scored cells, not on the run."""
    reasons = (scored.result["missing"].get(metric) for scored in arm.values())
    return next((reason for reason in reasons if reason), None)


def _chosen(arm: dict[int, ScoredRun]) -> dict[str, Any] | None:
    """The best seed on the selection set and its weighted F1 on both sets; None without a test."""
    selection = {
        seed: scored.chosen_by for seed, scored in arm.items() if scored.chosen_by is not None
    }
    if not selection:
        return None
    seed = max(selection, key=selection.__getitem__)
    return {"seed": seed, "selection": selection[seed], "test": arm[seed].result[HEADLINE]}


def _differences(
    arms: Arms,
    persons: dict[str, dict[int, Persons]],
    reference: str,
    plan: intervals.Plan | None,
) -> list[dict[str, Any]]:
    """The reference less every other arm, with an interval over persons and seeds."""
    rows = []
    for name in arms:
        first, second = persons[reference], persons[name]
        if name == reference or not first or not second:
            continue
        shared = _shared(arms[reference], arms[name])
        runs_a = [first[seed] for seed in shared or first]
        runs_b = [second[seed] for seed in shared or second]
        for metric in person_counts.METRICS:
            found = intervals.paired_difference(runs_b, runs_a, metric, shared=bool(shared))
            known = not math.isnan(found.value)
            row = {
                "a": reference,
                "b": name,
                "metric": metric,
                "n": len(shared) if shared else [len(runs_a), len(runs_b)],
                "difference": found.value if known else None,
                "interval": found.limits,
                "variance_by_seeds": found.by_seeds,
                "power": [
                    {"difference": one, "power": intervals.power(found, one)} for one in DIFFERENCES
                ],
                "label_flip_p": subject_tests.label_flip(runs_a, runs_b, metric)
                if metric in person_counts.RATES
                else None,
            }
            if plan:
                row["expected_half_width"] = intervals.paired_difference(
                    runs_b, runs_a, metric, shared=bool(shared), plan=plan
                ).half_width
            rows.append(row)
    return rows


def _shared(a: dict[int, ScoredRun], b: dict[int, ScoredRun]) -> list[int] | None:
    """The seeds that both arms have, if any is the same training in both; else None."""
    seeds = [seed for seed in a if seed in b]
    return seeds if any(a[seed].training == b[seed].training for seed in seeds) else None


def _tests(arms: Arms, reference: str) -> list[dict[str, Any]]:
    """Tests of every arm against the reference in every metric.

    Only the tests of the headline metric are adjusted, as one family; the others are exploratory.
    A baseline has no training noise to test against.
    """
    a = arms[reference]
    rows = []
    for name, b in arms.items():
        if name == reference or _baseline(a) or _baseline(b):
            continue
        shared = _shared(a, b)
        n = len(shared) if shared else [len(a), len(b)]
        for metric in METRICS:
            rows.append(
                {"a": reference, "b": name, "metric": metric, "n": n}
                | _test(a, b, shared, metric)
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
    """One test: paired by seed if both arms score the same trainings, else unpaired."""
    reason = _undefined(a, metric) or _undefined(b, metric)
    x, y = (
        [] if reason else [arm[seed].result[metric] for seed in shared or arm] for arm in (a, b)
    )
    row = seed_tests.mann_whitney(x, y) if shared is None else seed_tests.signed_rank(x, y)
    return row | {"reason": reason or row["reason"]}


def _printed_p(a: dict[int, ScoredRun], b: dict[int, ScoredRun]) -> str | None:
    """The P value that the paper prints for these two arms, if any."""
    keys = tuple(scored.run.key for arm in (a, b) for scored in list(arm.values())[:1])
    return published_results.P_VALUES.get(keys)
