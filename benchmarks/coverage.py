"""Coverage of 95 % intervals over persons, on simulated persons of prelim's sizes: SYNTHETIC.

python benchmarks/coverage.py [--replicates N] [--json FILE]

Each replicate draws 13 ALL and 15 HEM persons. A person's cells are called rightly with a
probability Φ(a + τu) of their own; τ gives the intra-class correlation (ICC) of right calls that is
asked for. The sizes of persons are

  fixed        those of prelim, and any person may have any of them
  resampled    drawn anew from those of prelim
  informative  those of prelim, larger for persons that are called rightly more often
  heavy        fixed, with person effects u of Student's t with 3 degrees of freedom

Counted is how often an interval holds the truth: the value of infinitely many such persons. Beside
the default of `evaluate` stand the jackknife with min(K) − 1 degrees of freedom, the percentile
bootstrap of persons, and cells taken as independent.
"""

import argparse
import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from scipy import optimize, stats

from leukocls.artifacts.environment import versions
from leukocls.common.files import atomic_write
from leukocls.common.tables import aligned
from leukocls.data.published import published_subjects
from leukocls.evaluation.intervals import jackknife
from leukocls.evaluation.metrics import Floats
from leukocls.evaluation.person_counts import Persons

METRICS = ("weighted_f1", "sensitivity", "specificity", "auroc")
METHODS = (
    "cells as independent",
    "percentile bootstrap of persons",
    "jackknife, t with min(K) - 1",
    "jackknife, Satterthwaite (default)",
)
SCHEMES = ("fixed", "resampled", "informative", "heavy")
MEASURED = (0.085, 0.148)  # ICC of ALL and of HEM
ICCS = ((0.05, 0.05), (0.15, 0.15), (0.30, 0.30), MEASURED)
RATES = (0.92, 0.80)  # sensitivity and specificity: Prellberg & Kramer 2019, Table 2
RESAMPLES = 400
MANY = 400_000  # persons, for the truth


def prelim() -> tuple[Floats, Floats]:
    """Cells of each subject of prelim: of ALL, and of HEM."""
    counts = published_subjects()["prelim"]
    sizes = ([n for name, n in counts.items() if name.startswith("H") == hem] for hem in (0, 1))
    of_all, of_hem = (np.array(one, float) for one in sizes)
    return of_all, of_hem


def effect(rate: float, icc: float) -> tuple[float, float]:
    """a and τ for which Φ(a + τu), u standard normal, has the mean `rate` and the ICC `icc`."""
    z = stats.norm.ppf(rate)

    def too_much(rho: float) -> float:
        both = stats.multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf([z, z])
        return float((both - rate**2) / (rate * (1 - rate)) - icc)

    rho = optimize.brentq(too_much, 1e-6, 0.99)
    tau = np.sqrt(rho / (1 - rho))
    return float(z * np.sqrt(1 + tau**2)), float(tau)


def drawn(
    rng: np.random.Generator, scheme: str, sizes: Floats, number: int
) -> tuple[Floats, Floats]:
    """Sizes and effects u of `number` persons."""
    heavy = scheme == "heavy"
    u = rng.standard_t(3, number) / np.sqrt(3) if heavy else rng.normal(size=number)
    if scheme == "resampled" or number != len(sizes):
        n = rng.choice(sizes, number)
    else:
        n = rng.permutation(sizes)
    if scheme == "informative":
        order = np.argsort(u + rng.normal(size=number))
        n = np.sort(n)[np.argsort(order)]
    return n, u


Effects = list[tuple[float, float]]  # a and τ of ALL, then of HEM


def truth(scheme: str, effects: Effects) -> dict[str, float]:
    """The metrics of infinitely many persons, with as many cells of each class as prelim has."""
    rng, cells, rate, parts = np.random.default_rng(0), [], [], []
    for sizes, (a, tau) in zip(prelim(), effects, strict=True):
        n, u = drawn(rng, scheme, sizes, MANY)
        right = stats.norm.cdf(a + tau * u)
        cells.append(sizes.sum())
        rate.append(float((n * right).sum() / n.sum()))
        parts.append((a + tau * u)[rng.choice(MANY, MANY, p=n / n.sum())])
    f1 = []
    for own, other in ((0, 1), (1, 0)):
        hits, wrong = cells[own] * rate[own], cells[other] * (1 - rate[other])
        f1.append(2 * hits / (cells[own] + hits + wrong))
    return {
        "weighted_f1": float(np.average(f1, weights=cells)),
        "sensitivity": rate[0],
        "specificity": rate[1],
        "auroc": float(stats.norm.cdf((parts[0] + parts[1]) / np.sqrt(2)).mean()),
    }


def sample(rng: np.random.Generator, scheme: str, effects: Effects) -> dict[str, Floats]:
    """Labels, persons and logits of one replicate's cells."""
    found: dict[str, list[Floats]] = {"label": [], "person": [], "z": []}
    for y, sizes, (a, tau) in zip((1, 0), prelim(), effects, strict=True):
        n, u = drawn(rng, scheme, sizes, len(sizes))
        person = np.repeat(np.arange(len(n)), n.astype(int))
        right = a + tau * u[person] + rng.normal(size=len(person))
        found["label"].append(np.full(len(person), y))
        found["person"].append(person + 1000 * y)
        found["z"].append(right if y else -right)
    return {name: np.concatenate(values) for name, values in found.items()}


