"""README.md of a bundle: a model card as the Hugging Face hub reads it."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from leukocls.artifacts.marks import MEANINGS

SHOWN = ("weighted_f1", "sensitivity", "specificity", "auroc")
DATA = "C-NMC 2019 (ALL and HEM cells)"
OTHER_DATA = "Cells of a data set described by a CSV"


def model_card(document: dict[str, Any]) -> str:
    """The card of a bundle, with the metrics in its `model-index`.

    Args:
        document: leukocls.json, in which the digest of the card is still missing.
    """
    first = document["members"][0]
    synthetic = "SYNTHETIC" in document["marks"]
    data = "SYNTHETIC cells" if synthetic else DATA if first["side"] else OTHER_DATA
    name = document["members"][0]["run"]
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="leukocls",
            dataset_name=f"{data}: {one['split']} ({document['split_scheme']})",
            metric_type=metric,
            metric_value=round(one[metric], 4),
            metric_name=f"{metric} ({one['heading']}, {one['split']})",
        )
        for one in document["metrics"]
        for metric in SHOWN
        if one[metric] is not None
    ]
    header = ModelCardData(
        library_name="timm" if _timm(document) else "leukocls",
        pipeline_tag="image-classification",
        tags=["image-classification", "leukemia", "medical", "leukocls"],
        model_name=name,
        eval_results=results or None,
    )
    marks = " ".join(document["marks"])
    return "\n".join([
        "---", header.to_yaml(), "---", "",
        f"# {name}", "",
        *([f"**{marks}**: {_meanings(document['marks'])}.", ""] if marks else []),
        "Classifies one white blood cell on a black background as leukemic (ALL) or normal (HEM)."
        f" **{document['use'].capitalize()}.**", "",
        "## Numbers", "", *_numbers(document), "",
        "## Use", "", *_use(document), "",
        "## What it was trained on", "", *_training(document, data), "",
    ])  # fmt: skip


def _timm(document: dict[str, Any]) -> bool:
    return len(document["members"]) == 1 and document["members"][0]["prefix"] != ""


def _meanings(marks: list[str]) -> str:
    known = {str(mark): meaning for mark, meaning in MEANINGS.items()}
    return "; ".join(known[mark] for mark in marks)


def _numbers(document: dict[str, Any]) -> list[str]:
    lines = [
        "With 95 % intervals over other persons like those that were scored, where known."
        " *Selection*: these cells also chose the epoch, so that the numbers are too good on"
        " average. *Test*: these cells chose nothing.",
        "",
        "| set | may be called | cells | weighted F1 | sensitivity | specificity | AUROC |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in document["metrics"]:
        values = [_with_limits(one, metric) for metric in SHOWN]
        lines.append(f"| {one['split']} | {one['heading']} | {one['n']} | {' | '.join(values)} |")
    return [*lines, "", *document["shared_persons"]]


def _with_limits(one: dict[str, Any], metric: str) -> str:
    if one[metric] is None:
        return "–"
    found = one["interval"].get(metric)
    limits = f" ({found['low']:.3f} to {found['high']:.3f})" if found else ""
    return f"{one[metric]:.3f}{limits}"


def _use(document: dict[str, Any]) -> list[str]:
    first, threshold = document["members"][0], document["threshold"]
    calibrated = document["calibration"]
    lines = [
        "```bash",
        "pip install leukocls",
        "python -m leukocls.predict FOLDER images/ --out predictions.csv",
        "```",
        "",
        "This takes all views"
        + (" and all networks" if len(document["members"]) > 1 else "")
        + f", and calls a cell ALL above a probability of {threshold['calibrated']:.3f}.",
    ]
    lines.append(
        f"Probabilities are calibrated on {calibrated['fitted_on']} (Platt's scaling)."
        if calibrated
        else f"Probabilities are not calibrated: {document['calibration_reason']}."
    )
    onnx = document["onnx"]
    made = f"`{onnx['file']}`" if onnx else "`python -m leukocls.export FOLDER --out network.onnx`"
    lines += [
        "",
        "As one ONNX file with all networks, views, calibration and threshold, which `predict`"
        f" opens without PyTorch: {made}. Its logits are those of this folder but for rounding.",
    ]
    if _timm(document):
        exact = first["crop"] == first["size"]
        pixels = (
            f"On images of {first['side']} × {first['side']} pixels timm's own transform cuts out"
            " exactly the pixels that the network was trained on."
            if exact
            else "timm's own transform resizes before it crops, and leukocls after, so that pixels"
            " and probabilities differ somewhat from those of `leukocls.predict`."
        )
        lines += [
            "",
            "Without leukocls: `timm.create_model('local-dir:FOLDER', pretrained=True)`, timm's"
            " transform, and softmax, whose second value is the calibrated probability of ALL of"
            f" the image as it is (one view). {pixels}",
        ]
    return lines


def _training(document: dict[str, Any], data: str) -> list[str]:
    persons = document["persons"]
    who = f"{persons['ALL']} ALL and {persons['HEM']} HEM persons" if persons else "unknown persons"
    return [
        f"- Data: {data}, split scheme `{document['split_scheme']}`, digest"
        f" `{document['data_digest']}`.",
        f"- Trained on cells of {who}; pretraining: {', '.join(document['pretraining'])}.",
        *(f"- Run `{one['run']}`, weights `{one['weights_sha256']}`." for one in
          document["members"]),
        f"- Images: one cell each, on black; crop {document['members'][0]['crop']}, then"
        f" {document['members'][0]['size']} pixels; views: {document['members'][0]['views']}.",
        f"- Written by leukocls {document['leukocls']}. `leukocls.json` has everything above as"
        " numbers, and the sha256 of each file.",
    ]  # fmt: skip
