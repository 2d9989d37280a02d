"""plan=true: the runs of a command, and the wall time and disk space that they will take.

Estimated from finished runs of the same arm, or else from one timed batch on this machine.
"""

import functools
import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from leukocls.artifacts.identity import settings_of
from leukocls.artifacts.record import RunState, read_record, run_directories
from leukocls.data.index import Index, scan
from leukocls.data.leakage import HALVES, SCORED
from leukocls.data.published import published_subjects
from leukocls.data.splits import make_split, part_rows
from leukocls.data.views import view_count
from leukocls.launch.job import Job
from leukocls.launch.progress import by_settings
from leukocls.launch.slots import slots
from leukocls.launch.worker import SweepJob
from leukocls.models.frozen import FrozenFeatures
from leukocls.synthetic.latents import draw_cells
from leukocls.synthetic.tree import SyntheticSpec
from leukocls.training.build import build, untrained
from leukocls.training.inputs import split_options

TIMED = 8  # images; a whole batch of a large network takes long on a CPU


class Cost(NamedTuple):
    """Estimated wall time in seconds and disk space in bytes, and what the time comes from."""

    seconds: float
    size: float
    sources: frozenset[str] = frozenset()

    def __add__(self, other: Any) -> "Cost":
        sources = self.sources | other.sources
        return Cost(self.seconds + other.seconds, self.size + other.size, sources)


def planned(jobs: Sequence[SweepJob]) -> str:
    """The jobs as a table: state, estimated time; and the total of those that are not done.

    Nothing is written, and no image is opened.

    Raises:
        LeukoclsError: as `slots` and `cells` raise.
    """
    left, rows = Cost(0, 0), []
    for job in jobs:
        state, about = job.state(), "–"
        if state == RunState.DONE and not is_as_recorded(job.result):
            state = RunState.REFUSED
        if state != RunState.DONE or job.result.config.force:
            todo = [
                phase
                for phase in job.phases
                if phase.config.force or SweepJob([phase]).state() != RunState.DONE
            ]
            estimated = cost(todo or job.phases)
            left += estimated
            about = duration(estimated.seconds)
        rows.append([str(state), about])
    done = sum(row[0] == RunState.DONE for row in rows)
    todo_rows = max(1, sum(row[1] != "–" for row in rows))
    at_once = min(len(slots([job.result.config for job in jobs])), todo_rows)
    place = next(p for p in jobs[0].directory.absolute().parents if p.is_dir())
    free = shutil.disk_usage(place).free
    lines = [
        by_settings(jobs, ["status", "takes about"], rows),
        "",
        f"{len(rows)} {'run' if len(rows) == 1 else 'runs'}, {done} done; the rest takes about"
        f" {duration(left.seconds / at_once)} ({at_once} at a time) and {left.size / 1e9:.1f} GB"
        f" ({free / 1e9:.1f} GB are free).",
    ]
    if left.sources:
        lines.append(f"Estimated from {' and '.join(sorted(left.sources))}.")
    return "\n".join(lines)


def is_as_recorded(job: Job) -> bool:
    """Whether the run in the job's directory has the job's settings.

    True for a scored checkpoint, whose recipe comes from its training.
    """
    recorded = read_record(job.directory).get("identity")
    return bool(job.config.checkpoint) or recorded == settings_of(job.config)


def duration(seconds: float) -> str:
    """A time span in the largest unit that it fills: s, min, h or d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def cost(jobs: list[Job]) -> Cost:
    """Estimated cost of a run in all its phases."""
    total = Cost(0, 0)
    for job in jobs:
        total += _by_finished_runs(job.directory.parent) or _by_timed_batch(job.config)
    return total


def _by_finished_runs(arm: Path) -> Cost | None:
    """The median of the arm's finished runs; None without one."""
    seconds, sizes, devices = [], [], set()
    for directory in run_directories(arm):
        record = read_record(directory)
        if timing := record.get("timing"):
            seconds.append(sum(timing.values()))
            sizes.append(sum(p.stat().st_size for p in directory.rglob("*") if p.is_file()))
            devices.add(f"the arm's finished runs on {record.get('device')}")
    return Cost(median(seconds), median(sizes), frozenset(devices)) if seconds else None


def _by_timed_batch(config: DictConfig) -> Cost:
    """From the time of one image in training and in evaluation, and the number of images."""
    if config.rescore_from is not None:  # arithmetic on files
        return Cost(1, _predictions(config))
    plain: Any = OmegaConf.to_container(config, resolve=True)
    keys = ("model", "threads", "trainer")
    side = config.data.size or config.data.crop
    train_s, view_s, head_s, weights = _timed(json.dumps({k: plain[k] for k in keys}), side)
    training, scored = cells(config)
    epochs, views = config.trainer.max_epochs, view_count(config.views)
    if head_s and build(config.augment).is_identity:  # features are computed once
        once = (training + scored * views) * view_s
        seconds = once + epochs * (training + scored * views) * head_s
    elif config.checkpoint:
        seconds = scored * views * view_s
    else:
        seconds = epochs * training * train_s + (epochs + 1) * scored * views * view_s
    # The weights twice, and two checkpoints with Adam's moments.
    source = f"a batch of {TIMED} images timed on {_device_name(config)}"
    return Cost(seconds, 8 * weights + _predictions(config), frozenset([source]))


