"""Images beside the maps of what a network looks at in them: a sheet, and pictures for a report."""

import tempfile
import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from leukocls.inference.bundle import open_bundle
from leukocls.inference.from_runs import write_bundle
from leukocls.inference.images import Reading, read_cell
from leukocls.inference.saliency import CAM, Maps
from leukocls.inference.saliency import maps as maps_of
from leukocls.inference.torch_predictor import TorchPredictor
from leukocls.reporting.figures import style
from leukocls.reporting.pictures import Pictures, as_jpeg

WIDTH = 1.6  # inches, of each picture
LETTERS = 11  # of the heading, on an inch
MOST = 48  # images on one sheet, which would be too long to look at otherwise
COLOURS, OPACITY = "inferno", 0.55  # of a map over its image
_ABOUT = {CAM: "speaks for the call", "region": "inside the proposed box"}


def sheet(images: np.ndarray, maps: Maps, table: pd.DataFrame, heading: str) -> Canvas:
    """The drawn sheet: a row for each image, with one picture for each map over it.

    Args:
        images: uint8 [n, S, S, 3].
        maps: of `leukocls.inference.saliency.maps`.
        table: of `Predictor.predict`, one row for each image.
        heading: of the bundle.
    """
    columns = ["image", *maps]
    width = WIDTH * len(columns) + 1.7
    lines = textwrap.wrap(heading, int(LETTERS * width))
    with mpl.rc_context(style()):
        drawn = Canvas(
            figsize=(width, (WIDTH + 0.08) * len(images) + 0.75 + 0.15 * len(lines)),
            layout="constrained",
        )
        panels = drawn.subplots(len(images), len(columns), squeeze=False)
        for row, (image, axes) in enumerate(zip(images, panels, strict=True)):
            of = table.iloc[row]
            for name, one in zip(columns, axes, strict=True):
                one.imshow(image)
                if name != "image":
                    one.imshow(maps[name][row], cmap=COLOURS, alpha=OPACITY, vmin=0, vmax=1)
                one.set(xticks=[], yticks=[])
                one.grid(visible=False)
                if not row:
                    about = _ABOUT.get(name, "")
                    one.set_title(f"{name}\n{about}" if about else f"{name}\n", fontsize=8)
            axes[0].set_ylabel(_label(of), fontsize=7, rotation=0, ha="right", va="center")
        drawn.suptitle("\n".join(lines), fontsize=9)
    return drawn


def _label(of: Any) -> str:
    name = str(of["cell"])
    short = name if len(name) <= 22 else f"{name[:10]}…{name[-11:]}"
    return f"{short}\np(ALL) {of['prob']:.2f}: {of['label']}"


def map_pictures(run: Path, files: dict[str, Path]) -> Pictures:
    """Each map of a run's network over each cell, for the class that the cell is called.

    Args:
        run: the directory of a finished run.
        files: the cells' images, by name.

    Raises:
        LeukoclsError: a run without a network, or one without feature maps.
    """
    with tempfile.TemporaryDirectory(prefix="leukocls-maps-") as folder:
        write_bundle([run], Path(folder) / "bundle")
        predictor = TorchPredictor(open_bundle(Path(folder) / "bundle"))
    reading = Reading(predictor.side)
    cells = [read_cell(path, reading).pixels for path in files.values()]
    called = predictor.scores(cells).logit > predictor.bundle.threshold
    images, maps = maps_of(predictor, cells, called)
    return {
        cell: {name: as_jpeg(overlaid(images[row], maps[name][row])) for name in maps}
        for row, cell in enumerate(files)
    }


def overlaid(image: np.ndarray, one: np.ndarray) -> np.ndarray:
    """A map in [0, 1], [S, S], in colours over its image, uint8 [S, S, 3]."""
    mixed = (1 - OPACITY) * image + OPACITY * 255 * mpl.colormaps[COLOURS](one)[..., :3]
    return np.asarray(mixed.round().astype(np.uint8))
