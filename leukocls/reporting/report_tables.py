"""Tables of a report as rows of text, the header first; for the page, CSV and LaTeX."""

from typing import Any

from leukocls.evaluation.comparison import METRICS
from leukocls.evaluation.person_counts import METRICS as WITH_INTERVAL
from leukocls.reporting.document import baseline_names

Rows = list[list[str]]
DASH = "–"
MOST_SETTINGS = 8  # of an arm; another recipe differs in dozens


def data_table(document: dict[str, Any]) -> Rows:
    """The data and the set that is scored."""
    data, comparison = document["data"], document["comparison"]
    persons = data["persons"]
    who = f"{persons['ALL']} ALL, {persons['HEM']} HEM" if persons else "unknown"
    prevalence = data["prevalence"]
    return [
        ["fact", "value"],
        ["split scheme", str(data["split_scheme"])],
        ["set that chose the epoch", str(comparison["selection_set"])],
        ["scored set", f"{data['scored']} ({comparison['heading']})"],
        ["cells", f"{data['cells']}, {percent(prevalence)} % ALL"],
        ["persons", who],
        ["digest of the data", str(data["digest"])],
    ]


def arms_table(document: dict[str, Any]) -> Rows:
    """Each arm with its seeds, the settings that differ from the reference's, and its full name."""
    comparison = document["comparison"]
    rows = [["arm", "runs", "seeds", "settings that differ", "full name"]]
    for arm in comparison["arms"]:
        own = document["settings"].get(arm["name"], {})
        reference = arm["name"] == comparison["reference"]
        settings = [f"{key}={value}" for key, value in own.items()]
        if len(settings) > MOST_SETTINGS:
            rest = f"and {len(settings) - MOST_SETTINGS} more (config.yaml)"
            settings = [*settings[:MOST_SETTINGS], rest]
        differ = "reference arm" if reference else ", ".join(settings)
        folds = f", {arm['folds']} folds pooled" if arm["folds"] else ""
        rows.append([
            arm["name"], f"{arm['n']}\u00a0of\u00a0{arm['planned']}{folds}", _seeds(arm["seeds"]),
            differ or "none", document["full_names"][arm["name"]],
        ])  # fmt: skip
    return rows


def result_tables(document: dict[str, Any]) -> list[tuple[str, Rows]]:
    """For each arm its name and its metrics over seeds, beside a paper's printed ones if any."""
    tables = []
    for arm in document["comparison"]["arms"]:
        paper = any(arm[metric]["paper"] for metric in METRICS)
        debiased = any(arm[metric]["debiased"] is not None for metric in METRICS)
        header = ["metric", "min", "mean ± SD", "max", "expected max"]
        header += ["debiased mean"] * debiased
        header += ["paper: min", "paper: mean ± SD", "paper: max"] * paper
        rows = [header]
        for metric in METRICS:
            of = arm[metric]
            row = [metric, *spread(of, arm["n"]), percent(of["expected_max"])]
            row += [percent(of["debiased"])] * debiased
            row += spread(of["paper"] or {}, 2) if paper else []
            rows.append(row)
        pooled = f", {arm['folds']} folds pooled" if arm["folds"] else ""
        tables.append((f"{arm['name']}, {runs_of(arm['n'])}{pooled}", rows))
    return tables


def intervals_table(document: dict[str, Any]) -> Rows:
    """Each arm's metrics with 95 % intervals over persons and seeds, in percent."""
    rows = [["arm", *WITH_INTERVAL]]
    for arm in document["comparison"]["arms"]:
        cells = []
        for metric in WITH_INTERVAL:
            found = arm[metric]["interval"]
            limits = f" ({percent(found['low'])} to {percent(found['high'])})" if found else ""
            cells.append(percent(arm[metric]["mean"]) + limits)
        rows.append([arm["name"], *cells])
    return rows


