"""Finished runs with made-up predictions, as `train` leaves them as far as numbers go."""

import numpy as np
import pandas as pd

from leukocls.artifacts import predictions
from leukocls.artifacts.record import write_record
from leukocls.evaluation import metrics

SEEDS = range(4)
CELLS = 60


def frame_of(split, epoch, seed, strength):
    """One split of one epoch; `seed` decides the logits, and the split alone the cells."""
    rng = np.random.default_rng([epoch, round(1000 * strength), seed, len(split)])
    number = np.arange(CELLS)
    label = (number % 3 > 0).astype(int)
    views = rng.normal(size=(CELLS, 4)).astype(np.float32)
    views += np.float32(strength) * (2 * label[:, None] - 1) + rng.normal(size=(CELLS, 1))
    logit = views.mean(axis=1)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "split": split,
            "cell": [f"{split}{k}.bmp" for k in number],
            "subject": [f"{'H' if k % 3 == 0 else ''}{k % 12}" for k in number],
            "label": label,
            **{f"view_{v}": views[:, v] for v in range(4)},
            "logit": logit,
            "prob": metrics.sigmoid(logit),
        }
    )


def write_run(directory, frame, **changes):
    """A finished run as `train` leaves it, as far as numbers go."""
    directory.mkdir(parents=True, exist_ok=True)
    predictions.write(directory / "predictions.parquet", frame)
    experiment, arm, name = directory.parts[-3:]
    seed = int(name.removeprefix("seed_"))
    known = {
        "id": f"{experiment}-{arm}-s{seed}-01234567",
        "status": "done",
        "error": None,
        "identity": {"seed": seed, "rescore_from": None},
        "data_digest": "d1",
        "split_scheme": "challenge",
        "selection": {"rule": "last", "set": "prelim", "epoch": 1},
        "threshold": 0.5,
        "marks": ["SYNTHETIC"],
        # Never read: every number is taken anew.
        "metrics": {"prelim": {"weighted_f1": 0.123}},
        "predictions_sha256": predictions.digest(frame),
    }
    write_record(directory, known | changes)
    return directory


def selected_on_prelim(seed, strength):
    return pd.concat([frame_of("prelim", epoch, seed, strength) for epoch in (0, 1)])


def view_0(frame):
    frame = frame.drop(columns=["view_1", "view_2", "view_3"]).assign(logit=frame["view_0"])
    return frame.assign(prob=metrics.sigmoid(frame["logit"]))


def write_sweep(root):
    """proposal, its view 0 and two other arms, four seeds each, selected on prelim."""
    for seed in SEEDS:
        where = f"seed_{seed:03d}"
        frame = selected_on_prelim(seed, 1.0)
        write_run(root / "proposal" / where, frame)
        identity = {"seed": seed, "rescore_from": "proposal"}
        write_run(root / "norot" / where, view_0(frame), identity=identity)
        write_run(root / "nospeclr_1e-4" / where, selected_on_prelim(seed, 0.5))
        write_run(root / "proposal,optim.lr=1" / where, selected_on_prelim(seed, 0.9))
    return root


def write_honest(root):
    """Runs that select on val and score prelim once, by the selected epoch."""
    for arm, strength in (("proposal", 1.0), ("noattention", 0.8)):
        for seed in SEEDS:
            frame = pd.concat([frame_of("val", epoch, seed, strength) for epoch in (0, 1)])
            frame = pd.concat([frame, frame_of("prelim", 1, seed, strength)])
            selection = {"rule": "last", "set": "val", "epoch": 1}
            where = root / arm / f"seed_{seed:03d}"
            write_run(where, frame, selection=selection, split_scheme="honest")
    return root
