"""Predictions summed up by group of images: the person in C-NMC's names, or the folder."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from leukocls.common.errors import LeukoclsError
from leukocls.data.names import subject_of
from leukocls.data.published import merged_subject
from leukocls.inference.images import Found, text_of


def groups_of(images: Sequence[Found], kind: str) -> list[str]:
    """The group of each image.

    Args:
        kind: "subject": the person, by a name such as `UID_H3_2_1_hem.bmp`, where subjects of C-NMC
            that are known to be one person are one; "folder": the folder that the file is in.

    Raises:
        LeukoclsError: names that tell no subject.
    """
    if kind == "folder":
        return [text_of(str(found.path.parent)) for found in images]
    subjects = [subject_of(found.path.name) for found in images]
    if "" in subjects:
        unknown = images[subjects.index("")]
        raise LeukoclsError(
            f"{unknown.path}: its name tells no subject, as UID_SUBJECT_IMAGE_CELL_CLASS.bmp would;"
            " keep the images of each person in a folder of their own, and take --group-by folder."
        )
    return [merged_subject(subject) for subject in subjects]


def summary(table: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    """One row for each group, in order of its name.

    Columns: `group`; `cells`, those predicted; `skipped`; `called_all`; `share_all` of the cells;
    `mean_logit`; `mean_prob`; `abstained`; `far`, cells whose distance is above 1. What depends on
    a cell is NaN where none was predicted.

    Args:
        table: as `predict` writes it.
        groups: of each row.
    """
    rows = []
    for group, part in table.groupby(np.asarray(groups, object), sort=True):
        good = part[part["reason"] == ""]
        rows.append(
            {
                "group": group,
                "cells": len(good),
                "skipped": len(part) - len(good),
                "called_all": int((good["label"] == "ALL").sum()),
                "share_all": float((good["label"] == "ALL").mean()),
                "mean_logit": float(good["logit"].mean()),
                "mean_prob": float(good["prob"].mean()),
                "abstained": int((good["abstain"] == "yes").sum()),
                "far": int((good["distance"] > 1).sum()),
            }
        )
    return pd.DataFrame(rows)
