"""Neighbourhood correction: a cell's probability becomes a mean over the cells most like it.

After Pan et al. 2019 ("Neighborhood-correction algorithm for classification of normal and malignant
cells", winner of ISBI 2019's challenge): a weighted majority vote of the labels predicted for the
most similar cells of the test set, by Fisher vectors of feature maps. Here the features are any
table's, standardised over the scored cells, and probabilities are averaged, weighted by cosine
similarity. No label is used, but scored cells decide on each other (transductive): the result of a
cell depends on which others happen to be in the set.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from leukocls.artifacts.marks import Mark, merged_marks
from leukocls.artifacts.predictions import sigmoid
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import sha256_file
from leukocls.common.tables import listing
from leukocls.data.names import cell_key
from leukocls.data.text_tables import read_table
from leukocls.evaluation.metrics import Floats
from leukocls.evaluation.scoring import ScoredPart

# Columns that say more of a cell than its image does: neighbours would be those of equal label.
NO_FEATURES = {"label", "labels", "label_pred", "logit", "prob", "subject", "person", "group"}
NO_FEATURES |= {"part", "split", "fold", "epoch"}


@dataclass(frozen=True, eq=False)
class Features:
    """A table of features.

    Attributes:
        path: its file.
        sha256: of the file.
        rows: the row of each cell, by `cell_key`.
        numbers: finite, [rows, columns].
    """

    path: Path
    sha256: str
    rows: dict[str, int]
    numbers: Floats


def read_features(path: Path) -> Features:
    """Read a CSV or parquet file with a column `cell` and numbers in all others.

    Raises:
        LeukoclsError: no such table, a cell twice, or columns that are no numbers or no features.
    """
    table = read_table(path)
    if "cell" not in table or table.shape[1] < 2:
        raise LeukoclsError(
            f"{path}: needs a column cell and columns of numbers; baseline --features-out writes"
            " such a file"
        )
    keys = table.pop("cell").astype(str).map(cell_key)
    if other := sorted(NO_FEATURES & {str(name).lower() for name in table}):
        raise LeukoclsError(
            f"{path}: {', '.join(other)} is no feature of an image, and would give away what is to"
            " be predicted; drop the column"
        )
    if (twice := keys.duplicated()).any():
        raise LeukoclsError(f"{path}: cells named twice: {listing(keys[twice])}; keep one of each")
    numbers = table.apply(pd.to_numeric, errors="coerce").astype(np.float64)
    finite = np.isfinite(numbers.to_numpy()).all(0)
    if not finite.all():
        raise LeukoclsError(
            f"{path}: no finite number in each row of {listing(numbers.columns[~finite])}; drop or"
            " correct these columns"
        )
    rows = {key: row for row, key in enumerate(keys)}
    return Features(path, sha256_file(path), rows, numbers.to_numpy())


def corrected(part: ScoredPart, features: Features, neighbours: int) -> ScoredPart:
    """The part with the mean probability of each cell's neighbourhood, marked TRANSDUCTIVE.

    The neighbourhood is the cell and the `neighbours` − 1 others of the part, labelled or not,
    whose standardised features have the highest cosine. A cell's weight is its cosine, 0 if
    negative.

    Args:
        neighbours: at least 2, and at most the number of cells.

    Raises:
        LeukoclsError: cells without features, too few or too many neighbours, or hard labels.
    """
    from sklearn.neighbors import NearestNeighbors  # a second, which other results do not need

    frame, source = part.frame, part.origin["source"]
    if not 2 <= neighbours <= len(frame):
        raise LeukoclsError(
            f"{source}: {neighbours} neighbours of {len(frame)} cells; choose from 2 to that number"
            " with --neighbours"
        )
    rows = np.array([features.rows.get(cell_key(cell), -1) for cell in frame["cell"]])
    if (rows < 0).any():
        raise LeukoclsError(
            f"{features.path}: has no features of {listing(frame['cell'][rows < 0])}, which"
            f" {source} scores; measure them, too"
        )
    values = features.numbers[rows]
    spread = values.std(0)
    values = (values - values.mean(0)) / np.where(spread > 0, spread, 1)
    search = NearestNeighbors(n_neighbors=neighbours - 1, metric="cosine", algorithm="brute")
    distance, others = search.fit(values).kneighbors()  # without the cell itself
    weight = np.clip(1 - distance, 0, None)
    prob = sigmoid(part.logit)
    prob = (prob + (weight * prob[others]).sum(1)) / (1 + weight.sum(1))
    kept = [name for name in frame if name != "logit" and not str(name).startswith("view_")]
    origin = part.origin | {
        "marks": merged_marks([part.origin["marks"], [Mark.TRANSDUCTIVE.value]]),
        "debiased": None,
        "neighbourhood": {
            "features": str(features.path),
            "sha256": features.sha256,
            "columns": values.shape[1],
            "neighbours": neighbours,
        },
    }
    return ScoredPart(frame[kept].assign(prob=prob), origin)
