"""LightningDataModule: batches of cells from the store, augmented on the device."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from leukocls.common.errors import LeukoclsError
from leukocls.common.processes import end_with_parent, fork_server
from leukocls.data.augment import Augmentation, Transforms, mask_boxes
from leukocls.data.index import Index
from leukocls.data.random import ORDER_STREAM, generator
from leukocls.data.splits import Split
from leukocls.data.store import check_length
from leukocls.data.warp import to_images

RESIDENCES = ("mmap", "ram", "device")
SAMPLERS = ("shuffle", "balanced")
# Imported once for all workers, which would otherwise import torch each.
WORKER_MODULES = ("leukocls.data.datamodule",)


@dataclass(frozen=True)
class Cells(Dataset):
    """Dataset that returns whole batches: position p means copy p // N of cell p % N of N cells.

    A batch holds `position` int64 [B], `row` of the index int64 [B], `label` int64 [B] (ALL 1, HEM
    0, −1 unknown) and, unless the images are resident on the device, `image` uint8 [B, S, S, 3].
    """

    images: np.ndarray | None
    label: np.ndarray

    def __getitem__(self, position: np.ndarray) -> dict[str, Tensor]:
        row = position % len(self.label)
        numbers = {"position": position, "row": row, "label": self.label[row]}
        if self.images is not None:
            if isinstance(self.images, np.memmap):
                check_length(self.images)
            numbers["image"] = self.images[row]
        return {name: torch.from_numpy(value) for name, value in numbers.items()}

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry every pixel to every worker.
        images = self.images.filename if isinstance(self.images, np.memmap) else self.images
        return {"images": images, "label": self.label}

    def __setstate__(self, state: dict[str, Any]) -> None:
        images = state["images"]
        self.__dict__["label"] = state["label"]
        mapped = isinstance(images, str | Path)
        self.__dict__["images"] = np.load(images, mmap_mode="r") if mapped else images


class Batches(Sampler[np.ndarray]):
    """Sampler of the positions of each batch, for one of several ranks.

    With a seed, the order is a function of (seed, epoch) and the last incomplete batch is dropped.
    Without one, all ranks together get every row exactly once, without padding; a rank without any
    row gets one empty batch. Of several groups of rows, the smaller ones are oversampled to the
    size of the largest: each row as often as fits, the rest drawn without replacement.

    Epoch and first batch are asked for when a pass begins; see `_Loader`.
    """

    def __init__(
        self,
        groups: Sequence[np.ndarray],
        cells: int,
        size: int,
        shuffle_seed: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        start: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self.groups, self.cells, self.size, self.seed = groups, cells, size, shuffle_seed
        self.rank, self.ranks, self.start = rank, ranks, start
        self.most = max(len(rows) for rows in groups)

    def __len__(self) -> int:
        total = len(self.groups) * self.most
        if self.seed is not None:
            return total // (self.size * self.ranks)
        # A rank with no batch would skip the evaluation, and the other ranks would wait for it.
        return max(1, -(-len(range(self.rank, total, self.ranks)) // self.size))

    def __iter__(self) -> Iterator[np.ndarray]:
        (positions, *_) = self.groups
        first = 0
        if self.seed is not None:
            epoch, first = self.start()
            random = generator(self.seed, epoch, ORDER_STREAM)
            parts = [part for rows in self.groups for part in self._oversampled(rows, random)]
            positions = random.permutation(np.concatenate(parts))
        positions = positions[self.rank :: self.ranks]
        for batch in range(first, len(self)):
            yield positions[batch * self.size : (batch + 1) * self.size]

    def _oversampled(self, rows: np.ndarray, random: np.random.Generator) -> Iterator[np.ndarray]:
        copies, rest = divmod(self.most, len(rows))
        for copy in range(copies):
            yield rows + copy * self.cells
        if rest:
            yield random.choice(rows, rest, replace=False) + copies * self.cells


def _end_with_the_run(worker: int) -> None:
    """End this worker when the run's process has ended, killed or not.

    PyTorch's look at their parent, which is the fork server, and that waits for them.
    """
    end_with_parent(signal.SIGKILL)


class _Loader(DataLoader):
    """A DataLoader whose pass begins with its first batch instead of with `iter()`.

    Lightning calls `iter()` before it has restored the epoch of a resumed run, and workers would
    then read ahead in the order of epoch 0.

    Raises:
        RuntimeError: a worker has ended.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except (ConnectionError, EOFError) as error:
            # A worker that ended while it sent a batch; PyTorch says so only of one that it
            # already knows to have ended.
            raise RuntimeError("DataLoader worker (pid not known) exited unexpectedly") from error


