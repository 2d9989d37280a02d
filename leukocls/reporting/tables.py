"""Text tables: one result of `leukocls.evaluate`, and the document of `leukocls.compare`."""

import textwrap
from pathlib import Path
from typing import Any

from leukocls.artifacts.marks import banner
from leukocls.artifacts.predictions import PERSON
from leukocls.common.tables import aligned
from leukocls.evaluation import metrics, person_counts, published_results
from leukocls.evaluation.cell_metrics import SUBJECT_KEYS
from leukocls.evaluation.comparison import METRICS
from leukocls.evaluation.metrics import HEADLINE
from leukocls.reporting.report_tables import DASH, p_value, percent

PATIENTS = (
    "Patients: 95 % intervals over other persons like these and other seeds, not over other"
    " training sets. Here are"
)
DEBIASED = "Without the optimism of choosing the epoch, and still no test."
NOISE = "Training noise, not patients: these tests ask what other seeds would change."


def result_text(result: dict[str, Any], per_subject: bool = False) -> str:
    """One result as text: heading, origin, marks, counts, metrics.

    Args:
        per_subject: whether to add a line for each subject.
    """
    lines = [f"{result['heading'].upper()}   {_origin(result)}"]
    lines += [*banner(result["marks"]), *result["shared_persons"]]
    if result["tp"] is None:
        return "\n".join([*lines, f"{result['n']} cells, no labels: nothing to score"])

    tp, fp, tn, fn = (result[key] for key in metrics.COUNTS)
    subjects, by_subject = result["n_subjects"], result["subject"]
    lines.append(f"{result['n']} cells, {tp + fn} ALL and {tn + fp} HEM")
    counts = [("", "called ALL", "called HEM"), ("is ALL", tp, fn), ("is HEM", fp, tn)]
    persons = f"{subjects or 'unknown'} persons"
    if result["persons"]:
        persons += f", {_by_class(result['persons'])}"
    if subjects and result["persons_from"] != PERSON:
        persons += ", by subject: the file has no column person"
    lines += ["", aligned(counts), "", persons, aligned(_rows(result))]
    if freedom := [one["df"] for one in result["interval"].values() if one and "df" in one]:
        lines += textwrap.wrap(
            "In brackets: 95 % interval over other persons like these, of the same training;"
            f" Student's t with {_span(freedom)} degrees of freedom. By subject: exact binomial"
            " and DeLong. A mean of persons counts each of them once. Beta-binomial: the same"
            " questions by another model of how persons differ.",
            98,
        )
    if better := result["debiased"]:
        values = ", ".join(f"{name} {_shown(value)}" for name, value in better.items())
        about = f"Each person at the epoch that the others choose: {values}. {DEBIASED}"
        lines += textwrap.wrap(about, 98)
    if per_subject and by_subject["per_subject"]:
        keys = ("subject", "label", "n", "correct", "accuracy", "mean_logit")
        table = [[_shown(row[key]) for key in keys] for row in by_subject["per_subject"]]
        lines += ["", aligned([keys, *table])]
    return "\n".join(lines)


def _origin(result: dict[str, Any]) -> str:
    """The origin of a result: source, split, epoch, folds, ensemble, threshold."""
    origin = [result["source"]]
    origin += [f"{key} {result[key]}" for key in ("split", "epoch") if result[key] is not None]
    origin += [f"{result['folds']} folds"] if result.get("folds") else []
    if rule := result.get("ensemble"):
        origin.append(f"{rule} of {len(result['runs'])}")
    if found := result.get("neighbourhood"):
        origin.append(f"neighbourhood of {found['neighbours']} by {Path(found['features']).name}")
    hard = result["threshold"] is None
    origin.append("hard labels" if hard else f"threshold {result['threshold']:g}")
    return " · ".join(origin)


def _rows(result: dict[str, Any]) -> list[tuple[object, ...]]:
    """A row for each metric: name, value, interval, and why it is missing."""
    by_subject = result["subject"]
    rows: list[tuple[object, ...]] = [
        (
            name,
            _shown(result[name]),
            _limits(result["interval"].get(name)),
            result["missing"].get(name, ""),
        )
        for name in ("prevalence", *metrics.RATES, *metrics.GRADED)
    ]
    rows += [
        (
            name.replace(".", " "),
            _shown(by_subject[name[8:]]),
            _limits(result["interval"].get(name)),
            "; ".join(result[kind][name] for kind in ("missing", "notes") if name in result[kind]),
        )
        for name in SUBJECT_KEYS
    ]
    rows += [
        (title.format(name), _shown(found["value"]), _limits(found), "")
        for title, key in (
            ("mean {} of persons", "averaged"),
            ("beta-binomial {}", "beta_binomial"),
        )
        for name, found in (result[key] or {}).items()
        if found
    ]
    return rows


def _limits(found: dict[str, float] | None) -> str:
    return f"({found['low']:.4f} to {found['high']:.4f})" if found and "low" in found else ""


def _by_class(persons: dict[str, int]) -> str:
    return f"{persons['ALL']} ALL and {persons['HEM']} HEM"


