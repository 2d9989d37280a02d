"""The figures of a report, in the form of the paper's where it has them."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure as Canvas

from leukocls.reporting import arm_figures
from leukocls.reporting.figures import COLOURS, INK, NAMES, Figure, choice, line, wrapped

_PANELS = (
    *("accuracy", "sensitivity", "specificity"),
    *("weighted_f1", "weighted_precision", "weighted_recall"),
)


def figures(document: dict[str, Any]) -> list[Figure]:
    """The figures of a report that its runs allow, in the report's order."""
    makers = (
        *(_losses, _persons, _courses),
        *(arm_figures.intervals, arm_figures.differences, arm_figures.shortcuts),
        *(_thresholds, _learning_curve),
    )
    return [figure for make in makers if (figure := make(document))]


def _losses(document: dict[str, Any]) -> Figure | None:
    best, losses = document["best"], document["best"]["losses"]
    if not losses:
        return None
    table = pd.DataFrame(
        {name: losses[name] for name in ("epochs", "train_loss", "loss", "weighted_f1")}
    )

    def draw(drawn: Canvas) -> None:
        left, right = drawn.subplots(1, 2)
        for number, (name, title) in enumerate(
            (("train_loss", "training"), ("loss", losses["set"]))
        ):
            line(left, table["epochs"], table[name], number, title)
        line(right, table["epochs"], table["weighted_f1"], 2, losses["set"])
        left.set(xlabel="Epoch (0: before training)", ylabel="Loss")
        right.set(xlabel="Epoch (0: before training)", ylabel="Weighted F1")
        left.legend()

    return Figure(
        "losses",
        f"Loss and weighted F1 by epoch of the best run of {document['comparison']['reference']}"
        f" (seed {best['seed']}), as Figure 2 of Prellberg & Kramer 2019. The best run of several"
        " is no typical one. From metrics.csv.",
        f"Two line charts over epochs: training loss and loss on {losses['set']}; weighted F1 on"
        f" {losses['set']}.",
        table,
        draw,
        (7.0, 2.6),
    )


def _persons(document: dict[str, Any]) -> Figure | None:
    rows = [row for row in document["persons"] if row["label"] is not None]
    if not rows:
        return None
    seeds = headline_seeds(document)
    best = seeds.index(document["best"]["seed"])
    table = pd.DataFrame([
        {
            "person": row["person"], "class": "ALL" if row["label"] else "HEM",
            "cells": row["cells"], "accuracy of the best run": row["runs"][best],
            "mean over runs": row["accuracy"],
        }
        for row in rows
    ])  # fmt: skip

    def draw(drawn: Canvas) -> None:
        axes = drawn.subplots()
        for number, name in enumerate(("ALL", "HEM")):
            here = table.index[table["class"] == name]
            axes.bar(
                here, table["mean over runs"][here], color=COLOURS[number], alpha=0.75,
                label=name, hatch=("", "//")[number], edgecolor=INK, linewidth=0.5,
            )  # fmt: skip
        if len(seeds) > 1:
            axes.plot(
                table.index, table["accuracy of the best run"], "_", color=INK, markersize=9,
                label="best run",
            )  # fmt: skip
        places = list(table.index)
        axes.set_xticks(places, table["person"], rotation=90, fontsize=7)
        axes.set(xlabel="Person", ylabel="Share of cells called rightly", ylim=(0, 1.02))
        axes.margins(x=0.01)
        axes.grid(axis="x", visible=False)
        axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    worst = table.nsmallest(1, "mean over runs").iloc[0]
    return Figure(
        "persons",
        f"Share of each person's cells that {document['comparison']['reference']} calls rightly,"
        f" mean over {len(seeds)} run{'s' * (len(seeds) > 1)}, as Figure 3 of Prellberg & Kramer"
        " 2019, which shows the best run. Where persons differ much, an interval that took cells as"
        " independent would be far too narrow.",
        f"Bar chart of {len(table)} persons, sorted by class; the lowest is {worst['person']}"
        f" ({worst['class']}) with {worst['mean over runs']:.2f}.",
        table,
        draw,
        (7.0, 3.0),
    )


def headline_seeds(document: dict[str, Any]) -> list[int]:
    """The seeds of the reference arm, in the order of its values."""
    comparison = document["comparison"]
    return next(
        arm["seeds"] for arm in comparison["arms"] if arm["name"] == comparison["reference"]
    )


