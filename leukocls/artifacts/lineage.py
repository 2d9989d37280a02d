"""Lineage: which cells the runs behind a weights file were trained on and chose their epoch by."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open

from leukocls.data.duplicates import PIXELS_VERSION
from leukocls.data.names import members

KEY = "lineage"  # in the metadata of the weights file, so that copies of the file keep it

# One entry a run, the latest first: `named` (whether its subject IDs are C-NMC's), `digests` (the
# PIXELS_VERSION of its pixels) and, of the cells it `trained` on and of those that `chose` its
# epoch, `groups` and `pixels`.
Lineage = list[dict[str, Any]]


def read_lineage(weights: Path | None) -> Lineage:
    """The lineage in a weights file's metadata; empty if no run of leukocls wrote it."""
    if weights is None:
        return []
    try:
        with safe_open(weights, "pt") as stream:
            return json.loads((stream.metadata() or {}).get(KEY, "[]"))
    except SafetensorError:  # another format, or damaged, which loading will report
        return []


def lineage_of(
    cells: pd.DataFrame, selection: str, cnmc_subjects: bool, before: Lineage
) -> Lineage:
    """The lineage of a run's weights.

    Args:
        cells: the cells of its split, as `Split.table` gives them.
        selection: the split that chooses the epoch.
        cnmc_subjects: as in `leukocls.data.rules.DataRules`.
        before: the lineage of the weights that it starts from.
    """

    def known(split: str) -> dict[str, list[str]]:
        of_split = cells[cells["split"] == split]
        return {name: sorted(set(of_split[name])) for name in ("groups", "pixels")}

    cells = cells.rename(columns={"group": "groups"})
    # Without a held-out set nothing is chosen.
    chose = known(selection if selection != "train" else "")
    own = {"named": cnmc_subjects, "digests": PIXELS_VERSION}
    return [{**own, "trained": known("train"), "chose": chose}, *before]


def as_metadata(lineage: Lineage) -> dict[str, str]:
    """The metadata of a weights file, as `read_lineage` reads it."""
    return {KEY: json.dumps(lineage)}


def has_seen(lineage: Lineage, role: str, cells: pd.DataFrame, cnmc_subjects: bool) -> bool:
    """Whether `cells`, their subjects or their images, are among the cells of a lineage.

    Unknown subjects are treated as overlapping. Subjects of one name are one subject, unless only
    one side's IDs are C-NMC's.

    Args:
        role: "trained" or "chose".
        cells: as `Split.table` gives them.
        cnmc_subjects: of their data, as in `leukocls.data.rules.DataRules`.
    """
    labelled = cells[cells["label"] >= 0]
    for run in lineage:
        groups = run[role]["groups"]
        if run["named"] == cnmc_subjects and (members(groups) & members(labelled["group"])) - {""}:
            return True
        if len(labelled) and groups and "" in {*groups, *labelled["group"]}:
            return True
        if run.get("digests", 1) == PIXELS_VERSION:
            if (set(run[role]["pixels"]) & set(cells["pixels"])) - {""}:
                return True
        elif run["named"] != cnmc_subjects and groups and len(labelled):
            return True  # neither subjects nor images can be compared
    return False