def differences_table(document: dict[str, Any]) -> Rows:
    """The reference less each other arm, in points."""
    differences = document["comparison"]["differences"]
    powers = differences[0]["power"] if differences else []
    header = ["less", "metric", "difference", "95 % interval", "df"]
    header += [f"power at {100 * one['difference']:g}" for one in powers] + ["label flip p"]
    rows = [header]
    for row in differences:
        interval = row["interval"]
        rows.append([
            row["b"], row["metric"], points(row["difference"]),
            _limits(interval), f"{interval['df']:.1f}" if interval else DASH,
            *(DASH if one["power"] is None else f"{one['power']:.2f}" for one in row["power"]),
            p_value(row["label_flip_p"]),
        ])  # fmt: skip
    return rows


def tests_table(document: dict[str, Any]) -> Rows:
    """Tests over seeds whether the reference arm is greater; only those that could be made."""
    header = ["than", "metric", "test", "p", "Holm", "effect", "shift", "95 % interval", "paper"]
    rows = [header]
    for row in document["comparison"]["tests"]:
        effect = row["effect"]
        if row["p"] is None:
            continue
        rows.append([
            row["b"], row["metric"], row["test"], p_value(row["p"]),
            p_value(row["p_holm"]), DASH if effect is None else f"{effect:+.2f}",
            points(row["hodges_lehmann"]), _limits(row["hodges_lehmann_interval"]),
            row["paper"] or "",
        ])  # fmt: skip
    return rows


def shortcuts_table(document: dict[str, Any]) -> Rows:
    """AUROC of each baseline in percent, and what the reference arm has more, in points."""
    comparison, baselines = document["comparison"], baseline_names(document)
    arms = {arm["name"]: arm["auroc"] for arm in comparison["arms"]}
    more = {row["b"]: row for row in comparison["differences"] if row["metric"] == "auroc"}
    rows = [["features", "AUROC", "95 % interval", "reference more", "95 % interval"]]
    for name in sorted(baselines, key=lambda name: arms[name]["mean"] or 0, reverse=True):
        of, row = arms[name], more.get(name, {"difference": None, "interval": None})
        limits = of["interval"]
        rows.append([
            name, percent(of["mean"]),
            f"{percent(limits['low'])} to {percent(limits['high'])}" if limits else DASH,
            points(row["difference"]), _limits(row["interval"]),
        ])  # fmt: skip
    return rows


def cells_table(document: dict[str, Any]) -> Rows:
    """The hardest cells."""
    return [
        ["cell", "label", "person", "mean loss", "mean p(ALL)"],
        *(
            [
                cell["cell"], "ALL" if cell["label"] else "HEM", cell["person"],
                f"{cell['loss']:.2f}", f"{cell['prob']:.3f}",
            ]
            for cell in document["cells"]
        ),
    ]  # fmt: skip


def spread(of: dict[str, Any], n: int) -> list[str]:
    """Minimum, mean ± SD and maximum in percent; no SD of a single run."""
    sd = of.get("sd")
    more = f" ± {percent(sd)}" if sd is not None and n > 1 else ""
    return [percent(of.get("min")), percent(of.get("mean")) + more, percent(of.get("max"))]


def percent(value: float | None) -> str:
    """A fraction in percent with two decimals; a dash for None."""
    return DASH if value is None else f"{100 * value:.2f}"


def points(value: float | None) -> str:
    """A difference of fractions in points, with its sign; a dash for None."""
    return DASH if value is None else f"{100 * value:+.2f}"


def p_value(value: float | None) -> str:
    """A p value with four decimals, or as a power of ten if it is below .0001; a dash for None."""
    return DASH if value is None else f"{value:.4f}" if value >= 1e-4 else f"{value:.1e}"


def runs_of(n: int) -> str:
    """So many runs, in words."""
    return f"{n} run{'s' * (n != 1)}"


def _limits(interval: dict[str, float] | None) -> str:
    return f"{points(interval['low'])} to {points(interval['high'])}" if interval else DASH


def _seeds(seeds: list[int]) -> str:
    """Seeds, a range where they follow each other."""
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
