"""A run without training: view 0 of a finished run, its epoch chosen by its own weighted F1.

Prellberg & Kramer 2019 train NOROT again; view 0 of eight is the unrotated image, so the same runs
hold it already.
"""

import csv
import io
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from leukocls import evaluate
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import atomic_write
from leukocls.losses import CellLoss
from leukocls.metrics import RECORDED, auroc, best_threshold, by_split, decide, rates, sigmoid
from leukocls.predictions import view_columns, write
from leukocls.run import Run
from leukocls.runs import read_record
from leukocls.selection import BEST_THRESHOLD, RULES

# What may differ between the runs: everything else is the same training.
VIEW_0 = "view 0"  # of whose identity the predictions it is taken from are a part
OWN_KEYS = {"views", "view_0_of", "selection", "threshold", f"sha256 of {VIEW_0}"}


def source_of(directory: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The predictions and the record of the finished run in `directory`.

    Raises:
        LeukoclsError: there is none, or it is not done.
    """
    advice = "run that first (the same command with its ablation), or view_0_of=null trains again"
    if not (directory / "run.json").is_file():
        raise LeukoclsError(f"{directory}: no run whose view 0 could be scored; {advice}.")
    status = read_record(directory).get("status")
    if status != "done":
        raise LeukoclsError(f"{directory}: its run is {status}, not done; {advice}.")
    return evaluate.load(directory)


def derive(run: Run, directory: Path, rule: str, threshold: float | str) -> None:
    """Write `run` from view 0 of the run in `directory`: predictions, metrics, record.

    Raises:
        LeukoclsError: the other run was trained otherwise, or holds its test by its own epoch only.
    """
    frame, record = source_of(directory)
    before = record["identity"]
    if before.get("patience"):
        raise LeukoclsError(
            f"{directory}: its patience ended it by the mean of its views; view_0_of=null trains"
            " again."
        )
    differ = {k for k in before.keys() | run.what.keys() if before.get(k) != run.what.get(k)}
    if strange := sorted(differ - OWN_KEYS):
        raise LeukoclsError(f"{directory}: was trained otherwise: {', '.join(strange)} differ.")
    frame = frame.drop(columns=view_columns(frame)[1:]).assign(logit=frame["view_0"])
    frame["prob"] = sigmoid(frame["logit"])
    rows = _rows(directory / "metrics.csv", frame, _loss_of(record))
    chosen_on = record["selection"]["set"]
    epoch = RULES[rule]([row[f"{chosen_on}_weighted_f1"] for row in rows])
    selected = frame[frame["epoch"] == epoch]
    if set(selected["split"]) != set(frame["split"]):
        raise LeukoclsError(
            f"{directory}: scored its test by epoch {record['selection']['epoch']} alone, and view"
            f" 0 chooses epoch {epoch}; view_0_of=null trains it again."
        )
    on = selected[selected["split"] == chosen_on]
    if threshold == BEST_THRESHOLD:
        threshold = best_threshold(on["label"], on["prob"])
    write(run.directory / "predictions.parquet", frame)
    atomic_write(run.directory / "metrics.csv", _csv(rows))
    (run.directory / "split.csv").write_bytes((directory / "split.csv").read_bytes())
    run.end(
        "done",
        predictions_sha256=run.stored_hashes()["predictions_sha256"],
        selection={"rule": rule, "set": chosen_on, "epoch": epoch},
        threshold=threshold,
        metrics=by_split(selected, float(threshold)),
    )


def _loss_of(record: dict[str, Any]) -> CellLoss:
    """The loss that the run in this record was trained with."""
    chosen = {
        k.removeprefix("loss."): v for k, v in record["identity"].items() if k.startswith("loss.")
    }
    return CellLoss(**{**chosen, "pos_weight": record["pos_weight"]})


def _rows(path: Path, frame: pd.DataFrame, loss: CellLoss) -> list[dict[str, Any]]:
    """metrics.csv of the trained run, with what depends on the logit taken from view 0."""
    with open(path, newline="", encoding="utf-8") as stream:
        rows: list[dict[str, Any]] = list(csv.DictReader(stream))
    for row in rows:
        of_epoch = frame[frame["epoch"] == int(row["epoch"])]
        for split, cells in of_epoch[of_epoch["label"] >= 0].groupby("split"):
            label, logit = cells["label"].to_numpy(), cells["logit"].to_numpy()
            called = decide(logit=logit)
            counts = [int(((called == c) & (label == y)).sum()) for c, y in
                      ((1, 1), (1, 0), (0, 0), (0, 1))]  # fmt: skip
            values = dict(zip(("tp", "fp", "tn", "fn"), counts, strict=True)) | rates(*counts)
            mean = float(loss(torch.tensor(logit).double(), torch.tensor(label)))
            values |= {"loss": mean, "auroc": auroc(label, logit)}
            names = ("loss", "tp", "fp", "tn", "fn", *RECORDED, "auroc")
            row |= {f"{split}_{name}": values[name] for name in names}
    return rows


def _csv(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
