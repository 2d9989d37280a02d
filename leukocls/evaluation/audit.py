"""Audit of predictions against their split: leaks, cells scored twice or not at all, selection.

A finding: `check`, `ok` (true, false, or null where it cannot be seen), `text`, `cells`.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from leukocls.artifacts.marks import Mark
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import sha256_file
from leukocls.data.names import LABEL_WORDS, cell_key, subject_of
from leukocls.data.published import merged_subject
from leukocls.data.splits import read_split
from leukocls.data.verify import examine

TRAIN = "train"
VERDICTS = {
    "leaky": "LEAKY. What is scored was in part trained on, or chose: the numbers measure memory of"
    " these subjects as well as signs of disease, and hold for no new subject.",
    "broken": "BROKEN. The cells that are scored are not those of the split, each once: no metric"
    " of this file means what its name says.",
    "selection": "SELECTION. The reported set also chose the epoch or the threshold: its numbers"
    " are the best of several on the same cells, not a test.",
    "unknown": "NOT PROVED HONEST. Nothing wrong was seen, but not everything could be.",
    "honest": "HONEST. No subject and no image on two sides, every cell scored once, and what was"
    " chosen was chosen elsewhere.",
}
OF_CHECK = {
    "subjects": "leaky",
    "cells": "leaky",
    "pixels": "leaky",
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
    images: dict[str, tuple[str, str]] | None,
) -> dict[str, Any]:
    """Judge predictions by their split.

    Args:
        predictions: `cell`, `subject`, `label`, and `split` and `epoch` where the file has them.
        split: `cell` and `split` (or `fold`: each fold is scored by what trained on the others),
            and `subject` and `label` where the file has them.
        record: the run's run.json; empty for other people's.
        images: by cell, what two copies of an image share and its group; None leaves both to the
            split's columns.

    Returns:
        `verdict` (a key of VERDICTS), `words`, `findings`.

    Raises:
        LeukoclsError: the split trains on nothing, or none of its cells is scored.
    """
    table = _known(split, predictions, images)
    findings = [
        *_overlaps(table),
        _once(predictions),
        _complete(predictions, table),
        _labels(predictions, table),
        _selection(predictions, table, record),
    ]
    if Mark.LEAKY in (record.get("marks") or []):
        findings.append(_finding("mark", False, "the run itself is marked LEAKY"))
    failed = [OF_CHECK[one["check"]] for one in findings if one["ok"] is False]
    unseen = any(one["ok"] is None for one in findings)
    worst = next((name for name in VERDICTS if name in failed), "unknown" if unseen else "honest")
    return {"verdict": worst, "words": VERDICTS[worst], "findings": findings}


def _known(
    split: pd.DataFrame, predictions: pd.DataFrame, images: dict[str, tuple[str, str]] | None
) -> pd.DataFrame:
    """The split by `key`, with `group` and `pixels` ("" unknown) and `scored`, and `side`: the
    split's name, or the fold."""
    table = split.assign(key=split["cell"].map(cell_key))
    scored = predictions
    if "split" in predictions:  # what a run says of its own training cells is no claim
        scored = predictions[_side(predictions["split"]) != TRAIN]
    table["scored"] = table["key"].isin(scored["cell"].map(cell_key))
    table["side"] = _side(table["split"]) if "split" in table else TRAIN
    # Training cells that are scored are so by folds, where the table has them.
    folds = "fold" in table and (table["scored"] & (table["side"] == TRAIN)).any()
    table["trains"] = table["side"] == TRAIN
    if folds:
        table["side"] = table["side"].where(~table["trains"], "fold " + table["fold"])
    if not table["trains"].any() or (not folds and table["trains"].all()):
        raise LeukoclsError(
            "the split names no cell to train on, or none to score: its column split holds"
            f" {', '.join(sorted(set(table['side'])))}, and train must be one of several"
        )
    told = dict(zip(predictions["cell"].map(cell_key), predictions["subject"], strict=True))
    own = table["subject"] if "subject" in table else [""] * len(table)
    named = [subject_of(cell) for cell in table["cell"]]
    # A name is a fact; a column may have been made to look apart.
    subject = [
        of_name or of_file or told.get(key, "")
        for of_file, of_name, key in zip(own, named, table["key"], strict=True)
    ]
    # The known duplicates are C-NMC's, whose names begin with UID_.
    table["group"] = [
        merged_subject(one.upper()) if name else one
        for one, name in zip(subject, named, strict=True)
    ]
    # What a run wrote of its groups, and what the images say, knows more merged subjects.
    if images is None and "pixels" in split:
        group = split["group"] if "group" in split else [""] * len(split)
        known = zip(split["pixels"], group, strict=True)
        images = dict(zip(table["key"], known, strict=True))
    found = [(images or {}).get(key, ("", "")) for key in table["key"]]
    table["pixels"] = [pixels for pixels, _ in found]
    table["group"] = [group or own for (_, group), own in zip(found, table["group"], strict=True)]
    # Which training cells are not held against a cell: its own fold's.
    table["own"] = table["side"].where(table["trains"] & bool(folds), "")
    if not table["scored"].any():
        raise LeukoclsError(
            "no cell of the split is in the predictions: cells are matched by name; check that the"
            " two files belong together"
        )
    return table


