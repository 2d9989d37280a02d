"""The document of `leukocls.robustness` as text, and as one row for each metric."""

import textwrap
from collections.abc import Iterator
from typing import Any

from leukocls.artifacts.marks import banner
from leukocls.common.tables import aligned
from leukocls.evaluation.person_counts import METRICS

WIDTH = 98


def robustness_text(document: dict[str, Any]) -> str:
    """The document as text: a table of drops in points for each metric, and the amounts."""
    cells, every = document["cells"], document["cells_of_split"]
    of_all = "" if cells == every else f" of {every}"
    origin = f"split {document['split']} · epoch {document['epoch']}"
    origin += f" · threshold {document['threshold']:g} · views {document['views']}"
    lines = [f"{document['heading'].upper()}   {document['source']} · {origin}"]
    lines += [*banner(document["marks"]), *document["shared_persons"]]
    persons = document["persons"]
    whose = f"{persons['ALL']} ALL and {persons['HEM']} HEM persons" if persons else "unknown"
    lines.append(f"{cells}{of_all} cells, from {whose}; {_stored(document)}")
    names = [one["name"] for one in document["corruptions"]]
    at = {(row["corruption"], row["severity"]): row["metrics"] for row in document["rows"]}
    severities = sorted({severity for _, severity in at})
    rows: list[list[str]] = []
    for metric in METRICS:
        clean = document["clean"][metric]
        rows.append([metric, *map(str, severities)])
        rows += [[f"  {name}", *(_drop(at[name, s][metric]) for s in severities)] for name in names]
        rows.append([f"  clean {_percent(clean['value'])}{_limits(clean['interval'])}"])
    lines += ["", "Drop from the clean images in points, by severity (95 % interval)", ""]
    lines += _blocks(rows)
    lines += textwrap.wrap(
        "Intervals are over other persons like these, paired by person, of the same training; they"
        " are not adjusted for their number. A drop below 0 is a gain.",
        WIDTH,
    )
    amounts = [
        [f"  {one['name']}", *(f"{amount:g}" for amount in one["amounts"]), one["unit"]]
        for one in document["corruptions"]
    ]
    return "\n".join([*lines, "", aligned([["severity", *map(str, severities), ""], *amounts])])


def _stored(document: dict[str, Any]) -> str:
    difference = document["clean_difference"]
    if difference is None:
        return "the run stored no logits of these views"
    exact = "equal those that the run stored" if difference == 0 else ""
    return f"clean logits {exact or f'differ from the stored ones by {difference:.1g} at most'}"


def _blocks(rows: list[list[str]]) -> list[str]:
    """Tables with the same columns, each closed by a line of its own and an empty one."""
    table = iter(aligned(row for row in rows if len(row) > 1).split("\n"))
    return [line for row in rows for line in ([next(table)] if len(row) > 1 else [row[0], ""])]


def _drop(found: dict[str, Any]) -> str:
    return f"{_percent(found['drop'])}{_limits(found['drop_interval'])}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _limits(interval: dict[str, float] | None) -> str:
    if not interval:
        return ""
    return f" ({_percent(interval['low'])} to {_percent(interval['high'])})"


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each corruption, severity and metric; the clean images have severity 0."""
    about = {name: document[name] for name in ("run", "heading", "split")}
    about["marks"] = " ".join(document["marks"])
    clean = {"corruption": "", "severity": 0, "amount": None, "metrics": document["clean"]}
    return [
        {**about, **{name: row[name] for name in ("corruption", "severity", "amount")}, **values}
        for row in (clean, *document["rows"])
        for values in _of_metrics(row["metrics"])
    ]


def _of_metrics(metrics: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for metric, found in metrics.items():
        values = {"metric": metric, "value": found["value"], "drop": found.get("drop")}
        for prefix, key in (("", "interval"), ("drop_", "drop_interval")):
            limits = found.get(key) or {}
            values |= {f"{prefix}{end}": limits.get(end) for end in ("low", "high")}
        yield values
