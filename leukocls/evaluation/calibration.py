"""Calibration of probabilities: Platt's scaling, fitted on the set that chose the epoch.

P(ALL) = sigmoid(a + b·(logit − log pos_weight)), by maximum likelihood over cells (Platt 1999). A
loss that weighs ALL by `pos_weight` shifts the best possible logit by its logarithm, which is known
and is undone first. Each person is calibrated by parameters that were fitted without that person.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from leukocls.artifacts import predictions
from leukocls.artifacts.predictions import sigmoid
from leukocls.artifacts.record import read_record
from leukocls.common.errors import LeukoclsError
from leukocls.evaluation.intervals import deletion_interval, jackknife
from leukocls.evaluation.metrics import (
    Floats,
    brier,
    calibration_intercept,
    calibration_slope,
    confusion,
    ece,
    logistic_fit,
    rates,
    slope_reason,
)
from leukocls.evaluation.person_counts import Persons
from leukocls.evaluation.scoring import ScoredPart

Labels = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]
# Each is given labels, logits and probabilities, [n].
MEASURES: dict[str, Callable[[Labels, Floats, Floats], float | None]] = {
    "intercept": lambda y, z, p: calibration_intercept(y, z),
    "slope": lambda y, z, p: calibration_slope(y, z),
    "brier": lambda y, z, p: brier(y, p),
    "ece": lambda y, z, p: ece(y, p),
}
IN_UNIT = ("brier", "ece")  # cannot leave [0, 1], and so neither can their limits
NO_SET = "no cells here chose the epoch, or were held out, so there is nothing to fit on"
NO_LABELS = "no labels"
UNKNOWN = "whom a cell is from is unknown"
FALLING = "higher logits go with HEM: the classifier is wrong more often than right"
NOT_STORED = "what the training stored is for a test, at the run's own epoch, threshold and views"
OLDER = "its training stored none: an older version trained it"
ELSEWHERE = "the cells that it was fitted on are not here; name the run that trained"


@dataclass(frozen=True, eq=False)
class Calibration:
    """Platt's scaling, and the cells that it was fitted on.

    Attributes:
        record: the entry `calibration` of run.json: `fitted_on` (the cells' split), the number of
            `cells` and of `persons` of each class, the mean `log_pos_weight` of these cells,
            `intercept` and `slope` of the scaling, or None and a `reason`.
        label, logit: of these cells, [n]; `logit` is without the loss's weight of ALL.
        person: whom they are from, "" if unknown, [n].
        folds: the number of runs that they are from, each another fold of one recipe.
    """

    record: dict[str, Any]
    label: Labels = field(default_factory=lambda: np.zeros(0, np.int64))
    logit: Floats = field(default_factory=lambda: np.zeros(0))
    person: Names = field(default_factory=lambda: np.zeros(0, str))
    folds: int = 1

    @classmethod
    def of(
        cls, frame: pd.DataFrame, logit: Floats, fitted_on: str, folds: int = 1
    ) -> "Calibration":
        """The scaling that fits the labelled cells of `frame` best.

        Args:
            frame: with `cell`, `subject`, `label` and `log_pos_weight`, and maybe `person`.
            logit: as predicted, [n].
            fitted_on: the cells' split.
            folds: the number of runs that they are from.
        """
        known = frame["label"].to_numpy() >= 0
        cells = frame[known]
        if cells.empty:
            return cls.none(NO_LABELS, fitted_on)
        shift = cells["log_pos_weight"].to_numpy(np.float64)
        y, z = cells["label"].to_numpy(np.int64), logit[known] - shift
        person = predictions.persons(cells).to_numpy(str)
        found = _platt(y, z)
        intercept, slope = (None, None) if isinstance(found, str) else found
        record = {
            "fitted_on": fitted_on,
            "cells": len(y),
            "persons": None if (person == "").any() else Persons.of(y, y, person).number,
            "log_pos_weight": float(shift.mean()),
            "intercept": intercept,
            "slope": slope,
            "reason": found if isinstance(found, str) else None,
        }
        return cls(record, y, z, person, folds)

    @classmethod
    def none(cls, reason: str, fitted_on: str | None = None) -> "Calibration":
        """No scaling, for a reason."""
        names = ("cells", "persons", "log_pos_weight", "intercept", "slope")
        return cls({"fitted_on": fitted_on, **dict.fromkeys(names), "reason": reason})

    @cached_property
    def _others(self) -> dict[str, npt.NDArray[np.bool_]]:
        return {str(name): self.person != name for name in np.unique(self.person)}

    @cached_property
    def without(self) -> dict[str, tuple[float, float] | str]:
        """Intercept and slope fitted without each person, or the reason why there are none."""
        fits = {k: (self.label[rest], self.logit[rest]) for k, rest in self._others.items()}
        return {k: _platt(y, z) if len(y) else NO_LABELS for k, (y, z) in fits.items()}

    def applied(self, logit: Floats, person: Names) -> Floats | str:
        """Calibrated logits [n], each fitted without the cell's person, or why there are none.

        Args:
            logit: without the loss's weight of ALL, [n].
            person: whom the cells are from, "" if unknown, [n].
        """
        if self.record["slope"] is None:
            return str(self.record["reason"])
        found = self.record["intercept"] + self.record["slope"] * logit
        for name in map(str, np.intersect1d(person, self.person)):
            own = self.without[name]
            if not name:
                return UNKNOWN
            if isinstance(own, str):
                return f"without person {name}: {own}"
            found[person == name] = own[0] + own[1] * logit[person == name]
        return np.asarray(found)

    def called(self, sensitivity: float, logit: Floats, person: Names) -> npt.NDArray[np.bool_]:
        """Calls of cells, True for ALL, at a threshold from the cells of other persons, [n].

        Args:
            sensitivity: as `threshold`.
            logit, person: as `applied` takes them.
        """
        cuts = np.full(len(logit), self._cut(sensitivity, np.ones(len(self.label), bool)))
        for name, rest in self._others.items():
            if (own := person == name).any():
                cuts[own] = self._cut(sensitivity, rest)
        return logit > cuts

    def threshold(self, sensitivity: float) -> float:
        """The calibrated probability above which this share of the fitted ALL cells lies.

        It is halfway, on the logit scale, between the last of these cells and the next lower one.

        Args:
            sensitivity: in (0, 1].
        """
        cut = self._cut(sensitivity, np.ones(len(self.label), bool))
        return float(sigmoid(self.record["intercept"] + self.record["slope"] * cut))

    def _cut(self, sensitivity: float, rows: npt.NDArray[np.bool_]) -> float:
        y, z = self.label[rows], self.logit[rows]
        of_all = np.sort(z[y == 1])[::-1]
        last = of_all[math.ceil(sensitivity * len(of_all) - 1e-9) - 1]
        below = z[z < last]
        return float((last + below.max()) / 2 if below.size else last - 1)


def _platt(y: Labels, z: Floats) -> tuple[float, float] | str:
    """Intercept and slope, or the reason why there are none."""
    found = logistic_fit(y, z)
    if found is None:
        return slope_reason(y, z)
    return found if found[1] > 0 else FALLING


def of_run(frame: pd.DataFrame, chosen_on: str, pos_weight: float) -> dict[str, Any]:
    """The entry `calibration` of run.json.

    Args:
        frame: predictions of the selected epoch.
        chosen_on: the split that chose it.
        pos_weight: the weight of ALL in the loss.
    """
    if chosen_on == "train":
        return Calibration.none(NO_SET).record
    cells = frame[frame["split"] == chosen_on].assign(log_pos_weight=math.log(pos_weight))
    return Calibration.of(cells, cells["logit"].to_numpy(np.float64), chosen_on).record


def calibrations(by_input: Sequence[Sequence[ScoredPart]]) -> list[Calibration]:
    """The calibration of each input, fitted on what chose its epoch and never on a test.

    Folds of one recipe share one, fitted on the held-out cells of all of them. A scored checkpoint
    has the one that its training stored.

    Args:
        by_input: all parts of each run, file, pooled result or ensemble, of one epoch.

    Raises:
        LeukoclsError: several epochs of one input, or hard labels.
    """
    recipes: dict[str, list[int]] = {}
    found: list[Calibration] = []
    chose = [[part for part in parts if _chose(part)] for parts in by_input]
    for number, parts in enumerate(by_input):
        if len(chose[number]) > 1:
            raise LeukoclsError("--calibrate: takes one epoch of each run; choose it with --epoch")
        record = _record(parts)
        if (record.get("identity") or {}).get("score"):
            found.append(_stored(record, parts))
            continue
        found.append(_fitted(chose[number]) if chose[number] else Calibration.none(NO_SET))
        if chose[number] and record:
            recipes.setdefault(_recipe(record), []).append(number)
    for numbers in recipes.values():
        folds = [chose[number][0] for number in numbers]
        cells = pd.concat([part.frame["cell"] for part in folds])
        if len(folds) > 1 and not cells.duplicated().any():
            shared = _fitted(folds)
            for number in numbers:
                found[number] = shared
    return found


def _stored(record: dict[str, Any], parts: Sequence[ScoredPart]) -> Calibration:
    """Calibration that a scored checkpoint's training stored, if it holds for these parts."""
    own = {part.origin["heading"] for part in parts} == {"test"}
    if not own or any("neighbourhood" in part.origin for part in parts):
        return Calibration.none(NOT_STORED)
    return Calibration(record.get("calibration") or Calibration.none(OLDER).record)


def _chose(part: ScoredPart) -> bool:
    """True if the part's cells chose the epoch, or were held out of the training of each fold."""
    return part.origin["heading"] == "selection" or "folds" in part.origin


def _record(parts: Sequence[ScoredPart]) -> dict[str, Any]:
    """The run.json of the run that the parts are of; empty for anything else."""
    if not parts or parts[0].origin["run"] is None:
        return {}
    source = Path(parts[0].origin["source"])
    return read_record(source if source.is_dir() else source.parent)


def _recipe(record: dict[str, Any]) -> str:
    """A key that the folds of one recipe and seed share."""
    settings = {k: v for k, v in (record.get("identity") or {}).items() if k != "fold"}
    return json.dumps([settings or record["id"], record.get("data_digest")], sort_keys=True)


def _fitted(parts: Sequence[ScoredPart]) -> Calibration:
    """One calibration of the cells of all parts."""
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    logit = np.concatenate([part.logit for part in parts])
    first = parts[0].origin
    return Calibration.of(frame, logit, first["split"], first.get("folds") or len(parts))


def calibration_of(
    part: ScoredPart, calibration: Calibration, sensitivity: float | None = None
) -> dict[str, Any]:
    """Measures of calibration on one part before and after scaling, as plain values for JSON.

    `stages` holds calibration intercept and slope, Brier score and calibration error of the
    probabilities `before`, `without_pos_weight` and `after`, each with a 95 % interval over persons
    (parameters and threshold stay as they are). `threshold` is None without `sensitivity`.

    Args:
        sensitivity: the share of the ALL cells, in (0, 1), that a threshold is to find on the set
            that the calibration was fitted on.
    """
    result = {**calibration.record, "folds": calibration.folds, "stages": None, "threshold": None}
    frame = part.frame
    if (frame["label"] < 0).any():
        return result | {"reason": calibration.record["reason"] or NO_LABELS}
    y, z = frame["label"].to_numpy(np.int64), part.logit
    person = predictions.persons(frame).to_numpy(str)
    unweighted = z - frame["log_pos_weight"].to_numpy(np.float64)
    after = calibration.applied(unweighted, person)
    if isinstance(after, str):
        return result | {"reason": after}
    stages = {"before": z, "without_pos_weight": unweighted, "after": after}
    result["stages"] = {name: _measured(y, one, part.persons) for name, one in stages.items()}
    if sensitivity is not None and len(calibration.label):
        called = calibration.called(sensitivity, unweighted, person)
        at = _rates(y, called, person)
        probability = calibration.threshold(sensitivity)
        result["threshold"] = {"wanted": sensitivity, "probability": probability, **at}
    elif sensitivity is not None:
        result["threshold"] = {"wanted": sensitivity, "probability": None, "reason": ELSEWHERE}
    return result


def _measured(y: Labels, z: Floats, persons: Persons | None) -> dict[str, dict[str, Any]]:
    """Each measure's value, and its interval from deleted persons."""
    p, found = sigmoid(z), {}
    for name, measure in MEASURES.items():
        value, limits = measure(y, z, p), None
        number = len(persons.mostly_all) if persons else 0
        if persons and number > 1 and value is not None:
            kept = (persons.of_cell != k for k in range(number))
            without = [measure(y[rest], z[rest], p[rest]) for rest in kept]
            deleted = np.array([math.nan if one is None else one for one in without])
            of_cell = (p - y) ** 2 if name == "brier" else y - p
            limits = deletion_interval(value, deleted, persons, of_cell).limits
        if limits and name in IN_UNIT:
            limits |= {"low": max(0.0, limits["low"]), "high": min(1.0, limits["high"])}
        found[name] = {"value": value, **(limits or dict.fromkeys(("low", "high", "df")))}
    return found


def _rates(y: Labels, called: npt.NDArray[np.bool_], person: Names) -> dict[str, dict[str, Any]]:
    values = rates(**confusion(y, called))
    found: dict[str, dict[str, Any]] = {}
    for name in ("sensitivity", "specificity"):
        limits = None
        if not (person == "").any():
            limits = jackknife([Persons.of(y, called, person)], name).limits
        found[name] = {"value": values[name], **(limits or dict.fromkeys(("low", "high", "df")))}
    return found
