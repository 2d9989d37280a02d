"""The cells of a split, joined by name with their predictions and with the data, for an audit."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from leukocls.artifacts.predictions import persons
from leukocls.common.errors import LeukoclsError
from leukocls.data.names import (
    LABEL_WORDS,
    LEADING_ZEROS,
    PRELIM_TRAINED,
    UNKNOWN,
    members,
    subject_key,
    subject_of,
)
from leukocls.data.published import person_of
from leukocls.data.verify import examine

TRAIN = "train"
IMAGE_SUFFIX = re.compile(r"\.(bmp|png|jpe?g|tiff?)$")
Parts = tuple[str, ...]


class CellNames:
    """The names of a split's cells, by which other spellings of them are found.

    Case, the suffix of an image, and leading folders do not count: images/a.png and A.bmp are one
    cell. a/1.png and b/1.png are two, as long as no cell is called 1.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._paths = {_path(name) for name in names}
        self._longer: dict[Parts, set[str]] = {}
        for path in self._paths:
            for tail in _tails(path):
                self._longer.setdefault(tail, set()).add(self._shortest(path))

    def key(self, name: str) -> str:
        """The key of a cell, equal for all spellings of its name; any other name is its own."""
        path = _path(name)
        longer = self._longer.get(path, set())
        return self._shortest(path) or (min(longer) if len(longer) == 1 else "/".join(path))

    def _shortest(self, path: Parts) -> str:
        """The shortest end of `path` that is a name; "" if none is."""
        return next(("/".join(tail) for tail in _tails(path) if tail in self._paths), "")


def _path(name: str) -> Parts:
    *folders, stem = name.strip().casefold().replace("\\", "/").split("/")
    stem = IMAGE_SUFFIX.sub("", stem)
    if subject_of(stem):  # an original name of C-NMC is unique in any folder
        return (LEADING_ZEROS.sub("", stem),)
    return (*(folder for folder in folders if folder not in ("", ".")), stem)


def _tails(path: Parts) -> Iterable[Parts]:
    """The ends of a path, the shortest first and itself last."""
    return (path[start:] for start in reversed(range(len(path))))


def data_cells(root: Path, cache: Path, outside: bool) -> pd.DataFrame:
    """The labelled cells of a data set: `cell`, `part`, `label`, `pixels`, `shows` and `group`.

    `shows` is equal for all images of one cell, also if it was processed again.

    Args:
        root, cache, outside: as `leukocls.data.verify.examine`.

    Raises:
        LeukoclsError: `root` is missing or holds no known layout.
    """
    examination = examine(root, "auto", True, cache, outside)
    table = examination.index.table
    digests = table["pixels"].to_numpy(str)
    linked = [{*digests[list(copies.rows)].tolist()} for copies in examination.duplicates]
    shows = _merged([*linked, *({digest} - {""} for digest in digests.tolist())])[len(linked) :]
    # Final's cells may have the names of prelim's, and have no labels that could leak.
    table = table.assign(shows=shows)[table["part"] != "final"]
    return table[["cell", "part", "label", "pixels", "shows", "group"]].reset_index(drop=True)


def side_names(split: pd.Series) -> pd.Series:
    """Names of splits in one spelling."""
    return split.str.strip().str.lower().replace({"training": TRAIN})