class CellDataModule(pl.LightningDataModule):
    """Batches of training and evaluation cells for every classifier.

    A batch holds `row` of the index int64 [B], `label` [B] (int64; float after mixup), `image`
    float32 [B, 3, S, S] in [0, 1] and, with `boxes`, `box` float32 [B, 4].

    Args:
        index: the cells.
        store: their images, uint8 [N, S, S, 3]; or frozen features of each view, float32
            [N, V, F], so that `image` holds view 0 [B, F] in training and all [B, V, F] at
            evaluation.
        split: which cells train and which are scored.
        augmentation: applied to training batches on the device.
        seed: of the order of the cells and of the augmentation.
        batch_size, eval_batch_size: images per step on each device.
        residence: place of the images: "mmap" (file), "ram" or "device"; the batches are equal.
        workers: processes that read batches; 0 is fastest.
        sampler: "shuffle" (each training cell once an epoch) or "balanced" (the smaller class
            oversampled to the size of the larger one, each copy augmented differently).
        devices: number of devices that train, each on its own batch.

    Attributes:
        boxes: top, left, bottom, right of the stored cells in [-1, 1], float32 [N, 4], for networks
            that need them; in training batches they follow the augmentation.
        corrupt: changes evaluation images [B, 3, S, S] of these rows of the index [B]; None leaves
            them as they are.

    Raises:
        LeukoclsError: a size, residence or sampler out of range, or a class without training cells
            for "balanced".
    """

    def __init__(
        self,
        index: Index,
        store: np.ndarray,
        split: Split,
        augmentation: Augmentation,
        *,
        seed: int,
        batch_size: int,
        eval_batch_size: int,
        residence: str,
        workers: int,
        sampler: str = "shuffle",
        devices: int = 1,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("workers", workers, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise LeukoclsError(f"data.{name}={value}: choose at least {least}.")
        for name, choice, choices in (
            ("data.residence", residence, RESIDENCES),
            ("sampler", sampler, SAMPLERS),
        ):
            if choice not in choices:
                raise LeukoclsError(f"{name}={choice}: choose one of {', '.join(choices)}.")
        self.index, self.split = index, split
        self.augmentation, self.seed = augmentation, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.residence, self.workers = residence, workers
        self._resident: Tensor | None = None
        self._served: Cells | None = None
        self.boxes: Tensor | None = None
        self.corrupt: Callable[[Tensor, Tensor], Tensor] | None = None
        self._transforms: tuple[int, Transforms] = (-1, Transforms())
        self.store, self._label = store, index.table["label"].to_numpy()
        self.groups = self._groups(sampler, devices)

    def _groups(self, sampler: str, devices: int) -> list[np.ndarray]:
        """Groups of training rows that each get the same number of cells in an epoch."""
        rows = self.split.rows.get("train", np.empty(0, np.int64))
        if not len(rows) or self.split.scored == ["train"]:
            return [rows]
        groups = [rows]
        if sampler == "balanced":
            groups = [rows[self._label[rows] == label] for label in (0, 1)]
            if not all(len(group) for group in groups):
                raise LeukoclsError(
                    "sampler=balanced: the training cells are all of one class; choose shuffle."
                )
        training = len(groups) * max(len(group) for group in groups)
        if training < self.batch_size * devices:
            several = f" on {devices} devices" if devices > 1 else ""
            raise LeukoclsError(
                f"data.batch_size={self.batch_size}{several}: {training} training cells are less"
                " than one batch; choose a smaller size."
            )
        return groups

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches."""
        return self._loader(self.groups, self.batch_size, self.seed)

    def val_dataloader(self) -> list[DataLoader]:
        """One loader for each split of `split.scored`, in that order."""
        return [self._evaluation_loader(name) for name in self.split.scored]

    def test_dataloader(self) -> list[DataLoader]:
        """One loader for each split of `split.scored_once`, in that order."""
        return [self._evaluation_loader(name) for name in self.split.scored_once]

    def _evaluation_loader(self, name: str) -> DataLoader:
        return self._loader([self.split.rows[name]], self.eval_batch_size, None)

    def _cells(self) -> Cells:
        if self._served is None:
            images = {"mmap": self.store, "device": None}
            kept = images[self.residence] if self.residence in images else np.array(self.store)
            self._served = Cells(kept, self._label)
        return self._served

    def _loader(self, groups: list[np.ndarray], size: int, shuffle_seed: int | None) -> DataLoader:
        assert self.trainer is not None
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        trainer, cells = self.trainer, len(self.index.table)

        def start() -> tuple[int, int]:
            # A run that stopped within an epoch resumes there.
            done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            return trainer.current_epoch, done

        batches = Batches(groups, cells, size, shuffle_seed, rank, ranks, start)
        return _Loader(
            self._cells(),
            sampler=batches,
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=_end_with_the_run,
            # Not fork: a worker would inherit the state of CUDA.
            multiprocessing_context=fork_server(WORKER_MODULES) if self.workers else None,
            persistent_workers=bool(self.workers),
        )

    def on_after_batch_transfer(
        self, batch: dict[str, Tensor], dataloader_idx: int
    ) -> dict[str, Tensor]:
        """Complete a batch on the device: see the class; training batches are augmented."""
        stored = self._stored(batch)
        assert self.trainer is not None
        if stored.ndim == 3:
            image = stored[:, 0] if self.trainer.training else stored
        else:
            image = to_images(stored)
            if self.corrupt is not None and not self.trainer.training:
                image = self.corrupt(image, batch["row"])
        done = {"row": batch["row"], "label": batch["label"], "image": image}
        if self.boxes is not None:
            self.boxes = self.boxes.to(image.device)
            done["box"] = self.boxes[batch["row"]]
        if self.trainer.training and not self.augmentation.is_identity:
            self._augment(done, stored, self._epoch_transforms(image.device)[batch["position"]])
        return done

    def _stored(self, batch: dict[str, Tensor]) -> Tensor:
        """The stored images of a batch, uint8 [B, S, S, 3], or its features [B, V, F]."""
        if self.residence != "device":
            return batch["image"]
        row = batch["row"]
        if self._resident is None or self._resident.device != row.device:
            self._resident = torch.from_numpy(np.array(self.store)).to(row.device)
        return self._resident[row]

    def _augment(self, batch: dict[str, Tensor], stored: Tensor, transforms: Transforms) -> None:
        assert self.trainer is not None
        if "box" in batch and self.augmentation.is_geometric:
            mask = (stored > 0).any(-1)[:, None]
            batch["box"] = mask_boxes(self.augmentation.warp_mask(mask, transforms)[:, 0])
        batch["image"] = self.augmentation(batch["image"], transforms)
        if self.augmentation.mixup:
            # Lightning counts a batch only after its transfer.
            step = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1
            batch["image"], batch["label"] = self.augmentation.mix(
                batch["image"], batch["label"], self.seed, step, self.trainer.global_rank
            )

    def _epoch_transforms(self, device: torch.device) -> Transforms:
        """The transforms of every position of this epoch."""
        assert self.trainer is not None
        epoch = self.trainer.current_epoch
        if self._transforms[0] != epoch:
            cells, size = self.store.shape[:2]
            # Rounded up, for the drawn rest of the smaller group.
            copies = -(-max(map(len, self.groups)) // min(map(len, self.groups)))
            transforms = self.augmentation.transforms(self.seed, epoch, cells * copies, size)
            self._transforms = (epoch, transforms.to(device))
        return self._transforms[1]
