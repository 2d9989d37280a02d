"""`python -m leukocls.evaluate`: the metrics of prediction files, ours and other people's."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukocls import metrics
from leukocls.artifacts.marks import Mark, banner
from leukocls.artifacts.record import read_record
from leukocls.common.errors import LeukoclsError, run_verb
from leukocls.common.files import atomic_write
from leukocls.common.tables import aligned

if TYPE_CHECKING:
    import pandas as pd

    from leukocls.prediction_files import Truth


@dataclass(frozen=True)
class Choice:
    """What the command line asks for; None leaves it to the run."""

    split: str | None = None
    epoch: str | None = None
    threshold: float | None = None
    views: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Part:
    """One split of one epoch of one input: its cells and where they come from."""

    frame: pd.DataFrame
    origin: dict[str, Any]

    @property
    def outputs(self) -> dict[str, Any]:
        """What `metrics` scores: hard labels, or logits or probabilities and their threshold."""
        if "label_pred" in self.frame:
            return {"label_pred": self.frame["label_pred"].to_numpy()}
        names = [name for name in ("logit", "prob") if name in self.frame]
        columns = {name: self.frame[name].to_numpy() for name in names}
        return columns | {"threshold": self.origin["threshold"]}


def heading(record: dict[str, Any], split: str | None, as_selected: bool) -> str:
    """`training`, `selection`, `test` or `unknown`: what the numbers of `split` may be called.

    `test` needs a run that selected on another split, and is left as it was selected: an epoch,
    threshold or set of views from the command line may have been chosen on this very split.
    """
    if not record or split is None:
        return "unknown"
    if split == "train":
        return "training"
    chosen_on = (record.get("selection") or {}).get("set")
    if split == chosen_on:
        return "selection"
    # What was in part trained on or chosen by is no test, whatever its name.
    clean = chosen_on and as_selected and Mark.LEAKY not in (record.get("marks") or [])
    return "test" if clean else "unknown"


def parts(source: Path, choice: Choice, truth: Truth | None = None) -> list[Part]:
    """The splits and epochs of `source` that `choice` asks for, with the labels of `truth`.

    Raises LeukoclsError on anything that cannot be believed: edited or foreign cells, bad values.
    """
    from leukocls import prediction_files

    frame, record = load(source)
    selected = record.get("selection") or {}
    splits = _splits(frame, source, choice.split)
    if truth is not None and len(splits) > 1:
        raise LeukoclsError(
            f"{source}: holds the splits {', '.join(map(str, splits))}, and --truth is for one;"
            " choose it with --split"
        )
    found = []
    for split in splits:
        of_split = frame[frame["split"] == split] if "split" in frame else frame
        for epoch in _epochs(of_split, source, choice.epoch, selected.get("epoch")):
            cells = of_split[of_split["epoch"] == epoch] if epoch is not None else of_split
            cells = _rescored(cells, source, choice.views)
            if truth is not None:
                cells = prediction_files.join(cells, truth, str(source))
            stored = record.get("threshold")
            stored = 0.5 if stored is None else float(stored)
            threshold = stored if choice.threshold is None else choice.threshold
            as_selected = (
                epoch == selected.get("epoch") and threshold == stored and choice.views is None
            )
            origin = {
                "source": str(source),
                "run": record.get("id"),
                "predictions_sha256": record.get("predictions_sha256"),
                "split": split if split is not None else choice.split,
                "epoch": epoch,
                "threshold": None if "label_pred" in cells else threshold,
                "heading": heading(record, split, as_selected),
                "marks": list(record.get("marks") or []),
            }
            found.append(Part(cells.sort_values("cell"), origin))
    return found


def result(part: Part) -> dict[str, Any]:
    """Origin and metrics of one part, fit for JSON. Without labels every metric is undefined."""
    frame, source = part.frame, part.origin["source"]
    unlabelled = frame["cell"][frame["label"] < 0]
    if len(unlabelled) == len(frame):
        return part.origin | metrics.unlabelled(len(frame))
    if len(unlabelled):
        from leukocls.common.tables import listing

        raise LeukoclsError(
            f"{source}: cells without a label: {listing(unlabelled)}; give them with --truth"
        )
    try:
        values = metrics.cell_metrics(
            frame["label"].to_numpy(), subject=frame["subject"].to_numpy(dtype=str), **part.outputs
        )
    except LeukoclsError as error:
        raise LeukoclsError(f"{source}: {error}") from error
    return part.origin | values


def write_submission(path: Path, part: Part) -> None:
    """Write the ISBI 2019 challenge's zip. Raises LeukoclsError unless cells are 1.bmp … N.bmp."""
    from leukocls.prediction_files import challenge_zip

    called = metrics.decide(**part.outputs)
    atomic_write(path, challenge_zip(part.frame["cell"], called, part.origin["source"]))
    print(f"{path}: {len(called)} cells", file=sys.stderr)


