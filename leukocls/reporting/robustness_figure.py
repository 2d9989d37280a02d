"""The figure of `leukocls.robustness`: metrics under corruptions of five severities."""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from leukocls.evaluation.person_counts import METRICS
from leukocls.reporting.figures import COLOURS, INK, NAMES, Figure
from leukocls.reporting.robustness import rows_of

_PANEL = (1.75, 1.5)  # inches


def robustness_figure(document: dict[str, Any]) -> Figure:
    """A panel for each metric (row) and corruption (column): the metric against the severity.

    The band is the metric's 95 % interval over persons, the dashed line the clean metric; a dot is
    filled where the interval of the paired drop is clear of 0.

    Args:
        document: as `leukocls.robustness --json` prints it.
    """
    corruptions = document["corruptions"]
    columns, lines = len(corruptions), len(METRICS)

    def draw(drawn: Canvas) -> None:
        panels = drawn.subplots(lines, columns, sharex=True, sharey="row", squeeze=False)
        for column, corruption in enumerate(corruptions):
            for line, metric in enumerate(METRICS):
                _panel(panels[line, column], document, corruption["name"], metric)
            amounts = corruption["amounts"]
            panels[0, column].set_title(
                f"{corruption['name']}\n{amounts[0]:g} to {amounts[-1]:g}\n{corruption['unit']}"
            )
        for line, metric in enumerate(METRICS):
            panels[line, 0].set_ylabel(f"{NAMES[metric]}, %")
        marks = f"   *** {' '.join(document['marks'])} ***" if document["marks"] else ""
        drawn.suptitle(
            f"{document['run']}{marks}\n{document['heading'].upper()} on {document['split']},"
            f" {document['cells']} cells"
        )
        drawn.supxlabel("Severity (0: clean)", fontsize=9)

    return Figure(
        "robustness",
        f"Metrics of {document['run']} on corrupted images, on {document['split']}"
        f" ({document['heading']}, {document['cells']} cells). Band: 95 % interval over persons;"
        " dashed: clean; a dot is filled where the interval of the paired drop is clear of 0.",
        f"{lines * columns} line charts over severity, a column for each of"
        f" {', '.join(one['name'] for one in corruptions)}.",
        pd.DataFrame(rows_of(document)),
        draw,
        (max(columns * _PANEL[0], 5.5) + 0.4, lines * _PANEL[1] + 1.5),
    )


def _panel(axes: Axes, document: dict[str, Any], corruption: str, metric: str) -> None:
    clean = document["clean"][metric]
    rows = [row for row in document["rows"] if row["corruption"] == corruption]
    points = [clean, *(row["metrics"][metric] for row in rows)]
    severity = list(range(len(points)))
    axes.axhline(100 * clean["value"], color=INK, linestyle="--", linewidth=0.8)
    # NaN leaves a gap where there is no interval.
    low, high = (
        [100 * point["interval"][end] if point["interval"] else math.nan for point in points]
        for end in ("low", "high")
    )
    axes.fill_between(severity, low, high, color=COLOURS[0], alpha=0.18, linewidth=0)
    axes.plot(severity, [100 * point["value"] for point in points], color=COLOURS[0])
    for at, point in enumerate(points):
        drop = point.get("drop_interval")
        clear = drop is not None and not drop["low"] <= 0 <= drop["high"]
        face = COLOURS[0] if clear else "none"
        axes.plot(
            at, 100 * point["value"], "o", color=COLOURS[0], markerfacecolor=face, markersize=4
        )
    axes.set_xticks(severity)
