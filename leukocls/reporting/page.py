"""The report as one HTML page that needs nothing beside it."""

from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from leukocls import __version__
from leukocls.artifacts.marks import MEANINGS
from leukocls.evaluation import published_results
from leukocls.evaluation.metrics import HEADLINE
from leukocls.evaluation.person_counts import METRICS
from leukocls.reporting.card import card
from leukocls.reporting.document import baseline_names, has_paper, headline
from leukocls.reporting.figures import Figure, svg
from leukocls.reporting.pictures import OUTLINE, Pictures
from leukocls.reporting.report_tables import (
    arms_table,
    cells_table,
    data_table,
    differences_table,
    intervals_table,
    result_tables,
    runs_of,
    shortcuts_table,
    tests_table,
)
from leukocls.reporting.tables import PATIENTS

CONTENTS = {
    "checks": "Checks",
    "runs": "What was run, on which data",
    "results": "Results over seeds",
    "persons": "Persons and seeds side by side",
    "differences": "Is one arm better?",
    "shortcuts": "What simple features reach",
    "thresholds": "Errors, thresholds, calibration",
    "learning-curve": "Learning curve",
    "robustness": "Robustness",
    "cells": "Hardest cells, for review",
    "card": "Card",
    "sources": "Sources",
}

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("leukocls.reporting"),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def page(
    document: dict[str, Any], figures: Sequence[Figure], pictures: Pictures | None = None
) -> str:
    """The HTML page of a report.

    Args:
        document: of `leukocls.reporting.arm_names.with_short_names`.
        figures: of `leukocls.reporting.report_figures.figures`.
        pictures: of `leukocls.reporting.pictures.thumbnails`; None leaves pictures of cells out.
    """
    comparison, median = document["comparison"], document["median"]
    counts, reference = median["counts"], comparison["reference"]
    differences = differences_table(document)
    holds = {
        "differences": len(differences) > 1,
        "robustness": bool(document["robustness"]),
        "shortcuts": bool(baseline_names(document)),
        "learning-curve": bool(document["learning_curve"]),
    }
    return _TEMPLATES.get_template("report.html.j2").render(
        title=_title(headline(document)["experiment"], reference),
        heading=heading_text(document),
        marks=" ".join(comparison["marks"]),
        about_marks="; ".join(MEANINGS[mark] for mark in comparison["marks"]),
        shared_persons=comparison["shared_persons"],
        contents=[item for item in CONTENTS.items() if holds.get(item[0], True)],
        checks=document["checks"],
        data=data_table(document),
        arms=arms_table(document),
        ddof=comparison["ddof"],
        paper=published_results.SOURCE if has_paper(document) else "",
        results=result_tables(document),
        about_persons=_about(comparison["persons"]),
        intervals=intervals_table(document),
        differences=differences,
        tests=tests_table(document),
        shortcuts=shortcuts_table(document),
        reference=reference,
        median=median,
        confusion=[
            ["label", "called ALL", "called HEM"],
            ["is ALL", counts["tp"], counts["fn"]],
            ["is HEM", counts["fp"], counts["tn"]],
        ],
        calibration=_calibration(median["calibration"]),
        learning_curve=document["learning_curve"],
        pictures=_pictured(document, pictures or {}),
        maps=[name for name in next(iter((pictures or {}).values()), {}) if name != OUTLINE],
        cells=cells_table(document),
        card=card(document),
        runs=runs_of(len(comparison["sources"])),
        sources=[["Run", "sha256 of its predictions"], *comparison["sources"].items()],
        version=__version__,
        figures={
            one.name: {"svg": Markup(svg(one)), "caption": one.caption, "alt": one.alt}
            for one in figures
        },
    )


def _title(experiment: str, reference: str) -> str:
    """The reference arm with its experiment, which its short name may begin with."""
    named = reference.partition("/")[0].partition(",")[0] == experiment
    return reference if named else f"{experiment}: {reference}"


def _about(persons: dict[str, int] | None) -> str:
    """A sentence on the persons behind the intervals."""
    if not persons:
        return "Whom a cell is from is unknown, so there are no intervals over persons."
    return f"{PATIENTS} {persons['ALL']} ALL and {persons['HEM']} HEM persons."


def _pictured(document: dict[str, Any], pictures: Pictures) -> list[dict[str, Any]]:
    """The hardest cells that have a picture, with it."""
    return [
        cell | {"pictures": pictures[cell["cell"]], "prob": f"{cell['prob']:.2f}"}
        | {"label": "ALL" if cell["label"] else "HEM"}
        for cell in document["cells"]
        if cell["cell"] in pictures
    ]  # fmt: skip


def _calibration(found: dict[str, Any] | None) -> str:
    """The calibration that a run stored, in a sentence."""
    if not found:
        return ""
    if found["slope"] is None:
        return f"No calibration: {found['reason']}."
    return (
        f"Calibrated probability: sigmoid({found['intercept']:+.3f} {found['slope']:+.3f} · (logit"
        f" {-found['log_pos_weight']:+.3f})), Platt's scaling fitted on {found['fitted_on']}."
    )


def heading_text(document: dict[str, Any]) -> str:
    """What the numbers may be called, on which set."""
    comparison, data = document["comparison"], document["data"]
    if comparison["test_set"]:
        return (
            f"TEST: {data['scored']}, {data['cells']} cells, which trained and chose nothing;"
            f" {comparison['selection_set']} chose the epoch."
        )
    if comparison["heading"] == "selection":
        return (
            f"SELECTION: {data['scored']}, {data['cells']} cells, which also chose each run's"
            " epoch, so these numbers are too good on average. There is no test set."
        )
    return f"{comparison['heading'].upper()}: {data['scored']}, {data['cells']} cells."


def headline_text(document: dict[str, Any]) -> str:
    """The reference arm's weighted F1 and its heading, in a line."""
    arm = headline(document)
    value = arm[HEADLINE]["mean"]
    shown = "undefined" if value is None else f"{100 * value:.2f} %"
    return f"{METRICS[0]} {shown} ({document['comparison']['heading']}, {runs_of(arm['n'])})"