def _span(values: list[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def _shown(value: object) -> str:
    return DASH if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def comparison_text(document: dict[str, Any]) -> str:
    """The document of `compare` as text, in percent."""
    test, selection = document["test_set"], document["selection_set"]
    head = f"SELECTION   on {selection}, which also chose each run's epoch; test set: none"
    if document["heading"] in ("out-of-fold", "leaky"):
        head = f"{document['heading'].upper()}   on {selection} of all folds, which chose nothing"
    if test:
        head = f"TEST   on {test}; selection set: {selection}"
    lines = [head]
    lines += [*banner(document["marks"]), *document["shared_persons"]]
    lines += ["", *_summaries(document)]
    lines.append(
        f"Percent, over seeds; SD with ddof {document['ddof']}; expected max: of n normal values"
        " with this mean and SD."
    )
    if document["seeds_planned"] is None:
        lines.append("No number of planned seeds was given: --seeds checks that all are there.")
    if any(arm[HEADLINE]["paper"] for arm in document["arms"]):
        lines.append(f"Paper's: {published_results.SOURCE}.")
    if persons := document["persons"]:
        number = f"{sum(persons.values())} persons, {_by_class(persons)}."
        lines += ["", *textwrap.wrap(f"{PATIENTS} {number}", 98), ""]
        lines += _intervals(document["arms"])
    if document["differences"]:
        lines += ["", *_differences(document["differences"])]
    if document["plan"]:
        lines += ["", *_planned(document)]
    if document["tests"]:
        lines += ["", NOISE, f"Reference arm: {document['reference']}", ""]
        lines += _comparisons(document["tests"])
    return "\n".join(lines)


def _summaries(document: dict[str, Any]) -> list[str]:
    """A table for each arm, with the same columns in all."""
    arms, test = document["arms"], document["test_set"]
    with_paper = any(arm[HEADLINE]["paper"] for arm in arms)
    header = ["", "min", "mean ± SD", "max", "expected max"]
    header += [*["paper's min", "paper's mean ± SD", "paper's max"] * with_paper, ""]
    blocks = {}
    for arm in arms:
        n = str(arm["n"]) if arm["n"] == arm["planned"] else f"{arm['n']} of {arm['planned']}"
        pooled = f", {arm['folds']} folds pooled" if arm["folds"] else ""
        heads = [f"{arm['name']}   n = {n}{pooled}"]
        pairs = zip(arm["seeds"], arm[HEADLINE]["values"], strict=True)
        values = ", ".join(f"{seed}:{percent(value)}" for seed, value in pairs)
        by_seed = f"weighted F1 by seed   {values or '–'}"
        heads.append(textwrap.fill(by_seed, 98, initial_indent="  ", subsequent_indent=" " * 24))
        if chosen := arm["chosen"]:
            best, untouched = percent(chosen["selection"]), percent(chosen["test"])
            heads.append(
                f"  {document['selection_set']} would choose seed {chosen['seed']} ({best}), which"
                f" has {untouched} on {test}"
            )
        rows = [header]
        for metric in METRICS:
            values = arm[metric]
            row = [f"  {metric}", *_range(values), percent(values["expected_max"])]
            paper = _range(values["paper"] or {}) * with_paper
            rows.append([*row, *paper, values["reason"] or ""])
        blocks["\n".join(heads)] = rows
    return _blocks(blocks)


def _blocks(blocks: dict[str, list[list[str]]]) -> list[str]:
    """Tables below their headings, with the same widths of columns in all."""
    lines = iter(aligned(row for rows in blocks.values() for row in rows).split("\n"))
    text = []
    for heading, rows in blocks.items():
        text += [heading, *(next(lines) for _ in rows), ""]
    return text


def _range(values: dict[str, Any]) -> list[str]:
    """Minimum, mean ± SD and maximum of one metric."""
    # A single value has no spread.
    has_spread = values.get("sd") is not None and len(values.get("values") or [0, 0]) > 1
    spread = f" ± {percent(values['sd'])}" if has_spread else ""
    mean = percent(values.get("mean")) + spread
    return [percent(values.get("min")), mean, percent(values.get("max"))]


def _intervals(arms: list[dict[str, Any]]) -> list[str]:
    """A table for each arm: what its metrics would be among other persons."""
    corrected = any(arm[HEADLINE]["debiased"] is not None for arm in arms)
    header = ["", "mean", "95 % interval", "df", "seeds' share", *["debiased"] * corrected]
    blocks = {}
    for arm in arms:
        rows = [header]
        for metric in person_counts.METRICS:
            found = arm[metric]["interval"]
            df = f"{found['df']:.1f}" if found else DASH
            share = arm[metric]["variance_by_seeds"]
            row = [f"  {metric}", percent(arm[metric]["mean"]), _percents(found) or DASH, df]
            row.append(DASH if share is None else f"{100 * share:.1f} %")
            rows.append(row + [percent(arm[metric]["debiased"])] * corrected)
        blocks[arm["name"]] = rows
    lines = _blocks(blocks)
    if any(arm[HEADLINE]["variance_by_seeds"] is not None for arm in arms):
        lines.append("seeds' share: of the interval's variance; the rest comes from persons.")
    if any(arm["n"] == 1 for arm in arms):
        lines.append("The interval of a single run leaves out what another seed would change.")
    if corrected:
        lines += textwrap.wrap(
            f"debiased: each person at the epoch that the others choose. {DEBIASED}", 98
        )
    return lines


def _differences(rows: list[dict[str, Any]]) -> list[str]:
    """A table of paired differences for each arm that is compared with the reference."""
    powers = [f"power at {100 * one['difference']:g}" for one in rows[0]["power"]]
    header = ["", "difference", "95 % interval", "df", *powers, "label flip p"]
    blocks: dict[str, list[list[str]]] = {}
    for row in rows:
        heading = f"{row['a']} less {row['b']}, {_runs(row['n'])}"
        difference, interval = row["difference"], row["interval"]
        blocks.setdefault(heading, [header]).append(
            [
                f"  {row['metric']}",
                DASH if difference is None else f"{100 * difference:+.2f}",
                _percents(interval, "+.2f") or DASH,
                f"{interval['df']:.1f}" if interval else DASH,
                *(DASH if one["power"] is None else f"{one['power']:.2f}" for one in row["power"]),
                p_value(row["label_flip_p"]),
            ]
        )
    lines = _blocks(blocks)
    lines += textwrap.wrap(
        "In points, on the same cells; each person is left out in turn. power: the probability that"
        " such an interval is clear of zero if the true difference is so many points. label flip"
        " p: two-sided, from exchanging the arms of each person.",
        98,
    )
    return lines


def _planned(document: dict[str, Any]) -> list[str]:
    """A table of the intervals that a study of another size would have."""
    plan, arms = document["plan"], document["arms"]
    rows = [["", *person_counts.METRICS]]
    for arm in arms:
        widths = [arm[metric]["expected_half_width"] for metric in person_counts.METRICS]
        rows.append([f"  {arm['name']}", *map(_half_width, widths)])
    of_pairs: dict[str, list[str]] = {}
    for row in document["differences"]:
        name = f"  {row['a']} less {row['b']}"
        of_pairs.setdefault(name, [name]).append(_half_width(row["expected_half_width"]))
    number = f"{plan['persons']} persons and {plan['seeds']} seed{'s' * (plan['seeds'] > 1)}"
    lines = [f"Half-width of the 95 % intervals to expect with {number}, in points", ""]
    lines += aligned([*rows, *of_pairs.values()]).split("\n")
    about = (
        "From the variance over persons and seeds above, for persons of both classes in the same"
        " proportion, with as many cells each."
    )
    if any(arm["n"] == 1 for arm in arms) and plan["seeds"] > 1:
        about += " One run does not tell what another seed changes: train two or more for that."
    if plan["seeds"] == 1:
        about += " With one seed it leaves out what another would change."
    return [*lines, *textwrap.wrap(about, 98)]


def _half_width(value: float | None) -> str:
    return DASH if value is None else f"±{100 * value:.2f}"


def _runs(n: int | list[int]) -> str:
    return f"{n} shared seeds" if isinstance(n, int) else f"{n[0]} and {n[1]} runs"


def _comparisons(tests: list[dict[str, Any]]) -> list[str]:
    """A table of tests for each arm that is compared with the reference."""
    header = ["", "p", "p_holm", "effect", "shift", "95 % interval", "family", ""]
    blocks: dict[str, list[list[str]]] = {}
    for row in tests:
        heading = (
            f"Is {row['a']} greater than {row['b']}? One-sided {row['test']}, {_runs(row['n'])}"
        )
        effect, shift = row["effect"], row["hodges_lehmann"]
        blocks.setdefault(heading, [header]).append(
            [
                f"  {row['metric']}",
                p_value(row["p"]),
                p_value(row["p_holm"]),
                DASH if effect is None else f"{effect:+.2f}",
                DASH if shift is None else f"{100 * shift:+.2f}",
                _percents(row["hodges_lehmann_interval"], "+.2f") or DASH,
                row["family"],
                row["reason"] or (f"paper: {row['paper']}" if row["paper"] else ""),
            ]
        )
    lines = _blocks(blocks)
    family = [row["b"] for row in tests if row["family"] == HEADLINE]
    lines += textwrap.wrap(
        f"p: exact, one-sided. p_holm: adjusted over the {len(family)} tests of {HEADLINE} above"
        f" ({', '.join(family)}), all arms of this command line; other metrics are exploratory."
        " effect: rank-biserial correlation. shift: Hodges-Lehmann, in points, over seeds; a few"
        " runs give it no interval.",
        98,
    )
    if any(row["paper"] for row in tests):
        lines.append(f"Paper: {published_results.TEST}.")
    return lines


def _percents(interval: dict[str, float] | None, form: str = ".2f") -> str:
    if not interval:
        return ""
    return f"({100 * interval['low']:{form}} to {100 * interval['high']:{form}})"
