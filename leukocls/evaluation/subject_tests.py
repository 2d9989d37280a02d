"""Tests of two arms whose unit is the person: what the choice of persons would change."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from leukocls.evaluation.metrics import Floats
from leukocls.evaluation.person_counts import CLASS_OF, RATES, Persons, rate

FLIPS = 10_000
_AT_ONCE = 1 << 20  # flips of a person
_TIE = 1e-9


def label_flip(first: Sequence[Persons], second: Sequence[Persons], metric: str) -> float | None:
    """Two-sided p that a metric differs between two arms, by a studentised label flip.

    If the arms are alike, each person's results could as well have the other arm's name. So these
    names are exchanged, person by person: in every way if there are at most FLIPS, else in FLIPS
    random ones, the same every time. Each time the difference is divided by its standard error over
    deleted persons (Janssen 1997), because equal F1 may hide a trade of sensitivity for
    specificity. None for a class of fewer than two persons, or if no person differs.

    Args:
        first, second: the runs of each arm on the same cells in the same order.
        metric: of RATES.
    """
    assert metric in RATES
    a, b = Persons.mean(first), Persons.mean(second)
    assert np.array_equal(a.label, b.label)
    assert np.array_equal(a.of_cell, b.of_cell)
    classes = [a.mostly_all == bool(y) for y in CLASS_OF.get(metric, (0, 1))]
    differ = np.flatnonzero((a.hits != b.hits).any(0))
    if min(members.sum() for members in classes) < 2 or not differ.size:
        return None
    observed = _studentised(a, b, metric, np.zeros((1, len(a.mostly_all)), bool), classes)[0]
    extreme = total = 0
    for flips in _flips(differ, len(a.mostly_all)):
        t = _studentised(a, b, metric, flips, classes)
        extreme += int((t >= observed - _TIE).sum())
        total += len(t)
    return extreme / total


def _flips(differ: npt.NDArray[np.intp], persons: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Which persons are exchanged, [flips, persons]; the first time nobody."""
    every = len(differ) <= FLIPS.bit_length() - 1
    total = 1 << len(differ) if every else FLIPS
    rng = np.random.Generator(np.random.Philox(0))
    step = max(1, _AT_ONCE // persons)
    for start in range(0, total, step):
        here = np.arange(start, min(start + step, total))
        flips = np.zeros((len(here), persons), bool)
        if every:
            flips[:, differ] = here[:, None] >> np.arange(len(differ)) & 1
        else:
            flips[:, differ] = rng.integers(0, 2, (len(here), len(differ)), np.int8)
            flips[here == 0] = False
        yield flips


def _studentised(
    a: Persons,
    b: Persons,
    metric: str,
    flips: npt.NDArray[np.bool_],
    classes: list[npt.NDArray[np.bool_]],
) -> Floats:
    """Size of the difference over its standard error, for each row of exchanged persons."""
    values = [
        _without_each(a.cells, np.where(flips[:, None], one.hits, other.hits), metric)
        for one, other in ((b, a), (a, b))
    ]
    difference = values[1] - values[0]
    variance = np.zeros(len(flips))
    for members in classes:
        own = difference[:, 1:][:, members]
        number = own.shape[1]
        variance += (number - 1) / number * ((own - own.mean(1, keepdims=True)) ** 2).sum(1)
    size = np.abs(difference[:, 0])
    with np.errstate(divide="ignore"):
        return np.where(size < _TIE, 0, size / np.sqrt(variance))


def _without_each(cells: Floats, hits: Floats, metric: str) -> Floats:
    """A metric of all cells, and without each person, [flips, 1 + persons]."""
    left = [
        counts.sum(-1, keepdims=True)
        - np.concatenate([np.zeros((*counts.shape[:-1], 1)), counts], -1)
        for counts in (cells, hits)
    ]
    return rate(metric, left[0][0], left[0][1], left[1][:, 0], left[1][:, 1])
