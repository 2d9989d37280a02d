"""Recall and mistakes of the search for near-duplicates, and the pairs among genuine images.

python benchmarks/near_duplicates.py [GENUINE_ROOT] [--json FILE]

SYNTHETIC cells are drawn in memory: some are rendered again with another stain, focus and outline,
saved as JPEG or resized; and all cells of scale=full, none of which is another one. With
GENUINE_ROOT the pairs that its images hold are counted, by person.
"""

import argparse
import io
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from leukocls.artifacts.environment import versions
from leukocls.common.files import atomic_write, in_parallel
from leukocls.data.images import extent
from leukocls.data.near_duplicates import near_duplicates, thumbnail
from leukocls.data.verify import examine
from leukocls.synthetic.latents import draw_cells, reprocessed
from leukocls.synthetic.render import Cell, render
from leukocls.synthetic.spec import SyntheticSpec

DEGREES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
PALE = (228, 208, 222)  # a background between cells
WHOLE = SyntheticSpec(scale="full")  # 15,114 cells
LEVELS = (0.01, 0.05, 0.5, 0.95)  # of the quantiles that are reported

Change = Callable[[Cell, np.random.Generator], np.ndarray]


def tight(image: np.ndarray) -> np.ndarray:
    """The image without its black margin."""
    top, left, bottom, right = extent(image)
    return image[top:bottom, left:right]


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """The image as it is read after it was saved as JPEG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "jpeg", quality=quality)
    return np.asarray(Image.open(stream))


def again(degree: float) -> Change:
    """The cell with another stain, focus and outline."""
    return lambda cell, rng: tight(render(reprocessed(cell, rng, degree)))


def compressed(quality: int) -> Change:
    """The cell saved as JPEG; the traces that JPEG leaves around it are removed."""

    def change(cell: Cell, rng: np.random.Generator) -> np.ndarray:
        image = render(cell)
        return tight(np.where(image.any(-1, keepdims=True), jpeg(image, quality), 0))

    return change


def resized(factor: float) -> Change:
    """The cell enlarged."""

    def change(cell: Cell, rng: np.random.Generator) -> np.ndarray:
        image = Image.fromarray(tight(render(cell)))
        size = (round(image.width * factor), round(image.height * factor))
        return tight(np.asarray(image.resize(size, Image.Resampling.BILINEAR)))

    return change


def on_background(cell: Cell, rng: np.random.Generator) -> np.ndarray:
    """A field of 300 px with the cell on a pale background, as a camera would save it."""
    image = render(cell)
    pale = np.where(image.any(-1, keepdims=True), image, np.array(PALE, np.uint8))
    noisy = pale[75:375, 75:375] + rng.normal(0, 3, (300, 300, 3))
    return jpeg(noisy.clip(1, 255).astype(np.uint8), 95)


def search(crops: list[np.ndarray]) -> list[tuple[int, int]]:
    """The pairs found among images."""
    sides = np.array([crop.shape[:2] for crop in crops])
    names = np.arange(len(crops)).astype(str)
    thumbnails = np.stack([thumbnail(crop) for crop in crops])
    return [pair[:2] for pair in near_duplicates(thumbnails, sides, names, crops.__getitem__)]


def recall(cells: list[Cell]) -> dict[str, dict[str, float]]:
    """Share of the changed images that are found, and number of wrong pairs, by change."""
    changes: dict[str, Change] = {f"degree {degree}": again(degree) for degree in DEGREES}
    changes |= {f"JPEG quality {quality}": compressed(quality) for quality in (90, 70, 50)}
    changes |= {f"resized by {factor}": resized(factor) for factor in (1.01, 1.02, 1.05)}
    changes["degree 0.5, turned by 90°"] = lambda cell, rng: np.rot90(again(0.5)(cell, rng))
    originals = [tight(render(cell)) for cell in cells]
    found = {}
    for name, change in changes.items():
        rng = np.random.default_rng(0)
        found[name] = _counted(originals, [change(cell, rng) for cell in cells])
    rng = np.random.default_rng(0)
    fields = [on_background(cell, rng) for cell in cells]
    saved = [jpeg(field, 80) for field in fields]
    return found | {"on a pale background, JPEG again": _counted(fields, saved)}


def _counted(originals: list[np.ndarray], changed: list[np.ndarray]) -> dict[str, float]:
    number = len(originals)
    pairs = search(originals + changed)
    right = sum(second - first == number for first, second in pairs)
    return {"recall": right / number, "wrong pairs": len(pairs) - right}


def mistaken(spec: SyntheticSpec) -> dict[str, object]:
    """Pairs found among all cells of a specification, none of which is another one again."""
    cells = draw_cells(spec)

    def small(cell: Cell) -> tuple[np.ndarray, tuple[int, int]]:
        crop = tight(render(cell))
        return thumbnail(crop), crop.shape[:2]

    drawn = list(in_parallel(small, cells, len(cells), "render"))
    thumbnails = np.stack([made for made, _ in drawn])
    sides = np.array([side for _, side in drawn])
    started = time.perf_counter()
    pairs = near_duplicates(
        thumbnails,
        sides,
        np.array([cell.name for cell in cells]),
        lambda row: tight(render(cells[row])),
    )
    return {
        "cells": len(cells),
        "pairs": len(pairs),
        "pairs of two subjects": sum(cells[a].subject != cells[b].subject for a, b, *_ in pairs),
        "search s": round(time.perf_counter() - started, 1),
    }


def genuine(root: Path, cache: Path) -> dict[str, object]:
    """Pairs among genuine images by person, and how well they agree."""
    examination = examine(root, "auto", True, cache)
    table = examination.index.table
    pairs = [copies for copies in examination.duplicates if copies.kind == "reprocessed"]
    by_subjects: Counter[str] = Counter()
    for pair in pairs:
        subjects = set(table["subject"].iloc[list(pair.rows)])
        by_subjects[" = ".join(sorted(subjects)) if len(subjects) > 1 else "one subject"] += 1
    similarity = np.quantile([pair.similarity for pair in pairs], (0, *LEVELS))
    return {
        "images": len(table),
        "pairs": dict(by_subjects.most_common()),
        "not known by name": sum(not pair.known for pair in pairs),
        "correlation, quantiles 0, " + ", ".join(map(str, LEVELS)): similarity.round(3).tolist(),
    }


def main() -> None:
    """Print the figures as JSON, and keep them with --json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", nargs="?", type=Path, help="C-NMC 2019, or some of its folds")
    parser.add_argument("--cells", type=int, default=400, help="cells that are rendered again")
    parser.add_argument("--cache", type=Path, default=Path("outputs/store"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cells = [cell for cell in draw_cells(SyntheticSpec()) if cell.part != "final"]
    result = {
        # Where somebody keeps the data is no part of a result.
        "command": f"python {sys.argv[0]}" + " GENUINE_ROOT" * (options.root is not None),
        "cells rendered again": options.cells,
        "versions": versions(),
        "SYNTHETIC: cells processed again": recall(cells[: options.cells]),
        "SYNTHETIC: all cells of scale=full": mistaken(WHOLE),
    }
    if options.root:
        result["genuine"] = genuine(options.root, options.cache)
    result["peak memory MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    if options.json:
        atomic_write(options.json, text + "\n")


if __name__ == "__main__":
    main()
