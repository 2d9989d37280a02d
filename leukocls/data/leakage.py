"""The split of the leakage lab: the same scored cells, with and without their persons in training.

The persons of each class are paired by their numbers of cells, and a coin decides which of a pair
belongs to half 0 and which to half 1. A third of each person's cells are for scoring, the others
for training; both of a pair have equally many of these. The half that `fold` names is scored.
Training takes the other half, and for a share `leak` of its cells the pairs' scored persons instead
of them. So every share trains on equally many cells of equally many persons of each class, and
every training set is the honest one of one half and the leaky one of the other.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from leukocls.common.errors import LeukoclsError
from leukocls.data.folds import need_subjects, need_two_subjects, subset
from leukocls.data.names import CLASSES
from leukocls.data.random import LEAKAGE_STREAM, random_numbers
from leukocls.data.split_options import SplitOptions

HALVES = 2
SCORED = 1 / 3  # of each person's cells
DRAWS = 50  # of the persons who are exchanged, of which the nearest to `leak` is taken
INEXACT = 0.1  # by which the exchanged persons' share of cells may differ from `leak`


def leakage_rows(
    table: pd.DataFrame,
    source: Path,
    options: SplitOptions,
) -> dict[str, np.ndarray]:
    """Rows of train and val, int64 [n] each, in the table's order.

    Left out are images that show a cell once more, cells of the class that is not their person's
    main one, persons with one cell, and of an odd number of persons the one with fewest cells.

    Args:
        table: columns `cell`, `group`, `label` (0 or 1) and `copies` of the cells to divide.
        source: the name of the data in messages.
        options: `fold` is the half that is scored, 0 or 1. A smaller training set has the same
            pairs and places at any `leak`, and leaves the scored cells as they are.

    Raises:
        LeukoclsError: cells without a subject, a class with fewer than two persons of two cells, or
            no persons whose share of the cells is about `leak`.
    """
    need_subjects(table, source)
    need_two_subjects(table, source)
    fold, leak = options.fold or 0, options.leak or 0
    rng = random_numbers(options.seed, LEAKAGE_STREAM)
    cells = _places(table, rng, source)
    shared = cells["place"] < cells.groupby("pair")["number"].transform("min")
    # A slot is one training cell of each half; which of the two trains is all that `leak` decides.
    slots = cells[shared & (cells["place"] >= 0)].pivot_table(
        "row", ["label", "pair", "place"], "half", "first"
    )
    slots = slots.reset_index()
    slots["group"] = slots["pair"].astype(str)
    slots["cell"] = slots["group"] + " " + slots["place"].astype(str)
    slots = subset(slots, options.n_subjects, options.n_cells, options.seed)
    scored = set[int]()
    for label, of_class in slots.groupby("label"):
        scored |= _exchanged(of_class["pair"].value_counts(), leak, rng, CLASSES[int(label)])
    train = np.where(slots["pair"].isin(scored), slots[fold], slots[1 - fold])
    val = cells["row"][(cells["half"] == fold) & (cells["place"] < 0)]
    return {"train": np.sort(train.astype(np.int64)), "val": np.sort(val.to_numpy(np.int64))}


def _places(table: pd.DataFrame, rng: np.random.Generator, source: Path) -> pd.DataFrame:
    """Each cell with its `row`, `label`, `pair` of persons, `half`, `place` and `number`.

    `place` counts the training cells of a person in random order, from 0; scored ones have
    negative places. `number` is how many training cells the person has.
    """
    # Before `verify` has looked at the images, no copies are known.
    again = table["copies"].duplicated() & (table["copies"] != "")
    cells = table.assign(row=table.index)[~again]
    main = cells.groupby("group")["label"].transform("mean") >= 0.5
    cells = cells[cells["label"] == main].sample(frac=1, random_state=rng)
    cells = cells[cells.groupby("group")["row"].transform("size") > 1]
    total = cells.groupby("group")["row"].transform("size")
    scored = np.maximum(1, (total * SCORED).round().astype(np.int64))
    place = cells.groupby("group").cumcount() - scored
    cells = cells.assign(place=place, number=total - scored)
    persons = cells.groupby("group").agg(label=("label", "first"), cells=("row", "size"))
    persons = persons.sample(frac=1, random_state=rng).sort_values(
        ["label", "cells"], ascending=False, kind="stable"
    )
    rank = persons.groupby("label").cumcount()
    even = persons.groupby("label")["cells"].transform("size") // 2 * 2
    persons = persons.assign(pair=2 * (rank // 2) + persons["label"])[rank < even]
    for label, name in enumerate(CLASSES):
        if not (persons["label"] == label).any():
            raise LeukoclsError(
                f"{source}: split_scheme=leakage needs two subjects of {name} with two cells each"
                " in train. Add some."
            )
    coin = rng.integers(0, 2, persons["pair"].max() + 1)
    persons["half"] = (persons.groupby("pair").cumcount() + coin[persons["pair"]]) % 2
    return cells.join(persons[["pair", "half"]], on="group", how="inner")


def _exchanged(cells: pd.Series, leak: float, rng: np.random.Generator, name: str) -> set[int]:
    """Pairs of one class that have about the share `leak` of its cells: the nearest of some draws.

    Args:
        cells: number of training cells by pair.
        name: of the class.
    """
    number, total = cells.to_dict(), int(cells.sum())
    best, off = set[int](), float("inf")
    for _ in range(DRAWS):
        drawn, left = set[int](), leak * total
        for pair in rng.permutation(sorted(number)):
            if abs(left - number[pair]) < abs(left):
                drawn.add(int(pair))
                left -= number[pair]
        if abs(left) < off:
            best, off = drawn, abs(left)
    all_or_none = len(best) in (0, len(number))
    if off > INEXACT * total or (all_or_none and 0 < leak < 1):
        found = sum(number[pair] for pair in best) / total
        raise LeukoclsError(
            f"leak={leak:g}: whole persons of {name} cannot have this share of the training cells;"
            f" the nearest that was found is {found:.2f}. Choose 0 or 1, or another share."
        )
    return best
