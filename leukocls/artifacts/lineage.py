"""What a run owes to an earlier one: its recipe, its weights, and the cells these have seen."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open

from leukocls.data.names import members, subject_of

KEY = "lineage"  # in the metadata of a weights file, so that a copy of it still knows


def read_lineage(weights: Path | None) -> list[dict[str, Any]]:
    """What the runs behind a weights file have seen, the last one first; empty if no run made it.

    Each entry holds `named` (whether its cells have C-NMC's names) and, of the cells that trained
    it (`trained`) and of those that chose its epoch (`chose`), `groups` and `pixels`.
    """
    if weights is None:
        return []
    try:
        with safe_open(weights, "pt") as stream:
            return json.loads((stream.metadata() or {}).get(KEY, "[]"))
    except SafetensorError:  # another format, or damaged, which loading will tell
        return []


def lineage_of(
    cells: pd.DataFrame, selection: str, before: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The lineage of a run's weights.

    Args:
        cells: of its split, as `Split.table` gives them.
        selection: the split that chooses the epoch.
        before: the lineage of what it starts from.
    """

    def known(split: str) -> dict[str, list[str]]:
        of_split = cells[cells["split"] == split]
        return {name: sorted(set(of_split[name])) for name in ("groups", "pixels")}

    cells = cells.rename(columns={"group": "groups"})
    named = bool(cells["cell"].map(subject_of).any())
    # Where nothing is held back, nothing is chosen.
    chose = known(selection if selection != "train" else "")
    return [{"named": named, "trained": known("train"), "chose": chose}, *before]


def as_metadata(lineage: list[dict[str, Any]]) -> dict[str, str]:
    """What `read_lineage` will find in the metadata of a weights file."""
    return {KEY: json.dumps(lineage)}


def seen(lineage: list[dict[str, Any]], what: str, now: pd.DataFrame, published: bool) -> bool:
    """Whether the cells `now`, their subjects or images, are among what a lineage has seen.

    What is not known to be apart is not called so: labelled cells without a subject count as seen,
    and subjects of one name are one subject, unless only one side's cells have C-NMC's names.

    Args:
        what: "trained" or "chose".
        now: cells as `Split.table` gives them.
        published: whether they have C-NMC's names.
    """
    labelled = now[now["label"] >= 0]
    for run in lineage:
        groups = run[what]["groups"]
        if run["named"] == published and (members(groups) & members(labelled["group"])) - {""}:
            return True
        if len(labelled) and groups and "" in {*groups, *labelled["group"]}:
            return True
        if (set(run[what]["pixels"]) & set(now["pixels"])) - {""}:
            return True
    return False


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
