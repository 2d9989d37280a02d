"""Progress of a run on a terminal: one bar, which leaves nothing behind."""

from typing import Any

import pytorch_lightning as pl
from tqdm import tqdm


class EpochBar(pl.Callback):
    """A bar for each pass over a set of batches, gone when the pass ends.

    Epochs are counted as in the recorder's lines: epoch 0 is scored before training.
    """

    FORMAT = (
        "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    )

    def __init__(self) -> None:
        self._bar: Any = None

    def _open(
        self, trainer: pl.Trainer, description: str, total: int | float, done: int = 0
    ) -> None:
        self._close()
        self._bar = tqdm(
            total=total, desc=description, bar_format=self.FORMAT, dynamic_ncols=True, leave=False,
            initial=done, disable=not trainer.is_global_zero,
        )  # fmt: skip

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # A run that resumes within an epoch does not start the epoch.
        if trainer.fit_loop.restarted_mid_epoch:
            self._open_epoch(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._open_epoch(trainer)

    def _open_epoch(self, trainer: pl.Trainer, done: int = 0) -> None:
        epoch = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        self._open(trainer, epoch, trainer.num_training_batches, done)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, n: int
    ) -> None:
        # Only when the bar is drawn: reading the loss waits for the device.
        if self._bar.update() or n + 1 == trainer.num_training_batches:
            self._bar.set_postfix_str(f"loss={float(outputs['loss']):.3f}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        epoch = trainer.current_epoch + 1 if trainer.state.fn == "fit" else 0
        self._open(trainer, f"epoch {epoch}, scoring", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, *_: Any) -> None:
        self._bar.update()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._close()

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._open(trainer, "test", sum(trainer.num_test_batches))

    def on_test_batch_end(self, *_: Any) -> None:
        self._bar.update()

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._close()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._close()
