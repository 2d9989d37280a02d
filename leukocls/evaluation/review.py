"""Labels to look at again: cells by the loss of models that did not train on them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from leukocls.artifacts import predictions
from leukocls.artifacts.predictions import sigmoid
from leukocls.common.errors import LeukoclsError
from leukocls.common.tables import listing
from leukocls.evaluation.scoring import ScoredPart

COLUMNS = ("cell", "subject", "person", "label", "loss", "runs", "mean_prob", "rank_in_person")
# Headings of cells that a run trained on, or whose persons it did.
TRAINED_ON = ("training", "leaky")
CAUTION = (
    "In C-NMC a label belongs to a person and no cell was labelled by itself: a wrong label cannot"
    " be told from an unusual person, and nothing is dropped."
)


def review(parts: Sequence[ScoredPart]) -> pd.DataFrame:
    """Labelled cells by the mean loss of the runs that did not train on them, the highest first.

    `loss` is the cross-entropy of the logit in nats, and `mean_prob` the mean probability of ALL,
    both without the shift by the training loss's weight of ALL. `runs` is the number of parts that
    score the cell, and `rank_in_person` 1 for the person's cell with the highest loss (person ""
    is whoever is unknown).

    Args:
        parts: of any number of runs, seeds and folds. Those of cells that trained the run, or
            whose persons did, are left out.

    Returns:
        One row for each cell, with COLUMNS. Cells of equal loss are in order of their names.

    Raises:
        LeukoclsError: hard labels, no cells to review, or two labels of one cell.
    """
    tables = []
    for part in parts:
        known = part.frame["label"].to_numpy() >= 0
        if part.origin["heading"] in TRAINED_ON or not known.any():
            continue
        cells = part.frame[known]
        z = part.logit[known] - cells["log_pos_weight"].to_numpy(np.float64)
        label = cells["label"].to_numpy()
        table = cells[["cell", "subject", "label"]].assign(person=predictions.persons(cells))
        loss = np.logaddexp(0, np.where(label == 1, -z, z))
        tables.append(table.assign(loss=loss, mean_prob=sigmoid(z)))
    if not tables:
        raise LeukoclsError(
            "--review: no labelled cells that the runs did not train on; name runs with a selection"
            " set or a test"
        )
    by_cell = pd.concat(tables).groupby("cell", sort=True)
    if (twice := by_cell["label"].max() > by_cell["label"].min()).any():
        raise LeukoclsError(
            f"--review: these cells have two labels among the runs: {listing(twice.index[twice])};"
            " name runs on the same data"
        )
    found = by_cell.agg(
        subject=("subject", "first"),
        person=("person", "first"),
        label=("label", "first"),
        loss=("loss", "mean"),
        runs=("loss", "size"),
        mean_prob=("mean_prob", "mean"),
    ).reset_index()
    found = found.sort_values("loss", ascending=False, kind="stable", ignore_index=True)
    found["rank_in_person"] = found.groupby("person").cumcount() + 1
    return found[list(COLUMNS)]
