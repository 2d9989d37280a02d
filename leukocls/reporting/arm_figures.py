"""The figures of a report that set arms beside each other."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from leukocls.evaluation.person_counts import METRICS
from leukocls.reporting.document import baseline_names
from leukocls.reporting.figures import COLOURS, INK, MARKERS, NAMES, Figure, choice, wrapped


def intervals(document: dict[str, Any]) -> Figure | None:
    """Each arm's interval over persons beside its range over seeds; None without intervals."""
    arms = document["comparison"]["arms"]
    table = pd.DataFrame([
        {
            "arm": arm["name"], "metric": metric, "mean": arm[metric]["mean"],
            "lowest seed": arm[metric]["min"], "highest seed": arm[metric]["max"],
            "low": found["low"], "high": found["high"], "df": found["df"],
        }
        for metric in METRICS
        for arm in arms
        if (found := arm[metric]["interval"])
    ])  # fmt: skip
    if table.empty:
        return None

    def draw(drawn: Canvas) -> None:
        metrics = list(dict.fromkeys(table["metric"]))
        panels = drawn.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            own = table[table["metric"] == metric].reset_index(drop=True)
            for place, row in own.iterrows():
                axes.plot([row["low"], row["high"]], [place, place], color=choice(COLOURS, 0), lw=2)
                axes.plot(
                    [row["lowest seed"], row["highest seed"]], [place + 0.2] * 2,
                    color=choice(COLOURS, 1), lw=4, solid_capstyle="butt",
                )  # fmt: skip
                axes.plot(row["mean"], place, "o", color=INK, markersize=4)
            axes.set_title(NAMES[metric])
            axes.set_yticks(range(len(own)), map(wrapped, own["arm"]))
            axes.grid(axis="y", visible=False)
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.set_xlabel("Value")
        panels[0].invert_yaxis()
        panels[0].set_ylabel("Arm")
        panels[0].plot([], [], color=choice(COLOURS, 0), lw=2, label="95 % interval over persons")
        panels[0].plot([], [], color=choice(COLOURS, 1), lw=4, label="lowest to highest seed")
        drawn.legend(loc="outside upper center", ncols=2)

    return Figure(
        "intervals",
        "What other persons would change (thin lines: 95 % intervals) beside what other seeds"
        " change (thick lines: lowest to highest run). Cells of one person are alike, so an"
        " interval counts persons.",
        f"Five charts, a row for each of {len(arms)} arms, with the interval over persons and the"
        " range over seeds.",
        table,
        draw,
        (7.0, 1.6 + 0.42 * len(arms)),
    )


def differences(document: dict[str, Any]) -> Figure | None:
    """The reference less each other arm, with intervals; None without them."""
    table = pd.DataFrame([
        {
            "reference": row["a"], "less": row["b"], "metric": row["metric"],
            "points": 100 * row["difference"], "low": 100 * row["interval"]["low"],
            "high": 100 * row["interval"]["high"],
        }
        for row in document["comparison"]["differences"]
        if row["interval"]
    ])  # fmt: skip
    if table.empty:
        return None

    def draw(drawn: Canvas) -> None:
        axes = drawn.subplots()
        names = list(dict.fromkeys(table["less"]))
        metrics = list(dict.fromkeys(table["metric"]))
        for number, metric in enumerate(metrics):
            own = table[table["metric"] == metric]
            places = [names.index(name) + 0.14 * (number - 2) for name in own["less"]]
            axes.errorbar(
                own["points"], places,
                xerr=[own["points"] - own["low"], own["high"] - own["points"]],
                fmt=choice(MARKERS, number), color=choice(COLOURS, number), markersize=4,
                label=NAMES[metric], elinewidth=1.2,
            )  # fmt: skip
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(names)), map(wrapped, names))
        axes.set(
            xlabel="Difference in points, with 95 % interval over persons",
            ylabel="Reference arm less",
        )
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        drawn.legend(loc="outside upper center", ncols=5, fontsize=8)

    return Figure(
        "differences",
        f"{document['comparison']['reference']} less each other arm, on the same cells. An"
        " interval that holds zero leaves open which arm is better for other persons.",
        f"Chart with intervals of {table['less'].nunique()} differences in"
        f" {table['metric'].nunique()} metrics around zero.",
        table,
        draw,
        (7.0, 1.5 + 0.75 * table["less"].nunique()),
    )


def shortcuts(document: dict[str, Any]) -> Figure | None:
    """AUROC of networks beside that of simple features; None without a baseline among the arms."""
    baselines = baseline_names(document)
    if not baselines:
        return None
    table = pd.DataFrame([
        {
            "arm": arm["name"],
            "kind": "simple features" if arm["name"] in baselines else "network",
            "mean": arm["auroc"]["mean"],
            "low": (arm["auroc"]["interval"] or {}).get("low"),
            "high": (arm["auroc"]["interval"] or {}).get("high"),
        }
        for arm in document["comparison"]["arms"]
        if arm["auroc"]["mean"] is not None
    ])  # fmt: skip
    table = table.sort_values("mean", ascending=False, kind="stable", ignore_index=True)

    def draw(drawn: Canvas) -> None:
        axes = drawn.subplots()
        for number, kind in enumerate(("network", "simple features")):
            own = table[table["kind"] == kind]
            axes.hlines(own.index, own["low"], own["high"], color=COLOURS[number], linewidth=2)
            axes.plot(
                own["mean"], own.index, MARKERS[number], color=COLOURS[number], label=kind,
                markerfacecolor=(COLOURS[0], "none")[number],
            )  # fmt: skip
        axes.axvline(0.5, linestyle=":", color=INK, linewidth=1)
        axes.set_yticks(range(len(table)), map(wrapped, table["arm"]))
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set(xlabel="AUROC, with 95 % interval over persons", ylabel="Arm")
        axes.grid(axis="y", visible=False)
        drawn.legend(loc="outside upper center", ncols=2)

    best = table[table["kind"] == "simple features"].iloc[0]
    return Figure(
        "shortcuts",
        "AUROC of networks and of classifiers on simple features, on the same cells, with 95 %"
        " intervals over persons. Dotted: guessing.",
        f"Chart of {len(table)} arms by AUROC; the best simple features are {best['arm']} with"
        f" {best['mean']:.3f}.",
        table,
        draw,
        (7.0, 1.4 + 0.36 * len(table)),
    )
