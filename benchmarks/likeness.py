"""Compare SYNTHETIC cells with genuine ones in numbers; no image is written.

python benchmarks/likeness.py GENUINE_ROOT [--json FILE]

The same is measured on every genuine image below GENUINE_ROOT and on synthetic cells of the default
spec, drawn in memory. Published figures stand beside them where there are any. How well simple
features separate the classes, by person and by cell (LEAKY), is measured on as many cells of both:
what a classifier gains by knowing a person depends on how many cells of that person it has seen.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from PIL import Image
from scipy import ndimage

from leukocls.artifacts.environment import versions
from leukocls.common.files import atomic_write
from leukocls.data.features import colour, handcrafted, mask, size
from leukocls.data.folds import balanced_folds
from leukocls.data.index import build_index
from leukocls.data.published import person_of
from leukocls.evaluation.metrics import auroc
from leukocls.synthetic.tree import SyntheticSpec, draw_cells, render
from leukocls.training.probes import fitted

SPEC = SyntheticSpec(cells_per_subject=6)
# Trees of which folds 0 and 1 are separated. Twelve HEM subjects decide each one's values, so that
# the mean of a few trees says little.
WHOLE = [SyntheticSpec(scale="full", seed=seed) for seed in range(12)]
SEPARATED = 1200  # cells at most
FEATURES = {"size": size, "mask": mask, "colour": colour, "handcrafted": handcrafted}
FOLDS = 5
C = 0.1  # of logistic regression on standardised features, about what the probes choose
PUBLISHED = {  # RECIPES.md §1
    "size mean px, ALL": 221,
    "size mean px, HEM": 188,
    "outside 300 share": 0.067,
}
CLASSES = {0: "HEM", 1: "ALL"}
PATCH = 96  # px
OCTAVES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # cycles per px
HARMONICS = ((2, 2), (3, 4), (5, 8), (9, 16), (17, 32))  # waves round the outline
RIMS = ((0, 1), (1, 3), (3, 8))  # px from the edge


def spectrum(image: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """Power of the log luminance in each octave, in a window that lies within the cell."""
    y, x = (round(c) - PATCH // 2 for c in ndimage.center_of_mass(inside))
    patch = (slice(max(y, 0), max(y, 0) + PATCH), slice(max(x, 0), max(x, 0) + PATCH))
    if not inside[patch].all():
        return {}
    window = np.outer(np.hanning(PATCH), np.hanning(PATCH))
    light = np.log(np.maximum(image[patch], 1)).mean(-1)
    light -= np.average(light, weights=window)
    power = np.abs(np.fft.fft2(light * window)) ** 2 / (window**2).sum()
    frequency = np.hypot(np.fft.fftfreq(PATCH)[:, None], np.fft.fftfreq(PATCH))
    return {
        f"log power 1/{1 / high:.0f} to 1/{1 / low:.0f} px": float(
            np.log(power[(frequency >= low) & (frequency < high)].mean())
        )
        for low, high in pairwise(OCTAVES)
    }


def roughness(inside: np.ndarray) -> dict[str, float]:
    """RMS of bands of harmonics of the outline's radius, by its mean."""
    opened = ndimage.binary_opening(inside)
    y, x = ndimage.center_of_mass(opened)
    turn = np.linspace(0, 2 * np.pi, 360, endpoint=False)[:, None]
    reach = np.arange(0, 320, 0.5)
    rows = np.clip(np.round(y + np.sin(turn) * reach), 0, len(inside) - 1).astype(int)
    columns = np.clip(np.round(x + np.cos(turn) * reach), 0, len(inside) - 1).astype(int)
    radius = (opened[rows, columns] * reach).max(1)
    wave = np.abs(np.fft.rfft(radius / radius.mean())) * np.sqrt(2) / len(radius)
    return {
        f"outline harmonics {low} to {high}": float(np.sqrt((wave[low : high + 1] ** 2).sum()))
        for low, high in HARMONICS
    }


def measure(image: np.ndarray) -> dict[str, float]:
    """All measurements of one image."""
    inside = image.any(-1)
    extents = [np.ptp(inside.any(axis).nonzero()[0]) + 1 for axis in (0, 1)]
    edge = (len(image) - 300) // 2
    distance = ndimage.distance_transform_edt(inside)
    found = {
        "size px": float(np.mean(extents)),
        "outside 300": float(inside.sum() > inside[edge:-edge, edge:-edge].sum()),
        "zero background": float(1 - inside.mean()),
        "centre of mass off by px": float(
            np.hypot(*(np.array(ndimage.center_of_mass(inside)) - (len(image) - 1) / 2))
        ),
    }
    for name, values in zip(("red", "green", "blue"), image[inside].T, strict=True):
        found |= {f"{name} mean": float(values.mean()), f"{name} SD": float(values.std())}
    for low, high in RIMS:
        ring = image[(distance > low) & (distance <= high)]
        found[f"mean {low} to {high} px from the edge"] = float(ring.mean())
    return found | spectrum(image, inside) | roughness(inside)


def within_to_between(values: pd.Series, label: pd.Series, subject: pd.Series) -> float:
    """Ratio of variances within and between subjects, of one class each (one-way ANOVA)."""
    centred = values - values.groupby(label).transform("mean")
    groups = centred.groupby(subject)
    sizes, total = groups.size(), len(centred)
    within = ((centred - groups.transform("mean")) ** 2).sum() / (total - len(sizes))
    free = len(sizes) - label.nunique()
    usual = (total - (sizes**2).sum() / total) / free
    between = ((groups.mean() ** 2 * sizes).sum() / free - within) / usual
    return float(within / between) if between > 0 else float("inf")


