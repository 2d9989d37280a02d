"""Measure what training on other cells of the test subjects is worth, by how subjects differ.

python benchmarks/leakage.py [--trees N] [--subjects N] [--scales X X] [--json FILE]

The same test cells are scored by two models, trained on equally many cells of equally many subjects
with the same share of ALL: other cells of the test subjects (leaky), or cells of other subjects
(honest). Half of a tree's subjects are A, half B; both serve as test subjects, and each training
set is leaky for one half and honest for the other, so that a training set that happens to be a good
one counts on both sides. A tree's value is the mean over random halves; the interval is Student's
t over trees, which are independent.

`sd_nuisance` multiplies the default SDs of subject stain, texture and focus. Fields do not differ
here (sd_field 0), since only subjects are told apart. Severity has no subject effect either
(icc_severity 0): with one, the training cells of the test subjects say where along the class
direction these very subjects lie, and a model could gain without knowing anybody again. So at 0 the
cells of one class are exchangeable, and nothing can leak.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import stats
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from tqdm import tqdm

from leukocls.artifacts.environment import versions
from leukocls.common.files import atomic_write
from leukocls.common.tables import aligned
from leukocls.data.features import colour, handcrafted
from leukocls.evaluation.metrics import auroc
from leukocls.synthetic.render import Cell, render
from leukocls.synthetic.tree import GENERATOR_VERSION, SyntheticSpec, draw_cells
from leukocls.training import baselines, probes

NUISANCES = ("sd_nuisance_stain", "sd_nuisance_texture", "sd_nuisance_focus")
AUROC_BAYES = 0.9  # so that there is room above what these models reach honestly
CELLS, TEST_CELLS = 12, 4  # of each subject
PARTITIONS = 20
MARGIN = 0.01  # of AUROC: a mean whose 90 % interval lies inside is equivalent to none


def logistic(x: pd.DataFrame, y: NDArray, unseen: pd.DataFrame) -> NDArray:
    """The baseline's own model, with C at 1."""
    return probes.fitted(x, y, "logistic", 1.0).decision_function(unseen)


def svm(x: pd.DataFrame, y: NDArray, unseen: pd.DataFrame) -> NDArray:
    """A kernel can fence in the cells of one subject."""
    return make_pipeline(StandardScaler(), SVC(C=10)).fit(x, y).decision_function(unseen)


def neighbours(x: pd.DataFrame, y: NDArray, unseen: pd.DataFrame) -> NDArray:
    """The nearest cells are the subject's own, if subjects can be told apart."""
    model = make_pipeline(StandardScaler(), KNeighborsClassifier(5, weights="distance"))
    return model.fit(x, y).predict_proba(unseen)[:, 1]


MODELS: dict[str, Callable[[pd.DataFrame, NDArray, pd.DataFrame], NDArray]] = {
    "logistic regression": logistic,
    "RBF SVM": svm,
    "5 nearest neighbours": neighbours,
}


def spec(seed: int, scale: float, subjects: int) -> SyntheticSpec:
    """The tree of one replicate: more and larger subjects than `subjects` of each class."""
    scaled = {name: scale * getattr(SyntheticSpec(), name) for name in NUISANCES}
    return SyntheticSpec(
        seed=seed, train_subjects_all=2 * subjects, train_subjects_hem=2 * subjects,
        cells_per_subject=2 * CELLS, auroc_bayes=AUROC_BAYES, icc_severity=0.0, icc_size=0.0,
        sd_field=0.0, **scaled,
    )  # fmt: skip


