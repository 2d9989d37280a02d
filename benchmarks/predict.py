"""Time `predict` on many SYNTHETIC images beside the forward passes of the network alone.

python benchmarks/predict.py [--images N] [--json FILE]

A run of EfficientNet-Lite0 at 128 px with eight views is trained for one batch, because its weights
do not matter for time, and bundled. `predict` then runs as a command on a tenth of the images and
on all of them, for its peak memory and its rate. The network alone computes the same views of
images that are decoded already, with as many threads. Machines grow faster and slower within
seconds: for the ratio of the two, what `predict` does and the network alone take turns in one
process, ROUNDS times, on one batch each, and every other time the network is first. The ratio is
the median of the turns' ratios.
"""

import argparse
import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import command
import numpy as np
import torch

from leukocls.artifacts.environment import versions
from leukocls.common.files import atomic_write
from leukocls.data.views import image_views
from leukocls.data.warp import to_images
from leukocls.inference.bundle import open_bundle
from leukocls.inference.images import Found, Reading, find_images
from leukocls.inference.prediction_file import write_predictions
from leukocls.inference.predictor import BATCH
from leukocls.inference.torch_predictor import TorchPredictor
from leukocls.synthetic.tree import SyntheticSpec, write_tree

RECIPE = [
    "experiment=prellberg2019", "model=efficientnetlite0", "model.weights=null", "data.size=128",
    "trainer.max_epochs=1", "+trainer.limit_train_batches=1", "+trainer.limit_val_batches=1",
]  # fmt: skip
SMALL = SyntheticSpec(
    train_subjects_all=3, train_subjects_hem=3, prelim_subjects_all=1, prelim_subjects_hem=1,
    cells_per_subject=8, final_cells=4,
)  # fmt: skip
FULL = SyntheticSpec(scale="full")
ROUNDS = 30


def in_turns(predictor: TorchPredictor, images: list[Found], folder: Path) -> np.ndarray:
    """Images per second of `predict`, from files to a file, and of the network, [ROUNDS, 2]."""
    (member,), (network,) = predictor.members, predictor.networks
    shape = (BATCH, member.size, member.size, 3)
    pixels = to_images(torch.randint(0, 256, shape, dtype=torch.uint8))
    views = [view.contiguous(memory_format=torch.channels_last)
             for view in image_views(pixels, member.views)]  # fmt: skip
    batches = [images[at : at + BATCH] for at in range(0, len(images), BATCH)]

    def rate(turn: int, batch: list[Found]) -> float:
        start = time.perf_counter()
        write_predictions(predictor, batch, folder / f"{turn}.csv", Reading(predictor.side))
        return len(batch) / (time.perf_counter() - start)

    @torch.inference_mode()
    def bare() -> float:
        start = time.perf_counter()
        for view in views:
            network(view)
        return BATCH / (time.perf_counter() - start)

    found = []
    for turn, batch in enumerate([batches[0], *(batches * ROUNDS)[:ROUNDS]]):
        if turn % 2:
            found.append((rate(turn, batch), bare()))
        else:
            found.append((bare(), rate(turn, batch))[::-1])
    return np.array(found[1:])  # the first one warms up


def measured(folder: Path, number: int, spec: SyntheticSpec = FULL) -> dict[str, Any]:
    """The figures, from files below `folder`."""
    write_tree(folder / "small", SMALL, progress=False)
    words = [f"data.root={folder / 'small'}", f"outputs={folder / 'out'}", "data=cnmc"]
    command.measured("leukocls.train", *RECIPE, *words, f"data.cache={folder / 'store'}")
    (run,) = (folder / "out").rglob("run.json")
    command.measured("leukocls.bundle", run.parent, "--out", folder / "bundle")
    write_tree(folder / "full", spec)
    images = sorted((folder / "full").rglob("*.bmp"))[:number]
    (folder / "all").mkdir()
    for image in images:
        (folder / "all" / f"{image.parent.name}_{image.name}").symlink_to(image)
    few = folder / "few"
    few.mkdir()
    for image in sorted((folder / "all").iterdir())[: number // 10]:
        (few / image.name).symlink_to(image.resolve())
    predictor = TorchPredictor(open_bundle(folder / "bundle"), "cpu")
    turns = in_turns(predictor, find_images([folder / "all"]), folder / "turns")
    ratios = turns[:, 0] / turns[:, 1]
    predict = partial(command.measured, "leukocls.predict", folder / "bundle")
    first, small = predict(few, "--out", folder / "few.csv")
    seconds, large = predict(folder / "all", "--out", folder / "all.csv")
    # What a command takes to start is in both, and no part of its rate.
    whole = (len(images) - number // 10) / (seconds - first)
    return {
        "images": len(images),
        "views": predictor.members[0].views,
        "predict images per s": round(whole, 2),
        "in turns: predict, network alone": np.median(turns, axis=0).round(2).tolist(),
        "ratio": round(float(np.median(ratios)), 3),
        "quartiles of the ratio": np.quantile(ratios, [0.25, 0.75]).round(3).tolist(),
        f"peak MiB, {number // 10} images": round(small),
        f"peak MiB, {number} images": round(large),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="leukocls-predict-") as folder:
        figures = measured(Path(folder), arguments.images)
    for name, value in figures.items():
        print(f"{name:36}{value}")
    if arguments.json:
        document = {
            "command": f"python benchmarks/predict.py --images {arguments.images}",
            "cores": os.cpu_count(),
            "marks": ["SYNTHETIC"], "versions": versions(), "figures": figures,
        }  # fmt: skip
        atomic_write(arguments.json, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
