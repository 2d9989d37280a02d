"""The files of `checkpoints/`: weights as safetensors, and full states to resume from."""

import contextlib
import os
from pathlib import Path

import pytorch_lightning as pl
from safetensors.torch import save
from torch import Tensor

from leukocls.common.files import atomic_write

KEPT = 2  # resume points; the older one serves when the newer one is damaged

State = dict[str, Tensor]


class Checkpoints:
    """Writes and lists the checkpoints of one run; every file appears whole or not at all.

    Args:
        directory: the run directory.
        metadata: stored in the header of the weights files.
    """

    def __init__(self, directory: Path, metadata: dict[str, str] | None = None) -> None:
        self.folder = directory / "checkpoints"
        self.best, self.last = self.folder / "best.safetensors", self.folder / "last.safetensors"
        self._metadata = metadata

    def save_weights(self, path: Path, state: State) -> None:
        """Write `state` to `best` or `last`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save(state, self._metadata))

    def save_resume_point(self, trainer: pl.Trainer, epoch: int) -> None:
        """Write the full state after `epoch`, and remove all but the KEPT newest.

        Every rank calls this; rank 0 writes.
        """
        path = self.folder / f"resume-epoch{epoch:04d}.ckpt"
        temporary = path.with_name(f".{path.name}.tmp")
        trainer.save_checkpoint(temporary)
        if not trainer.is_global_zero:
            return
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        for old in self.resume_points()[KEPT:]:
            with contextlib.suppress(FileNotFoundError):
                old.unlink()

    def resume_points(self) -> list[Path]:
        """Checkpoints of full state, newest first."""
        return sorted(self.folder.glob("resume-*.ckpt"), reverse=True)


def epoch_of(resume_point: Path) -> int:
    """The last epoch that a resume point holds."""
    return int(resume_point.stem.removeprefix("resume-epoch"))
