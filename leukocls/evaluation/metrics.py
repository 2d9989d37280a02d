"""The definition of every metric, shared by training, evaluate and compare. NumPy only.

ALL = 1 is positive, HEM = 0. An undefined metric is None, never 0 and never NaN.
"""

import math

import numpy as np
import numpy.typing as npt

from leukocls.artifacts.predictions import sigmoid
from leukocls.common.errors import LeukoclsError

Floats = npt.NDArray[np.float64]

BINS = 15
BOTH_CLASSES = "needs cells of both classes"

COUNTS = ("tp", "fp", "tn", "fn")
RATES = (
    *("accuracy", "balanced_accuracy", "sensitivity", "specificity"),
    *("weighted_f1", "f1", "macro_f1", "weighted_precision", "weighted_recall"),
)
# The rates in metrics.csv for every epoch: those of Prellberg & Kramer 2019, Table 2.
RECORDED = (
    *("weighted_f1", "accuracy", "sensitivity", "specificity"),
    *("weighted_precision", "weighted_recall"),
)
HEADLINE = "weighted_f1"
# Metrics that need a logit or a probability.
GRADED = (
    *("auroc", "average_precision", "sensitivity_at_90_specificity"),
    *("brier", "ece", "calibration_intercept", "calibration_slope"),
)


