"""W&B panels of a run and of a comparison of arms, built from files: the same live and later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from leukocls.artifacts.predictions import persons
from leukocls.common.errors import LeukoclsError
from leukocls.data.splits import read_split
from leukocls.evaluation import scoring
from leukocls.evaluation.cell_metrics import cell_metrics
from leukocls.evaluation.history import read_history
from leukocls.evaluation.metrics import decide

if TYPE_CHECKING:
    import pandas as pd

    from leukocls.reporting.figures import Figure

THUMBNAILS = 200
THUMBNAIL_SIDE = 96  # px
SHA256 = "predictions_sha256"
# The image of a cell, uint8 [S, S, 3], by its name and subject (final has cells of prelim's names).
Picture = Callable[[str, str], np.ndarray]


@dataclass(frozen=True)
class TrackedRun:
    """The content of one W&B run.

    Attributes:
        init: arguments of `wandb.init`.
        curves: one row of history for each epoch.
        figures: makes the last row, of tables and plots, from the package wandb.
        summary: its `predictions_sha256` identifies the content.
    """

    init: dict[str, Any]
    curves: list[dict[str, Any]]
    figures: Callable[[Any], dict[str, Any]]
    summary: dict[str, Any]

    @property
    def rows(self) -> int:
        """Number of rows of its history."""
        return len(self.curves) + 1


def open_run(wandb: Any, init: dict[str, Any], live: bool, **where: Any) -> Any:
    """Open the W&B run of this id, or resume it if W&B holds it; curves are plotted by epoch."""
    run = wandb.init(
        **init,
        **where,
        resume="allow",
        settings=wandb.Settings(
            console="off",
            silent=True,
            save_code=False,
            # W&B's metadata holds the command line, and secrets that may be on it.
            x_disable_meta=True,
            # The use of this machine says something about a run only while it trains here.
            x_disable_stats=not live,
            x_save_requirements=live,
        ),
    )
    run.define_metric("*", step_metric="epoch")
    return run


def run_init(directory: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `wandb.init` for a run: id, name, group, job type, tags, configuration."""
    experiment, arm, seed = directory.resolve().parts[-3:]
    config: Any = OmegaConf.to_container(OmegaConf.load(directory / "config.yaml"))
    recorded = {name: record[name] for name in ("marks", "config_hash", "versions")}
    rescored = config.get("rescore_from") or config.get("view_0_of")  # the name before 0.2
    job_type = "rescore" if rescored else "baseline" if "features" in config else "train"
    return {
        # W&B takes no comma in an id; the hash in it keeps ids apart all the same.
        "id": record["id"].replace(",", "+"),
        "name": f"{experiment}/{arm}/{seed}",
        "group": f"{experiment}/{arm}",
        "job_type": "score" if config.get("checkpoint") else job_type,
        "tags": record["marks"],
        "config": {
            **config,
            **recorded,
            "experiment": experiment,
            "arm": arm,
            "selection_set": record["selection"]["set"],
        },
    }


