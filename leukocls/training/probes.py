"""Probes: simple classifiers on given features, with one parameter that is chosen by persons.

Logistic regression on standardised features (a linear probe), and the vote of the k nearest cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from leukocls.data.folds import balanced_folds

# Inverse strength of the L2 penalty on standardised features, and number of neighbours.
GRIDS: dict[str, Sequence[float]] = {
    "logistic": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "knn": (1, 5, 11, 21, 51, 101),
}
PARAMETERS = {"logistic": "C", "knn": "k"}
DEFAULTS = {"logistic": 1.0, "knn": 21.0}  # where nothing can be held out
FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """A fitted classifier.

    Attributes:
        pipeline: standardisation, then logistic regression or k nearest neighbours.
        name: a key of GRIDS.
        value: of its parameter, C or k (at most the number of training cells).
        auroc: of each value of the grid on cells that were held out; empty if the default is used.
    """

    pipeline: Pipeline
    name: str
    value: float
    auroc: dict[str, float]

    def logits(self, table: pd.DataFrame) -> np.ndarray:
        """Log odds of ALL, float64 [n].

        Of k neighbours of which v are ALL they are log((v + ½) / (k − v + ½)), which is finite.
        """
        classifier = self.pipeline[-1]
        if self.name == "logistic":
            return np.asarray(self.pipeline.decision_function(table))
        votes = self.pipeline.predict_proba(table)[:, 1] * classifier.n_neighbors
        return _log_odds(votes.round(), classifier.n_neighbors)

    def coefficients(self) -> pd.DataFrame | None:
        """Coefficients of logistic regression, the largest first; None for neighbours.

        logit = Σ coefficient · (feature − mean) / sd. The intercept is the row of a feature that is
        always 1, with mean 0 and SD 1.
        """
        scaler, classifier = self.pipeline
        if self.name != "logistic":
            return None
        order = np.argsort(-np.abs(classifier.coef_[0]), kind="stable")
        return pd.DataFrame(
            {
                "feature": ["intercept", *scaler.feature_names_in_[order]],
                "mean": [0.0, *scaler.mean_[order]],
                "sd": [1.0, *scaler.scale_[order]],
                "coefficient": [*classifier.intercept_, *classifier.coef_[0][order]],
            }
        )


def fit(
    table: pd.DataFrame, label: npt.ArrayLike, person: pd.Series, name: str, seed: int
) -> Probe:
    """Choose the parameter by cross-validation within the training cells, and fit all of them.

    The value with the highest AUROC over all held-out cells is taken, of equally good ones the one
    that smooths most. Folds keep persons together. Where persons are unknown they are folds of
    cells; where a class cannot be on both sides of all folds the default is used.

    Args:
        table: features [n, p].
        label: [n], ALL = 1.
        person: [n], "" if unknown; None of them known for a split by cells.
        name: a key of GRIDS.
        seed: of the folds.
    """
    labels = np.asarray(label, np.int64)
    folds = _folds(person, labels, seed)
    if folds is not None and not all(np.ptp(labels[folds != fold]) for fold in np.unique(folds)):
        folds = None  # one class alone is nothing to train on
    held_out = {value: np.empty(len(labels)) for value in GRIDS[name] if folds is not None}
    for fold in np.unique(folds) if folds is not None else ():
        inside = folds == fold
        scaler = StandardScaler().fit(table[~inside])
        train, test = scaler.transform(table[~inside]), scaler.transform(table[inside])
        logits = LOGITS[name](train, labels[~inside], test)
        for value, scores in logits.items():
            held_out[value][inside] = scores
    auroc = {value: float(roc_auc_score(labels, held_out[value])) for value in held_out}
    smoothest_first = sorted(auroc, reverse=name == "knn")
    value = max(smoothest_first, key=auroc.__getitem__, default=DEFAULTS[name])
    rounded = {f"{value:g}": round(score, 4) for value, score in auroc.items()}
    if name == "knn":
        value = min(value, len(labels))
    return Probe(fitted(table, labels, name, value), name, value, rounded)


def _logistic_logits(
    train: np.ndarray, label: np.ndarray, test: np.ndarray
) -> dict[float, np.ndarray]:
    """Logits of the test cells for each C, from the smallest, each fit starting at the last one."""
    if len(train) < train.shape[1]:
        # The penalised optimum lies in the span of the training cells, which is smaller.
        span = np.linalg.qr(train.T)[0]
        train, test = train @ span, test @ span
    model = LogisticRegression(solver="newton-cholesky", warm_start=True)
    return {
        value: model.set_params(C=value).fit(train, label).decision_function(test)
        for value in GRIDS["logistic"]
    }


def _knn_logits(train: np.ndarray, label: np.ndarray, test: np.ndarray) -> dict[float, np.ndarray]:
    """Logits of the test cells for each k, from one search of the most neighbours."""
    most = min(int(max(GRIDS["knn"])), len(train))
    search = NearestNeighbors(n_neighbors=most, metric="cosine", algorithm="brute").fit(train)
    votes = label[search.kneighbors(test, return_distance=False)].cumsum(1)
    numbers = {value: min(int(value), most) for value in GRIDS["knn"]}
    return {value: _log_odds(votes[:, k - 1], k) for value, k in numbers.items()}


LOGITS = {"logistic": _logistic_logits, "knn": _knn_logits}


def _log_odds(votes: np.ndarray, number: int) -> np.ndarray:
    return np.asarray(np.log((votes + 0.5) / (number - votes + 0.5)))


def _folds(person: pd.Series, label: np.ndarray, seed: int) -> np.ndarray | None:
    """The fold of each cell, [n]; None if a class has one person only."""
    if (person == "").any():
        fewest = int(np.bincount(label, minlength=2).min())
        if fewest < 2:
            return None
        split = StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
        folds = np.zeros(len(label), np.int64)
        for fold, (_, held_out) in enumerate(split.split(label, label)):
            folds[held_out] = fold
        return folds
    persons = pd.DataFrame({"person": person.to_numpy(), "label": label}).drop_duplicates()
    fewest = int(persons["label"].value_counts().min())
    if fewest < 2:
        return None
    return balanced_folds(person, pd.Series(label), min(FOLDS, fewest), seed)


def fitted(table: pd.DataFrame, label: np.ndarray, name: str, value: float) -> Pipeline:
    """Standardisation and a classifier, fitted to all cells.

    Args:
        table: features [n, p].
        label: int64 [n], ALL = 1.
        name, value: a key of GRIDS, and C or k.
    """
    classifier: Any
    if name == "knn":
        neighbours = min(int(value), len(label))
        classifier = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute")
    else:
        # Newton's method, because lbfgs stops early, at a point that depends on the build.
        classifier = LogisticRegression(C=value, solver="newton-cholesky", tol=1e-8)
    return make_pipeline(StandardScaler(), classifier).fit(table, label)
