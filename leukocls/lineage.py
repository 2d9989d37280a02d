"""What a run owes to an earlier one: its recipe, its weights, and the cells these have seen."""

from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from leukocls.data.splits import members, read_split
from leukocls.errors import LeukoclsError
from leukocls.files import sha256_file
from leukocls.prediction_files import subject_of
from leukocls.runs import read_record


def run_of(weights: Path | None) -> Path | None:
    """The run directory in whose checkpoints/ a weights file lies, if it lies in one."""
    if weights is None:
        return None
    directory = weights.resolve().parent.parent
    return directory if (directory / "run.json").is_file() else None


def seen(directory: Path, now: pd.DataFrame, published: bool) -> tuple[bool, bool]:
    """Whether the cells `now`, their subjects or images, trained the run in `directory`, or chose
    its epoch.

    What is not known to be apart is not called so: labelled cells without a subject count as seen,
    and subjects of one name are one subject, unless only one side's cells have C-NMC's names.

    Args:
        now: cells as `Split.table` gives them.
        published: whether they have C-NMC's names.

    Raises:
        LeukoclsError: the run's split.csv is not the one it was trained on.
    """
    record = read_record(directory)
    path = directory / "split.csv"
    if sha256_file(path) != record["identity"].get("sha256 of split"):
        raise LeukoclsError(f"{path}: is not the split the run was trained on; restore it.")
    before, labelled = read_split(path), now[now["label"] >= 0]
    alike = before["cell"].map(subject_of).any() == published

    def holds(split: str) -> bool:
        there = before[before["split"] == split]
        groups = members(there["group"]) & members(labelled["group"]) if alike else set()
        unknown = "" in {*there["group"], *labelled["group"]} and len(labelled) > 0
        images = set(there["pixels"]) & set(now["pixels"])
        return bool(groups - {""}) or unknown or bool(images - {""})

    return holds("train"), holds(record["selection"]["set"])


def with_recipe_of(directory: Path, config: DictConfig) -> DictConfig:
    """`config` with the network, image geometry and views that the run was trained with."""
    trained: Any = OmegaConf.load(directory / "config.yaml")
    names = (
        *("seed", "threads", "model", "augment", "optim", "loss", "views", "selection"),
        *("threshold", "split_scheme", "fold", "folds", "split_seed"),
    )
    recipe = {name: trained[name] for name in names}
    kept = {"crop": trained.data.crop, "size": trained.data.size}
    recipe["data"] = OmegaConf.merge(config.data, kept)
    merged: Any = OmegaConf.merge(config, dict.fromkeys(recipe))
    OmegaConf.set_struct(merged, False)
    for name, value in recipe.items():
        merged[name] = value
    return merged
