"""The selection set without the optimism of the epoch's choice, against a plain loop."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from leukocls.evaluation.debiased import debiased
from leukocls.evaluation.metrics import confusion, rates

EPOCHS = 6


def predicted(seed: int = 0, persons: int = 10, noise: float = 0.4) -> pd.DataFrame:
    """Epochs that are equally good, but that each is better for some persons than for others."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(persons), rng.integers(3, 30, persons))
    label, frames = (subject % 2).astype(int), []
    for epoch in range(EPOCHS):
        z = 1.6 * label - 0.8 + rng.normal(0, noise, persons)[subject] + rng.normal(size=len(label))
        names = [f"{'' if y else 'H'}{s}" for s, y in zip(subject, label, strict=True)]
        cells = {"cell": [f"{k}.bmp" for k in range(len(label))], "subject": names}
        frames.append(pd.DataFrame({"epoch": epoch, **cells, "label": label, "logit": z}))
    return pd.concat(frames).sample(frac=1, random_state=seed)


def weighted_f1(cells: pd.DataFrame) -> float:
    return f1_score(cells["label"], cells["logit"] > 0, average="weighted")


def test_each_person_is_scored_at_the_epoch_of_the_others() -> None:
    frame, kept = predicted(), []
    for person in frame["subject"].unique():
        others = frame[frame["subject"] != person]
        history = [weighted_f1(others[others["epoch"] == epoch]) for epoch in range(EPOCHS)]
        epoch = int(np.argmax(history))
        kept.append(frame[(frame["subject"] == person) & (frame["epoch"] == epoch)])
    cells = pd.concat(kept)
    assert len(set(cells["epoch"])) > 1
    found = debiased(frame, "best_weighted_f1")
    called = cells["logit"] > 0
    assert found == pytest.approx({
        "weighted_f1": weighted_f1(cells),
        "accuracy": (called == cells["label"]).mean(),
        "sensitivity": recall_score(cells["label"], called),
        "specificity": recall_score(cells["label"], called, pos_label=0),
        "auroc": roc_auc_score(cells["label"], cells["logit"]),
    })  # fmt: skip


def test_a_fixed_epoch_has_no_optimism() -> None:
    frame = predicted()
    found = debiased(frame, "last")
    assert found
    assert found["weighted_f1"] == weighted_f1(frame[frame["epoch"] == EPOCHS - 1])


def test_what_the_choice_adds_is_gone_on_average() -> None:
    """The best of equally good epochs is too good on average; the debiased value is not."""
    chosen, corrected, truth = [], [], []
    for seed in range(80):
        frame = predicted(seed, 28, noise=0.5)
        epochs = (cells for _, cells in frame.groupby("epoch"))
        by_epoch = [rates(**confusion(e["label"], e["logit"] > 0))["weighted_f1"] for e in epochs]
        chosen.append(max(by_epoch))
        truth.append(np.mean(by_epoch))
        found = debiased(frame, "best_weighted_f1")
        assert found
        corrected.append(found["weighted_f1"])
    optimism = np.mean(chosen) - np.mean(truth)
    assert optimism > 0.02
    assert abs(np.mean(corrected) - np.mean(truth)) < 0.25 * optimism


def test_it_needs_persons_and_a_choice() -> None:
    frame = predicted()
    assert debiased(frame.assign(subject=""), "best_weighted_f1") is None
    assert debiased(frame[frame["epoch"] == 0], "best_weighted_f1") is None
    assert debiased(frame[frame["subject"] == "1"], "best_weighted_f1") is None
