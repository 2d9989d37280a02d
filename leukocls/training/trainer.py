"""Lightning's Trainer as a run needs it: which options are refused, set by us, or silenced."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.plugins.environments import LightningEnvironment

from leukocls.common.errors import LeukoclsError
from leukocls.training.checkpoint_io import ChecksummedIO
from leukocls.training.ddp import Rank
from leukocls.training.progress_bar import EpochBar

# Lightning's warnings about choices that are deliberate here.
QUIET = (
    ".*does not have many workers.*",
    ".*The number of training batches.*",
    ".*Trying to infer the `batch_size`.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*in eval mode at the start of training.*",
    ".*find_unused_parameters=True was specified.*",
    ".*Using `DistributedSampler` with the dataloaders.*",  # our own sampler repeats no cell
    ".*your dataloader is not resumable.*",  # our own sampler starts where the run stopped
)
# Gradients are added up in an order that a resumed run repeats: without the search for unused
# parameters the first step of every process decides the order anew.
DDP = "ddp_find_unused_parameters_true"
# Options of Lightning that would score or end a run elsewhere than at an epoch's end, or start
# processes of their own, with what to use instead.
REFUSED = {
    "check_val_every_n_epoch": "every epoch is scored once",
    "val_check_interval": "every epoch is scored once",
    "min_epochs": "use trainer.max_epochs, or patience",
    "min_steps": "use trainer.max_epochs, or patience",
    "max_steps": "use trainer.max_epochs or trainer.limit_train_batches",
    "max_time": "a stopped run resumes; use trainer.max_epochs",
    "num_nodes": "a run uses one machine; trainer.devices takes several of its devices",
    "strategy": "it is DDP for several trainer.devices",
}


def make_trainer(
    config: DictConfig, directory: Path, callbacks: list[pl.Callback], rank: Rank | None = None
) -> pl.Trainer:
    """The Trainer of one run, in one of its processes.

    Args:
        config: the whole configuration; its group `trainer` has Lightning's own names.
        directory: the run directory.
        callbacks: in the order in which Lightning calls them.
        rank: this process among several; None for the only one.

    Raises:
        LeukoclsError: an option that is refused or out of range.
    """
    for message in QUIET:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    options = _options(config.trainer)
    plugins: list[Any] = [ChecksummedIO()]
    if rank:
        options |= {"strategy": DDP}
        # On a cluster too, the processes of a run are started here and not by its scheduler.
        plugins.append(LightningEnvironment())
    if config.ema is not None:
        # After the recorder, which keeps the average that is scored before it is swapped back.
        callbacks.append(_average(config.ema))
    # A bar is for people; a pipe or a log gets one line an epoch.
    if options.pop("enable_progress_bar") and sys.stderr.isatty():
        callbacks.append(EpochBar())
    try:
        return pl.Trainer(
            **options,
            plugins=plugins,
            callbacks=callbacks,
            default_root_dir=directory,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            # Metrics that are updated before training are updated again while it runs.
            inference_mode=False,
            # Batches are sharded by our own sampler, which repeats no cell.
            use_distributed_sampler=False,
        )
    except (TypeError, ValueError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise LeukoclsError(f"trainer: {error}") from error


def _options(trainer: DictConfig) -> dict[str, Any]:
    options: Any = OmegaConf.to_container(trainer, resolve=True)
    if not isinstance(options["max_epochs"], int) or options["max_epochs"] < 1:
        raise LeukoclsError(f"trainer.max_epochs={options['max_epochs']}: choose at least 1.")
    for key in REFUSED.keys() & options.keys():
        raise LeukoclsError(f"trainer.{key}: not available; {REFUSED[key]}.")
    for key in ("limit_train_batches", "limit_val_batches"):
        if options[key] is not None and not options[key] > 0:
            raise LeukoclsError(f"trainer.{key}={options[key]}: choose more than 0, or null.")
    # Tests are scored like validation sets.
    return {"limit_test_batches": options["limit_val_batches"], **options}


def _average(decay: Any) -> WeightAveraging:
    """Callback that keeps and scores an exponential average of weights and buffers."""
    if not isinstance(decay, float) or not 0 < decay < 1:
        raise LeukoclsError(f"ema={decay}: choose a decay between 0 and 1, such as .999.")

    def averaged(old: torch.Tensor, new: torch.Tensor, _: Any) -> torch.Tensor:
        # In this form the average of equal values is that value, to the bit. Otherwise buffers that
        # are no part of a checkpoint would drift, and a resumed run would differ.
        return torch.lerp(old, new, 1 - decay) if old.is_floating_point() else new

    return WeightAveraging(avg_fn=averaged, use_buffers=True)


def device_name(trainer: pl.Trainer) -> str:
    """The device that the trainer computes on: the GPU's name, or "cpu"."""
    root = trainer.strategy.root_device
    return torch.cuda.get_device_name(root) if root.type == "cuda" else root.type