def summary(rows: pd.DataFrame, table: pd.DataFrame) -> dict[str, float]:
    """Means by class and over all of what `measured` found; `table` has label and subject."""
    label, subject = table["label"].reset_index(drop=True), table["subject"].reset_index(drop=True)
    found = {"outside 300 share": rows["outside 300"].mean()}
    for column in rows.drop(columns="outside 300"):
        for value, name in CLASSES.items():
            of_class = rows.loc[label == value, column]
            key = column if column != "size px" else "size mean px"
            found[f"{key}, {name}"] = of_class.mean()
            if column in ("size px", "red mean", "green mean", "blue mean"):
                found[f"{column.removesuffix(' mean')} SD over cells, {name}"] = of_class.std()
    known = subject != ""
    for name, values in (("log green", np.log(rows["green mean"])), ("size", rows["size px"])):
        ratio = within_to_between(values[known], label[known], subject[known])
        found[f"variance within by between subjects, {name}"] = ratio
    return {name: round(float(value), 4) for name, value in found.items()}


def measured(function: Callable[[Any], np.ndarray], items: Iterable[Any]) -> pd.DataFrame:
    """The measurements of each image that `function` makes of an item, one at a time a process."""

    def one(item: Any) -> dict[str, float]:
        return measure(function(item))

    return pd.DataFrame(Parallel(os.cpu_count())(delayed(one)(item) for item in items))


def separability(
    function: Callable[[Any], np.ndarray], items: list[Any], label: np.ndarray, person: pd.Series
) -> dict[str, float]:
    """AUROC of each of FEATURES out of fold: folds of persons, then folds of cells.

    Every k-th item is taken, so that SEPARATED are not exceeded.
    """
    step = -(-len(items) // SEPARATED)
    items, y = items[::step], label[::step]
    names = person[::step].reset_index(drop=True)

    def one(item: Any) -> dict[str, dict[str, float]]:
        image = function(item)
        return {name: feature(image) for name, feature in FEATURES.items()}

    rows = Parallel(os.cpu_count())(delayed(one)(item) for item in items)
    folds = {
        "person": balanced_folds(names, pd.Series(y), FOLDS, 0),
        "cell": np.random.default_rng(0).permutation(len(y)) % FOLDS,
    }
    found = {}
    for name in FEATURES:
        table = pd.DataFrame([row[name] for row in rows])
        for unit, fold in folds.items():
            logit = np.zeros(len(y))
            for held in range(FOLDS):
                test = fold == held
                model = fitted(table[~test], y[~test], "logistic", C)
                logit[test] = model.decision_function(table[test])
            found[f"AUROC by {unit}, {name}"] = round(float(auroc(y, logit) or 0), 4)
    return found


def of_tree(spec: SyntheticSpec) -> dict[str, float]:
    """`separability` of a synthetic tree's folds 0 and 1."""
    cells = [cell for cell in draw_cells(spec) if cell.part in ("fold_0", "fold_1")]
    subject = pd.Series([cell.subject for cell in cells])
    return separability(render, cells, np.array([cell.label for cell in cells]), subject)


def decoded(path: Path) -> np.ndarray:
    """A genuine image."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def main() -> None:
    """Measure both and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, metavar="GENUINE_ROOT")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    index = build_index(arguments.root)
    if index.synthetic:
        parser.error(f"{arguments.root}: a synthetic tree; give a genuine one")
    labelled = index.table[index.table["label"] >= 0]
    cells = draw_cells(SPEC)
    drawn = pd.DataFrame({"label": [c.label for c in cells], "subject": [c.subject for c in cells]})
    paths = [index.root / file for file in labelled["file"]]
    genuine = summary(measured(decoded, paths), labelled)
    synthetic = summary(measured(render, cells), drawn)
    persons = pd.Series(
        [person_of(*names) for names in zip(labelled["cell"], labelled["subject"], strict=True)]
    )
    genuine |= separability(decoded, paths, labelled["label"].to_numpy(), persons)
    trees = [of_tree(spec) for spec in WHOLE]
    values = {name: [of[name] for of in trees] for name in trees[0]}
    synthetic |= {name: round(fmean(of), 4) for name, of in values.items()}
    measures = {
        name: {"genuine": genuine[name], "synthetic": synthetic[name]}
        | ({"published": PUBLISHED[name]} if name in PUBLISHED else {})
        | ({"SD over trees": round(pstdev(values[name]), 4)} if name in values else {})
        for name in genuine
    }
    for name, pair in measures.items():
        shown = "".join(f"  {kind} {value:9.4f}" for kind, value in pair.items())
        print(f"{name:48}{shown}")
    if arguments.json:
        document = {
            # Where somebody keeps the data is no part of a result.
            "command": "python benchmarks/likeness.py GENUINE_ROOT",
            "cores": os.cpu_count(),
            "versions": versions(),
            "genuine": {
                "cells": {name: int((labelled["label"] == y).sum()) for y, name in CLASSES.items()},
                "subjects": int(labelled["subject"].nunique()),
            },
            "synthetic": {
                "cells": {name: int((drawn["label"] == y).sum()) for y, name in CLASSES.items()},
                "subjects": int(drawn["subject"].nunique()),
                "spec": asdict(SPEC),
            },
            "measures": measures,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(arguments.json, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
