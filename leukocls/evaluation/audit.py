"""Audit of predictions against their split: leaks, duplicate and missing cells, selection.

A finding is a dictionary with `check`, `ok` (true, false, or null if it cannot be checked), `text`
and `cells`.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from leukocls.artifacts.marks import Mark
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import sha256_file
from leukocls.common.tables import listing
from leukocls.data.names import PRELIM_TRAINED, UNKNOWN, label_of, members
from leukocls.data.splits import read_split
from leukocls.evaluation.audited_cells import TRAIN, CellNames, joined

# What equal pixel digests find, and what is found in the images themselves.
COMPARED = ("exact copies", "turned by quarter turns", "flipped", "moved")
REPROCESSED = "processed again"
SHARED = ["group", "key", "pixels", "shows"]  # by which cells of two sides are one
VERDICTS = {
    "leaky": "LEAKY. Subjects or images of the scored cells were also used for training or"
    " selection: the numbers partly measure memory, and do not hold for new subjects.",
    "broken": "BROKEN. The scored cells are not those of the split and the data, each once and"
    " with its label: no metric of this file means what its name says.",
    "selection": "SELECTION. The reported set also chose the epoch or the threshold: its numbers"
    " are the best of several on the same cells, not a test.",
    "unknown": "NOT PROVED HONEST. No fault was found, but not everything could be checked.",
    "honest": "HONEST. No person and no image is on two sides, every cell is scored once, and the"
    " reported set chose nothing.",
}
# The verdict of each check that fails. VERDICTS are in order of severity.
VERDICT_OF_CHECK = {
    "subjects": "leaky",
    "cells": "leaky",
    "pixels": "leaky",
    "reprocessed": "leaky",
    "mark": "leaky",
    "once": "broken",
    "complete": "broken",
    "labels": "broken",
    "selection": "selection",
}


def audit(
    predictions: pd.DataFrame,
    split: pd.DataFrame,
    record: dict[str, Any],
    data: pd.DataFrame | None,
) -> dict[str, Any]:
    """Check predictions against the split that they come from.

    Args:
        predictions: columns `cell`, `subject` and `label`, and `person`, `split` and `epoch` if
            known.
        split: columns `cell` and `split` (or `fold`: each fold is scored by a model that was
            trained on the others), and `subject` and `label` if known.
        record: the run's run.json; empty for files from elsewhere.
        data: `audited_cells.data_cells` of the data set; None takes pixels and groups from the
            split's columns, if it has them.

    Returns:
        `verdict` (a key of VERDICTS), `words` (its text), `compared` (the kinds of copies that were
        looked for, a list) and `findings`.

    Raises:
        LeukoclsError: the split has no training cells, or none of its cells is scored.
    """
    names = CellNames(split["cell"])
    split, predictions, data = (
        frame.assign(key=frame["cell"].map(names.key))
        for frame in (split, predictions, pd.DataFrame({"cell": []}) if data is None else data)
    )
    table = joined(split, predictions, data)
    findings = [
        *_overlaps(table),
        _once(predictions),
        _complete(predictions, table, data),
        _labels(predictions, table),
        _selection(predictions, table, record),
    ]
    if Mark.LEAKY in (record.get("marks") or []):
        findings.append(_finding("mark", False, "the run itself is marked LEAKY"))
    failed = [VERDICT_OF_CHECK[row["check"]] for row in findings if row["ok"] is False]
    unchecked = any(row["ok"] is None for row in findings)
    default = "unknown" if unchecked else "honest"
    worst = next((name for name in VERDICTS if name in failed), default)
    compared = [*COMPARED] if (table["pixels"] != "").any() else []
    compared += [REPROCESSED] if (table["shows"] != "").any() else []
    words = VERDICTS[worst]
    if worst == "honest":
        words += f" Images were compared for copies: {', '.join(compared)}."
        words += (
            ""
            if REPROCESSED in compared
            else " Cells processed again were not looked for: name the data with --data."
        )
    return {"verdict": worst, "words": words, "compared": compared, "findings": findings}


def _overlaps(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Findings on scored cells whose subject, name or pixels were trained on."""
    # Of a cell on both sides, the name by which it is reported.
    scored = table[table["scored"]].sort_values("trains", kind="stable").drop_duplicates("key")
    scored = scored.sort_index()
    trained = table[table["trains"]]
    findings = []
    for check, column, description in (
        ("subjects", "group", "of persons that were trained on"),
        ("cells", "key", "cells that were trained on, by name"),
        ("pixels", "pixels", "images that were trained on, some under another name or turned"),
        ("reprocessed", "shows", "images of cells that were trained on, some processed again"),
    ):
        known = scored[scored[column] != ""]
        if check == "reprocessed" and known.empty:
            continue  # only the data tells; `compared` says what was looked for
        if known.empty:
            reason = {
                "subjects": "no subjects: add a column subject to the split",
                "pixels": "images not compared: name the data with --data",
            }[check]
            findings.append(_finding(check, None, reason))
            continue
        shared = known[_trained_on(known, trained, column)]
        values = sorted(set(shared[column]))
        share = len(shared) / len(scored)
        text = f"{len(shared):,} of {len(scored):,} scored cells ({share:.1%}) are {description}"
        if check == "subjects":
            if values:
                names = listing(value.replace("+", " = ") for value in values)
                text += f": {len(values)} of {known[column].nunique()} persons, {names}"
            if len(known) < len(scored):
                text += f"; of {len(scored) - len(known):,} cells the subject is unknown"
        complete = len(known) == len(scored) and (trained[column] != "").all()
        ok = False if len(shared) else True if complete else None
        findings.append(_finding(check, ok, text, shared["cell"], overlap=share, values=values))
    return findings


