"""The table of cells on W&B."""

from types import SimpleNamespace

import pandas as pd

from leukocls.tracking.panels import _cells


def test_unlabelled_cells_are_not_called_wrong() -> None:
    cells = pd.DataFrame(
        {
            "cell": ["right", "wrong", "unlabelled sure", "unlabelled unsure"],
            "subject": "",
            "label": [1, 0, -1, -1],
            "prob": [0.9, 0.8, 0.99, 0.51],
        }
    )
    wandb = SimpleNamespace(Table=lambda columns, data: [row[0] for row in data])
    assert _cells(wandb, cells, None) == ["wrong", "right", "unlabelled unsure", "unlabelled sure"]