def chosen(cells: list[Cell], subjects: int) -> list[Cell]:
    """CELLS cells of each of the first `subjects` subjects of each class that have so many."""
    of_subject: dict[tuple[int, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.part.startswith("fold_"):
            of_subject[cell.label, cell.subject].append(cell)
    found: list[Cell] = []
    for label in (1, 0):
        large = [c for (y, _), c in of_subject.items() if y == label and len(c) >= CELLS]
        assert len(large) >= subjects
        found += [cell for own in large[:subjects] for cell in own[:CELLS]]
    return found


def partition(x: pd.DataFrame, y: NDArray, rng: np.random.Generator) -> dict[str, list[float]]:
    """AUROC [leaky, honest] of each model on all test cells, for one draw of halves and cells.

    The rows of `x` and `y` are CELLS of each subject, and as many subjects of ALL, then of HEM.
    """
    subjects = len(y) // CELLS // 2
    half = np.concatenate([rng.permutation(subjects) % 2 for _ in range(2)])
    place = rng.permuted(np.tile(np.arange(CELLS), (2 * subjects, 1)), axis=1).ravel()
    half_of, test = np.repeat(half, CELLS), place < TEST_CELLS
    areas: dict[str, list[float]] = {}
    for name, score in MODELS.items():
        found: dict[bool, list[Any]] = {True: [], False: []}
        for trained in (0, 1):
            train = (half_of == trained) & ~test
            logit = score(x[train], y[train], x[test])
            for tested in (0, 1):
                here = half_of[test] == tested
                found[trained == tested].append(auroc(y[test][here], logit[here]))
        areas[name] = [float(np.mean(found[leaky])) for leaky in (True, False)]
    return areas


def replicate(seed: int, scale: float, subjects: int) -> dict[str, list[float]]:
    """AUROC [leaky, honest] of each model, the mean over the partitions of one tree.

    `subjects` is their number of each class in each half.
    """
    cells = chosen(draw_cells(spec(seed, scale, 2 * subjects)), 2 * subjects)
    images = map(render, cells)
    x = pd.DataFrame([handcrafted(image) | colour(image) for image in images])
    y = np.array([cell.label for cell in cells])
    rng = np.random.default_rng(seed)
    drawn = [partition(x, y, rng) for _ in range(PARTITIONS)]
    return {name: np.mean([areas[name] for areas in drawn], axis=0).tolist() for name in MODELS}


def interval(values: NDArray) -> list[float]:
    """Student's 90 % interval of the mean."""
    margin = stats.t.ppf(0.95, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [float(values.mean() - margin), float(values.mean() + margin)]


def summary(areas: NDArray, before: NDArray | None) -> dict[str, Any]:
    """Result for one model at one scale; `areas` [trees, 2], `before` those of the scale below.

    Trees of one seed share their draws over scales, so the growth is of pairs.
    """
    leak = areas[:, 0] - areas[:, 1]
    low, high = interval(leak)
    growth = None if before is None else interval(leak - (before[:, 0] - before[:, 1]))
    return {
        "leaky_auroc": float(areas[:, 0].mean()),
        "honest_auroc": float(areas[:, 1].mean()),
        "leakage": float(leak.mean()),
        "interval_90": [low, high],
        "equivalent_to_none": low > -MARGIN and high < MARGIN,
        "growth_interval_90": growth,
        "by_tree": leak.tolist(),
    }


def measure(scales: list[float], trees: int, subjects: int) -> dict[str, dict[str, Any]]:
    """`summary` by model and scale; both cores, one tree each."""
    pool: Any = Parallel(n_jobs=os.cpu_count(), return_as="generator")
    jobs = product(scales, range(trees))
    done = pool(delayed(replicate)(seed, scale, subjects) for scale, seed in jobs)
    found = list(tqdm(done, "trees", len(scales) * trees, unit="tree", disable=None))
    result = {}
    for name in MODELS:
        areas = np.array([one[name] for one in found]).reshape(len(scales), trees, 2)
        befores = [None, *areas[:-1]]
        result[name] = {
            f"{scale:g}": summary(here, before)
            for scale, here, before in zip(scales, areas, befores, strict=True)
        }
    return result


def table(result: dict[str, dict[str, Any]]) -> str:
    """The result as a text table."""
    rows = [["model", "sd_nuisance", "honest", "leaky", "leakage", "90 % interval", ""]]
    for name, by_scale in result.items():
        for scale, one in by_scale.items():
            shown = [f"{one[key]:.3f}" for key in ("honest_auroc", "leaky_auroc", "leakage")]
            low, high = one["interval_90"]
            verdict = "equivalent to none" if one["equivalent_to_none"] else ""
            rows.append([name, f"× {scale}", *shown, f"{low:+.4f} to {high:+.4f}", verdict])
    return aligned(rows)


def main() -> None:
    """Measure and print the leakage of each model at each scale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", type=int, default=12)
    parser.add_argument("--subjects", type=int, default=12, help="of each class in each half")
    parser.add_argument("--scales", type=float, nargs="+", default=[0, 0.5, 1, 2])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.scales, arguments.trees, arguments.subjects)
    print(table(result))
    if arguments.json:
        document = {
            "command": " ".join(["python", *sys.argv]),
            "cores": os.cpu_count(),
            "versions": versions() | {name: version(name) for name in baselines.PACKAGES},
            "synthetic": True,
            "generator": GENERATOR_VERSION,
            "auroc_bayes": AUROC_BAYES,
            "trees": arguments.trees,
            "subjects_of_each_class_in_each_half": arguments.subjects,
            "cells_of_each_subject": {"training": CELLS - TEST_CELLS, "test": TEST_CELLS},
            "partitions_of_each_tree": PARTITIONS,
            "margin": MARGIN,
            "models": result,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(arguments.json, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
