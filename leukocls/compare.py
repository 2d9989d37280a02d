"""`python -m leukocls.compare`: arms over their seeds, and whether they differ beyond them."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leukocls import evaluate, published_results, stats
from leukocls.artifacts.identity import differences
from leukocls.artifacts.marks import banner, merged_marks
from leukocls.artifacts.record import RunState, read_record, run_directories, state_of
from leukocls.common.errors import DataFault, LeukoclsError, run_verb
from leukocls.common.tables import aligned
from leukocls.metrics import RECORDED

METRICS = (*RECORDED, "auroc")
HEADLINE = "weighted_f1"
# Earlier links of a chain, and scorings of a checkpoint: no runs to compare unless they are named.
ASIDE = ("link=", "score=")
# What differs between the runs of one arm: the seed, and what each seed made for itself.
OF_A_SEED = {"seed", "inputs.weights", "inputs.view_0"}
NOISE = "These tests measure training noise (seeds), not generalisation to patients."


@dataclass(frozen=True)
class Run:
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
class Scored:
    """A finished run and what its predictions say.

    Attributes:
        result: what `evaluate` says of the test where there is one, else of the selection set.
        chosen_by: weighted F1 on the selection set, where there is a test too.
        conditions: what has to be the same for two runs to be compared.
        training: digest of view 0 on the selection set in every epoch, which is the same for the
            same training, however many views are used and whichever epoch is chosen.
    """

    run: Run
    result: dict[str, Any]
    chosen_by: float | None
    conditions: dict[str, str]
    training: str


Arms = dict[str, dict[int, Scored]]


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
        "ddof": stats.DDOF,
        "seeds_planned": None if seeds is None else planned,
        "reference": reference,
        "arms": [
            _arm(name, next(iter(found[name].values())).key, arm, len(planned))
            for name, arm in arms.items()
        ],
        "tests": _tests(arms, reference),
        "sources": {record["id"]: record["predictions_sha256"] for record in records},
    }


def _found(roots: Iterable[Path]) -> list[Run]:
    """Every run at or below `roots` once, in order."""
    directories: dict[Path, None] = {}
    for root in roots:
        named = root.resolve()
        below = [directory.resolve() for directory in run_directories(root)]
        kept = [d for d in below if not d.parent.name.startswith(ASIDE) or named in (d, d.parent)]
        if not kept:
            left_out = " but links of chains and scorings, which have to be named" if below else ""
            raise LeukoclsError(
                f"{root}: no run at or below it{left_out}; name run directories"
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
            found.append(Run(directory, experiment, arm, int(seed[1]), read_record(directory)))
        except LeukoclsError as error:
            damaged.append(str(error))
    if damaged:
        raise DataFault("\n".join(damaged))
    return found


def _by_arm(found: list[Run]) -> dict[str, dict[int, Run]]:
    """Runs by arm and seed; arms of several experiments are named with theirs."""
    several = len({run.experiment for run in found}) > 1
    arms: dict[str, dict[int, Run]] = {}
    for run in found:
        arm = arms.setdefault("/".join(run.key) if several else run.arm, {})
        if run.seed in arm:
            raise LeukoclsError(
                f"{run.directory} and {arm[run.seed].directory}: the same seed of the same arm"
                " twice; name one of them"
            )
        arm[run.seed] = run
    return {name: dict(sorted(arm.items())) for name, arm in arms.items()}


def _refuse_unplanned(arms: dict[str, dict[int, Run]], planned: list[int]) -> None:
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


def _refuse_unfinished(arms: dict[str, dict[int, Run]], planned: list[int]) -> None:
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


def _read(found: dict[str, dict[int, Run]]) -> Arms:
    """The runs that are done, by arm and seed; every fault is told at once."""
    arms: Arms = {name: {} for name in found}
    damaged = []
    for name, arm in found.items():
        for seed, run in arm.items():
            if state_of(run.record) != RunState.DONE:
                continue
            try:
                parts = evaluate.parts(run.directory, evaluate.Choice(epoch="all"))
            except LeukoclsError as error:
                damaged.append(str(error))
            else:
                arms[name][seed] = _scored(run, parts)
    if damaged:
        raise DataFault("\n".join(damaged))
    return arms


def _scored(run: Run, parts: list[evaluate.Part]) -> Scored:
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
    return Scored(
        run=run,
        result=evaluate.result(part),
        chosen_by=evaluate.result(selection)[HEADLINE] if test and selection else None,
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


def _refuse_mixture(counted: list[Scored]) -> None:
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
    first: dict[tuple[str, str], Run] = {}
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


def _arm(name: str, key: tuple[str, str], arm: dict[int, Scored], planned: int) -> dict[str, Any]:
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
            **stats.summary([] if None in values else values),
            "interval": None,
            "reason": _undefined(arm, metric) if arm else "no finished run",
            "paper": printed.get(metric),
        }
    return document


def _undefined(arm: dict[int, Scored], metric: str) -> str | None:
    """Why the metric has no value; the scored cells alone decide, so it is the same for all."""
    reasons = (one.result["missing"].get(metric) for one in arm.values())
    return next((reason for reason in reasons if reason), None)


def _chosen(arm: dict[int, Scored]) -> dict[str, Any] | None:
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
    for row, p in zip(family, stats.holm([row["p"] for row in family]), strict=True):
        row["p_holm"] = p
    return rows


def _test(
    a: dict[int, Scored], b: dict[int, Scored], shared: list[int] | None, metric: str
) -> dict[str, Any]:
    """By pairs where both arms score the same trainings, else as independent samples."""
    reason = _undefined(a, metric) or _undefined(b, metric)
    x, y = (
        [] if reason else [arm[seed].result[metric] for seed in shared or arm] for arm in (a, b)
    )
    row = stats.mann_whitney(x, y) if shared is None else stats.signed_rank(x, y)
    return row | {"reason": reason or row["reason"]}


def _printed_p(a: dict[int, Scored], b: dict[int, Scored]) -> str | None:
    """What the paper prints of these two arms."""
    keys = tuple(one.run.key for arm in (a, b) for one in list(arm.values())[:1])
    return published_results.P_VALUES.get(keys)


def text(document: dict[str, Any]) -> str:
    """The document of `compare` for people, in percent."""
    test, selection = document["test_set"], document["selection_set"]
    head = f"SELECTION   on {selection}, which also chose each run's epoch; test set: none"
    if test:
        head = f"TEST   on {test}; selection set: {selection}"
    lines = [head]
    lines += banner(document["marks"])
    lines += ["", *_summaries(document)]
    lines.append(
        f"Percent, over seeds; SD with ddof {document['ddof']}; expected max: of n normal values"
        " with this mean and SD."
    )
    if document["seeds_planned"] is None:
        lines.append("Planned are the seeds that are here; --seeds says how many there should be.")
    if any(arm[HEADLINE]["paper"] for arm in document["arms"]):
        lines.append(f"Paper's: {published_results.SOURCE}.")
    if document["tests"]:
        lines += ["", f"Reference arm: {document['reference']}", ""]
        lines += [*_comparisons(document["tests"]), NOISE]
    return "\n".join(lines)


def _summaries(document: dict[str, Any]) -> list[str]:
    """A table for each arm, all with the same columns."""
    arms, test = document["arms"], document["test_set"]
    with_paper = any(arm[HEADLINE]["paper"] for arm in arms)
    header = ["", "min", "mean ± SD", "max", "expected max"]
    header += [*["paper's min", "paper's mean ± SD", "paper's max"] * with_paper, ""]
    blocks = {}
    for arm in arms:
        n = str(arm["n"]) if arm["n"] == arm["planned"] else f"{arm['n']} of {arm['planned']}"
        heads = [f"{arm['name']}   n = {n}"]
        pairs = zip(arm["seeds"], arm[HEADLINE]["values"], strict=True)
        values = ", ".join(f"{seed}:{_percent(value)}" for seed, value in pairs)
        by_seed = f"weighted F1 by seed   {values or '–'}"
        heads.append(textwrap.fill(by_seed, 98, initial_indent="  ", subsequent_indent=" " * 24))
        if chosen := arm["chosen"]:
            best, untouched = _percent(chosen["selection"]), _percent(chosen["test"])
            heads.append(
                f"  {document['selection_set']} would choose seed {chosen['seed']} ({best}), which"
                f" has {untouched} on {test}"
            )
        rows = [header]
        for metric in METRICS:
            of = arm[metric]
            row = [f"  {metric}", *_range(of), _percent(of["expected_max"])]
            rows.append([*row, *_range(of["paper"] or {}) * with_paper, of["reason"] or ""])
        blocks["\n".join(heads)] = rows
    return _blocks(blocks)


def _blocks(blocks: dict[str, list[list[str]]]) -> list[str]:
    """Tables below their headings, with columns of one width throughout."""
    lines = iter(aligned(row for rows in blocks.values() for row in rows).split("\n"))
    found = []
    for heading, rows in blocks.items():
        found += [heading, *(next(lines) for _ in rows), ""]
    return found


def _range(of: dict[str, Any]) -> list[str]:
    # One value has no spread.
    told = of.get("sd") is not None and len(of.get("values") or [0, 0]) > 1
    spread = f" ± {_percent(of['sd'])}" if told else ""
    return [_percent(of.get("min")), _percent(of.get("mean")) + spread, _percent(of.get("max"))]


def _comparisons(tests: list[dict[str, Any]]) -> list[str]:
    """A table for each arm that is tested against the reference."""
    header = ["", "p", "p_holm", "effect", "difference", "family", ""]
    blocks: dict[str, list[list[str]]] = {}
    for row in tests:
        n = row["n"]
        by = f"{n} shared seeds" if isinstance(n, int) else f"{n[0]} and {n[1]} runs"
        heading = f"Is {row['a']} greater than {row['b']}? One-sided {row['test']}, {by}"
        effect, shift = row["effect"], row["hodges_lehmann"]
        blocks.setdefault(heading, [header]).append(
            [
                f"  {row['metric']}",
                _p(row["p"]),
                _p(row["p_holm"]),
                "–" if effect is None else f"{effect:+.2f}",
                "–" if shift is None else f"{100 * shift:+.2f}",
                row["family"],
                row["reason"] or (f"paper: {row['paper']}" if row["paper"] else ""),
            ]
        )
    lines = _blocks(blocks)
    lines.append(
        "p_holm: over the family weighted_f1; effect: rank-biserial correlation; difference:"
        " Hodges-Lehmann, in points, of shared seeds."
    )
    if any(row["paper"] for row in tests):
        lines.append(f"Paper: {published_results.TEST}.")
    return lines


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if value >= 1e-4 else f"{value:.1e}"


def _seeds(text: str) -> list[int]:
    first, to, last = text.partition("-")
    try:
        if "," in text:
            return sorted(map(int, text.split(",")))
        seeds = range(int(first), int(last) + 1) if to else range(int(first))
    except ValueError:
        seeds = range(0)
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text}: give 24 (for 0 to 23), 0-23, or 7,42,1337")
    return list(seeds)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare runs. Raises LeukoclsError on what cannot be compared, DataFault on damaged runs."""
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.compare",
        description="Arms over their seeds, recomputed from the runs' predictions, and each tested"
        " against one of them.",
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUNS", help="run directories, or any above them")
    add("--against", metavar="ARM", help="what the others are tested against (the proposal)")
    add("--seeds", type=_seeds, help="those planned: 24, 0-23 or 7,42 (every seed of any arm)")
    add("--incomplete", action="store_true", help="go on with the runs that are done")
    add("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args(argv)
    document = compare(
        arguments.runs, arguments.against, arguments.seeds, incomplete=arguments.incomplete
    )
    print(json.dumps(document, indent=2, allow_nan=False) if arguments.json else text(document))
    return 0


if __name__ == "__main__":
    run_verb(main)
