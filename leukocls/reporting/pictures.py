"""Pictures of a report's hardest cells."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leukocls.common.errors import LeukoclsError
from leukocls.common.tables import listing
from leukocls.data.images import around_cell, read_image
from leukocls.data.index import Index

SIDE = 96  # pixels
OUTLINE = "cropped to its outline"

Pictures = dict[str, dict[str, str]]
"""JPEGs as base64, by the name of the cell and by what they show."""


def files_of(document: dict[str, Any], index: Index) -> dict[str, Path]:
    """The image file of each of the document's hardest cells, by name.

    Raises:
        LeukoclsError: the data lacks one of these cells.
    """
    wanted = {cell["cell"] for cell in document["cells"]}
    # Cells of final have the names of prelim's, and no labels to be wrong about.
    table = index.only(("train", "prelim")).table
    rows = table[table["cell"].isin(wanted)]
    if absent := sorted(wanted - set(rows["cell"])):
        raise LeukoclsError(
            f"{index.source}: has no cell {listing(absent)}; name with --data the data that the"
            " runs read"
        )
    files = zip(rows["cell"], rows["file"], strict=True)
    return {str(name): index.root / file for name, file in files}


def thumbnails(files: dict[str, Path]) -> Pictures:
    """A picture of each cell, cropped to its outline."""
    return {name: {OUTLINE: as_jpeg(around_cell(read_image(path)))} for name, path in files.items()}


def as_jpeg(image: np.ndarray) -> str:
    """A square image, uint8 [S, S, 3], scaled to SIDE px, as JPEG in base64."""
    small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()
