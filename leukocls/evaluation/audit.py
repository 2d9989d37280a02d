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
from leukocls.data.names import LABEL_WORDS, cell_key, subject_of
from leukocls.data.published import merged_subject
from leukocls.data.splits import read_split
from leukocls.data.verify import examine

TRAIN = "train"
VERDICTS = {
    "leaky": "LEAKY. Subjects or images of the scored cells were also used for training or"
    " selection: the numbers partly measure memory, and do not hold for new subjects.",
    "broken": "BROKEN. The scored cells are not those of the split, each once: no metric of this"
    " file means what its name says.",
    "selection": "SELECTION. The reported set also chose the epoch or the threshold: its numbers"
    " are the best of several on the same cells, not a test.",
    "unknown": "NOT PROVED HONEST. No fault was found, but not everything could be checked.",
    "honest": "HONEST. No subject and no image is on two sides, every cell is scored once, and the"
    " reported set chose nothing.",
}
# The verdict of each check that fails. VERDICTS are in order of severity.
VERDICT_OF_CHECK = {
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
    """Check predictions against the split that they come from.

    Args:
        predictions: columns `cell`, `subject` and `label`, and `split` and `epoch` if known.
        split: columns `cell` and `split` (or `fold`: each fold is scored by a model that was
            trained on the others), and `subject` and `label` if known.
        record: the run's run.json; empty for files from elsewhere.
        images: pixel digest and group by `cell_key`; None takes both from the split's columns.

    Returns:
        `verdict` (a key of VERDICTS), `words` (its text) and `findings`.

    Raises:
        LeukoclsError: the split has no training cells, or none of its cells is scored.
    """
    table = _joined(split, predictions, images)
    findings = [
        *_overlaps(table),
        _once(predictions),
        _complete(predictions, table),
        _labels(predictions, table),
        _selection(predictions, table, record),
    ]
    if Mark.LEAKY in (record.get("marks") or []):
        findings.append(_finding("mark", False, "the run itself is marked LEAKY"))
    failed = [VERDICT_OF_CHECK[row["check"]] for row in findings if row["ok"] is False]
    unchecked = any(row["ok"] is None for row in findings)
    default = "unknown" if unchecked else "honest"
    worst = next((name for name in VERDICTS if name in failed), default)
    return {"verdict": worst, "words": VERDICTS[worst], "findings": findings}


def _joined(
    split: pd.DataFrame, predictions: pd.DataFrame, images: dict[str, tuple[str, str]] | None
) -> pd.DataFrame:
    """The split with all that the checks need.

    Columns added: `key`; `group` and `pixels` ("" if unknown); `scored`; `side`, the split's name
    or the fold; `trains`; `own`, the fold whose training cells were not used to score this cell.
    """
    table = split.assign(key=split["cell"].map(cell_key))
    scored = predictions
    if "split" in predictions:  # numbers on training cells are not reported as results
        scored = predictions[_side(predictions["split"]) != TRAIN]
    table["scored"] = table["key"].isin(scored["cell"].map(cell_key))
    table["side"] = _side(table["split"]) if "split" in table else TRAIN
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
    predicted = dict(zip(predictions["cell"].map(cell_key), predictions["subject"], strict=True))
    listed = table["subject"] if "subject" in table else [""] * len(table)
    named = [subject_of(cell) for cell in table["cell"]]
    # The name has priority: a column could be edited to hide a leak.
    subjects = [
        in_name or in_split or predicted.get(key, "")
        for in_split, in_name, key in zip(listed, named, table["key"], strict=True)
    ]
    # Only C-NMC's own subjects (cells named UID_…) are merged by the published duplicates.
    table["group"] = [
        merged_subject(subject.upper()) if name else subject
        for subject, name in zip(subjects, named, strict=True)
    ]
    # The groups of a run's split.csv, and those from the images, merge more subjects.
    if images is None and "pixels" in split:
        group = split["group"] if "group" in split else [""] * len(split)
        known = zip(split["pixels"], group, strict=True)
        images = dict(zip(table["key"], known, strict=True))
    pairs = [(images or {}).get(key, ("", "")) for key in table["key"]]
    table["pixels"] = [pixels for pixels, _ in pairs]
    table["group"] = [group or name for (_, group), name in zip(pairs, table["group"], strict=True)]
    # A fold's cells are scored by a model that was not trained on this fold.
    table["own"] = table["side"].where(table["trains"] & bool(folds), "")
    if not table["scored"].any():
        raise LeukoclsError(
            "no cell of the split is in the predictions: cells are matched by name; check that the"
            " two files belong together"
        )
    return table


def _side(split: pd.Series) -> pd.Series:
    """Names of splits in one spelling."""
    return split.str.strip().str.lower().replace({"training": TRAIN})


def _overlaps(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Findings on scored cells whose subject, name or pixels were trained on."""
    scored = table[table["scored"]].drop_duplicates("key")
    trained = table[table["trains"]]
    findings = []
    for check, column, description in (
        ("subjects", "group", "of subjects that were trained on"),
        ("cells", "key", "cells that were trained on, by name"),
        ("pixels", "pixels", "images that were trained on, some under another name or turned"),
    ):
        known = scored[scored[column] != ""]
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
            text += f": {len(values)} of {known[column].nunique()} subjects" if values else ""
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
    return predictions[columns].assign(key=predictions["cell"].map(cell_key))


def _once(predictions: pd.DataFrame) -> dict[str, Any]:
    """The finding on cells that are scored more than once."""
    twice = predictions["cell"][_keys(predictions).duplicated()].drop_duplicates()
    if twice.empty:
        return _finding("once", True, "no cell is scored twice")
    return _finding("once", False, f"{len(twice):,} cells are scored more than once", twice)


def _complete(predictions: pd.DataFrame, table: pd.DataFrame) -> dict[str, Any]:
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
    return _finding("complete", True, f"all cells of {', '.join(sorted(sides))} are scored")


def _labels(predictions: pd.DataFrame, table: pd.DataFrame) -> dict[str, Any]:
    """The finding on labels of the predictions that differ from the split's."""
    labels = (
        table["label"].str.lower().map(LABEL_WORDS) if "label" in table else table["key"].map({})
    )
    label_of = dict(zip(table["key"], labels, strict=True))
    expected = predictions["cell"].map(cell_key).map(label_of)
    both = expected.notna() & (predictions["label"] >= 0)
    wrong = predictions["cell"][both & (expected != predictions["label"])].drop_duplicates()
    if len(wrong):
        text = f"{len(wrong):,} labels of the predictions contradict the split's"
        return _finding("labels", False, text, wrong)
    return _finding("labels", True, "no label contradicts the split's")


def _selection(
    predictions: pd.DataFrame, table: pd.DataFrame, record: dict[str, Any]
) -> dict[str, Any]:
    """The finding on the set that chose the epoch, which must be disjoint from the reported set."""
    sides = sorted(set(table["side"]) - {TRAIN})
    reported = sorted(set(table["side"][table["scored"]]) - {TRAIN})
    chosen_on = (record.get("selection") or {}).get("set")
    choosing = [chosen_on] if chosen_on else [side for side in sides if side not in reported]
    others = [side for side in reported if side not in choosing]
    if chosen_on and not others:
        text = f"the epoch was chosen on {chosen_on}, which is reported"
        return _finding("selection", False, text)
    if table["own"].any():
        text = "folds are reported: ask on which cells each fold's epoch and threshold were chosen"
        return _finding("selection", None, text)
    if not chosen_on and "epoch" in predictions and len(set(predictions["epoch"])) > 1:
        text = "several epochs are scored on the reported set, and no run.json says how one was"
        return _finding("selection", False, f"{text} chosen")
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
        text = f"{', '.join(choosing)} could choose epoch and threshold, but nothing shows that it"
        return _finding("selection", None, f"{text} did")
    text = "the split has no set to choose the epoch and the threshold on: ask how they were chosen"
    return _finding("selection", None, text)


def _finding(
    check: str, ok: bool | None, text: str, cells: Any = (), **more: Any
) -> dict[str, Any]:
    """One finding, as the module describes it."""
    return {"check": check, "ok": ok, "text": text, "cells": [str(c) for c in cells], **more}


def image_groups(root: Path, cache: Path, outside: bool) -> dict[str, tuple[str, str]]:
    """Pixel digest and group of each labelled cell of a data set, by `cell_key`.

    Args:
        root, cache, outside: as `leukocls.data.verify.examine`.

    Raises:
        LeukoclsError: `root` is missing or holds no known layout.
    """
    table = examine(root, "auto", True, cache, outside).index.table
    # Final's cells may have the names of prelim's, and have no labels that could leak.
    table = table[table["part"] != "final"]
    known = zip(table["pixels"], table["group"], strict=True)
    return dict(zip(table["cell"].map(cell_key), known, strict=True))


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
