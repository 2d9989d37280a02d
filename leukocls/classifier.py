"""CellClassifier: what every network shares, from a batch to the logits of its views."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryStatScores

from leukocls.data.augment import views
from leukocls.errors import LeukoclsError
from leukocls.metrics import rates
from leukocls.optim import configure


def to_logit(output: Tensor) -> Tensor:
    """Logit of ALL, [B]: a network's one output, or z₁ − z₀ of its two (HEM, ALL)."""
    if output.ndim != 2 or output.shape[1] not in (1, 2):
        raise LeukoclsError(
            f"model: the network's output has shape {tuple(output.shape)}; it must be [B, 1] (logit"
            " of ALL) or [B, 2] (HEM, ALL)."
        )
    output = output.float()
    return output[:, 0] if output.shape[1] == 1 else output[:, 1] - output[:, 0]


class CellClassifier(pl.LightningModule):
    """Trains and scores `network`, a module from images [B, 3, S, S] to [B, 1] or [B, 2].

    Args:
        optim: the recipe of `leukocls.optim.configure`.
        pos_weight: weight of ALL in the binary cross-entropy, n_HEM / n_ALL of the training set.
        view_count: rotated copies at evaluation; the logit is the mean of theirs.
        seed: of what is random inside the network, together with the global step.
        scored: names of the splits behind the validation loaders, in order.

    After a validation epoch `scores[split]` holds `row` int64 [n], `views` float32 [n, V]
    and their mean `logit` float32 [n], of all ranks; `rows[split]` holds counts, rates and loss.
    """

    def __init__(
        self,
        network: nn.Module,
        optim: dict[str, Any],
        *,
        pos_weight: float,
        view_count: int,
        seed: int,
        scored: list[str],
    ) -> None:
        super().__init__()
        self.network, self.optim_config = network, optim
        self.pos_weight, self.view_count = pos_weight, view_count
        self.seed = seed
        self.train_loss = MeanMetric()
        self.score(scored)

    def score(self, scored: list[str]) -> None:
        """Name the splits behind the validation loaders that follow, in order."""
        self.scored = scored
        self.losses: Any = nn.ModuleList(MeanMetric() for _ in scored)
        self.counts: Any = nn.ModuleList(BinaryStatScores() for _ in scored)
        self._collected: list[list[dict[str, Tensor]]] = [[] for _ in scored]
        self.scores: dict[str, dict[str, np.ndarray]] = {}
        self.rows: dict[str, dict[str, float | None]] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ALL [B] for images [B, 3, S, S] in [0, 1]."""
        return to_logit(self.network(images))

    def loss(self, logit: Tensor, label: Tensor) -> Tensor:
        """Binary cross-entropy with ALL weighted by `pos_weight`; mean over the batch."""
        weight = torch.tensor(self.pos_weight, device=logit.device)
        return F.binary_cross_entropy_with_logits(logit, label.float(), pos_weight=weight)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout and its like depend on the step alone, so that a resumed run draws the same.
        key = np.random.SeedSequence([self.seed, self.global_step, self.global_rank])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))

    def on_train_epoch_start(self) -> None:
        self.train_loss.reset()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(self(batch["image"]), batch["label"])
        self.train_loss.update(loss.detach(), len(batch["row"]))
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    def validation_step(
        self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        logits = torch.stack([self(view) for view in views(batch["image"], self.view_count)], 1)
        logit, label = logits.mean(1), batch["label"]
        self._collected[dataloader_idx].append(
            {"row": batch["row"].cpu(), "views": logits.cpu(), "logit": logit.cpu()}
        )
        known = label >= 0
        if known.any():
            loss = self.loss(logit[known], label[known])
            self.losses[dataloader_idx].update(loss, known.sum())
            # Hard calls: torchmetrics would take logits within [0, 1] for probabilities.
            self.counts[dataloader_idx].update((logit > 0).long()[known], label[known])

    def on_validation_epoch_end(self) -> None:
        for i, split in enumerate(self.scored):
            batches = self._collected[i]
            self._collected[i] = []
            if self.trainer.world_size > 1:
                shards: list[Any] = [None] * self.trainer.world_size
                torch.distributed.all_gather_object(shards, batches)
                batches = [batch for shard in shards for batch in shard]
            self.scores[split] = {
                name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]
            }
            self.rows[split] = result = dict.fromkeys(("tp", "fp", "tn", "fn"))
            if self.counts[i].update_called:
                tp, fp, tn, fn, _ = (int(n) for n in self.counts[i].compute().tolist())
                result |= {"tp": tp, "fp": fp, "tn": tn, "fn": fn, **rates(tp, fp, tn, fn)}
                result["loss"] = float(self.losses[i].compute())
                f1 = torch.tensor(result["weighted_f1"])
                self.log(f"{split}_weighted_f1", f1, prog_bar=True, logger=False)
            self.losses[i].reset()
            self.counts[i].reset()

    def configure_optimizers(self) -> Any:
        optimizer, schedule = configure(self.network, self.optim_config)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule}}
