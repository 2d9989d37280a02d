"""The distance of a cell to the cells that a network was trained on, in the network's features.

It is that to the K-th nearest training cell between normalised features (Sun et al. 2022,
"Out-of-Distribution Detection with Deep Nearest Neighbors", section 3), divided by the value that
95 % of the held-out cells stay below.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from leukocls.common.errors import LeukoclsError
from leukocls.data.index import Index
from leukocls.data.warp import to_images
from leukocls.inference.images import Reading, ahead, read_cell, seen

K = 10
USUAL = 0.95  # of the held-out cells have a distance below 1
MOST = 2000  # training cells in a bundle, as evenly from all persons as there are
BATCH = 64
CELLS, FEATURES = "cells", "features"  # in the file of references


class Neighbour(NamedTuple):
    """A training cell, and its distance from the cell that was asked about."""

    cell: str
    person: str
    label: str
    distance: float


class References(NamedTuple):
    """Features of training cells, and the unit in which distances to them are given.

    Attributes:
        features: float64 [m, d], each of length 1.
        scale: the distance that is called 1.
        cells: name, person and label (ALL or HEM) of each training cell, [m].
    """

    features: Tensor
    scale: float
    cells: Sequence[tuple[str, str, str]]

    def distance(self, features: Tensor) -> Tensor:
        """Distance [n] of features, float64 [n, d] of length 1, to the K-th nearest reference."""
        return self._nearest(features, K)[0][:, -1]

    def nearest(self, features: Tensor, number: int) -> list[list[Neighbour]]:
        """The nearest training cells of each of the features, the nearest first."""
        distances, rows = (found.tolist() for found in self._nearest(features, number))

        def neighbour(row: int, distance: float) -> Neighbour:
            cell, person, label = self.cells[row]
            return Neighbour(cell, person, label, distance)

        return [list(map(neighbour, *pair)) for pair in zip(rows, distances, strict=True)]

    def _nearest(self, features: Tensor, number: int) -> tuple[Tensor, Tensor]:
        # Of near neighbours 1 - cos is small: in single precision little of it would be left.
        found, rows = (features @ self.features.T).topk(min(number, len(self.features)), 1)
        return (2 - 2 * found).clamp_min(0).sqrt() / self.scale, rows


@contextmanager
def first_maps(
    network: nn.Module, change: Callable[[Tensor], Tensor] = lambda maps: maps
) -> Iterator[list[Tensor]]:
    """Keep the backbone's last feature maps (or tokens) of the first pass: the list holds them.

    Args:
        change: what the network gets in their place, and the list holds.
    """
    backbone: Any = network.backbone
    forward = backbone.forward_features
    kept: list[Tensor] = []

    def keep(*arguments: Any, **options: Any) -> Tensor:
        maps = change(forward(*arguments, **options))
        if not kept:
            kept.append(maps)
        return maps

    backbone.forward_features = keep
    try:
        yield kept
    finally:
        del backbone.forward_features


def pooled(network: nn.Module, maps: Tensor) -> Tensor:
    """Features of length 1, float64 [n, d], of the backbone's last feature maps."""
    backbone: Any = network.backbone
    features = backbone.forward_head(maps, pre_logits=True)
    # Networks with a head of their own have taken the backbone's pooling away.
    features = features.mean((2, 3)) if features.ndim == 4 else features
    return F.normalize(features.flatten(1).double(), dim=1)


def references(
    network: nn.Module, index: Index, split: pd.DataFrame, held_out: str, crop: int | str, size: int
) -> tuple[References, int]:
    """The references of a network, from the images that it was trained on.

    Args:
        network: in evaluation mode, on the CPU.
        index: the data that its run has read.
        split: of its run, with the columns cell, split and person (`group` or `subject`).
        held_out: the set that chose the epoch.
        crop, size: as `leukocls.inference.images.seen`.

    Returns:
        The references, and the number of held-out cells behind their scale.

    Raises:
        LeukoclsError: the data lacks cells of the run.
        DataFault: an image that cannot be read.
    """
    # Cells of final have the names of prelim's.
    table = index.table[index.table["part"] != "final"].drop_duplicates("cell").set_index("cell")
    if absent := sorted(set(split["cell"]) - set(table.index)):
        raise LeukoclsError(
            f"--data {index.source}: lacks {len(absent)} cells of the run, such as {absent[0]};"
            " name the data that it has read"
        )
    files = {cell: index.root / file for cell, file in table["file"].items()}

    def features(cells: Sequence[str]) -> Tensor:
        paths = [files[cell] for cell in cells]
        read = ahead(lambda path: seen(read_cell(path, Reading(None)).pixels, crop, size), paths,
                     2 * BATCH)  # fmt: skip
        parts, batch = [], []
        for number, pixels in enumerate(read, 1):
            batch.append(pixels)
            if len(batch) == BATCH or number == len(paths):
                parts.append(features_of(network, np.stack(batch)))
                batch = []
        return torch.cat(parts)

    chosen = _evenly(split[split["split"] == "train"])
    trained = features([cell for cell, _, _ in chosen])
    others = features([cell for cell, _, _ in _evenly(split[split["split"] == held_out])])
    # As they are stored.
    raw = References(trained.float().double(), 1.0, chosen)
    scale = float(torch.quantile(raw.distance(others), USUAL))
    return raw._replace(scale=max(scale, 1e-6)), len(others)


@torch.inference_mode()
def features_of(network: nn.Module, stored: np.ndarray, device: str = "cpu") -> Tensor:
    """Features of length 1, float64 [n, d], of what a network sees, uint8 [n, S, S, 3]."""
    images = to_images(torch.from_numpy(stored).to(device))
    with first_maps(network) as kept:
        network(images.contiguous(memory_format=torch.channels_last))
    return pooled(network, kept[0])


def _evenly(split: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Name, person and label of at most MOST cells: the first of each person, then the second."""
    person = "group" if "group" in split else "subject"
    turn = split.groupby(person).cumcount().to_numpy()
    rows = split.iloc[np.argsort(turn, kind="stable")[:MOST]]
    label = np.where(rows["label"].astype(int) == 1, "ALL", "HEM")
    return list(zip(rows["cell"], rows[person], label.tolist(), strict=True))


def save(found: References, held_out: int, path: Path) -> dict[str, Any]:
    """Write the features and their cells, and return the entry `distance` of leukocls.json."""
    metadata = {CELLS: json.dumps(found.cells)}
    save_file({FEATURES: found.features.float().contiguous()}, path, metadata)
    number, width = found.features.shape
    return {
        "file": path.name, "neighbour": K, "scale": found.scale, "usual": USUAL,
        "references": number, "features": width, "held_out": held_out,
    }  # fmt: skip


def load(path: Path, scale: float, device: torch.device) -> References:
    """The references that `save` wrote; `scale` is in the entry that it returned."""
    with safe_open(path, "pt") as stored:
        cells = json.loads(stored.metadata()[CELLS])
        features = stored.get_tensor(FEATURES).to(device).double()
    return References(features, scale, cells)
