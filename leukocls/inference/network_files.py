"""Write the network of one run into a bundle, in timm's format where timm can hold it."""

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from leukocls.artifacts.identity import differences, settings_of
from leukocls.artifacts.lineage import as_metadata, read_lineage
from leukocls.artifacts.record import scaling
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.common.files import sha256_file
from leukocls.common.tables import listing
from leukocls.data.views import view_weights
from leukocls.models.timm_network import TimmNetwork
from leukocls.models.weights import HUB, LOCAL
from leukocls.training.build import untrained

IN_BUNDLE = {"data.crop", "data.size", "views"}  # settings of images that a bundle holds
CNMC_SIDE = 450  # px, of every image of C-NMC
TABLES = (".csv", ".tsv", ".txt", ".parquet")
PLAIN = f"{TimmNetwork.__module__}.{TimmNetwork.__qualname__}"


def _check_unedited(run: Path, config: dict[str, Any], record: dict[str, Any]) -> None:
    """Refuse another network, crop, views or split than the record's."""
    split, recorded_split = run / "split.csv", record["inputs"].get("split")
    if recorded_split and sha256_file(split) != recorded_split:
        raise DataFault(
            f"{split}: edited since the run wrote it (its sha256 is not the one in run.json);"
            " restore it."
        )
    found, recorded = (
        {"inputs": {}, "identity": {key: value for key, value in one.items() if key in IN_BUNDLE
                                    or key.startswith("model.")}}
        for one in (settings_of(OmegaConf.create(config)), record["identity"])
    )  # fmt: skip
    if edited := differences(recorded, found):
        raise DataFault(
            f"{run / 'config.yaml'}: edited since the run wrote it; these differ from run.json:"
            f" {listing(list(edited))}; restore it."
        )


def _side(record: dict[str, Any], root: str) -> int | None:
    """Width and height in px of the images that a run was trained on; None for any size."""
    if "image_side" in record:
        side: int | None = record["image_side"]
        return side
    # Versions before 0.2 did not record it.
    return None if Path(root).suffix.lower() in TABLES else CNMC_SIDE


class NetworkWriter:
    """Writes the network of one run into a bundle.

    Args:
        run: its directory.
        record: its run.json.
        weights: its safetensors file.
        calibration: of the bundle, which a network in timm's format contains; None without one.

    Raises:
        LeukoclsError: a backbone that is described elsewhere.
        DataFault: config.yaml or split.csv was edited.
    """

    def __init__(
        self, run: Path, record: dict[str, Any], weights: Path, calibration: dict[str, Any] | None
    ) -> None:
        self.record, self.weights, self.calibration = record, weights, calibration
        config: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=True)
        _check_unedited(run, config, record)
        self.data, self.views = config["data"], config["views"]
        self.side = _side(record, str(self.data["root"]))
        self.network = config["model"] | {"pretrained": False, "weights": None}
        backbone = self.network.get("backbone", "")
        if str(backbone).startswith((HUB, LOCAL)):
            raise LeukoclsError(
                f"{run}: its backbone {backbone} is described elsewhere, so that a bundle would not"
                " be whole; train with the backbone's own name in timm, and model.weights=FILE."
            )

    def write(self, folder: Path, place: str) -> dict[str, Any]:
        """Write the files below `folder / place`, and return the member's entries."""
        state = load_file(self.weights)
        prefix, scale, shift = "", 1.0, 0.0
        # timm enlarges every image to one size before it crops: right where all have one.
        if self.network["_target_"] == PLAIN and self.side:
            prefix = "backbone."
            state, (scale, shift) = self._as_timm(state, folder / place)
        name = f"{place}model.safetensors"
        save_file(state, folder / name, as_metadata(read_lineage(self.weights)))
        lineage = [
            {role: one[role]["groups"] for role in ("trained", "chose")}
            for one in read_lineage(self.weights)
        ]
        crop, size = self.data["crop"], self.data["size"]
        return {
            "run": self.record["id"],
            "config_hash": self.record["config_hash"],
            "predictions_sha256": self.record["predictions_sha256"],
            "weights_sha256": self.record["weights_sha256"],
            "selection": self.record["selection"],
            "network": self.network,
            "weights": name,
            "prefix": prefix,
            "crop": crop,
            "size": int(crop) if size is None else int(size),
            "side": self.side,
            "views": self.views,
            "view_weights": view_weights(self.views),
            "scale": scale,
            "shift": shift,
            "lineage": lineage,
        }

    def _as_timm(
        self, state: dict[str, Tensor], folder: Path
    ) -> tuple[dict[str, Tensor], tuple[float, float]]:
        """The state dict as timm names it, with two classes and the calibration in its last layer.

        softmax of (0, z) is (1 − p, p) with p = sigmoid(z), so the probability of ALL is ours.
        Writes timm's config.json into `folder`.

        Returns:
            The state dict, and scale and shift from its logit to the run's.
        """
        intercept, slope = scaling(self.calibration) if self.calibration else (0.0, 1.0)
        one_logit = self.network["outputs"] == 1
        self.network["outputs"] = 2
        network = untrained(self.network, drawn=False)
        assert isinstance(network, TimmNetwork)
        names = network.classifier_names
        state = {key.removeprefix("backbone."): tensor for key, tensor in state.items()}
        for name in names:
            weight = slope * state[f"{name}.weight"].double()
            bias = slope * state[f"{name}.bias"].double()
            if one_logit:
                weight = torch.cat([torch.zeros_like(weight), weight])
                bias = torch.cat([torch.zeros_like(bias), bias])
            bias[1] += intercept
            state |= {f"{name}.weight": weight.float(), f"{name}.bias": bias.float()}
        config = self._timm_config(network)
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        return state, (1 / slope, -intercept / slope)

    def _timm_config(self, network: TimmNetwork) -> dict[str, Any]:
        """config.json, as timm's `local-dir:` and the hub read it."""
        known: Any = network.backbone.pretrained_cfg
        assert self.side  # see `write`
        side = self.data["size"] or self.data["crop"]
        crop = self.data["crop"]
        return {
            "architecture": known["architecture"],
            "num_classes": 2,
            "label_names": ["HEM", "ALL"],
            "model_args": self.network.get("options") or {},
            "pretrained_cfg": {
                "input_size": [3, side, side],
                "fixed_input_size": False,
                "interpolation": "bilinear",
                "crop_pct": 1.0 if crop == "box" else int(crop) / self.side,
                "crop_mode": "center",
                "mean": network.mean.flatten().tolist(),
                "std": network.std.flatten().tolist(),
                "num_classes": 2,
                "first_conv": known.get("first_conv"),
                "classifier": known.get("classifier"),
            },
        }
