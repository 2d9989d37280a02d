"""A run on W&B: offline unless told otherwise, never able to change, end or hold up the run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from omegaconf import DictConfig

from leukocls.artifacts import predictions
from leukocls.artifacts.run_dir import RunDir
from leukocls.common.errors import LeukoclsError
from leukocls.courier import Courier, staged_in
from leukocls.dashboard import SHA256, curve, described, figures, opened, pictures, summary
from leukocls.recorder import Recorder

# W&B adds at most so many seconds to a run, whatever fails: all of them where it ends.
LONGEST_WAIT = 60.0
MODES = ("offline", "online", "disabled")


@contextmanager
def tracking(
    logger: DictConfig, run: RunDir, recorder: Recorder, images: np.ndarray
) -> Iterator[list[pl.Callback]]:
    """The callbacks that `logger` asks for; what they opened is closed on leaving, come what may.

    Raises:
        LeukoclsError: logger=wandb without the package; no such mode.
    """
    if logger.name != "wandb":
        yield []
        return
    if logger.mode not in MODES:
        raise LeukoclsError(f"logger.mode={logger.mode}: choose one of {', '.join(MODES)}.")
    tracker = Tracker(logger, run, recorder)
    try:
        yield [tracker]
    except BaseException:
        tracker.close(exit_code=1)
        raise
    tracker.summarise(images)
    tracker.close(exit_code=0)


class Tracker(pl.Callback):
    """One run, one W&B run of the same id, grouped by experiment and arm.

    Every row of metrics.csv is logged as it is recorded; at the end come the selected epoch's
    metrics, confusion matrix, bars by subject, and a table of cells with thumbnails. W&B is called
    on a thread of its own; closing waits for it LONGEST_WAIT seconds at most, then the run goes on
    without. What was not sent is in the run's files, from which `leukocls.wandb_sync` sends it.
    """

    def __init__(self, logger: DictConfig, run: RunDir, recorder: Recorder) -> None:
        try:
            import wandb
        except ImportError as error:
            raise LeukoclsError(
                "logger=wandb: the package wandb is not installed. pip install 'leukocls[wandb]',"
                " or leave logger=csv."
            ) from error
        self.wandb: Any = wandb
        self.wandb_run: Any = None
        self.run, self.recorder = run, recorder
        where = {"project": logger.project, "entity": logger.entity, "mode": logger.mode}
        self._staging = ExitStack()
        self._staging.enter_context(staged_in(run.directory / "wandb"))
        self.courier = Courier()
        self.courier.send("starting", self._start, described(run.directory, run.record), where)

    def _start(self, init: dict[str, Any], where: dict[str, Any]) -> None:
        self.wandb_run = opened(self.wandb, init, {}, dir=self.run.directory, **where)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        testing = self.recorder.test_epoch is not None  # its numbers come with the summary
        if trainer.is_global_zero and not testing:
            row = curve(self.recorder.metrics[-1])
            # By its number, so that an epoch that comes twice, after a resume, is there once.
            self.courier.send("logging", lambda: self.wandb_run.log(row, step=row["epoch"]))

    def summarise(self, images: np.ndarray) -> None:
        """Log what stands for the whole run; `images` is the store, uint8 [N, S, S, 3]."""
        self.courier.send("summarising", self._summarise, images)

    def _summarise(self, images: np.ndarray) -> None:
        recorder, frame = self.recorder, pd.concat(self.recorder.predictions)
        record = self.run.record | {
            "selection": self.run.record["selection"] | {"epoch": recorder.selected_epoch},
            "threshold": recorder.threshold,
            "metrics": recorder.selected_metrics(),
            SHA256: predictions.digest(frame),
        }
        picture = pictures(images, recorder.index.table)
        last = recorder.metrics[-1]["epoch"]
        self.wandb_run.log(figures(self.wandb, record, frame, picture), step=last + 1)
        self.wandb_run.summary.update(summary(record))

    def close(self, exit_code: int) -> None:
        """Finish the W&B run, and say if something of it failed."""
        self.courier.send("finishing", lambda: self.wandb_run.finish(exit_code=exit_code))
        self.courier.close(LONGEST_WAIT)
        self._staging.close()
        if self.courier.failed:
            print(
                f"W&B failed ({self.courier.failed}); the run goes on without it, and"
                " `python -m leukocls.wandb_sync` sends it from its files"
            )