def joined(split: pd.DataFrame, predictions: pd.DataFrame, data: pd.DataFrame) -> pd.DataFrame:
    """The split with all that an audit compares.

    Columns added: `side`, the split's name or the fold; `trains`; `scored`; `own`, the fold whose
    training cells were not used to score this cell; `pixels`, `group` (its person) and the data's
    `shows` and `part`, each "" if unknown; `label` and `data_label`, UNKNOWN if unknown.

    Args:
        split: columns `key` and `cell`, `split` or `fold`, and what it has of `subject`, `group`,
            `label` and `pixels`.
        predictions: `key` and the columns of `leukocls.evaluation.audit.audit`.
        data: `key` and the columns of `data_cells`; empty without data.

    Raises:
        LeukoclsError: the split has no training cells, or none of its cells is scored.
    """
    table = _with_sides(split, predictions)
    if not table["scored"].any():
        raise LeukoclsError(
            "no cell of the split is in the predictions: cells are matched by name; check that the"
            " two files belong together"
        )
    # As the data's groups, those of a run's split.csv are persons.
    of_run = data.empty and "pixels" in table
    source = table if of_run else data
    known = {name: _column(source, name, table["key"]) for name in ("pixels", "group")}
    table = table.assign(**known)
    table["part"] = _column(data, "part", table["key"])
    table["shows"] = _column(data, "shows", table["key"])
    table["data_label"] = _column(data, "label", table["key"], UNKNOWN)
    table["group"] = _persons(table, predictions)
    words = table["label"].str.lower() if "label" in table else pd.Series("", index=table.index)
    table["label"] = words.map(LABEL_WORDS).fillna(UNKNOWN).astype(int)
    return table


def _column(source: pd.DataFrame, name: str, keys: "pd.Series[str]", absent: Any = "") -> list[Any]:
    """The values of a column of `source` for each key; `absent` for what it lacks."""
    values = dict(zip(source["key"], source[name], strict=True)) if name in source else {}
    return [values.get(key, absent) for key in keys]


def _with_sides(split: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    table = split.copy()
    scored = predictions
    if "split" in predictions:  # numbers on trained cells and persons are not reported as results
        scored = predictions[~side_names(predictions["split"]).isin([TRAIN, PRELIM_TRAINED])]
    table["scored"] = table["key"].isin(scored["key"])
    table["side"] = side_names(table["split"]) if "split" in table else TRAIN
    # If training cells are scored and the table has folds, it is a cross-validation.
    folds = "fold" in table and (table["scored"] & (table["side"] == TRAIN)).any()
    table["trains"] = table["side"] == TRAIN
    if folds:
        table["side"] = table["side"].where(~table["trains"], "fold " + table["fold"])
    if not table["trains"].any() or (not folds and table["trains"].all()):
        raise LeukoclsError(
            "the split names no cell to train on, or none to score: its column split holds"
            f" {', '.join(sorted(set(table['side'])))}, and train must be one of several"
        )
    # A fold's cells are scored by a model that was not trained on this fold.
    table["own"] = table["side"].where(table["trains"] & bool(folds), "")
    return table


def _persons(table: pd.DataFrame, predictions: pd.DataFrame) -> list[str]:
    """The person of each cell: its group where it is known, or else its subject; "" if unknown.

    Groups and subjects with a member in common are one person.
    """
    listed = table["subject"] if "subject" in table else [""] * len(table)
    predicted = _column(predictions, "subject", table["key"])
    merged = predictions.assign(person=persons(predictions))
    person = _column(merged, "person", table["key"])
    groups = []
    for cell, group, own, subject, same in zip(
        table["cell"], table["group"], listed, predicted, person, strict=True
    ):
        # The name has priority: a column could be edited to hide a leak.
        named = subject_of(cell)
        known = group or person_of(cell, named or own or subject)
        ids = {subject_key(one) for one in (*members([known]), named or own)} - {""}
        more = {subject_key(one) for one in members([same])} - {""}
        # The predictions' person counts where it speaks of the same subjects.
        groups.append(ids | more if ids & more else ids)
    return _merged(groups)


def _merged(groups: list[set[str]]) -> list[str]:
    """The names of groups after those with common members are merged; "" for an empty group."""
    whole: dict[str, set[str]] = {}
    for group in groups:
        union = group.union(*(whole[one] for one in group if one in whole))
        whole |= dict.fromkeys(union, union)
    return ["+".join(sorted(whole[min(group)])) if group else "" for group in groups]