def _side(split: pd.Series) -> pd.Series:
    return split.str.strip().str.lower().replace({"training": TRAIN})


def _overlaps(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Cells that are scored while their subject, name or pixels are trained on."""
    scored = table[table["scored"]].drop_duplicates("key")
    trained = table[table["trains"]]
    found = []
    for check, column, what in (
        ("subjects", "group", "of subjects that were trained on"),
        ("cells", "key", "cells that were trained on, by name"),
        ("pixels", "pixels", "images that were trained on, some under another name or turned"),
    ):
        known = scored[scored[column] != ""]
        if known.empty:
            reason = {
                "subjects": "no subjects: give them in a column subject of the split",
                "pixels": "images not compared: give the data with --data",
            }[check]
            found.append(_finding(check, None, reason))
            continue
        shared = known[_elsewhere(known, trained, column)]
        values = sorted(set(shared[column]))
        share = len(shared) / len(scored)
        text = f"{len(shared):,} of {len(scored):,} scored cells ({share:.1%}) are {what}"
        if check == "subjects":
            text += f": {len(values)} of {known[column].nunique()} subjects" if values else ""
            if len(known) < len(scored):
                text += f"; of {len(scored) - len(known):,} cells the subject is unknown"
        complete = len(known) == len(scored) and (trained[column] != "").all()
        ok = False if len(shared) else True if complete else None
        found.append(_finding(check, ok, text, shared["cell"], overlap=share, values=values))
    return found


def _elsewhere(cells: pd.DataFrame, trained: pd.DataFrame, column: str) -> pd.Series:
    """Whether what scores each cell was trained on the cell's value of `column`."""
    sides = trained[[column, "side"]].drop_duplicates()
    sides = sides[sides[column] != ""].groupby(column)["side"].agg(set).to_dict()
    elsewhere = [
        bool(sides.get(value, set()) - {own})
        for value, own in zip(cells[column], cells["own"], strict=True)
    ]
    return pd.Series(elsewhere, index=cells.index)


def _keys(predictions: pd.DataFrame) -> pd.DataFrame:
    """What one prediction is for: split, epoch (where the file has them) and cell."""
    columns = [name for name in ("split", "epoch") if name in predictions]
    return predictions[columns].assign(key=predictions["cell"].map(cell_key))


def _once(predictions: pd.DataFrame) -> dict[str, Any]:
    twice = predictions["cell"][_keys(predictions).duplicated()].drop_duplicates()
    if twice.empty:
        return _finding("once", True, "no cell is scored twice")
    return _finding("once", False, f"{len(twice):,} cells are scored more than once", twice)


def _complete(predictions: pd.DataFrame, table: pd.DataFrame) -> dict[str, Any]:
    keys = _keys(predictions)
    unknown = predictions["cell"][~keys["key"].isin(table["key"])].drop_duplicates()
    if len(unknown):
        text = f"{len(unknown):,} scored cells are not in the split"
        return _finding("complete", False, text, unknown)
    sides = set(table["side"][table["scored"]]) - {TRAIN}
    missing: list[str] = []
    # Each epoch is a claim of its own; of a run the tests have one epoch, selection all.
    for side in sorted(sides):
        cells = table[table["side"] == side]
        of_side = keys[keys["key"].isin(cells["key"])]
        epochs = of_side.groupby("epoch") if "epoch" in of_side else [(0, of_side)]
        for _, one in epochs:
            missing += cells["cell"][~cells["key"].isin(one["key"])].to_list()
    if missing:
        unscored = list(dict.fromkeys(missing))
        text = f"{len(unscored):,} cells of {', '.join(sorted(sides))} are not scored"
        return _finding("complete", False, text, unscored)
    return _finding("complete", True, f"all cells of {', '.join(sorted(sides))} are scored")


def _labels(predictions: pd.DataFrame, table: pd.DataFrame) -> dict[str, Any]:
    stated = (
        table["label"].str.lower().map(LABEL_WORDS) if "label" in table else table["key"].map({})
    )
    of_split = dict(zip(table["key"], stated, strict=True))
    given = predictions["cell"].map(cell_key).map(of_split)
    both = given.notna() & (predictions["label"] >= 0)
    wrong = predictions["cell"][both & (given != predictions["label"])].drop_duplicates()
    if len(wrong):
        text = f"{len(wrong):,} labels of the predictions contradict the split's"
        return _finding("labels", False, text, wrong)
    return _finding("labels", True, "no label contradicts the split's")


def _selection(
    predictions: pd.DataFrame, table: pd.DataFrame, record: dict[str, Any]
) -> dict[str, Any]:
    sides = sorted(set(table["side"]) - {TRAIN})
    reported = sorted(set(table["side"][table["scored"]]) - {TRAIN})
    chosen_on = (record.get("selection") or {}).get("set")
    choosing = [chosen_on] if chosen_on else [side for side in sides if side not in reported]
    others = [side for side in reported if side not in choosing]
    if chosen_on and not others:
        text = f"the epoch was chosen on {chosen_on}, which is reported"
        return _finding("selection", False, text)
    if table["own"].any():
        text = "folds are reported: ask on what each fold's epoch and threshold were chosen"
        return _finding("selection", None, text)
    if not chosen_on and "epoch" in predictions and len(set(predictions["epoch"])) > 1:
        text = "several epochs are scored on the reported set, and nothing says what chose among"
        return _finding("selection", False, f"{text} them")
    chose = table[table["side"].isin(choosing)]
    shared = table[table["side"].isin(others)]
    known = shared[["group", "key", "pixels"]].ne("") & shared[["group", "key", "pixels"]].isin(
        {column: set(chose[column]) for column in ("group", "key", "pixels")}
    )
    if len(cells := shared["cell"][known.any(axis=1)]):
        text = f"{len(cells):,} reported cells share subject or image with {', '.join(choosing)}"
        return _finding("selection", False, f"{text}, which chose or could choose", cells)
    if chosen_on:
        text = f"the epoch was chosen on {chosen_on}, and {', '.join(others)} chose nothing"
        return _finding("selection", True, text)
    if choosing:
        text = f"{', '.join(choosing)} could choose epoch and threshold; that it did is not shown"
        return _finding("selection", None, text)
    text = "the split has no set to choose the epoch and the threshold on: ask what chose them"
    return _finding("selection", None, text)


def _finding(
    check: str, ok: bool | None, text: str, cells: Any = (), **more: Any
) -> dict[str, Any]:
    return {"check": check, "ok": ok, "text": text, "cells": [str(c) for c in cells], **more}


def image_groups(root: Path, cache: Path) -> dict[str, tuple[str, str]]:
    """Pixel digest and group of each labelled cell of a data set, by the key of its name.

    Raises:
        LeukoclsError: `root` is missing or holds no known layout.
    """
    table = examine(root, "auto", True, cache).index.table
    # A final cell may have a prelim cell's name; who audits final has no labels to leak.
    table = table[table["part"] != "final"]
    known = zip(table["pixels"], table["group"], strict=True)
    return dict(zip(table["cell"].map(cell_key), known, strict=True))


def split_of_run(directory: Path, record: dict[str, Any]) -> pd.DataFrame:
    """The split.csv that a run wrote.

    Raises:
        LeukoclsError: it was changed since, or the run only scores what another one trained.
    """
    path = directory / "split.csv"
    split = read_split(path)
    if sha256_file(path) != (record.get("inputs") or {}).get("split"):
        raise LeukoclsError(f"{path}: is not the split the run was trained on; restore it")
    if TRAIN not in set(split["split"]):
        raise LeukoclsError(
            f"{directory}: scores what another run trained; audit that run, the checkpoint of"
            f" {directory / 'config.yaml'}"
        )
    return split
