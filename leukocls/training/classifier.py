"""CellClassifier: the LightningModule around every network, from a batch to logits and metrics."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryStatScores

from leukocls.data.random import batch_seed
from leukocls.data.views import image_views, view_weights
from leukocls.evaluation.metrics import rates
from leukocls.models.logits import to_logit
from leukocls.models.region import iou
from leukocls.training.losses import CellLoss
from leukocls.training.optim import configure


def batches_trained(trainer: pl.Trainer) -> int:
    """Training batches before this one, over all epochs; correct after a resume too."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


class CellClassifier(pl.LightningModule):
    """Trains and scores `network`, a module from images [B, 3, S, S] to [B, 1] or [B, 2].

    A network with `proposes_box = True` gives the cell's box [B, 4] as well; its mean absolute
    error is added to the loss (Marzahl et al. 2019, released code: 1 to 1).

    Args:
        optim: the recipe of `leukocls.training.optim.configure`.
        loss: of a logit.
        views: at evaluation, as `leukocls.data.views.image_views` takes them; the logit is the mean
            of theirs by `view_weights`.
        seed: of what is random inside the network, together with the count of batches.
        scored: names of the splits behind the evaluation loaders, in order.

    After a validation or test epoch `scores[split]` holds `row` int64 [n], `views` float32 [n, V]
    and their mean `logit` float32 [n], of all ranks; `rows[split]` holds counts, rates, the logit's
    loss and, of boxes, the mean `iou` of view 0.
    """

    def __init__(
        self,
        network: nn.Module,
        optim: dict[str, Any],
        *,
        loss: CellLoss,
        views: int | str,
        seed: int,
        scored: list[str],
    ) -> None:
        super().__init__()
        # Depthwise convolutions train up to twice as fast with the channels last, on CPUs as well.
        self.network = network.to(memory_format=torch.channels_last)
        self.optim_config = optim
        self.loss, self.views, self.seed = loss, views, seed
        self.proposes_box = getattr(network, "proposes_box", False)
        self.train_loss = MeanMetric()
        self.train_loss.persistent(True)  # for checkpoints within an epoch
        self.score(scored)

    def score(self, scored: list[str]) -> None:
        """Set the names of the splits behind the validation or test loaders, in order."""
        self.scored = scored
        self.losses: Any = nn.ModuleList(MeanMetric() for _ in scored)
        self.counts: Any = nn.ModuleList(BinaryStatScores() for _ in scored)
        self.ious: Any = nn.ModuleList(MeanMetric() for _ in scored)
        self._collected: list[list[dict[str, Tensor]]] = [[] for _ in scored]
        self.scores: dict[str, dict[str, np.ndarray]] = {}
        self.rows: dict[str, dict[str, float | None]] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ALL [B] for images [B, 3, S, S] in [0, 1]."""
        return self._propose(images)[0]

    def _propose(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [B], and boxes [B, 4] of a network that proposes them."""
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        output = self.network(images)
        output, box = output if self.proposes_box else (output, None)
        return to_logit(output), box

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout depends on the batch alone, so that a resumed run draws the same; on the batch
        # and not the optimiser step, for which several batches may be accumulated.
        batch_number = batches_trained(self.trainer)
        torch.manual_seed(batch_seed(self.seed, batch_number, self.global_rank))

    def on_train_epoch_start(self) -> None:
        self.train_loss.reset()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logit, box = self._propose(batch["image"])
        loss = self.loss(logit, batch["label"])
        if box is not None:
            loss = loss + F.l1_loss(box.float(), batch["box"])
        self.train_loss.update(loss.detach(), len(batch["row"]))
        return loss

    def validation_step(
        self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not len(batch["row"]):  # fewer cells than ranks
            return
        given = batch["image"]
        # Three dimensions are features, computed beforehand for every view.
        copies = given.unbind(1) if given.ndim == 3 else image_views(given, self.views)
        found = [self._propose(view) for view in copies]
        logits, label = torch.stack([logit for logit, _ in found], 1), batch["label"]
        # In single precision, whatever the network computes in: autocast would halve the product.
        with torch.autocast(logits.device.type, enabled=False):
            logit = logits @ logits.new_tensor(view_weights(self.views))
        if (box := found[0][1]) is not None:
            self.ious[dataloader_idx].update(iou(box.float(), batch["box"]))
        self._collected[dataloader_idx].append(
            {"row": batch["row"].cpu(), "views": logits.cpu(), "logit": logit.cpu()}
        )
        known = label >= 0
        if known.any():
            loss = self.loss(logit[known], label[known])
            self.losses[dataloader_idx].update(loss, known.sum())
            # Hard calls: torchmetrics would take logits within [0, 1] for probabilities.
            self.counts[dataloader_idx].update((logit > 0).long()[known], label[known])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def on_validation_epoch_end(self) -> None:
        for i, split in enumerate(self.scored):
            found = (self._collected[i], self.counts[i].update_called, self.ious[i].update_called)
            self._collected[i] = []
            shards = [found]
            if self.trainer.world_size > 1:
                shards *= self.trainer.world_size
                torch.distributed.all_gather_object(shards, found)
            batches = [batch for shard, _, _ in shards for batch in shard]
            self.scores[split] = {
                name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]
            }
            self.rows[split] = result = dict.fromkeys(("tp", "fp", "tn", "fn"))
            # A rank without known labels computes as well: all do, or all wait.
            if any(counted for _, counted, _ in shards):
                tp, fp, tn, fn, _ = (int(n) for n in self.counts[i].compute().tolist())
                result |= {"tp": tp, "fp": fp, "tn": tn, "fn": fn, **rates(tp, fp, tn, fn)}
                result["loss"] = float(self.losses[i].compute())
            if any(boxed for _, _, boxed in shards):
                result["iou"] = float(self.ious[i].compute())
            self.ious[i].reset()
            self.losses[i].reset()
            self.counts[i].reset()

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = configure(self.network, self.optim_config, steps)
        each = "step" if isinstance(schedule, OneCycleLR) else "epoch"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": each}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name in self._constants():
            del checkpoint["state_dict"][name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = self.state_dict()
        checkpoint["state_dict"] |= {name: own[name] for name in self._constants()}

    def _constants(self) -> set[str]:
        """State that a frozen network never changes: left out of resume points."""
        find: Any = getattr(self.network, "constants", set)
        return {f"network.{name}" for name in find()}