def _courses(document: dict[str, Any]) -> Figure | None:
    courses = document["courses"]
    if not courses or all(len(one["epochs"]) < 3 for one in courses.values()):
        return None
    table = pd.DataFrame([
        {"arm": arm, "epoch": epoch, "metric": metric, "mean": mean, "sd": sd}
        for arm, course in courses.items()
        for metric, values in course["metrics"].items()
        for epoch, mean, sd in zip(course["epochs"], values["mean"], values["sd"], strict=True)
        if epoch >= 1
    ])  # fmt: skip

    def draw(drawn: Canvas) -> None:
        panels = drawn.subplots(2, 3, sharex=True)
        for axes, metric in zip(panels.flat, _PANELS, strict=True):
            for number, arm in enumerate(courses):
                own = table[(table["arm"] == arm) & (table["metric"] == metric)]
                line(axes, own["epoch"], own["mean"], number, wrapped(arm))
                axes.fill_between(
                    own["epoch"], own["mean"] - own["sd"], own["mean"] + own["sd"],
                    color=choice(COLOURS, number), alpha=0.15, linewidth=0,
                )  # fmt: skip
            axes.set_title(NAMES[metric])
        for axes in panels[1]:
            axes.set_xlabel("Epoch")
        for axes in panels[:, 0]:
            axes.set_ylabel("Value")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))

    number = ", ".join(f"{arm} {course['n']}" for arm, course in courses.items())
    return Figure(
        "courses",
        "Metrics by epoch on the selection set: mean over runs, shaded one SD (ddof 0), as Figure 4"
        f" of Prellberg & Kramer 2019. Runs: {number}. The shade is training noise, not what other"
        " persons would change.",
        f"Six line charts over epochs, a line for each of {len(courses)} arms: "
        + ", ".join(NAMES[name].lower() for name in _PANELS)
        + ".",
        table,
        draw,
        (7.0, 4.4),
    )


def _thresholds(document: dict[str, Any]) -> Figure | None:
    median = document["median"]
    if not median["curves"]:
        return None
    roc, pr = median["curves"]["roc"], median["curves"]["precision_recall"]
    reliability = pd.DataFrame(median["curves"]["reliability"])
    table = pd.concat(
        [
            pd.DataFrame({"curve": "ROC", "x": roc["fpr"], "y": roc["tpr"]}),
            pd.DataFrame({"curve": "precision-recall", "x": pr["recall"], "y": pr["precision"]}),
            pd.DataFrame(
                {"curve": "reliability", "x": reliability["prob"], "y": reliability["all"]}
            ),
        ],
        ignore_index=True,
    )
    prevalence = document["data"]["prevalence"]

    def draw(drawn: Canvas) -> None:
        first, second, third = drawn.subplots(1, 3)
        first.plot([0, 1], [0, 1], ":", color=INK, linewidth=1)
        first.plot(roc["fpr"], roc["tpr"], color=COLOURS[0])
        first.set(xlabel="1 − specificity", ylabel="Sensitivity", title="ROC")
        second.axhline(prevalence, linestyle=":", color=INK, linewidth=1)
        second.plot(pr["recall"], pr["precision"], color=COLOURS[0])
        second.set(
            xlabel="Recall (sensitivity)", ylabel="Precision", ylim=(0, 1.02),
            title="Precision-recall",
        )  # fmt: skip
        third.plot([0, 1], [0, 1], ":", color=INK, linewidth=1)
        third.plot(reliability["prob"], reliability["all"], "o-", color=COLOURS[0], markersize=4)
        third.set(xlabel="Mean probability of ALL", ylabel="Share of ALL", title="Reliability")
        for axes in (first, second, third):
            axes.set_box_aspect(1)

    return Figure(
        "thresholds",
        f"ROC and precision-recall curves and reliability of the median run of"
        f" {document['comparison']['reference']} (seed {median['seed']}). Dotted: what guessing"
        " gives, and perfect calibration. Reliability: 15 bins with equally many cells.",
        f"Three charts: ROC with an area of {median['auroc']:.3f}, precision-recall with an average"
        f" precision of {median['average_precision']:.3f}, reliability with a calibration error of"
        f" {median['ece']:.3f}.",
        table,
        draw,
        (7.0, 2.7),
    )


def _learning_curve(document: dict[str, Any]) -> Figure | None:
    found = document["learning_curve"]
    if not found or not found["points"]:
        return None
    table = pd.DataFrame([
        {
            "curve": point["curve"], "persons": point["persons"], "cells": point["cells"],
            "runs": point["n"], "mean": point["mean"],
            "low": (point["interval"] or {}).get("low"),
            "high": (point["interval"] or {}).get("high"),
        }
        for point in found["points"]
        if point["mean"] is not None
    ])  # fmt: skip
    if table.empty:
        return None
    several = table["persons"].notna().all() and len(set(table["persons"])) > 1
    by = "persons" if several else "cells"

    def draw(drawn: Canvas) -> None:
        axes = drawn.subplots()
        for number, (curve, own) in enumerate(table.groupby("curve", sort=False)):
            line(axes, own[by], own["mean"], number, wrapped(str(curve)))
            low, high = (own[end].astype(float).to_numpy() for end in ("low", "high"))
            axes.fill_between(
                own[by], low, high, color=choice(COLOURS, number), alpha=0.15, linewidth=0
            )
        axes.set(xlabel=f"Training {by}", ylabel=NAMES[found["metric"]])
        axes.legend()

    return Figure(
        "learning_curve",
        f"{NAMES[found['metric']]} by number of {by} in the training set ({found['heading']});"
        " shaded: 95 % interval over scored persons and runs. Which persons a small set happens to"
        " have is not in it, unless the runs differ in their split seed.",
        f"Line chart of {table['curve'].nunique()} curves over the number of training {by}, from"
        f" {table[by].min():.0f} to {table[by].max():.0f}.",
        table,
        draw,
        (5.0, 3.0),
    )
