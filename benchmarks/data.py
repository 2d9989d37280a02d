"""Data and augmentation against what a user would otherwise run, side by side on this machine.

python benchmarks/data.py [ROOT] [--json FILE]

Each pair is timed in turn, A B A B …, on the same images; the ratio is that of the medians. ROOT is
a data tree; without it synthetic cells are written to a temporary folder.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import kornia.augmentation as K
import numpy as np
import torch
from PIL import Image

from leukocls.artifacts.environment import versions
from leukocls.common.files import atomic_write
from leukocls.data.augment import Augmentation
from leukocls.data.bmp import read_crop
from leukocls.data.images import image_sides
from leukocls.data.store import data_digest, open_store
from leukocls.data.verify import checked_index
from leukocls.data.views import image_views
from leukocls.synthetic.tree import SyntheticSpec, write_tree

CROP, BATCH, ROUNDS = 300, 16, 15


def pillow_crop(path: Path, side: int) -> np.ndarray:
    """What torchvision's CenterCrop leaves of an image that Pillow decodes."""
    first = (side - CROP) // 2
    box = (first, first, first + CROP, first + CROP)
    return np.asarray(Image.open(path).convert("RGB").crop(box))


def pillow_view(pictures: list[Image.Image], angle: int) -> torch.Tensor:
    """A batch turned by Pillow, as the network takes it: float32 [B, 3, S, S] in [0, 1]."""
    turned = np.stack([np.asarray(picture.rotate(angle)) for picture in pictures])
    return torch.from_numpy(turned).permute(0, 3, 1, 2).float() / 255


def compare(ours: Callable[[], object], theirs: Callable[[], object]) -> dict[str, float]:
    """Median milliseconds of both, taken in turn, and how many times faster ours is."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS + 1):
        for work, kept in zip((ours, theirs), times, strict=True):
            started = time.perf_counter()
            work()
            kept.append(1e3 * (time.perf_counter() - started))
    # The first round warms caches.
    a, b = (statistics.median(kept[1:]) for kept in times)
    return {"ours_ms": round(a, 2), "theirs_ms": round(b, 2), "ratio": round(b / a, 2)}


def main() -> None:
    """Time the pairs and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        small = SyntheticSpec(train_subjects_all=4, train_subjects_hem=4)
        root = arguments.root or write_tree(Path(folder) / "tree", small)
        cache = Path(folder) / "store"
        index = checked_index(root, partial=True, cache=cache)
        store = open_store(index, data_digest(index), cache, CROP, CROP)
        files = list(image_sides(index))[:BATCH]
        rows = np.random.default_rng(0).permutation(len(store))[:BATCH]
        images = torch.from_numpy(store[np.sort(rows)]).permute(0, 3, 1, 2).float() / 255
        pictures = [Image.fromarray(image) for image in store[np.sort(rows)]]
        augment = Augmentation(0.5, 0.5, 180, 0.2)
        theta = augment.transforms(0, 0, len(store), CROP)[torch.from_numpy(rows)]
        rotate = {"resample": "nearest", "align_corners": True, "p": 1.0}
        theirs = K.AugmentationSequential(
            K.RandomVerticalFlip(),
            K.RandomHorizontalFlip(),
            K.RandomAffine(180, (0.2, 0.2), **rotate),
        )
        result = {
            "read a crop, against Pillow": compare(
                lambda: [read_crop(path, side, CROP) for path, side in files],
                lambda: [pillow_crop(path, side) for path, side in files],
            ),
            "a batch from the store, against Pillow in one process": compare(
                lambda: store[rows], lambda: [pillow_crop(path, side) for path, side in files]
            ),
            "the paper's augmentation, against Kornia's AugmentationSequential": compare(
                lambda: augment(images, theta), lambda: theirs(images)
            ),
            "eight views, against eight Pillow rotations": compare(
                lambda: list(image_views(images, 8)),
                lambda: [pillow_view(pictures, 45 * k) for k in range(8)],
            ),
        }
    for name, values in result.items():
        print(f"{values['ratio']:7.2f}× {name} ({values['ours_ms']} / {values['theirs_ms']} ms)")
    if arguments.json:
        facts = {
            "command": " ".join(["python", *sys.argv]),
            "cores": os.cpu_count(),
            "batch": BATCH,
        }
        document = {**facts, "versions": versions(), "synthetic": index.synthetic, "pairs": result}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(arguments.json, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