def rates(tp: int, fp: int, tn: int, fn: int) -> dict[str, float | None]:
    """Rates of a confusion matrix, as scikit-learn defines them with zero_division=0.

    Weighted metrics are means over the classes, weighted by the classes' cells (Prellberg & Kramer
    2019, Table 2). A rate without a denominator, such as sensitivity without ALL cells, is None.

    Raises:
        ValueError: a count is negative.
    """
    if min(tp, fp, tn, fn) < 0:
        raise ValueError(f"negative count among tp={tp}, fp={fp}, tn={tn}, fn={fn}")
    positive, negative = tp + fn, tn + fp
    sensitivity, specificity = _ratio(tp, positive), _ratio(tn, negative)
    f1_all, f1_hem = _ratio(2 * tp, 2 * tp + fp + fn), _ratio(2 * tn, 2 * tn + fp + fn)

    def weighted(rate_all: float | None, rate_hem: float | None) -> float | None:
        total = positive * (rate_all or 0.0) + negative * (rate_hem or 0.0)
        return _ratio(total, positive + negative)

    return {
        "accuracy": _ratio(tp + tn, positive + negative),
        "balanced_accuracy": _mean(sensitivity, specificity),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "weighted_f1": weighted(f1_all, f1_hem),
        "f1": f1_all,
        "macro_f1": _mean(f1_all, f1_hem),
        "weighted_precision": weighted(_ratio(tp, tp + fp), _ratio(tn, tn + fn)),
        "weighted_recall": weighted(sensitivity, specificity),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _mean(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else (first + second) / 2


def decide(
    *,
    logit: npt.ArrayLike | None = None,
    prob: npt.ArrayLike | None = None,
    label_pred: npt.ArrayLike | None = None,
    threshold: float = 0.5,
) -> npt.NDArray[np.bool_]:
    """Whether each cell is called ALL, bool [n]: its probability is strictly above `threshold`.

    Logits have priority over probabilities, which are rounded near 1, and both over hard labels,
    for which the threshold has no effect.

    Args:
        logit, prob, label_pred: [n]; at least one of them.
        threshold: probability in (0, 1).

    Raises:
        LeukoclsError: threshold or label_pred out of range.
    """
    if not 0 < threshold < 1:
        raise LeukoclsError(f"threshold {threshold} is not a probability between 0 and 1")
    if logit is not None:
        return np.greater(np.asarray(logit, np.float64), math.log(threshold / (1 - threshold)))
    if prob is not None:
        return np.greater(np.asarray(prob, np.float64), threshold)
    if label_pred is not None:
        return np.equal(checked_labels(label_pred), 1)
    raise ValueError("needs logit, prob or label_pred")


def confusion(label: npt.ArrayLike, called: npt.ArrayLike) -> dict[str, int]:
    """Counts `tp`, `fp`, `tn`, `fn` for labels [n] (ALL = 1) and calls [n] (True: called ALL)."""
    y, is_called = checked_labels(label), np.asarray(called, bool)
    cases = (
        is_called & (y == 1),
        is_called & (y == 0),
        ~is_called & (y == 0),
        ~is_called & (y == 1),
    )
    return {name: int(case.sum()) for name, case in zip(COUNTS, cases, strict=True)}


def auroc(label: npt.ArrayLike, logit: npt.ArrayLike) -> float | None:
    """Area under the ROC curve: P(ALL above HEM) + ½ P(tie), from midranks (Hanley & McNeil 1982).

    None with one class.

    Args:
        label: 0 or 1, [n].
        logit: any number that orders the cells, [n].
    """
    y = checked_labels(label)
    positive = int(y.sum())
    negative = y.size - positive
    if not positive or not negative:
        return None
    _, group, size = np.unique(np.asarray(logit), return_inverse=True, return_counts=True)
    midrank = (np.cumsum(size) - (size - 1) / 2)[group]
    return float((midrank[y == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))


def average_precision(label: npt.ArrayLike, logit: npt.ArrayLike) -> float | None:
    """Average precision: Σ (Rₖ − Rₖ₋₁) Pₖ over the distinct values of `logit`, descending.

    R is recall and P precision, as in scikit-learn. None without ALL cells.
    """
    y = checked_labels(label)
    positive = int(y.sum())
    if not positive:
        return None
    distinct, group, size = np.unique(np.asarray(logit), return_inverse=True, return_counts=True)
    hits = np.bincount(group, weights=y, minlength=distinct.size)[::-1]
    precision = np.cumsum(hits) / np.cumsum(size[::-1])
    return float((hits * precision).sum() / positive)


def sensitivity_at_specificity(
    label: npt.ArrayLike, logit: npt.ArrayLike, specificity: float = 0.9
) -> float | None:
    """The highest sensitivity of all thresholds with a specificity of at least `specificity`.

    None with one class. The threshold is chosen on the same labels, so the value describes the ROC
    curve and is not the performance of a fixed threshold.

    Args:
        specificity: in (0, 1].
    """
    y, z = checked_labels(label), np.asarray(logit)
    z_all, z_hem = z[y == 1], np.sort(z[y == 0])[::-1]
    if not z_all.size or not z_hem.size:
        return None
    false_positives = math.floor((1 - specificity) * z_hem.size + 1e-9)  # at most so many
    return float((z_all > z_hem[false_positives]).mean())


def best_threshold(label: npt.ArrayLike, prob: npt.ArrayLike) -> float:
    """The threshold with the highest weighted F1; of several the one nearest to .5.

    Candidates are .5 and the midpoints between neighbouring probabilities, 0 and 1 included.
    """
    y, p = checked_labels(label), np.asarray(prob, np.float64)
    distinct = np.unique(np.concatenate([[0.0], p, [1.0]]))
    candidates = np.append((distinct[1:] + distinct[:-1]) / 2, 0.5)
    n, positives = len(y), int(y.sum())
    # Number of cells above each candidate: of both classes, then of ALL alone.
    called = n - np.searchsorted(np.sort(p), candidates, side="right")
    true = positives - np.searchsorted(np.sort(p[y == 1]), candidates, side="right")
    values = [
        rates(int(tp), int(c - tp), int(n - positives - c + tp), int(positives - tp))["weighted_f1"]
        for c, tp in zip(called, true, strict=True)
    ]
    best = max(range(len(candidates)), key=lambda i: (values[i] or 0.0, -abs(candidates[i] - 0.5)))
    return float(candidates[best])


def brier(label: npt.ArrayLike, prob: npt.ArrayLike) -> float:
    """Brier score: mean squared difference of probability and label, in [0, 1] (Brier 1950)."""
    return float(np.mean((np.asarray(prob, dtype=np.float64) - checked_labels(label)) ** 2))


def ece(label: npt.ArrayLike, prob: npt.ArrayLike) -> float:
    """Expected calibration error of the probability of ALL, with 15 bins of equal mass, in [0, 1].

    Adaptive binning as in Nixon et al. 2019 §3, instead of equal-width bins over the confidence of
    the predicted class (Guo et al. 2017). Cells of equal probability share the mean of their
    labels, so that the order of the rows changes nothing.
    """
    y, p = checked_labels(label), np.asarray(prob, dtype=np.float64)
    distinct, group, size = np.unique(p, return_inverse=True, return_counts=True)
    observed = np.repeat(np.bincount(group, weights=y, minlength=distinct.size) / size, size)
    gap = observed - np.repeat(distinct, size)
    return float(sum(abs(part.sum()) for part in np.array_split(gap, BINS)) / y.size)


def calibration_intercept(label: npt.ArrayLike, logit: npt.ArrayLike) -> float | None:
    """Calibration intercept: a in P(ALL) = sigmoid(a + logit), fitted with slope 1; 0 is perfect.

    Calibration in the large (Van Calster et al. 2016). None with one class. The mean of the
    sigmoid rises with a, so bisection always finds the root.
    """
    y, z = checked_labels(label), np.asarray(logit, dtype=np.float64)
    prevalence = float(y.mean())
    if prevalence in (0.0, 1.0):
        return None
    centre = math.log(prevalence / (1 - prevalence))
    low, high = centre - float(z.max()), centre - float(z.min())
    while low < (middle := (low + high) / 2) < high:
        if float(sigmoid(middle + z).mean()) < prevalence:
            low = middle
        else:
            high = middle
    return middle


def calibration_slope(label: npt.ArrayLike, logit: npt.ArrayLike) -> float | None:
    """Calibration slope: b in P(ALL) = sigmoid(a + b·logit), fitted with a; 1 is perfect.

    Cox 1958. None with one class, with equal logits, with logits that separate the classes (no
    finite b), or if Newton's method does not converge.
    """
    found = logistic_fit(label, logit)
    return found and found[1]


def logistic_fit(label: npt.ArrayLike, logit: npt.ArrayLike) -> tuple[float, float] | None:
    """Intercept a and slope b of P(ALL) = sigmoid(a + b·logit), by maximum likelihood.

    None in the same cases as `calibration_slope`; `slope_reason` names the case.

    Args:
        label: 0 or 1, [n].
        logit: finite, [n].
    """
    y, z = checked_labels(label), np.asarray(logit, dtype=np.float64)
    if y.min() == y.max() or z.min() == z.max() or are_separated(y, z):
        return None
    centre, scale = float(z.mean()), float(z.std())
    design = np.column_stack([np.ones_like(z), (z - centre) / scale])

    def log_likelihood(beta: Floats) -> float:
        eta = design @ beta
        return float((y * eta - np.logaddexp(0.0, eta)).sum())

    beta = np.zeros(2)
    best = log_likelihood(beta)
    for _ in range(100):
        p = sigmoid(design @ beta)
        gradient = design.T @ (y - p)
        hessian = (design * (p * (1 - p))[:, None]).T @ design
        if not np.linalg.det(hessian) > 0:
            return None
        step = np.linalg.solve(hessian, gradient)
        decrement = float(gradient @ step)
        while (value := log_likelihood(beta + step)) < best - 1e-12 * abs(best):
            step = step / 2
        beta, best = beta + step, value
        if decrement < 1e-14:
            slope = float(beta[1] / scale)
            return float(beta[0]) - slope * centre, slope
    return None


def slope_reason(label: npt.ArrayLike, logit: npt.ArrayLike) -> str:
    """The reason why `logistic_fit` and `calibration_slope` give None."""
    y, z = checked_labels(label), np.asarray(logit, dtype=np.float64)
    if y.min() == y.max():
        return BOTH_CLASSES
    if z.min() == z.max():
        return "all logits are equal: no slope"
    if are_separated(y, z):
        return "the logits separate the classes: no finite slope"
    return "Newton's method did not converge"


def are_separated(y: npt.NDArray[np.int64], z: Floats) -> bool:
    """Whether a threshold on the logits z [n] separates the classes y [n], in either direction.

    Equal logits separate nothing.
    """
    z_all, z_hem = z[y == 1], z[y == 0]
    apart = z_hem.max() <= z_all.min() or z_all.max() <= z_hem.min()
    return bool(apart and z.min() < z.max())


def checked_labels(label: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Labels as int64 [n].

    Raises:
        LeukoclsError: no label, or one that is neither 0 nor 1.
    """
    y = np.asarray(label)
    if not y.size:
        raise LeukoclsError("no labelled cell: there is nothing to score")
    if not ((y == 0) | (y == 1)).all():  # faster than np.isin
        raise LeukoclsError(f"labels must be 0 (HEM) or 1 (ALL), found {np.unique(y)[:5].tolist()}")
    return y.astype(np.int64)
