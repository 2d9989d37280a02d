"""Score a finished run's cells again, clean and under every corruption and severity."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from leukocls.artifacts.lineage import read_lineage
from leukocls.artifacts.marks import run_marks
from leukocls.artifacts.record import heading, headline, read_record
from leukocls.artifacts.run_dir import finished_weights
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.data.corruptions import CORRUPTIONS, SEVERITIES, CellImages, corrupted
from leukocls.data.splits import Split
from leukocls.data.store import data_digest, stored_side, windows
from leukocls.data.views import view_weights
from leukocls.evaluation.metrics import Floats
from leukocls.evaluation.robustness import measured
from leukocls.evaluation.scoring import ScoredPart, ScoringOptions, scored_parts
from leukocls.training.fit import scoring_parts
from leukocls.training.inputs import ScoreInputs, Selection, index_of

SCORED = "scored"  # the only split of these inputs
# Beyond what another device or library changes in a logit: other weights, or another network.
MOST_DIFFERENCE = 0.1
KEPT = ("split", "epoch", "threshold", "heading", "shared_persons", "predictions_sha256")


@dataclass(frozen=True)
class Choices:
    """What the command line chooses; None takes what the run has.

    Attributes:
        corruptions: keys of CORRUPTIONS.
        data: the data set, if it lies elsewhere now.
        cache: folder of the decoded images.
        split: whose cells; None for the test, or the selection set of a run without one.
        cells: their number, evenly spaced in the index's order; None for all.
        views: as the configuration key of that name.
    """

    corruptions: Sequence[str] = tuple(CORRUPTIONS)
    data: Path | None = None
    cache: Path | None = None
    split: str | None = None
    cells: int | None = None
    views: int | str | None = None


def robustness(directory: Path, choices: Choices) -> dict[str, Any]:
    """The document of `leukocls.robustness`: metrics under each corruption, and their drops.

    Raises:
        LeukoclsError: a run that is not done or has no network, weights, predictions or data that
            are missing or changed, or cells that cannot be scored.
        DataFault: the data has faults, or logits are not finite.
    """
    record = read_record(directory)
    weights = finished_weights(directory, record)
    wanted = choices.split or (headline(record) or {}).get("set")
    part = scored_parts(directory, ScoringOptions(split=wanted))[0]
    try:
        config = _config(directory, choices)
        inputs, frame = _inputs(config, record, weights, part, choices.cells)
        own_views = config.views == OmegaConf.load(directory / "config.yaml").views
        scorer = _Scorer(directory, inputs)
    except OmegaConfBaseException as error:
        raise LeukoclsError(
            f"{directory / 'config.yaml'}: this recipe cannot be scored again"
            f" ({str(error).splitlines()[0]}); an older version wrote it, so train the run again."
        ) from error
    clean, found = scorer.logits(choices.corruptions)
    difference = _difference(directory, frame, clean, own_views, config.views)
    amounts = {name: CORRUPTIONS[name].amounts for name in choices.corruptions}
    origin = {name: part.origin[name] for name in KEPT}
    if not own_views:
        origin["heading"] = heading(record, origin["split"], as_selected=False)
    return {
        "source": str(directory),
        "run": record["id"],
        **origin,
        "weights_sha256": record["weights_sha256"],
        "marks": inputs.marks,
        "views": config.views,
        "cells": len(frame),
        "cells_of_split": len(part.frame),
        "clean_difference": difference,
        "corruptions": [
            {"name": name, "unit": CORRUPTIONS[name].unit, "amounts": list(amounts[name])}
            for name in choices.corruptions
        ],
        **measured(frame, origin["threshold"], clean, found, amounts),
    }


def _config(directory: Path, choices: Choices) -> DictConfig:
    """The run's configuration, for one device and every cell of a split."""
    config: Any = OmegaConf.load(directory / "config.yaml")
    if choices.data is not None:
        # Cells that lie there are read, and none are drawn.
        config.data.root, config.data.synthetic = str(choices.data), None
    if choices.cache is not None:
        config.data.cache = str(choices.cache)
    if choices.views is not None:
        config.views = choices.views
    view_weights(config.views)  # raises on a number of views that is out of range
    root = config.data.root
    if config.data.synthetic is None and not Path(root).exists():
        raise LeukoclsError(f"{root}: the run's data is not there; name it with --data ROOT.")
    config.data.workers, config.ema = 0, None
    config.trainer = {
        "accelerator": "cpu" if config.trainer.accelerator == "cpu" else "auto",
        "precision": config.trainer.precision,
        "deterministic": config.trainer.get("deterministic"),
        "devices": 1,
        "max_epochs": 1,
        "limit_train_batches": None,
        "limit_val_batches": None,
        "enable_progress_bar": False,
    }
    return config


