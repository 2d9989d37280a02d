"""The files of `checkpoints/`: weights as safetensors, and full states to resume from."""

import os
import re
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from safetensors.torch import save
from torch import Tensor

from leukocls.common.errors import DataFault
from leukocls.common.files import atomic_write
from leukocls.training.checkpoint_io import ChecksummedIO

KEPT = 2  # resume points; the older one serves when the newer one is damaged
POINT = re.compile(r"resume-epoch(\d+)(?:-batch(\d+))?\.ckpt")

State = dict[str, Tensor]


class Checkpoints:
    """Writes and lists the checkpoints of one run; every file appears whole or not at all.

    The weights of a selected epoch are kept under the epoch's number until a resume point holds
    that epoch: a run that is killed in between still has those that its older point selected.

    Args:
        directory: the run directory.
        metadata: stored in the header of the weights files.
    """

    def __init__(self, directory: Path, metadata: dict[str, str] | None = None) -> None:
        self.folder = directory / "checkpoints"
        self.best, self.last = self.folder / "best.safetensors", self.folder / "last.safetensors"
        self._metadata = metadata

    def save_selected(self, state: State, epoch: int) -> None:
        """Write the weights of an epoch that the rule selects."""
        self._save(self._selected(epoch), state)

    def save_last(self, state: State) -> None:
        """Write the newest weights."""
        self._save(self.last, state)

    def publish_best(self, epoch: int) -> None:
        """Make the selected `epoch` the one of `best`; those of older points are kept.

        Raises:
            DataFault: the weights of that epoch are gone.
        """
        selected = self._selected(epoch)
        if not selected.is_file():
            raise DataFault(
                f"{selected}: the weights of the selected epoch are missing; force=true starts the"
                " run again"
            )
        # Two names of one file: to rename one over the other would do nothing.
        if not (self.best.exists() and self.best.samefile(selected)):
            link = self.folder / f".{uuid.uuid4().hex}.tmp"
            os.link(selected, link)
            os.replace(link, self.best)
        older = sorted(path for path in self.folder.glob("selected-*") if path < selected)
        for path in older[: -KEPT + 1]:
            path.unlink()

    def name_best(self, epoch: int) -> None:
        """Give `best` its second name, by `epoch`, if there is none: before 0.2 there was not."""
        if self.best.is_file() and not any(self.folder.glob("selected-*")):
            os.link(self.best, self._selected(epoch))

    def discard_after(self, point: Path) -> None:
        """Remove resume points newer than `point`, and selected weights of later epochs."""
        later = [path for path in self.resume_points() if progress_of(path) > progress_of(point)]
        weights = self._selected(progress_of(point)[0])
        later += [path for path in self.folder.glob("selected-*") if path > weights]
        for path in later:
            _remove(path)

    def discard_others(self) -> None:
        """Remove the weights of selected epochs but for `best`, once the run is over."""
        for path in self.folder.glob("selected-*"):
            path.unlink()

    def _selected(self, epoch: int) -> Path:
        return self.folder / f"selected-epoch{epoch:04d}.safetensors"

    def _save(self, path: Path, state: State) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save(state, self._metadata))

    def save_resume_point(self, trainer: pl.Trainer, epoch: int, batches: int = 0) -> None:
        """Write the full state after `epoch`, and remove all but the KEPT newest.

        Every rank calls this; rank 0 writes.

        Args:
            batches: of the next epoch that are done as well.

        Raises:
            OSError: it cannot be written; the older ones are as they were.
        """
        within = f"-batch{batches:06d}" if batches else ""
        trainer.save_checkpoint(self.folder / f"resume-epoch{epoch:04d}{within}.ckpt")
        if not trainer.is_global_zero:
            return
        for old in self.resume_points()[KEPT:]:
            _remove(old)

    def resume_points(self) -> list[Path]:
        """Checkpoints of full state, newest first."""
        points = [path for path in self.folder.glob("resume-*.ckpt") if POINT.fullmatch(path.name)]
        return sorted(points, key=progress_of, reverse=True)

    def newest_whole(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that reads, and its content; None if there is no checkpoint.

        Damaged ones are reported on standard error.

        Raises:
            DataFault: all of them are damaged.
        """
        points = self.resume_points()
        for number, point in enumerate(points):
            try:
                state = ChecksummedIO().load_checkpoint(point)
            except DataFault as error:
                older = points[number + 1 :]
                if not older:
                    raise DataFault(f"{error}; force=true starts the run again") from error
                print(f"warning: {error}; trying {older[0].name}", file=sys.stderr)
            else:
                return point, state
        return None


def _remove(path: Path) -> None:
    """Remove a checkpoint, or whatever has its name: a folder would be in the way of the next."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def progress_of(resume_point: Path) -> tuple[int, int]:
    """Whole epochs that a resume point holds, and batches of the next one."""
    found = POINT.fullmatch(resume_point.name)
    assert found
    return int(found[1]), int(found[2] or 0)
