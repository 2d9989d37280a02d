"""Write a bundle of finished runs."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from leukocls import __version__
from leukocls.artifacts.environment import versions
from leukocls.artifacts.identity import differences
from leukocls.artifacts.marks import merged_marks
from leukocls.artifacts.predictions import sigmoid
from leukocls.artifacts.record import DIGEST, now, read_record, record_digest, scaling
from leukocls.artifacts.run_dir import finished_weights
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import sha256_file
from leukocls.common.tables import listing
from leukocls.data.index import build_index
from leukocls.evaluation import cell_metrics, conformal
from leukocls.evaluation.calibration import calibrations
from leukocls.evaluation.ensembles import ensembles
from leukocls.evaluation.metrics import COUNTS, RATES
from leukocls.evaluation.request import Request
from leukocls.evaluation.scoring import ScoredPart, ScoringOptions, metrics_of, scored_parts
from leukocls.inference import distance
from leukocls.inference.bundle import DOCUMENT, FORMAT, USE, open_bundle
from leukocls.inference.model_card import model_card
from leukocls.inference.network_files import NetworkWriter
from leukocls.inference.onnx_export import require_onnx, write_onnx
from leukocls.inference.torch_predictor import TorchPredictor
from leukocls.training.build import untrained

RULE = "mean-logit"
REFERENCES, NETWORK = "references.safetensors", "network.onnx"
# In what the folds of a recipe, and a run on all cells, may differ.
OF_SPLIT = {"fold", "folds", "seed", "split_scheme", "split_seed", "selection", "inputs.split"}
MEASURES = ("n", "persons", *COUNTS, *RATES, "auroc", "brier", "ece")


def write_bundle(
    runs: Sequence[Path],
    out: Path,
    out_of_fold: Sequence[Path] = (),
    data: Path | None = None,
    onnx: bool = False,
) -> dict[str, Any]:
    """Write the bundle of a run, or of several as an ensemble, and return its document.

    Args:
        runs: directories of finished runs with a network. Several must score the same cells with
            one threshold; their logits are averaged.
        out: a folder that does not exist.
        out_of_fold: the folds of a cross-validation of the same recipe, whose held-out cells fit
            calibration and abstention; none takes the set that chose the epoch.
        data: the images that the first run has read, to measure how far a cell lies from those
            that it was trained on; None leaves that out.
        onnx: whether to add the networks as one ONNX file.

    Raises:
        LeukoclsError: `out` exists; a run that is not done, has no network or cannot be bundled;
            runs that are no ensemble; folds of another recipe, or not all of them.
        DataFault: predictions or weights that are damaged or were changed.
    """
    records = [read_record(run) for run in runs]
    _check_request(runs, records, out, data)
    if onnx:
        require_onnx()  # before the work
    weights = [finished_weights(*pair) for pair in zip(runs, records, strict=True)]
    by_run = [scored_parts(run, ScoringOptions()) for run in runs]
    parts = ensembles(by_run, RULE) if len(runs) > 1 else by_run[0]
    held_out = [part for part in parts if part.origin["heading"] == "selection"]
    if out_of_fold:
        held_out = [_out_of_fold(records[0], out_of_fold)]
    document = _description(runs, records, parts, held_out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=out.parent) as made:
        folder = Path(made) / "bundle"
        document["members"] = []
        for number, run in enumerate(runs):
            place = f"members/{number:03d}/" if len(runs) > 1 else ""
            (folder / place).mkdir(parents=True)
            writer = NetworkWriter(run, records[number], weights[number], document["calibration"])
            document["members"].append(writer.write(folder, place))
        document |= {"distance": None, "onnx": None}
        if data:
            references = folder / REFERENCES
            document["distance"] = _distance(runs[0], weights[0], document, data, references)
        if onnx:
            _write_document(folder, document)
            document["onnx"] = {"file": NETWORK, **_onnx(folder)}
        (folder / "README.md").write_text(model_card(document), encoding="utf-8")
        _write_document(folder, document)
        shutil.move(folder, out)
    return document


def _check_request(
    runs: Sequence[Path], records: Sequence[dict[str, Any]], out: Path, data: Path | None
) -> None:
    """Refuse what can be seen to be wrong before the work."""
    if out.exists():
        raise LeukoclsError(f"{out}: exists already; name a new folder, or remove it.")
    if len({run.resolve() for run in runs}) < len(runs):
        raise LeukoclsError("RUN: one is named twice, which would count it twice; name each once.")
    if data and (records[0].get("selection") or {}).get("set") == "train":
        raise LeukoclsError(
            f"--data {data}: {runs[0]} held no cells out of training, to which the distance would"
            " be compared; bundle a run of another split_scheme, or leave --data out."
        )


def _write_document(folder: Path, document: dict[str, Any]) -> None:
    """Write leukocls.json with the digests of the other files in the folder, and of itself."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != DOCUMENT]
    document["files"] = {str(path.relative_to(folder)): sha256_file(path) for path in sorted(files)}
    document[DIGEST] = record_digest(document)
    text = json.dumps(document, indent=2, allow_nan=False)
    (folder / DOCUMENT).write_text(text, encoding="utf-8")
    for path in (*files, folder / DOCUMENT):
        path.chmod(0o644)  # safetensors writes files for the owner alone