def _device_name(config: Any) -> str:
    cuda = torch.cuda.is_available() and config["trainer"]["accelerator"] != "cpu"
    return torch.cuda.get_device_name() if cuda else "cpu"


def _predictions(config: DictConfig) -> float:
    """Bytes of predictions.parquet: four a view, and some 20 for the rest of a row."""
    row = 4 * view_count(config.views) + 20
    return (config.trainer.max_epochs + 1) * cells(config)[1] * row


def cells(config: DictConfig) -> tuple[float, float]:
    """Numbers of cells that an epoch trains on and scores.

    Those of the data at hand. Of synthetic data, which is not there yet, and of C-NMC without a
    data root they are estimated.

    Raises:
        LeukoclsError: no data at the root, or none that the split can be made of.
    """
    data = config.data
    if data.synthetic is not None or not data.root:
        training, scored = _estimated_cells(config)
    else:
        index = _scanned(data.root, data.layout)
        if config.checkpoint:
            training, scored = 0.0, float(len(part_rows(index, config.score)))
        else:
            index = index.only(("train", "prelim"))
            index = index.without_h3() if data.drop_h3 else index
            made = make_split(index, config.split_scheme, split_options(config))
            training = float(len(made.rows["train"]))
            scored = float(sum(len(made.rows[name]) for name in made.scored))
    limits = config.trainer.limit_train_batches, config.trainer.limit_val_batches
    return (
        _limited(training, limits[0], data.batch_size),
        _limited(scored, limits[1], data.eval_batch_size),
    )


@functools.cache
def _scanned(root: str, layout: str) -> Index:
    """The index from names alone: faults are left to training, which refuses them."""
    return scan(root, layout)[0]


def _estimated_cells(config: DictConfig) -> tuple[float, float]:
    """Cells that an epoch trains on and scores, by what is drawn or by the published numbers."""
    data = config.data
    if data.synthetic is not None:
        counts = _drawn(SyntheticSpec(**data.synthetic))
        train, prelim = counts.total() - counts["prelim"] - counts["final"], counts["prelim"]
    else:
        found = {part: sum(n.values()) for part, n in published_subjects().items()}
        prelim = found.pop("prelim")
        train = sum(found.values())
    training, scored = float(train), float(prelim)
    if config.split_scheme == "all":
        training = scored = train + prelim
    elif config.split_scheme in ("honest", "subject", "lofo", "cell"):
        folds = 3 if config.split_scheme == "lofo" else config.folds
        training, scored = train * (1 - 1 / folds), train / folds
    elif config.split_scheme == "leakage":
        training, scored = train * (1 - SCORED) / HALVES, train * SCORED / HALVES
    return min(training, data.n_cells or training), scored


@functools.cache
def _drawn(spec: SyntheticSpec) -> Counter[str]:
    """Synthetic cells by part."""
    return Counter(cell.part for cell in draw_cells(spec))


def _limited(count: float, limit: float | int | None, batch: int) -> float:
    """`count` under Lightning's limit: an integer counts batches, a float is a fraction."""
    if limit is None:
        return count
    return min(count, limit * batch) if isinstance(limit, int) else count * limit


@functools.cache
def _timed(kind: str, side: int | str) -> tuple[float, float, float, int]:
    """Seconds of an image in training, in evaluation, and through a frozen network's head alone (0
    for other networks), and the bytes of the network's weights."""
    config = json.loads(kind)
    cuda = _device_name(config) != "cpu"
    device = torch.device("cuda" if cuda else "cpu")
    torch.set_num_threads(config["threads"])
    # As in training: the layout in memory changes the time.
    layout = torch.channels_last
    network = untrained(config["model"]).to(memory_format=layout).to(device)
    side = side if isinstance(side, int) else 224

    def forward(given: Tensor) -> Tensor:
        output = network(given)
        return sum(part.sum() for part in (output if isinstance(output, tuple) else (output,)))

    def once(given: Tensor, train: bool) -> float:
        network.train(train)
        started = time.perf_counter()
        with torch.set_grad_enabled(train):
            total = forward(given)
        if train:
            total.backward()
        if cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / len(given)

    images = torch.rand(TIMED, 3, side, side, device=device).contiguous(memory_format=layout)
    once(images[:2], True)
    head = 0.0
    if isinstance(network, FrozenFeatures):
        features = torch.rand(TIMED, network.num_features, device=device)
        once(features, True)
        head = once(features, True)
    weights = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    return once(images, True), once(images, False), head, weights
