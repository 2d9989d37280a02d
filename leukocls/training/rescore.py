"""Rescore a finished run on view 0, the unrotated image, with its own choice of epoch.

NOROT of Prellberg & Kramer 2019 evaluates without rotated views. The authors trained it again; the
logits of view 0 are in every finished run, so no training is needed.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from leukocls.artifacts.predictions import sigmoid, view_columns, write
from leukocls.artifacts.record import RunState, read_record
from leukocls.artifacts.run_dir import RunDir
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import atomic_write
from leukocls.evaluation import scoring
from leukocls.evaluation.calibration import of_run
from leukocls.evaluation.cell_metrics import by_split
from leukocls.evaluation.history import Row, read_history, split_columns, write_history
from leukocls.evaluation.metrics import auroc, best_threshold, confusion, decide, rates
from leukocls.evaluation.selection import BEST_THRESHOLD, RULES
from leukocls.training.losses import CellLoss

# Settings and inputs that may differ between the two runs; the training is the same.
OWN_KEYS = {"views", "rescore_from", "selection", "threshold", "inputs.rescored"}


def rescored_input(directory: Path) -> dict[str, str]:
    """The input that a rescored run has besides those of its training: the predictions' digest.

    Raises:
        LeukoclsError: as `rescored_run`.
    """
    return {"rescored": rescored_run(directory)[1]["predictions_sha256"]}


def rescored_run(directory: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The predictions and the record of the finished run in `directory`.

    Raises:
        LeukoclsError: there is none, or it is not done.
    """
    advice = (
        "train it first (the same command with its ablation), or set rescore_from=null to train"
    )
    if not (directory / "run.json").is_file():
        raise LeukoclsError(f"{directory}: no run whose view 0 could be scored; {advice}.")
    status = read_record(directory).get("status")
    if status != "done":
        raise LeukoclsError(f"{directory}: its run is {status}, not done; {advice}.")
    return scoring.load_predictions(directory)


def rescore(run: RunDir, directory: Path, rule: str, threshold: float | str) -> None:
    """Write `run` from view 0 of the run in `directory`: predictions, metrics and record.

    Raises:
        LeukoclsError: the other run had other settings, or scored its test at another epoch than
            view 0 selects.
    """
    frame, record = rescored_run(directory)
    if record["identity"].get("patience"):
        raise LeukoclsError(
            f"{directory}: early stopping ended it by the mean of its views; rescore_from=null"
            " trains again."
        )
    if strange := [key for key in run.differences(record, directory) if key not in OWN_KEYS]:
        raise LeukoclsError(f"{directory}: was trained otherwise: {', '.join(strange)} differ.")
    frame = frame.drop(columns=view_columns(frame)[1:]).assign(logit=frame["view_0"])
    frame["prob"] = sigmoid(frame["logit"])
    rows = _rows(directory, frame, _loss_of(record))
    chosen_on = record["selection"]["set"]
    epoch = RULES[rule]([row[f"{chosen_on}_weighted_f1"] for row in rows])
    selected = frame[frame["epoch"] == epoch]
    if set(selected["split"]) != set(frame["split"]):
        raise LeukoclsError(
            f"{directory}: scored its test at epoch {record['selection']['epoch']}, and view 0"
            f" selects epoch {epoch}; rescore_from=null trains again."
        )
    on = selected[selected["split"] == chosen_on]
    if threshold == BEST_THRESHOLD:
        threshold = best_threshold(on["label"], on["prob"])
    write(run.directory / "predictions.parquet", frame)
    write_history(run.directory, rows)
    atomic_write(run.directory / "split.csv", (directory / "split.csv").read_bytes())
    run.end(
        RunState.DONE,
        predictions_sha256=run.stored_hashes(network=False)["predictions_sha256"],
        selection={"rule": rule, "set": chosen_on, "epoch": epoch},
        threshold=threshold,
        calibration=of_run(selected, chosen_on, record["pos_weight"]),
        metrics=by_split(selected, float(threshold)),
    )


def _loss_of(record: dict[str, Any]) -> CellLoss:
    """The loss that the run in this record was trained with."""
    chosen = {
        k.removeprefix("loss."): v for k, v in record["identity"].items() if k.startswith("loss.")
    }
    return CellLoss(**{**chosen, "pos_weight": record["pos_weight"]})


def _rows(directory: Path, frame: pd.DataFrame, loss: CellLoss) -> list[Row]:
    """metrics.csv of the trained run, with what depends on the logit taken from view 0."""
    rows = read_history(directory)
    if absent := set(frame["epoch"]) - {row["epoch"] for row in rows}:
        raise LeukoclsError(
            f"{directory / 'metrics.csv'}: lacks epoch {min(absent)}, which predictions.parquet"
            " has; restore it, or run again with force=true."
        )
    for row in rows:
        of_epoch = frame[frame["epoch"] == row["epoch"]]
        for split, cells in of_epoch[of_epoch["label"] >= 0].groupby("split"):
            label, logit = cells["label"].to_numpy(), cells["logit"].to_numpy()
            counts = confusion(label, decide(logit=logit))
            mean = float(loss(torch.tensor(logit).double(), torch.tensor(label)))
            values = {"loss": mean, **counts, **rates(**counts), "auroc": auroc(label, logit)}
            row |= split_columns(str(split), values)
    return rows
