"""Quality of `predict --segment`, which cuts cells out: genuine cells pasted on drawn backgrounds.

python benchmarks/segment.py ROOT [--cells N] [--json FILE]

ROOT is C-NMC 2019, or the folds of it that are there. Each cell is pasted into the middle of a
drawn smear: a bright uneven ground with noise, and discs in the colour of red cells, none, apart
from the cell or touching it. Its edge is blended over two pixels, as a lens would. Measured are
intersection over union with the cell's own mask, and how often nothing is found. A drawn smear is
no photograph: no other leukocytes, no debris, no other stain than the cells have.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from leukocls.artifacts.environment import versions
from leukocls.common.files import atomic_write
from leukocls.common.tables import aligned
from leukocls.data.images import read_image
from leukocls.data.index import build_index
from leukocls.inference.segment import cell_mask

GROUND, RED_CELL = (228, 218, 226), (222, 168, 172)  # RGB of bright smears in Wright's stain
SCENES = ("plain ground", "red cells apart", "red cells touching")
RADIUS = 55  # px, of a red cell at C-NMC's magnification


def scene(rng: np.random.Generator, image: np.ndarray, kind: str) -> np.ndarray:
    """The cell of uint8 [H, W, 3] in a drawn smear."""
    height, width = image.shape[:2]
    mask = image.any(2)
    rows, columns = np.indices((height, width))
    ground = np.array(GROUND) + rng.normal(0, 6, 3)
    slope = (rows / height - 0.5) * rng.normal(0, 12) + (columns / width - 0.5) * rng.normal(0, 12)
    drawn = ground + slope[..., None]
    distance = ndimage.distance_transform_edt(~mask)
    for _ in range(6 if kind != SCENES[0] else 0):
        radius = RADIUS * rng.uniform(0.85, 1.15)
        centre = rng.uniform(0, height), rng.uniform(0, width)
        gap = distance[int(centre[0]), int(centre[1])] - radius
        if kind == SCENES[1] and gap < 12:
            continue
        disc = np.hypot(rows - centre[0], columns - centre[1]) / radius
        shade = np.clip((1 - disc) * radius / 2, 0, 1) * (0.75 + 0.25 * np.clip(disc, 0, 1))
        drawn += shade[..., None] * (np.array(RED_CELL) + rng.normal(0, 6, 3) - drawn)
    drawn += rng.normal(0, 4, drawn.shape)
    share = ndimage.gaussian_filter(mask.astype(float), 1.0)[..., None]
    pasted: np.ndarray = np.clip(image * share + drawn * (1 - share), 0, 255).astype(np.uint8)
    return pasted


def overlap(image: np.ndarray, pasted: np.ndarray) -> float:
    """Intersection over union with the cell's own mask; 0 if nothing is found."""
    try:
        found = cell_mask(pasted)
    except ValueError:
        return 0.0
    mask = ndimage.binary_fill_holes(image.any(2))
    return float((found & mask).sum() / (found | mask).sum())


def measured(root: Path, cells: int) -> list[dict[str, Any]]:
    """Overlap in each kind of scene, by class."""
    index = build_index(root)
    table = index.table[index.table["label"] >= 0]
    rng, rows = np.random.default_rng(0), []
    for name, label in (("ALL", 1), ("HEM", 0)):
        files = table["file"][table["label"] == label].to_numpy()
        chosen = files[np.linspace(0, len(files) - 1, min(cells, len(files))).astype(int)]
        images = [read_image(index.root / file) for file in chosen]
        for kind in SCENES:
            found = np.array([overlap(image, scene(rng, image, kind)) for image in images])
            rows.append({
                "class": name, "scene": kind, "cells": len(found),
                "median": round(float(np.median(found)), 3),
                "5th percentile": round(float(np.percentile(found, 5)), 3),
                "below 0.8": round(float((found < 0.8).mean()), 3),
            })  # fmt: skip
    return rows


def main() -> None:
    """Measure, print the table, and keep it with --json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("--cells", type=int, default=250, help="of each class")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = measured(arguments.root, arguments.cells)
    print(aligned([list(rows[0]), *([str(value) for value in row.values()] for row in rows)]))
    if arguments.json:
        command = f"python benchmarks/segment.py ROOT --cells {arguments.cells}"
        document = {"command": command, "versions": versions(), "rows": rows}
        atomic_write(arguments.json, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
