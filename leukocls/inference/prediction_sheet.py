"""The images that `predict` was given, on one sheet by their probability."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from leukocls.data.contact_sheet import MOST, Entry, Grid, contact_sheet
from leukocls.data.images import around_cell
from leukocls.inference.images import Found, Reading, read_cell

GRID = Grid(across=10, pictures=1, lines=3)


def prediction_sheet(
    table: pd.DataFrame, images: Sequence[Found], reading: Reading, heading: str
) -> bytes:
    """PNG of the predicted images, the highest probability of ALL first.

    Of more than MOST images it shows that many, at even steps of their rank.

    Args:
        table: of `leukocls.inference.prediction_file.write_predictions`; skipped images are left
            out.
        images: those that the table is of.
        reading: the options that they were predicted with.
        heading: the first line, before what is shown.

    Raises:
        DataFault: an image that was predicted can no longer be read.
    """
    paths = {found.cell: found.path for found in images}
    good = table[table["reason"] == ""].sort_values("prob", ascending=False, kind="stable")
    ranks = np.linspace(0, len(good) - 1, min(len(good), MOST)).round().astype(int)
    shown = good.iloc[ranks]
    entries = (
        Entry(
            [around_cell(read_cell(paths[row["cell"]], reading).pixels)],
            [f"p(ALL) {row['prob']:.2f}, {row['label']}", row["cell"], ", ".join(remarks(row))],
        )
        for _, row in shown.iterrows()
    )
    amount = f"{len(shown):,} of {len(good):,} images, by probability of ALL"
    return contact_sheet(entries, len(shown), GRID, f"{heading}   {amount}")


def remarks(row: pd.Series) -> list[str]:
    """Reasons to doubt one row of predictions."""
    about = {
        "no single label": row["abstain"] == "yes",
        f"unlike training {row['distance']:.1f}": row["distance"] > 1,
    }
    return [remark for remark, holds in about.items() if holds]
