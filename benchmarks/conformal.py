"""Coverage of abstention's limits for new persons, with persons and with cells as units.

python benchmarks/conformal.py [--runs RUN …] [--replicates N] [--json FILE]

Simulated persons (SYNTHETIC): those of C-NMC's training set, 39 ALL and 20 HEM with cells of its
sizes, each with an effect of its own on all of its cells (probit-normal, at the intra-class
correlations measured on prelim). Each replicate fits the limits on all of them and looks at 59 new
persons. RUNS are the folds of a cross-validation on genuine cells: each person in turn is new to
limits that were fitted on the held-out cells of all others.

Counted is the share of a new person's cells whose own label is left, in the mean over persons of a
class, which is what is promised; and how many persons have less than 80 % of their cells so.
"""

import argparse
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from leukocls.artifacts import predictions
from leukocls.artifacts.environment import versions
from leukocls.artifacts.record import read_record
from leukocls.common.files import atomic_write
from leukocls.common.tables import aligned
from leukocls.data.published import merged_subject, published_subjects
from leukocls.evaluation.conformal import ALPHAS, conformal_table, kept
from leukocls.evaluation.metrics import Floats
from leukocls.evaluation.request import Request
from leukocls.evaluation.scoring import ScoringOptions

UNITS = ("person", "cell")
LOW = 0.8


def simulation() -> Any:
    """The module of coverage.py, whose persons these are."""
    path = Path(__file__).with_name("coverage.py")
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sizes() -> tuple[list[int], list[int]]:
    """Cells of each person of the training set: of ALL, and of HEM."""
    persons: dict[str, int] = {}
    for part, counts in published_subjects().items():
        for subject, cells in counts.items() if part != "prelim" else ():
            name = merged_subject(subject)
            persons[name] = persons.get(name, 0) + cells
    return (
        [n for name, n in persons.items() if not name.startswith("H")],
        [n for name, n in persons.items() if name.startswith("H")],
    )


def drawn(rng: np.random.Generator, effects: list[tuple[float, float]]) -> dict[str, Floats]:
    """Labels, logits and persons of one set of persons."""
    found: dict[str, list[Floats]] = {"label": [], "logit": [], "person": []}
    for y, cells, (a, tau) in zip((1, 0), sizes(), effects, strict=True):
        person = np.repeat(np.arange(len(cells)), cells)
        right = a + tau * rng.normal(size=len(cells))[person] + rng.normal(size=len(person))
        found["label"].append(np.full(len(person), y))
        found["logit"].append(right if y else -right)
        found["person"].append(person + 1000 * y)
    return {name: np.concatenate(values) for name, values in found.items()}


Shares = dict[tuple[str, float, int], list[float]]  # by unit, α and class: one for each new person


def count(shares: Shares, fitted: dict[str, Floats], new: dict[str, Floats]) -> None:
    """Add the shares of each new person's cells whose own label is left."""
    units = {"person": fitted["person"], "cell": np.arange(len(fitted["label"]))}
    for unit, names in units.items():
        table = conformal_table(fitted["label"], fitted["logit"], names.astype(str))
        for level in table["levels"]:
            keeps = np.where(new["label"] == 1, *kept(new["logit"], level))
            for person in np.unique(new["person"]):
                own = new["person"] == person
                key = unit, level["alpha"], int(new["label"][own][0])
                shares.setdefault(key, []).append(float(keeps[own].mean()))


def simulated(replicates: int) -> Shares:
    """Shares of new persons in all replicates."""
    module, rng, shares = simulation(), np.random.default_rng(0), Shares()
    effects = [module.effect(*pair) for pair in zip(module.RATES, module.MEASURED, strict=True)]
    for _ in range(replicates):
        count(shares, drawn(rng, effects), drawn(rng, effects))
    return shares


def genuine(runs: list[Path]) -> Shares:
    """Shares of each person by limits that were fitted on the others."""
    ((part,),) = Request(runs, ScoringOptions(), pool=True).parts()
    cells = {
        "label": part.frame["label"].to_numpy(),
        "logit": part.logit,
        "person": predictions.persons(part.frame).to_numpy(str),
    }
    shares = Shares()
    for person in np.unique(cells["person"]):
        own = cells["person"] == person
        halves = ({name: values[rows] for name, values in cells.items()} for rows in (~own, own))
        count(shares, *halves)
    return shares


def rows(shares: Shares) -> list[dict[str, Any]]:
    """For each unit, α and class: mean coverage and how many persons have little."""
    return [
        {
            "unit": unit,
            "alpha": alpha,
            "class": name,
            "persons": len(found),
            "coverage": round(float(np.mean(found)), 4),
            f"below {LOW:g}": round(float((np.array(found) < LOW).mean()), 4),
        }
        for unit in UNITS
        for alpha in ALPHAS
        for label, name in ((1, "ALL"), (0, "HEM"))
        if (found := shares[unit, alpha, label])
    ]


def text(table: Iterable[dict[str, Any]]) -> str:
    """The rows, aligned."""
    every = list(table)
    return aligned([list(every[0]), *([str(value) for value in row.values()] for row in every)])


def main() -> None:
    """Simulate, and look at genuine runs if there are any."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, nargs="+", default=[], metavar="RUN")
    parser.add_argument("--replicates", type=int, default=300)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {"synthetic": rows(simulated(arguments.replicates))}
    print("SYNTHETIC\n" + text(found["synthetic"]))
    if arguments.runs:
        found["genuine"] = rows(genuine(arguments.runs))
        print("\nGENUINE, each person left out in turn\n" + text(found["genuine"]))
    if arguments.json:
        document = {
            "command": f"python benchmarks/conformal.py --replicates {arguments.replicates}"
            + " --runs RUN …" * bool(arguments.runs),
            "runs": [read_record(run)["id"] for run in arguments.runs],
            "versions": versions(),
            **found,
        }
        atomic_write(arguments.json, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
