"""Predict images with the networks of a bundle, or with an ONNX file made of one.

Nothing of PyTorch is imported here: an ONNX file needs none.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from leukocls.artifacts.predictions import sigmoid
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.evaluation.conformal import abstains
from leukocls.evaluation.prediction_files import PREDICT
from leukocls.inference.bundle import USE, Described, open_bundle
from leukocls.inference.images import (
    WIDER,
    Cell,
    Found,
    Reading,
    ahead,
    as_cell,
    find_images,
    memory,
    read_cell,
    text_of,
)

BATCH = 64
NOTES = ("background", "lossy", "converted")  # attributes of a Cell that a warning counts
CLASSES = ("HEM", "ALL")
ONNX = ".onnx"
Pixels = str | os.PathLike[str] | np.ndarray | Image.Image


class Scores(NamedTuple):
    """Logits, their spread and distances of images, float64 [n] each.

    Attributes:
        logit: of ALL, the mean over views and networks.
        spread: its SD over views and networks.
        distance: to the training cells; NaN if the bundle has none to measure it by.
    """

    logit: np.ndarray
    spread: np.ndarray
    distance: np.ndarray


class Predictor(ABC):
    """Networks that are ready to predict.

    Attributes:
        bundle: what leukocls.json says about them.
        side: width and height of the images they were trained on; None for any.
        level: the limits for abstention, as `leukocls.evaluation.conformal` has them, or None.
    """

    def __init__(self, bundle: Described, alpha: float | None) -> None:
        self.bundle, self.side, self.level = bundle, bundle.side, bundle.level(alpha)

    @abstractmethod
    def scores(self, images: Sequence[np.ndarray]) -> Scores:
        """Logits, their spread and distances of images.

        Args:
            images: uint8 [H, W, 3] each.
        """

    def batches(
        self, images: Iterable[Found], reading: Reading, batch: int = BATCH
    ) -> Iterator[pd.DataFrame]:
        """Predictions of image files, a table for each batch, read ahead while networks compute.

        Its columns are PREDICT and NOTES. A file that cannot be read has no numbers and a `reason`.

        Args:
            batch: images in one; of large images fewer.
        """

        def read(found: Found) -> tuple[str, Cell | str]:
            try:
                return found.cell, read_cell(found.path, reading)
            except DataFault as error:
                return found.cell, text_of(str(error))

        def weight(found: Found) -> float:
            return memory(found.path, reading)

        kept: list[tuple[str, Cell | str]] = []
        weighs = 0.0
        for one in ahead(read, images, 2 * batch, weight):
            kept.append(one)
            weighs += one[1].pixels.size / (3 * WIDER**2) if isinstance(one[1], Cell) else 0
            if len(kept) == batch or weighs > batch:
                yield self._table(kept)
                kept, weighs = [], 0.0
        if kept:
            yield self._table(kept)

    def predict(
        self, images: Pixels | Sequence[Pixels], resize: bool = False, segment: bool = False
    ) -> pd.DataFrame:
        """Predictions of images, one row each.

        Args:
            images: files, folders or glob patterns; or uint8 arrays [H, W, 3] or PIL images, which
                are named by their place, from 0.
            resize: whether to scale images of another size than the networks know.
            segment: whether to cut cells out of a background.

        Returns:
            `cell`; `logit` of ALL, the mean over views and networks; `prob`, its calibrated
            probability; `label`, "ALL" or "HEM"; `abstain`, "yes" if no single label is left, else
            "no", "" if the bundle promises nothing; `view_sd`, the SD of the logit over views and
            networks; `distance` to the training cells, below 1 for 95 % of the held-out ones, NaN
            if the bundle has none; `segmented`, "yes" if the cell was cut out of a background;
            `reason`, why an image was skipped, "" for others; `use`.

        Raises:
            LeukoclsError: no image at one of the places.
        """
        reading = Reading(self.side, resize, segment)
        several = images if isinstance(images, list | tuple) else [images]
        paths = [one for one in several if isinstance(one, str | os.PathLike)]
        if paths and len(paths) < len(several):
            raise LeukoclsError("predict: give either paths or pixels, not both.")
        if paths:
            tables = list(self.batches(find_images(paths), reading))
        else:
            cells = [
                (str(place), self._cell(str(place), one, reading))
                for place, one in enumerate(several)
            ]
            parts = (cells[at : at + BATCH] for at in range(0, len(cells), BATCH))
            tables = [self._table(part) for part in parts]
        if not tables:
            return pd.DataFrame(columns=PREDICT)
        return pd.concat(tables, ignore_index=True)[list(PREDICT)]

    def _cell(self, name: str, pixels: Any, reading: Reading) -> Cell | str:
        array = np.asarray(pixels.convert("RGB") if isinstance(pixels, Image.Image) else pixels)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise LeukoclsError(
                f"predict: image {name} is {array.dtype} {array.shape}; give uint8 [H, W, 3], red"
                " first."
            )
        try:
            return as_cell(Path(name), array, reading)
        except DataFault as error:
            return str(error)

    def _table(self, cells: Sequence[tuple[str, Cell | str]]) -> pd.DataFrame:
        good = [cell for _, cell in cells if isinstance(cell, Cell)]
        read = np.array([isinstance(cell, Cell) for _, cell in cells], bool)
        numbers = np.full((3, len(cells)), np.nan)
        if good:
            numbers[:, read] = self.scores([cell.pixels for cell in good])
        logit, spread, distance = numbers
        intercept, slope = self.bundle.calibration
        called = np.where(logit > self.bundle.threshold, *reversed(CLASSES))
        table = pd.DataFrame({
            "cell": [name for name, _ in cells],
            "logit": logit,
            "prob": sigmoid(intercept + slope * logit),
            "label": np.where(read, called, ""),
            "abstain": self._abstains(logit, read),
            "view_sd": spread,
            "distance": distance,
            "segmented": [_segmented(cell) for _, cell in cells],
            "reason": ["" if isinstance(cell, Cell) else cell for _, cell in cells],
            "use": USE,
        })  # fmt: skip
        noted = {name: [getattr(cell, name, False) for _, cell in cells] for name in NOTES}
        return table.assign(**noted)

    def _abstains(self, logit: np.ndarray, read: np.ndarray) -> np.ndarray:
        """ "yes" or "no" for each cell; "" for those without a logit, or if nothing is promised."""
        if self.level is None:
            return np.full(len(logit), "")
        found = abstains(logit, logit > self.bundle.threshold, self.level)
        return np.where(read, np.where(found, "yes", "no"), "")


def _segmented(cell: Cell | str) -> str:
    return ("yes" if cell.segmented else "no") if isinstance(cell, Cell) else ""


def load_bundle(
    path: str | os.PathLike[str], device: str | None = None, alpha: float | None = None
) -> Predictor:
    """Open a bundle, or an ONNX file made of one, whose `predict` takes images.

    Args:
        path: the folder that `leukocls.bundle` wrote, or the file that `leukocls.export` wrote.
        device: "cpu", "cuda", …; None for a GPU if there is one.
        alpha: for abstention: the share of a new person's cells, on average, whose own label is
            ruled out; one of those in the bundle. None takes .1 if the bundle has it.

    Raises:
        LeukoclsError: no bundle, of a newer format, or with a network that is unknown.
        DataFault: it is damaged or was changed.
    """
    if Path(path).suffix == ONNX:
        from leukocls.inference.onnx_predictor import OnnxPredictor

        return OnnxPredictor(Path(path), device, alpha)
    try:
        from leukocls.inference.torch_predictor import TorchPredictor
    except ModuleNotFoundError as error:
        raise LeukoclsError(
            f"{path}: a bundle needs PyTorch, and {error.name} is not installed; install leukocls"
            " with its dependencies, or open an ONNX file (`python -m leukocls.export`)."
        ) from error
    return TorchPredictor(open_bundle(Path(path)), device, alpha)