def _trained_on(cells: pd.DataFrame, trained: pd.DataFrame, column: str) -> pd.Series:
    """Whether the model that scores each cell was trained on the cell's value of `column`."""
    sides = trained[[column, "side"]].drop_duplicates()
    sides = sides[sides[column] != ""].groupby(column)["side"].agg(set).to_dict()
    shared = [
        bool(sides.get(value, set()) - {own})
        for value, own in zip(cells[column], cells["own"], strict=True)
    ]
    return pd.Series(shared, index=cells.index)


def _keys(predictions: pd.DataFrame) -> pd.DataFrame:
    """The key of each prediction: split and epoch, if the file has them, and cell."""
    columns = [name for name in ("split", "epoch") if name in predictions]
    return predictions[[*columns, "key"]]


def _once(predictions: pd.DataFrame) -> dict[str, Any]:
    """The finding on cells that are scored more than once."""
    twice = predictions["cell"][_keys(predictions).duplicated()].drop_duplicates()
    if twice.empty:
        return _finding("once", True, "no cell is scored twice")
    return _finding("once", False, f"{len(twice):,} cells are scored more than once", twice)


def _complete(predictions: pd.DataFrame, table: pd.DataFrame, data: pd.DataFrame) -> dict[str, Any]:
    """The finding on scored cells that are not in the split, and on cells that are not scored."""
    keys = _keys(predictions)
    unknown = predictions["cell"][~keys["key"].isin(table["key"])].drop_duplicates()
    if len(unknown):
        text = f"{len(unknown):,} scored cells are not in the split"
        return _finding("complete", False, text, unknown)
    sides = set(table["side"][table["scored"]]) - {TRAIN}
    missing: list[str] = []
    # Every epoch must be complete. A run has one epoch of its test sets, all of its selection set.
    for side in sorted(sides):
        cells = table[table["side"] == side]
        side_keys = keys[keys["key"].isin(cells["key"])]
        epochs = side_keys.groupby("epoch") if "epoch" in side_keys else [(0, side_keys)]
        for _, epoch_keys in epochs:
            missing += cells["cell"][~cells["key"].isin(epoch_keys["key"])].to_list()
    if missing:
        unscored = list(dict.fromkeys(missing))
        text = f"{len(unscored):,} cells of {', '.join(sorted(sides))} are not scored"
        return _finding("complete", False, text, unscored)
    text = f"all cells of {', '.join(sorted(sides))} are scored"
    return _left_out(table, data) or _finding("complete", True, text)


def _left_out(table: pd.DataFrame, data: pd.DataFrame) -> dict[str, Any] | None:
    """The finding on scored parts and persons of the data of which the split lacks cells."""
    if data.empty:
        return None
    absent = data[~data["key"].isin(table["key"])]
    tested, trained = table[table["scored"] & ~table["trains"]], table[table["trains"]]
    parts = set(tested["part"]) - set(trained["part"]) - {""}
    if len(cells := absent["cell"][absent["part"].isin(parts)]):
        text = f"{len(cells):,} cells of the data's {', '.join(sorted(parts))} are not in the split"
        return _finding("complete", False, text, cells)
    scored = members(tested["group"]) - {""}
    of_scored = [not scored.isdisjoint(members([group])) for group in absent["group"]]
    if len(cells := absent["cell"][of_scored]):
        text = f"{len(cells):,} cells of scored persons are not in the split: ask why"
        return _finding("complete", None, text, cells)
    return None