def _inputs(
    config: DictConfig,
    record: dict[str, Any],
    weights: Path,
    part: ScoredPart,
    cells: int | None,
) -> tuple[ScoreInputs, pd.DataFrame]:
    """What the scoring reads, and the stored predictions of its cells in the same order.

    Raises:
        LeukoclsError: other data than the run's, or cells without labels or of one class.
    """
    parts = (config.score,) if config.score else ("train", "prelim")
    index, _ = index_of(config, parts)
    if data_digest(index) != record["data_digest"]:
        raise LeukoclsError(
            f"{index.source}: not the data that the run read (images or labels differ); name that"
            " with --data ROOT."
        )
    row_of = pd.Series(index.table.index, index=index.table["cell"])
    frame = part.frame.assign(row=part.frame["cell"].map(row_of)).sort_values("row")
    every = len(frame)
    if cells is not None and cells < every:
        frame = frame.iloc[np.linspace(0, every - 1, cells).round().astype(int)]
    if (labels := set(frame["label"])) != {0, 1}:
        lack = "has no labels" if labels == {-1} else "lacks labels, or cells of one class"
        raise LeukoclsError(
            f"{part.origin['source']}: {part.origin['split']} {lack} among the {len(frame)} cells"
            " to score; choose another --split, or more --cells."
        )
    rows, scheme = {SCORED: np.array(frame["row"], np.int64)}, config.split_scheme
    inputs = ScoreInputs(
        config=config,
        index=index,
        split=Split(scheme, rows, SCORED),
        weights=weights,
        lineage=read_lineage(weights),
        selection=Selection(record["selection"]["rule"], record["selection"]["set"]),
        split_scheme=scheme,
        pos_weight=float(record["pos_weight"]),
        threshold=part.origin["threshold"],
        marks=run_marks(part.origin["marks"], limited=len(frame) < every),
        calibration=None,
    )
    return inputs, frame


class _Scorer:
    """The run's network and its cells, which it scores in one pass for each way to corrupt them."""

    def __init__(self, directory: Path, inputs: ScoreInputs) -> None:
        self.directory = directory
        self.trainer, self.classifier, self.datamodule = scoring_parts(inputs)
        data, table = inputs.config.data, inputs.index.table
        side = stored_side(inputs.index, data.crop, data.size)
        self.names = table["cell"].to_numpy()
        self.scale = torch.from_numpy(side / windows(table, data.crop)[:, 2])
        self.rows = inputs.split.rows[SCORED]

    def logits(self, names: Sequence[str]) -> tuple[Floats, dict[str, list[Floats]]]:
        """Logits [n] of the clean images, and for each corruption those of each severity."""
        severities = range(1, SEVERITIES + 1)
        passes = [("", 0), *((name, severity) for name in names for severity in severities)]
        found: dict[str, list[Floats]] = {name: [] for name in ("", *names)}
        for name, severity in tqdm(passes, desc="robustness", disable=None, leave=False):
            found[name].append(self._pass(name, severity))
        (clean,) = found.pop("")
        return clean, found

    def _pass(self, name: str, severity: int) -> Floats:
        def corrupt(images: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
            row = row.cpu()
            batch = CellImages(images, self.names[row.numpy()], self.scale[row])
            return corrupted(batch, name, severity)

        self.datamodule.corrupt = corrupt
        self.trainer.validate(self.classifier, self.datamodule, verbose=False)
        scores = self.classifier.scores[SCORED]
        assert np.array_equal(scores["row"], self.rows)
        if not np.isfinite(scores["logit"]).all():
            raise DataFault(f"{self.directory}: logits under {name} {severity} are not finite.")
        return scores["logit"].astype(np.float64)


def _difference(
    directory: Path, frame: pd.DataFrame, clean: Floats, own_views: bool, views: int | str
) -> float | None:
    """The largest difference between clean and stored logits; None where none are stored.

    Raises:
        LeukoclsError: it is more than MOST_DIFFERENCE.
    """
    if not own_views and views != 1:
        return None
    stored = frame["logit" if own_views else "view_0"].to_numpy(np.float64)
    most = float(np.abs(clean - stored).max())
    if most > MOST_DIFFERENCE:
        raise LeukoclsError(
            f"{directory}: scored again without any corruption, a logit differs by {most:.3g} from"
            " the one that the run stored. Use the versions and the kind of device in its run.json."
        )
    return most
