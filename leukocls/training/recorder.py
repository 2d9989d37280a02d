"""Recorder: writes a run's metrics, predictions and checkpoints while it trains."""

import math
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from leukocls.artifacts import predictions
from leukocls.artifacts.predictions import sigmoid
from leukocls.common.errors import DataFault
from leukocls.data.index import Index
from leukocls.evaluation.history import Row, read_history, split_columns, write_history
from leukocls.evaluation.metrics import auroc, best_threshold
from leukocls.evaluation.selection import RULES, best_weighted_f1
from leukocls.training.checkpoints import Checkpoints, progress_of
from leukocls.training.prediction_parts import PredictionParts


class Recorder(pl.Callback):
    """Writes `metrics.csv`, the predictions of each epoch and `checkpoints/` of a run directory.

    Every file is replaced whole, at each `save_every`-th epoch and whenever `save` is called; epoch
    0 is the one before training. A test, which `trainer.test` runs, belongs to the selected epoch.

    Args:
        directory: the run directory.
        index: names the cells behind row numbers.
        rule: key of RULES, which chooses the epoch.
        selection_set: the split whose weighted F1 the rule reads.
        threshold: probability above which a cell is ALL, or BEST_THRESHOLD.
        patience: early stopping: epochs without a better one after which training ends; None trains
            to the end.
        save_every: epochs between two checkpoints; the last epoch is always one.
        metadata: stored in the header of the weights files.

    Attributes:
        saved_at, saved_progress: monotonic time of the last `save`, and its epoch and batches.
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
        self.directory, self.index = directory, index
        self.rule, self.selection_set = rule, selection_set
        self._threshold, self.patience, self.save_every = threshold, patience, save_every
        self.checkpoints = Checkpoints(directory, metadata)
        self.metrics: list[Row] = []
        self.predictions = PredictionParts(directory)
        self._scored: dict[str, Tensor] = {}
        self._best: dict[str, Tensor] | None = None
        self._rates: dict[str, float] = {}
        self._norms: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._clock, self._seconds, self._images = 0.0, 0.0, 0
        self.saved_at, self.saved_progress = time.monotonic(), (-1, 0)

    @property
    def selected_epoch(self) -> int:
        """The epoch that the rule chooses from the epochs recorded so far."""
        return int(self.metrics[RULES[self.rule](self._history())]["epoch"])

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out; decided by the recorded epochs, so equal after a resume."""
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
        cells = self.selected
        cells = cells[cells["split"] == self.selection_set]
        return best_threshold(cells["label"], cells["prob"])

    @property
    def selected(self) -> pd.DataFrame:
        """The predictions of the selected epoch; only of rank 0."""
        return self.predictions.of(self.selected_epoch)

    def state_dict(self) -> dict[str, Any]:
        """The rows of metrics.csv, a file that may be damaged by itself, and sums of an epoch."""
        of_epoch = {
            "rates": self._rates,
            "norms": torch.stack(self._norms).cpu() if self._norms else torch.empty(0),
            "losses": torch.stack(self._losses).cpu() if self._losses else torch.empty(0),
            "images": self._images,
            "seconds": time.perf_counter() - self._clock,
        }
        return {"metrics": self.metrics, "epoch": of_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the sums of an epoch that a checkpoint was saved in; see `reload`."""
        if of_epoch := state_dict.get("epoch"):
            self._rates, self._images = of_epoch["rates"], of_epoch["images"]
            self._norms, self._losses = list(of_epoch["norms"]), list(of_epoch["losses"])
            self._clock = time.perf_counter() - of_epoch["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # Back on the device, where those that follow are.
        self._norms = [norm.to(pl_module.device) for norm in self._norms]
        self._losses = [loss.to(pl_module.device) for loss in self._losses]

    def reload(self, point: Path, checkpoint: dict[str, Any]) -> None:
        """Read back what a stopped run had recorded until a resume point; remove what came later.

        Args:
            checkpoint: the point's full state.

        Raises:
            DataFault: the weights of the epoch selected until then are gone.
        """
        epoch, _ = progress_of(point)
        state = checkpoint["callbacks"].get(self.state_key)
        # Checkpoints of versions before 0.2 do not have them.
        self.metrics = state["metrics"] if state else read_history(self.directory)
        self.checkpoints.name_best(self.selected_epoch)
        self.metrics = [row for row in self.metrics if row["epoch"] <= epoch]
        write_history(self.directory, self.metrics)
        self.predictions.reload(epoch, self.index)
        self.checkpoints.publish_best(self.selected_epoch)
        self.checkpoints.discard_after(point)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # Before the step: Lightning advances the schedule before it evaluates.
        self._rates = {f"lr_{g['name']}": g["lr"] for g in trainer.optimizers[0].param_groups}
        self._norms, self._losses, self._images, self._seconds = [], [], 0, 0.0
        self._clock = time.perf_counter()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.network.parameters() if p.grad is not None]
        # Kept on the device: reading it here would wait for every step.
        self._norms.append(get_total_norm(gradients))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, n: int
    ) -> None:
        self._images += len(batch["row"]) * trainer.world_size
        # Kept on the device, as above; looked at when the epoch ends.
        self._losses.append(outputs["loss"].detach())

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._seconds = time.perf_counter() - self._clock
        if trainer.state.fn == "fit":
            self._refuse_infinite_loss(trainer)

    def _refuse_infinite_loss(self, trainer: pl.Trainer) -> None:
        losses = torch.stack(self._losses).float().cpu()
        bad = (~torch.isfinite(losses)).nonzero().flatten()
        if not len(bad):
            return
        first = int(bad[0])
        before = f"the one before was {losses[first - 1]:.4g}" if first else "it was the first"
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in self._rates.items())
        raise DataFault(
            f"{self.directory}: the training loss is {losses[first]} in batch {first + 1} of epoch"
            f" {trainer.current_epoch + 1} ({before}; {rates}). Lower optim.lr or loss.pos_weight;"
            " checkpoints/best.safetensors is untouched."
        )

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # The scored weights; an average of weights is swapped back before the next hook.
        state = pl_module.network.state_dict()
        self._scored = {
            k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in state.items()
        }

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        fitting = trainer.state.fn == "fit"
        row: Row = {"epoch": trainer.current_epoch + 1 if fitting else 0}
        row |= dict.fromkeys(("train_loss", "grad_norm", "images_per_s"))
        if fitting:
            row["train_loss"] = float(pl_module.train_loss.compute())
            row["grad_norm"] = float(torch.stack(self._norms).mean())
            row["images_per_s"] = self._images / self._seconds
            row |= self._rates
        self.metrics.append(row)
        self._add_scores(row, pl_module)
        trainer.should_stop |= fitting and self.exhausted
        if not trainer.is_global_zero:  # other ranks only have to come to the same decisions
            return
        if self.selected_epoch == row["epoch"]:
            self._best = self._scored
        if not fitting:
            self._write()
            self.checkpoints.publish_best(self.selected_epoch)
        tqdm.write(_line(row, pl_module.scored, self.selected_epoch))

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        row = next(row for row in self.metrics if row["epoch"] == self.selected_epoch)
        self._add_scores(row, pl_module)
        if trainer.is_global_zero:
            self._write()
            tqdm.write(_line(row, pl_module.scored, self.selected_epoch))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # After the evaluation, so that a resumed run continues with the next epoch.
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs or trainer.should_stop
        if last or epoch % self.save_every == 0:
            self.save(trainer, epoch)

    def save(self, trainer: pl.Trainer, epoch: int, batches: int = 0) -> None:
        """Write what is recorded, and a full state from which the run resumes.

        Every rank calls this; rank 0 writes.

        Args:
            epoch: the last one that was evaluated.
            batches: of the next epoch that are done as well.

        Raises:
            OSError: it cannot be written; older files are as they were.
            DataFault: within an epoch, a loss that is not finite.
        """
        if batches:
            self._refuse_infinite_loss(trainer)
        if trainer.is_global_zero:
            self._write()
            if not batches:
                self.checkpoints.save_last(self._scored)
        self.checkpoints.save_resume_point(trainer, epoch, batches)
        if trainer.is_global_zero:
            self.checkpoints.publish_best(self.selected_epoch)
        self.saved_at, self.saved_progress = time.monotonic(), (epoch, batches)

    def _write(self) -> None:
        """Write the best weights, predictions and metrics together: all are of one epoch."""
        if self._best is not None:
            self.checkpoints.save_selected(self._best, self.selected_epoch)
            self._best = None
        self.predictions.save()
        write_history(self.directory, self.metrics)

    def _add_scores(self, row: Row, pl_module: Any) -> None:
        """Add what the classifier scored: predictions, and their metrics to `row`."""
        for split in pl_module.scored:
            frame = self._frame(row["epoch"], split, pl_module.scores[split])
            if pl_module.global_rank == 0:
                self.predictions.add(row["epoch"], frame)
            values, known = dict(pl_module.rows[split]), frame["label"] >= 0
            if known.any():
                values["auroc"] = auroc(frame.loc[known, "label"], frame.loc[known, "logit"])
            row |= split_columns(split, values)

    def _frame(self, epoch: int, split: str, scores: dict[str, Any]) -> pd.DataFrame:
        cells = self.index.table.iloc[scores["row"]]
        frame = pd.DataFrame(
            {
                "epoch": epoch,
                "split": split,
                "cell": cells["cell"].to_numpy(),
                "subject": cells["subject"].to_numpy(),
                "person": cells["group"].to_numpy(),
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


def _line(row: Row, splits: list[str], selected: int) -> str:
    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.4f}"

    parts = [f"epoch {row['epoch']}", f"train loss {shown(row['train_loss'])}"]
    for split in splits:
        of_split = [f"{name} {shown(row[f'{split}_{name}'])}" for name in ("loss", "weighted_f1")]
        parts.append(f"{split} {' '.join(of_split)}")
    return " · ".join(parts) + (" *" if selected == row["epoch"] else "")
