"""What a run writes while it trains: metrics, predictions, the best weights, where to resume."""

import contextlib
import math
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from leukocls.artifacts import predictions
from leukocls.artifacts.predictions import sigmoid
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.common.files import atomic_write
from leukocls.data.index import Index
from leukocls.evaluation.cell_metrics import by_split
from leukocls.evaluation.history import read_history, split_columns, write_history
from leukocls.evaluation.metrics import auroc, best_threshold
from leukocls.evaluation.selection import RULES, best_weighted_f1


class Recorder(pl.Callback):
    """Writes `metrics.csv`, `predictions.parquet` and `checkpoints/` of a run directory.

    Every file is replaced whole, at each `save_every`-th epoch; epoch 0 is the one before training.

    Args:
        directory: the run's.
        index: gives cells their names.
        rule, selection_set: the split whose weighted F1 chooses the epoch, and how.
        threshold: probability above which a cell is ALL, or BEST_THRESHOLD.
        patience: training ends after so many epochs without a better one; None goes to the end.
        save_every: epochs between two points at which the files are written and from which a
            stopped run can go on; the last epoch is always one.
        metadata: of the weights' files.
    """

    def __init__(
        self,
        directory: Path,
        index: Index,
        rule: str,
        selection_set: str,
        threshold: float | str = 0.5,
        patience: int | None = None,
        save_every: int = 1,
        metadata: dict[str, str] | None = None,
    ) -> None:
        if rule not in RULES:
            raise LeukoclsError(f"selection={rule}: choose one of {', '.join(RULES)}.")
        self.directory, self.index = directory, index
        self.rule, self.selection_set = rule, selection_set
        self._threshold, self.patience, self.save_every = threshold, patience, save_every
        self.checkpoints = directory / "checkpoints"
        self.best_weights = self.checkpoints / "best.safetensors"
        # Set once all is chosen: what is scored from then on belongs to this epoch.
        self.test_epoch: int | None = None
        self.metrics: list[dict[str, Any]] = []
        self.predictions: list[pd.DataFrame] = []
        self._metadata = metadata
        self._scored: dict[str, Tensor] = {}
        self._best: dict[str, Tensor] | None = None
        self._rates: dict[str, float] = {}
        self._norms: list[Tensor] = []
        self._clock, self._seconds, self._images = 0.0, 0.0, 0

    @property
    def selected_epoch(self) -> int:
        """The epoch that the rule chooses from what has been recorded."""
        return int(self.metrics[RULES[self.rule](self._history())]["epoch"])

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out; a matter of what is recorded, so the same on resuming."""
        if self.patience is None or not self.metrics:
            return False
        return len(self.metrics) - 1 - best_weighted_f1(self._history()) >= self.patience

    def _history(self) -> list[float]:
        return [row[f"{self.selection_set}_weighted_f1"] for row in self.metrics]

    @property
    def threshold(self) -> float:
        """The probability above which a cell is ALL: fixed, or chosen on the selection set."""
        if not isinstance(self._threshold, str):
            return self._threshold
        frame = pd.concat(self.predictions)
        chosen = (frame["epoch"] == self.selected_epoch) & (frame["split"] == self.selection_set)
        return best_threshold(frame["label"][chosen], frame["prob"][chosen])

    def selected_metrics(self) -> dict[str, dict[str, Any]]:
        """Every metric of the selected epoch, by split; subjects one by one are `evaluate`'s."""
        frame = pd.concat(self.predictions)
        return by_split(frame[frame["epoch"] == self.selected_epoch], self.threshold)

    def reload(self, epoch: int) -> None:
        """Take up what a stopped run had recorded, up to and including `epoch`."""
        rows = read_history(self.directory)
        self.metrics = [row for row in rows if row["epoch"] <= epoch]
        frame = predictions.read(self.directory / "predictions.parquet")
        self.predictions = [frame[frame["epoch"] <= epoch]]

    def resume_points(self) -> list[Path]:
        """Checkpoints of full state, newest first."""
        return sorted(self.checkpoints.glob("resume-*.ckpt"), reverse=True)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # Before the step: Lightning moves the schedule on before it evaluates.
        self._rates = {f"lr_{g['name']}": g["lr"] for g in trainer.optimizers[0].param_groups}
        self._norms, self._images, self._seconds = [], 0, 0.0
        self._clock = time.perf_counter()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.network.parameters() if p.grad is not None]
        # Kept on the device: reading it here would wait for every step.
        self._norms.append(get_total_norm(gradients))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, n: int
    ) -> None:
        self._images += len(batch["row"]) * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._seconds = time.perf_counter() - self._clock

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # What is being scored; an average of weights is swapped back before the next hook.
        state = pl_module.network.state_dict()
        self._scored = {k: v.detach().clone().contiguous() for k, v in state.items()}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        trained = trainer.state.fn == "fit"
        row = self._row(trainer.current_epoch + 1 if trained else 0)
        if trained:
            row["train_loss"] = float(pl_module.train_loss.compute())
            row["grad_norm"] = float(torch.stack(self._norms).mean())
            row["images_per_s"] = self._images / self._seconds
            row |= self._rates
        for split in pl_module.scored:
            frame = self._frame(row["epoch"], split, pl_module.scores[split])
            if self.test_epoch is not None:  # a resumed run may have done it before
                self.predictions = [f[f["split"] != split] for f in self.predictions]
            self.predictions.append(frame)
            values = dict(pl_module.rows[split])
            known = frame["label"] >= 0
            if known.any():
                values["auroc"] = auroc(frame.loc[known, "label"], frame.loc[known, "logit"])
            row |= split_columns(split, values)
        trainer.should_stop |= trained and self.exhausted
        if not trainer.is_global_zero:  # the others only have to come to the same decisions
            return
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if self.test_epoch is None and self.selected_epoch == row["epoch"]:
            self._best = self._scored
        if not trained or self._due(trainer):
            # Together, so that what a stopped run goes on from is of one epoch.
            if self._best is not None:
                atomic_write(self.best_weights, save(self._best, self._metadata))
                self._best = None
            predictions.write(self.directory / "predictions.parquet", pd.concat(self.predictions))
            write_history(self.directory, self.metrics)
        tqdm.write(_line(row, pl_module.scored, self.selected_epoch))

    def _row(self, epoch: int) -> dict[str, Any]:
        """The row of metrics.csv to fill: a new one, or the tested epoch's."""
        if self.test_epoch is not None:
            return next(row for row in self.metrics if row["epoch"] == self.test_epoch)
        empty = {"epoch": epoch, "train_loss": None, "grad_norm": None, "images_per_s": None}
        self.metrics.append(empty)
        return empty

    def _due(self, trainer: pl.Trainer) -> bool:
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs or trainer.should_stop
        return last or epoch % self.save_every == 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # After the evaluation, so that a resumed run goes on with the next epoch.
        if not self._due(trainer):
            return
        if trainer.is_global_zero:
            atomic_write(self.checkpoints / "last.safetensors", save(self._scored, self._metadata))
        path = self.checkpoints / f"resume-epoch{trainer.current_epoch + 1:04d}.ckpt"
        temporary = path.with_name(f".{path.name}.tmp")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            for old in self.resume_points()[2:]:
                with contextlib.suppress(FileNotFoundError):
                    old.unlink()

    def _frame(self, epoch: int, split: str, scores: dict[str, Any]) -> pd.DataFrame:
        cells = self.index.table.iloc[scores["row"]]
        frame = pd.DataFrame(
            {
                "epoch": epoch,
                "split": split,
                "cell": cells["cell"].to_numpy(),
                "subject": cells["subject"].to_numpy(),
                "label": cells["label"].to_numpy(),
                **{f"view_{v}": column for v, column in enumerate(scores["views"].T)},
                "logit": scores["logit"],
                "prob": sigmoid(scores["logit"]),
            }
        )
        if not all(map(math.isfinite, frame["logit"])):
            raise DataFault(
                f"{self.directory}: epoch {epoch} gave logits that are not finite. Lower optim.lr;"
                " checkpoints/best.safetensors is untouched."
            )
        return predictions.canonical(frame)


def _line(row: dict[str, Any], splits: list[str], selected: int) -> str:
    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.4f}"

    parts = [f"epoch {row['epoch']}", f"train loss {shown(row['train_loss'])}"]
    for split in splits:
        of_split = [f"{name} {shown(row[f'{split}_{name}'])}" for name in ("loss", "weighted_f1")]
        parts.append(f"{split} {' '.join(of_split)}")
    return " · ".join(parts) + (" *" if selected == row["epoch"] else "")