def _onnx(folder: Path) -> dict[str, Any]:
    """Add the ONNX file to a bundle that is whole but for it, and return how alike they are."""
    predictor = TorchPredictor(open_bundle(folder), "cpu")
    return write_onnx(predictor, folder / NETWORK)._asdict()


def _description(
    runs: Sequence[Path],
    records: Sequence[dict[str, Any]],
    parts: Sequence[ScoredPart],
    held_out: Sequence[ScoredPart],
) -> dict[str, Any]:
    """The entries of leukocls.json that say what the networks are and how good they are."""
    calibration = calibrations([held_out])[0].record
    return {
        "format": FORMAT,
        "leukocls": __version__,
        "created": now(),
        "use": USE,
        "classes": {"HEM": 0, "ALL": 1},
        "rule": RULE if len(runs) > 1 else None,
        "threshold": _threshold(parts, calibration),
        "calibration": calibration if calibration["slope"] is not None else None,
        "calibration_reason": calibration["reason"],
        "conformal": _conformal(held_out),
        "metrics": [_measured(part) for part in parts if (part.frame["label"] >= 0).any()],
        "marks": merged_marks(record["marks"] for record in records),
        "shared_persons": merged_marks(record.get("shared_persons", []) for record in records),
        "persons": _trained_persons(runs),
        "split_scheme": records[0]["split_scheme"],
        "data_digest": records[0]["data_digest"],
        "pretraining": merged_marks([record.get("pretraining", "unknown")] for record in records),
        "versions": versions(),
    }


def _out_of_fold(record: dict[str, Any], runs: Sequence[Path]) -> ScoredPart:
    """The held-out cells of all folds of the bundled run's recipe.

    Raises:
        LeukoclsError: another recipe, or as `out_of_fold.pooled_runs`.
    """
    for run in runs:
        other = {k: (a, b) for k, (a, b) in differences(record, read_record(run)).items()
                 if k not in OF_SPLIT}  # fmt: skip
        if other:
            raise LeukoclsError(
                f"--out-of-fold {run}: another recipe than the bundle's; these differ:"
                f" {listing(sorted(other))}."
            )
    found = Request(list(runs), ScoringOptions(), pool=True).parts()
    return found[0][0]


def _distance(
    run: Path, weights: Path, document: dict[str, Any], data: Path, out: Path
) -> dict[str, Any]:
    """Write the references of the first network, and return the entry `distance`."""
    config, first = OmegaConf.load(run / "config.yaml"), document["members"][0]
    network = untrained(OmegaConf.to_container(config.model, resolve=True), drawn=False)
    network.load_state_dict(load_file(weights))
    split = pd.read_csv(run / "split.csv", dtype=str, keep_default_na=False)
    found, held_out = distance.references(
        network.eval().to(memory_format=torch.channels_last),
        build_index(data),
        split,
        first["selection"]["set"],
        first["crop"],
        first["size"],
    )
    return distance.save(found, held_out, out)


def _conformal(held_out: Sequence[ScoredPart]) -> dict[str, Any]:
    """Limits for abstention, fitted on cells that were held out of training."""
    if len(held_out) != 1:
        return conformal.none(conformal.NO_CELLS)
    (part,) = held_out
    return conformal.of_cells(part.frame, part.logit, part.origin["split"])


def _threshold(parts: Sequence[ScoredPart], calibration: dict[str, Any]) -> dict[str, float]:
    """The stored threshold as a logit, as the run's probability, and as the calibrated one."""
    probability = float(parts[0].origin["threshold"])
    logit = float(cell_metrics.logit_of([probability])[0])
    calibrated = probability
    if calibration["slope"] is not None:
        intercept, slope = scaling(calibration)
        calibrated = float(sigmoid(intercept + slope * logit))
    return {"logit": logit, "prob": probability, "calibrated": calibrated}


def _measured(part: ScoredPart) -> dict[str, Any]:
    """Metrics of one set with 95 % intervals over its persons, and what they may be called."""
    values = metrics_of(part)
    return {
        "split": values["split"],
        "heading": values["heading"],
        **{name: values[name] for name in MEASURES},
        "interval": values["interval"],
    }


def _trained_persons(runs: Sequence[Path]) -> dict[str, int] | None:
    """Number of persons of each class that any run trained on; None if persons are unknown."""
    splits = [pd.read_csv(run / "split.csv", dtype=str, keep_default_na=False) for run in runs]
    train = pd.concat([split[split["split"] == "train"] for split in splits])
    person = "group" if "group" in train else "subject"  # versions before 0.2 merged none
    if (train[person] == "").any():
        return None
    persons = train.drop_duplicates([person, "label"])["label"]
    return {name: int((persons == str(label)).sum()) for name, label in (("ALL", 1), ("HEM", 0))}