def curves(directory: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a run's metrics.csv, without empty fields and without its tests.

    A test is scored once, at the selected epoch: that is no curve. A run that has not scored
    anything yet has no row.
    """
    try:
        rows = read_history(directory)
        splits = set(read_split(directory / "split.csv")["split"])
    except (FileNotFoundError, LeukoclsError):
        return []
    scored = splits - {"train"}
    tests = scored - {record["selection"]["set"]}
    # What a scored checkpoint reports is all it has.
    tests = tests if tests != scored else set()
    return [
        {
            name: value
            for name, value in row.items()
            if value is not None and name.partition("_")[0] not in tests
        }
        for row in rows
    ]


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """The columns of W&B's table of runs: every metric of the selected epoch, by split.

    `heading` labels a split's numbers as selection, test or training.
    """
    values = {
        "selected/epoch": record["selection"]["epoch"],
        "selected/threshold": record["threshold"],
        SHA256: record[SHA256],
    }
    for split, measured in record["metrics"].items():
        values[f"selected/{split}/heading"] = scoring.heading(record, split, as_selected=True)
        subject = {f"subject_{name}": value for name, value in measured["subject"].items()}
        for name, value in (measured | subject).items():
            if isinstance(value, int | float):
                values[f"selected/{split}/{name}"] = value
    return values


def pictures(images: np.ndarray, table: pd.DataFrame) -> Picture:
    """A function from a cell's name and subject to its image in `images`, the store of `table`."""
    rows = {key: row for row, key in enumerate(zip(table["cell"], table["subject"], strict=True))}
    return lambda cell, subject: images[rows[cell, subject]]


def figures(
    wandb: Any, record: dict[str, Any], frame: pd.DataFrame, picture: Picture | None
) -> dict[str, Any]:
    """Confusion matrix, accuracy by person and a table of cells, for each split.

    Args:
        record: run.json of the finished run.
        frame: its predictions; those of the selected epoch are shown.
        picture: None leaves the images out.
    """
    logged: dict[str, Any] = {}
    threshold, epoch = record["threshold"], record["selection"]["epoch"]
    for name, cells in frame[frame["epoch"] == epoch].groupby("split"):
        split = str(name)
        logged[f"{split}/cells"] = _cells(wandb, cells, picture)
        known = cells[cells["label"] >= 0]
        if known.empty:
            continue
        heading = scoring.heading(record, split, as_selected=True)
        title = " ".join([f"{split} ({heading}), epoch {epoch}", *record["marks"]])
        called = decide(logit=known["logit"].to_numpy(), threshold=threshold)
        logged[f"{split}/confusion"] = wandb.plot.confusion_matrix(
            y_true=known["label"].tolist(),
            preds=called.astype(int).tolist(),
            class_names=["HEM", "ALL"],
            title=title,
        )
        values = cell_metrics(
            known["label"],
            logit=known["logit"],
            subject=persons(known),
            threshold=threshold,
        )
        rows = [[one["subject"], one["accuracy"]] for one in values["subject"]["per_subject"]]
        logged[f"{split}/subjects"] = wandb.plot.bar(
            wandb.Table(columns=["person", "accuracy"], data=rows),
            "person",
            "accuracy",
            title=f"Accuracy by person: {title}",
        )
    return logged


def _cells(wandb: Any, cells: pd.DataFrame, picture: Picture | None) -> Any:
    """A table of cells: the most confident errors first; unlabelled cells last, by doubt."""
    prob, label = cells["prob"].to_numpy(), cells["label"].to_numpy()
    wrongness = np.where(label < 0, -abs(prob - 0.5), np.where(label == 1, 1 - prob, prob))
    rows = []
    for cell in cells.iloc[np.argsort(-wrongness, kind="stable")[:THUMBNAILS]].itertuples():
        row = [cell.cell, cell.subject, cell.label, float(cell.prob)]
        if picture:
            image = picture(cell.cell, cell.subject)
            step = max(len(image) // THUMBNAIL_SIDE, 1)
            row.insert(0, wandb.Image(np.ascontiguousarray(image[::step, ::step])))
        rows.append(row)
    columns = ["image"] * bool(picture) + ["cell", "subject", "label", "prob"]
    return wandb.Table(columns=columns, data=rows)


def comparison(
    experiment: str,
    document: dict[str, Any],
    curves: dict[str, list[dict[str, Any]]],
    drawn: Sequence[Figure],
) -> TrackedRun:
    """The W&B run of a comparison; comparing other runs makes another W&B run.

    Args:
        document: `leukocls.evaluation.comparison.compare`'s.
        curves: rows of metrics.csv by arm, of all its runs.
        drawn: the figures of a report on these runs.
    """
    sources = json.dumps(document["sources"], sort_keys=True)
    digest = hashlib.sha256(sources.encode()).hexdigest()
    selection, test = document["selection_set"], document["test_set"]
    named = {name: document[name] for name in ("selection_set", "test_set", "marks", "sources")}
    init = {
        "id": f"{experiment}-compare-{digest[:8]}",
        "name": f"{experiment}/compare",
        "group": experiment,
        "job_type": "compare",
        "tags": document["marks"],
        "config": named | {"experiment": experiment},
    }

    def shown(wandb: Any) -> dict[str, Any]:
        from leukocls.reporting.figures import png  # with matplotlib, which a live run does without

        heading = f"test ({test})" if test else f"selection ({selection})"
        title = " ".join([f"Weighted F1, {heading}", *document["marks"]])
        means = [[arm["name"], arm["weighted_f1"]["mean"]] for arm in document["arms"]]
        logged = {
            "compare/arms": _arms(wandb, document, heading),
            "compare/values": _values(wandb, document, heading),
            "compare/weighted_f1": wandb.plot.bar(
                wandb.Table(columns=["arm", "mean"], data=means),
                "arm",
                "mean",
                title=f"{title}: mean over seeds",
            ),
        }
        if any(curves.values()):  # baselines have none
            logged["compare/epochs"] = _epochs(
                wandb, curves, f"{selection}_weighted_f1", " ".join(document["marks"])
            )
        if document["tests"]:
            logged["compare/tests"] = _tests(wandb, document["tests"])
        for figure in drawn:
            image = Image.open(BytesIO(png(figure)))
            logged[f"compare/{figure.name}"] = wandb.Image(image, caption=figure.caption)
        return logged

    return TrackedRun(init, [], shown, {SHA256: digest})


def _measured(arm: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    return ((k, v) for k, v in arm.items() if isinstance(v, dict) and "values" in v)


def _arms(wandb: Any, document: dict[str, Any], heading: str) -> Any:
    columns = ["mean", "sd", "min", "max"]
    rows = [
        [heading, arm["name"], metric, arm["n"], arm["planned"], *(of[c] for c in columns)]
        for arm in document["arms"]
        for metric, of in _measured(arm)
    ]
    return wandb.Table(columns=["numbers", "arm", "metric", "n", "planned", *columns], data=rows)


def _values(wandb: Any, document: dict[str, Any], heading: str) -> Any:
    rows = [
        [heading, arm["name"], metric, seed, value]
        for arm in document["arms"]
        for metric, of in _measured(arm)
        for seed, value in zip(arm["seeds"], of["values"], strict=True)
    ]
    return wandb.Table(columns=["numbers", "arm", "metric", "seed", "value"], data=rows)


def _tests(wandb: Any, tests: list[dict[str, Any]]) -> Any:
    columns = [
        *("a", "b", "metric", "family", "test", "alternative", "statistic"),
        *("p", "p_holm", "effect_name", "effect"),
    ]
    return wandb.Table(columns=columns, data=[[test[name] for name in columns] for test in tests])


def _epochs(wandb: Any, curves: dict[str, list[dict[str, Any]]], column: str, marks: str) -> Any:
    """Each arm's mean by epoch, over the runs that reached the epoch."""
    xs, ys = [], []
    for rows in curves.values():
        epochs = sorted({row["epoch"] for row in rows})
        xs.append(epochs)
        ys.append([float(np.mean([r[column] for r in rows if r["epoch"] == e])) for e in epochs])
    title = f"{column}: mean over seeds {marks}".rstrip()
    return wandb.plot.line_series(xs, ys, keys=list(curves), title=title, xname="epoch")