def load(source: Path, unique: bool = True) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predictions, and the run.json beside them; empty if no run of ours made them. Other people's
    may hold a cell twice if `unique` is false.

    Raises LeukoclsError unless they are those that the run wrote.
    """
    from leukocls import prediction_files
    from leukocls.artifacts import predictions

    directory = source if source.is_dir() else source.parent
    in_run = source.name == "predictions.parquet" and (directory / "run.json").exists()
    if not (source.is_dir() or in_run):
        return prediction_files.read_predictions(source, unique), {}
    record = read_record(directory)
    recorded = record.get("predictions_sha256")
    if not recorded:
        raise LeukoclsError(
            f"{directory}: run.json (status {record.get('status')}) has no predictions_sha256, so"
            " nothing vouches for the predictions; let the run finish"
        )
    frame = predictions.read(directory / "predictions.parquet")
    if predictions.digest(frame) != recorded:
        raise LeukoclsError(
            f"{directory / 'predictions.parquet'}: these are not the predictions the run wrote"
            " (their digest is not run.json's predictions_sha256); they were edited or belong to"
            " another run: restore them or train again"
        )
    return frame, record


def _splits(frame: pd.DataFrame, source: Path, wanted: str | None) -> list[str | None]:
    if "split" not in frame:
        return [None]
    present = sorted(set(frame["split"]))
    if wanted is None:
        return list(present)
    if wanted not in present:
        raise LeukoclsError(
            f"{source}: no split {wanted}; --split takes one of {', '.join(present)}"
        )
    return [wanted]


def _epochs(
    frame: pd.DataFrame,
    source: Path,
    wanted: str | None,
    selected: int | None,
) -> list[int | None]:
    present: list[int] = sorted({int(e) for e in frame["epoch"]}) if "epoch" in frame else []
    if wanted == "all":
        return list(present) or [None]
    if wanted == "last":
        return list(present[-1:]) or [None]
    if wanted in (None, "selected"):
        if selected is None and len(present) < 2:
            return list(present) or [None]
        if selected in present:
            return [selected]
        cause = f"no predictions of the selected epoch {selected}"
        if selected is None:
            cause = "no run.json says which of its epochs was selected"
    elif wanted is not None and wanted.isdecimal() and int(wanted) in present:
        return [int(wanted)]
    else:
        cause = f"no epoch {wanted}"
    raise LeukoclsError(
        f"{source}: {cause}; --epoch takes last, all"
        f"{', ' if present else ''}{' or '.join(map(str, present))}"
    )


def _rescored(frame: pd.DataFrame, source: Path, views: tuple[int, ...] | None) -> pd.DataFrame:
    if views is None:
        return frame
    names = [f"view_{view}" for view in views]
    if absent := [name for name in names if name not in frame]:
        raise LeukoclsError(f"{source}: has no column {', '.join(absent)}; --views cannot use it")
    logit = frame[names].to_numpy("float64").mean(axis=1)
    return frame.assign(logit=logit, prob=metrics.sigmoid(logit))


def text(result: dict[str, Any], per_subject: bool = False) -> str:
    """One result for people: where it comes from, what it may be called, counts, metrics."""
    where = [result["source"]]
    where += [f"{key} {result[key]}" for key in ("split", "epoch") if result[key] is not None]
    hard = result["threshold"] is None
    where.append("hard labels" if hard else f"threshold {result['threshold']:g}")
    lines = [f"{result['heading'].upper()}   {' · '.join(where)}"]
    lines += banner(result["marks"])
    if result["tp"] is None:
        return "\n".join([*lines, f"{result['n']} cells, no labels: nothing to score"])

    tp, fp, tn, fn = (result[key] for key in metrics.COUNTS)
    subjects, of_subjects = result["n_subjects"], result["subject"]
    lines.append(f"{result['n']} cells, {tp + fn} ALL and {tn + fp} HEM")
    counts = [("", "called ALL", "called HEM"), ("is ALL", tp, fn), ("is HEM", fp, tn)]
    rows: list[tuple[object, ...]] = [
        (name, _shown(result[name]), result["missing"].get(name, ""))
        for name in ("prevalence", *metrics.RATES, *metrics.GRADED)
    ]
    rows += [
        (name.replace(".", " "), _shown(of_subjects[name[8:]]), result["missing"].get(name, ""))
        for name in metrics.SUBJECT_KEYS
    ]
    lines += ["", aligned(counts), "", f"{subjects or 'unknown'} subjects", aligned(rows)]
    if per_subject and of_subjects["per_subject"]:
        keys = ("subject", "label", "n", "correct", "accuracy", "mean_logit")
        table = [[_shown(one[key]) for key in keys] for one in of_subjects["per_subject"]]
        lines += ["", aligned([keys, *table])]
    return "\n".join(lines)


def _shown(value: object) -> str:
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _views(text: str) -> tuple[int, ...] | None:
    return None if text == "all" else tuple(int(view) for view in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.evaluate",
        description="Metrics of run directories, predictions.parquet, CSV or parquet with cell and"
        " prob, logit, label_pred or labels, and challenge files (isbi_valid.predict, or its zip).",
    )
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT")
    add("--truth", type=Path, help="CSV with cell,label or Patient_ID,new_names,labels")
    add("--split", help="score this split only; names it where the file does not")
    add("--epoch", help="a number, selected (default), last or all")
    add("--threshold", type=float, help="probability above which a cell is ALL (the run's, or 0.5)")
    add("--views", type=_views, default=None, help="all (default), or the views to average: 0,2")
    add("--submission", type=Path, metavar="FILE.zip", help="also write the challenge's format")
    add("--per-subject", action="store_true", help="print a line for each subject")
    add("--json", action="store_true", help="print one JSON document: an object, or a list")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate the inputs. Raises LeukoclsError naming the file, the cause and the remedy."""
    arguments = _parser().parse_args(argv)
    from leukocls.prediction_files import read_truth

    choice = Choice(arguments.split, arguments.epoch, arguments.threshold, arguments.views)
    truth = read_truth(arguments.truth) if arguments.truth else None
    found: list[Part] = []
    for source in arguments.inputs:
        if truth is not None and source.exists() and source.samefile(truth.path):
            raise LeukoclsError(f"{source}: is the truth itself; name a file of predictions")
        found += parts(source, choice, truth)
    if arguments.submission:
        if len(found) != 1:
            raise LeukoclsError(
                f"{arguments.submission}: a submission is one split and one epoch of one input,"
                f" not {len(found)}; choose with --split and --epoch"
            )
        write_submission(arguments.submission, found[0])
    results = [result(part) for part in found]
    if not arguments.submission and all(one["tp"] is None for one in results):
        raise LeukoclsError(f"{found[0].origin['source']}: no labels; give them with --truth")
    if arguments.json:
        document = results[0] if len(results) == 1 else results
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        print("\n\n".join(text(one, arguments.per_subject) for one in results))
    return 0


if __name__ == "__main__":
    run_verb(main)
