"""The LightningDataModule: batches of cells from the store, augmented on the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from leukocls.data.augment import ORDER_STREAM, Augmentation, generator
from leukocls.data.index import Index
from leukocls.data.splits import Split
from leukocls.errors import LeukoclsError

RESIDENCES = ("mmap", "ram", "device")


@dataclass(frozen=True)
class Cells(Dataset):
    """Whole batches by rows of the index.

    A batch holds `row` int64 [B], `label` int64 [B] (ALL 1, HEM 0, −1 unknown) and, unless the
    images are resident on the device, `image` uint8 [B, S, S, 3]. Names are in the index.
    """

    images: np.ndarray | None
    label: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> dict[str, Tensor]:
        batch = {"row": torch.from_numpy(rows), "label": torch.from_numpy(self.label[rows])}
        if self.images is not None:
            batch["image"] = torch.from_numpy(self.images[rows])
        return batch

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
    """Rows of each batch of one rank; shuffled ones in an order that (seed, epoch) decides.

    Shuffled epochs drop the last incomplete batch; the others give every row exactly once over
    all ranks, without padding.
    """

    def __init__(
        self,
        rows: np.ndarray,
        size: int,
        shuffle_seed: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.rows, self.size, self.seed = rows, size, shuffle_seed
        self.rank, self.ranks, self.epoch = rank, ranks, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.seed is not None:
            return len(self.rows) // (self.size * self.ranks)
        return -(-len(self.rows[self.rank :: self.ranks]) // self.size)

    def __iter__(self) -> Iterator[np.ndarray]:
        rows = self.rows
        if self.seed is not None:
            rows = generator(self.seed, self.epoch, ORDER_STREAM).permutation(rows)
        rows = rows[self.rank :: self.ranks]
        for start in range(0, len(self) * self.size, self.size):
            yield rows[start : start + self.size]


class CellDataModule(pl.LightningDataModule):
    """Feeds every classifier.

    Args:
        index, store, split: the cells, their images uint8 [N, S, S, 3], and who does what.
        augmentation: applied to training batches on the device.
        seed: of the order and of the augmentation.
        batch_size, eval_batch_size: images a step.
        residence: where the images live: "mmap" (file), "ram", "device". The same batches.
        workers: processes that read batches; 0 is fastest from the store.

    Raises:
        LeukoclsError: a size or residence out of range.
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
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("workers", workers, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise LeukoclsError(f"data.{name}={value}: choose at least {least}.")
        if residence not in RESIDENCES:
            raise LeukoclsError(f"data.residence={residence}: choose one of {RESIDENCES}.")
        training = len(split.rows.get("train", ()))
        if 0 < training < batch_size and split.scored != ["train"]:
            raise LeukoclsError(
                f"data.batch_size={batch_size}: only {training} training cells,"
                " so no full batch; choose a smaller one."
            )
        self.index, self.store, self.split = index, store, split
        self.scored = split.scored
        self.augmentation, self.seed = augmentation, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.residence, self.workers = residence, workers
        self._resident: Tensor | None = None
        self._plan: tuple[int, Tensor] = (-1, torch.empty(0))
        images = {"mmap": lambda: store, "ram": lambda: np.array(store), "device": lambda: None}
        self.cells = Cells(images[residence](), index.table["label"].to_numpy())

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches."""
        return self._loader(self.split.rows["train"], self.batch_size, self.seed)

    def val_dataloader(self) -> list[DataLoader]:
        """One loader for each split of `scored`, in that order."""
        return [
            self._loader(self.split.rows[name], self.eval_batch_size, None) for name in self.scored
        ]

    def _loader(self, rows: np.ndarray, size: int, shuffle_seed: int | None) -> DataLoader:
        assert self.trainer is not None
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        batches = Batches(rows, size, shuffle_seed, rank, ranks)
        return DataLoader(
            self.cells,
            sampler=batches,
            batch_size=None,
            num_workers=self.workers,
            # Workers are started before CUDA is touched in them; fork would inherit its state.
            multiprocessing_context="forkserver" if self.workers else None,
            persistent_workers=bool(self.workers),
        )

    def on_after_batch_transfer(
        self, batch: dict[str, Tensor], dataloader_idx: int
    ) -> dict[str, Tensor]:
        """Add `image` as float32 [B, 3, S, S] in [0, 1], augmented while training."""
        row = batch["row"]
        if self.residence == "device":
            if self._resident is None or self._resident.device != row.device:
                self._resident = torch.from_numpy(np.array(self.store)).to(row.device)
            stored = self._resident[row]
        else:
            stored = batch["image"]
        image = stored.permute(0, 3, 1, 2).float() / 255
        assert self.trainer is not None
        if self.trainer.training and not self.augmentation.is_identity:
            image = self.augmentation(image, self._theta(self.trainer.current_epoch, row))
        return {"row": row, "label": batch["label"], "image": image}

    def _theta(self, epoch: int, row: Tensor) -> Tensor:
        if self._plan[0] != epoch:
            cells, size = self.store.shape[:2]
            plan = self.augmentation.plan(self.seed, epoch, cells, size)
            self._plan = (epoch, plan.to(row.device))
        return self._plan[1][row]