def limits(rng: np.random.Generator, cells: dict[str, Floats]) -> dict[str, dict[str, Any]]:
    """Low and high by method and metric."""
    label, z = cells["label"], cells["z"]
    persons = Persons.of(label, z > 0, cells["person"], z)
    found: dict[str, dict[str, Any]] = {name: {} for name in METHODS}
    for metric in METRICS:
        default = jackknife([persons], metric)
        found[METHODS[3]][metric] = (default.low, default.high)
        number = [persons.number[name] for name in ("ALL", "HEM")]
        of = {"sensitivity": number[:1], "specificity": number[1:]}.get(metric, number)
        half = stats.t.ppf(0.975, min(of) - 1) * default.se
        value = np.clip(default.value, 5e-4, 1 - 5e-4)
        middle = np.log(value / (1 - value))
        found[METHODS[2]][metric] = tuple(1 / (1 + np.exp(-(middle + s * half))) for s in (-1, 1))
    found[METHODS[1]] = bootstrap(rng, persons)
    found[METHODS[0]] = independent(rng, label, z)
    return found


def bootstrap(rng: np.random.Generator, persons: Persons) -> dict[str, Any]:
    """Percentiles over persons that are drawn again within their class."""
    most, wins = persons.mostly_all, persons.wins
    assert wins is not None
    weights = np.zeros((RESAMPLES, len(most)))
    for own in (most, ~most):
        number = int(own.sum())
        weights[:, own] = rng.multinomial(number, np.full(number, 1 / number), RESAMPLES)
    cells, hits = weights @ persons.cells.T, weights @ persons.hits.T
    auroc = ((weights @ wins) * weights).sum(1) / cells.prod(1)
    return percentiles(cells[:, 1], cells[:, 0], hits[:, 1], hits[:, 0], auroc)


def percentiles(
    of_all: Floats, of_hem: Floats, tp: Floats, tn: Floats, auroc: Floats
) -> dict[str, Any]:
    """95 % of each metric, from cells and hits of both classes in each resample."""
    wrong = of_all + of_hem - tp - tn
    f1_all, f1_hem = 2 * tp / (2 * tp + wrong), 2 * tn / (2 * tn + wrong)
    values = {
        "weighted_f1": (of_all * f1_all + of_hem * f1_hem) / (of_all + of_hem),
        "sensitivity": tp / of_all,
        "specificity": tn / of_hem,
        "auroc": auroc,
    }
    return {name: tuple(np.percentile(value, [2.5, 97.5])) for name, value in values.items()}


def independent(rng: np.random.Generator, label: Floats, z: Floats) -> dict[str, Any]:
    """As if each cell were from a person of its own: binomial counts, and DeLong's AUROC."""
    above, below = z[label == 1], z[label == 0]
    tp = rng.binomial(len(above), (above > 0).mean(), RESAMPLES).astype(float)
    tn = rng.binomial(len(below), (below <= 0).mean(), RESAMPLES).astype(float)
    of_all = np.searchsorted(np.sort(below), above) / len(below)
    of_hem = 1 - np.searchsorted(np.sort(above), below) / len(above)
    half = 1.96 * np.sqrt(of_all.var(ddof=1) / len(above) + of_hem.var(ddof=1) / len(below))
    found = percentiles(
        np.full(RESAMPLES, float(len(above))), np.full(RESAMPLES, float(len(below))), tp, tn, tp
    )
    return found | {"auroc": (of_all.mean() - half, of_all.mean() + half)}


def setting(scheme: str, iccs: tuple[float, float], replicates: int) -> dict[str, Any]:
    """Coverage in percent and median width in points, by method and metric."""
    effects = [effect(*pair) for pair in zip(RATES, iccs, strict=True)]
    rng, true = np.random.default_rng(1), truth(scheme, effects)
    drawn_limits = [limits(rng, sample(rng, scheme, effects)) for _ in range(replicates)]
    found: dict[str, Any] = {}
    for method, metric in product(METHODS, METRICS):
        low, high = np.array([one[method][metric] for one in drawn_limits]).T
        covered = (low <= true[metric]) & (true[metric] <= high)
        found.setdefault(method, {})[metric] = {
            "coverage": round(100 * float(covered.mean()), 1),
            "width": round(100 * float(np.median(high - low)), 1),
            "too low": round(100 * float((high < true[metric]).mean()), 1),
            "too high": round(100 * float((low > true[metric]).mean()), 1),
        }
    return {"scheme": scheme, "icc": iccs, "truth": true, "methods": found}


def text(settings: list[dict[str, Any]]) -> str:
    """Coverage at the measured ICC and fixed sizes, its range over all settings, and the width."""
    (main,) = (s for s in settings if (s["scheme"], s["icc"]) == ("fixed", MEASURED))
    rows = []
    for method in METHODS:
        row = [method]
        for metric in METRICS:
            every = [s["methods"][method][metric]["coverage"] for s in settings]
            here = main["methods"][method][metric]
            row += [f"{here['coverage']} ({min(every)}-{max(every)})", str(here["width"])]
        rows.append(row)
    head = ["coverage of 95 % (range)", *(word for name in METRICS for word in (name, "width"))]
    return aligned([head, *rows])


def main() -> None:
    """Simulate, print the table, and keep everything with --json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicates", type=int, default=3000, help="of each setting")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    jobs = list(product(SCHEMES, ICCS))
    pool = Parallel(os.cpu_count())
    settings = pool(delayed(setting)(*job, arguments.replicates) for job in jobs)
    print("SYNTHETIC\n" + text(settings))
    if arguments.json:
        document = {
            "command": f"python benchmarks/coverage.py --replicates {arguments.replicates}",
            "cores": os.cpu_count(),
            "versions": versions(),
            "settings": settings,
        }
        atomic_write(arguments.json, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