def _labels(predictions: pd.DataFrame, table: pd.DataFrame) -> dict[str, Any]:
    """The finding on scored cells with two labels: in predictions, split, data or names."""
    keys = pd.concat([table["key"]] * 3 + [predictions["key"]] * 2)
    labels = pd.concat(
        [
            *(table["label"], table["data_label"], table["cell"].map(label_of)),
            *(predictions["label"], predictions["cell"].map(label_of)),
        ]
    )
    known = labels != UNKNOWN
    classes = labels[known].groupby(keys[known]).nunique()
    wrong = predictions["cell"][predictions["key"].isin(classes.index[classes > 1])]
    if len(wrong := wrong.drop_duplicates()):
        text = f"{len(wrong):,} cells have two labels in predictions, split, data and names"
        return _finding("labels", False, text, wrong)
    return _finding("labels", True, "no cell has two labels in predictions, split, data and names")


def _selection(
    predictions: pd.DataFrame, table: pd.DataFrame, record: dict[str, Any]
) -> dict[str, Any]:
    """The finding on the set that chose the epoch, which must be disjoint from the reported set."""
    sides = sorted(set(table["side"]) - {TRAIN, PRELIM_TRAINED})
    scored = sorted(set(table["side"][table["scored"]]) - {TRAIN})
    chosen_on = (record.get("selection") or {}).get("set")
    # Without a record, sets that are scored at several epochs could choose, as those unscored.
    several = [side for side in scored if _epochs(predictions, table, side) > 1]
    choosing = [chosen_on] if chosen_on else [s for s in sides if s not in scored or s in several]
    others = [side for side in scored if side not in choosing]
    if chosen_on and chosen_on not in sides:
        text = f"run.json says that {chosen_on} chose the epoch, and the split has no such set"
        return _finding("selection", False, text)
    if chosen_on and not others:
        text = f"the epoch was chosen on {chosen_on}, which is reported"
        return _finding("selection", False, text)
    if table["own"].any():
        text = "folds are reported: ask on which cells each fold's epoch and threshold were chosen"
        return _finding("selection", None, text)
    if not others:
        text = "several epochs are scored on the reported set, and no run.json says how one was"
        return _finding("selection", False, f"{text} chosen")
    chose = table[table["side"].isin(choosing)]
    shared = table[table["side"].isin(others)]
    known = shared[SHARED].ne("") & shared[SHARED].isin(
        {column: set(chose[column]) for column in SHARED}
    )
    if len(cells := shared["cell"][known.any(axis=1)]):
        text = f"{len(cells):,} reported cells share person or image with {', '.join(choosing)}"
        return _finding("selection", False, f"{text}, which chose or could choose", cells)
    if chosen_on:
        text = f"the epoch was chosen on {chosen_on}, and {', '.join(others)} chose nothing"
        return _finding("selection", True, text)
    if choosing:
        text = f"{', '.join(choosing)} could choose epoch and threshold, but nothing shows that it"
        return _finding("selection", None, f"{text} did")
    text = "the split has no set to choose the epoch and the threshold on: ask how they were chosen"
    return _finding("selection", None, text)


def _epochs(predictions: pd.DataFrame, table: pd.DataFrame, side: str) -> int:
    """The number of epochs at which cells of a side are scored."""
    cells = predictions["key"].isin(table["key"][table["side"] == side])
    return predictions["epoch"][cells].nunique() if "epoch" in predictions else 1


def _finding(
    check: str, ok: bool | None, text: str, cells: Any = (), **more: Any
) -> dict[str, Any]:
    """One finding, as the module describes it."""
    return {"check": check, "ok": ok, "text": text, "cells": [str(c) for c in cells], **more}


def split_of_run(directory: Path, record: dict[str, Any]) -> pd.DataFrame:
    """The split.csv of a run.

    Raises:
        LeukoclsError: it was changed since, or the run only scores the weights of another run.
    """
    path = directory / "split.csv"
    split = read_split(path)
    if sha256_file(path) != (record.get("inputs") or {}).get("split"):
        raise LeukoclsError(f"{path}: is not the split the run was trained on; restore it")
    if TRAIN not in set(split["split"]):
        raise LeukoclsError(
            f"{directory}: scores what another run trained; audit that run: `checkpoint` in"
            f" {directory / 'config.yaml'}"
        )
    return split
