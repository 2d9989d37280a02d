"""A run on W&B: offline unless told otherwise, never able to change or end the run."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from leukocls.errors import LeukoclsError
from leukocls.metrics import cell_metrics
from leukocls.recorder import Recorder
from leukocls.run import Run

THUMBNAILS = 200


@contextmanager
def tracking(
    logger: DictConfig, run: Run, recorder: Recorder, images: np.ndarray
) -> Iterator[list[pl.Callback]]:
    """The callbacks that `logger` asks for; what they opened is closed on leaving, come what may.

    Raises:
        LeukoclsError: logger=wandb without the package.
    """
    if logger.name != "wandb":
        yield []
        return
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
    metrics, confusion matrix, bars by subject, and a table of cells with thumbnails.
    """

    def __init__(self, logger: DictConfig, run: Run, recorder: Recorder) -> None:
        try:
            import wandb
        except ImportError as error:
            raise LeukoclsError(
                "logger=wandb: the package wandb is not installed. pip install 'leukocls[wandb]',"
                " or leave logger=csv."
            ) from error
        self.wandb: Any = wandb
        self.wandb_run: Any = None
        self.recorder = recorder
        experiment, arm, seed = run.directory.parts[-3:]
        configured: Any = OmegaConf.to_container(OmegaConf.load(run.directory / "config.yaml"))
        # Thumbnails wait for their upload here, not in the home directory.
        self.own_data_dir = "WANDB_DATA_DIR" not in os.environ
        os.environ.setdefault("WANDB_DATA_DIR", str((run.directory / "wandb").resolve()))
        with self._harmless("starting"):
            self.wandb_run = wandb.init(
                # W&B takes no comma in an id; the hash in it keeps ids apart all the same.
                id=run.id.replace(",", "+"),
                name=f"{experiment}/{arm}/{seed}",
                project=logger.project,
                entity=logger.entity,
                mode=logger.mode,
                group=f"{experiment}/{arm}",
                job_type="train",
                tags=run.record["marks"],
                config={**configured, "marks": run.record["marks"], "config_hash": run.hash}
                | {"versions": run.record["versions"]},
                dir=run.directory,
                resume="allow",
                # Without its metadata: that holds the command line, and what secrets are on it.
                settings=wandb.Settings(
                    console="off", silent=True, save_code=False, x_disable_meta=True
                ),
            )
            self.wandb_run.define_metric("*", step_metric="epoch")

    @contextmanager
    def _harmless(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception:
            reason = traceback.format_exc(limit=0).strip().splitlines()[-1]
            print(f"W&B failed while {doing}; the run goes on without it ({reason})")
            self.wandb_run = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        testing = self.recorder.test_epoch is not None  # its numbers come with the summary
        if self.wandb_run is not None and trainer.is_global_zero and not testing:
            with self._harmless("logging"):
                row = self.recorder.metrics[-1]
                self.wandb_run.log({k: v for k, v in row.items() if v is not None})

    def summarise(self, images: np.ndarray) -> None:
        """Log what stands for the whole run; `images` is the store, uint8 [N, S, S, 3]."""
        if self.wandb_run is None:
            return
        with self._harmless("summarising"):
            frame = pd.concat(self.recorder.predictions)
            frame = frame[frame["epoch"] == self.recorder.selected_epoch]
            for split, cells in frame.groupby("split"):
                self._log_split(str(split), cells, images)
            for split, values in self.recorder.selected_metrics().items():
                for name, value in values.items():
                    if isinstance(value, int | float):
                        self.wandb_run.summary[f"selected/{split}/{name}"] = value
            self.wandb_run.summary["selected/epoch"] = self.recorder.selected_epoch

    def _log_split(self, split: str, cells: pd.DataFrame, images: np.ndarray) -> None:
        plot, table, known = self.wandb.plot, self.wandb.Table, cells[cells["label"] >= 0]
        logged: dict[str, Any] = {f"{split}/cells": self._thumbnails(cells, images)}
        if len(known):
            logged[f"{split}/confusion"] = plot.confusion_matrix(
                y_true=known["label"].tolist(),
                preds=(known["prob"] > self.recorder.threshold).astype(int).tolist(),
                class_names=["HEM", "ALL"],
                title=f"{split}, selected epoch",
            )
            values = cell_metrics(
                known["label"],
                logit=known["logit"],
                subject=known["subject"],
                threshold=self.recorder.threshold,
            )
            rows = [[s["subject"], s["accuracy"]] for s in values["subject"]["per_subject"]]
            bars = table(columns=["subject", "accuracy"], data=rows)
            title = f"{split}: cell accuracy by subject"
            logged[f"{split}/subjects"] = plot.bar(bars, "subject", "accuracy", title=title)
        self.wandb_run.log(logged)

    def _thumbnails(self, cells: pd.DataFrame, images: np.ndarray) -> Any:
        """The cells that were called most confidently wrong, then the others."""
        wrongness = np.where(cells["label"] == 1, 1 - cells["prob"], cells["prob"])
        shown = cells.iloc[np.argsort(-wrongness, kind="stable")[:THUMBNAILS]]
        index = self.recorder.index.table
        # Final has cells of prelim's names, without a subject.
        keys = zip(index["cell"], index["subject"], strict=True)
        row_of = {key: row for row, key in enumerate(keys)}
        step = max(images.shape[1] // 96, 1)
        rows = []
        for cell in shown.itertuples():
            small = np.ascontiguousarray(images[row_of[cell.cell, cell.subject]][::step, ::step])
            image = self.wandb.Image(small)
            rows.append([image, cell.cell, cell.subject, cell.label, float(cell.prob)])
        return self.wandb.Table(columns=["image", "cell", "subject", "label", "prob"], data=rows)

    def close(self, exit_code: int) -> None:
        """Finish the W&B run."""
        if self.wandb_run is not None:
            with self._harmless("finishing"):
                self.wandb_run.finish(exit_code=exit_code)
        if self.own_data_dir:
            os.environ.pop("WANDB_DATA_DIR", None)
