"""Saves checkpoints within an epoch."""

import time
from typing import Any

import pytorch_lightning as pl

from leukocls.common.processes import HeldSignal
from leukocls.training.recorder import Recorder


class MidEpochSaves(pl.Callback):
    """Saves a run within an epoch, `minutes` after it was saved last or when a signal ends it.

    It has to be the last of the callbacks: what the others do after a step is then saved with it.
    A checkpoint holds no gradients, so a save waits for the optimiser's next step; after the last
    step of an epoch it waits for the evaluation, which Lightning leaves out of a resumed run.

    Args:
        recorder: writes the files.
        minutes: between two saves; None for the ends of epochs alone.
        held: signals that wait for this.
    """

    def __init__(self, recorder: Recorder, minutes: float | None, held: HeldSignal) -> None:
        self.recorder, self.minutes, self.held = recorder, minutes, held

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # Lightning has put a handler of its own before these, which ends the fit with exit code 0.
        self.held.listen()
        self.held.pass_on()  # nothing was trained that could be saved

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done < trainer.num_training_batches and done % trainer.accumulate_grad_batches == 0:
            self._save(trainer, trainer.current_epoch, done)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.held.number is not None:
            self.held.stop_timer()  # the epoch is saved next

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._save(trainer, trainer.current_epoch + 1, 0)

    def _save(self, trainer: pl.Trainer, epoch: int, batches: int) -> None:
        asked = self.held.number is not None
        waited = time.monotonic() - self.recorder.saved_at
        if asked or (self.minutes is not None and waited >= 60 * self.minutes):
            self.held.stop_timer()
            if self.recorder.saved_progress != (epoch, batches):
                self.recorder.save(trainer, epoch, batches)
        if asked:
            self.held.pass_on()
