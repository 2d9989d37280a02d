"""Features of a pretrained network for each cell, for linear and nearest-neighbour probes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from leukocls.common.errors import LeukoclsError
from leukocls.data.index import Index
from leukocls.data.store import open_store
from leukocls.models.frozen import FrozenFeatures
from leukocls.models.timm_network import TimmNetwork
from leukocls.training.feature_cache import cached_features

BATCH = 32  # images at a time; the last bits of a feature depend on it
KEYS = ("backbone", "pretrained", "weights", "mean", "std", "options")


def settings_of(network: Mapping[str, Any] | str, weights: str | None = None) -> dict[str, Any]:
    """The settings of `FrozenFeatures` that determine features.

    Args:
        network: a group `model` of the configuration, or a name as timm takes it, whose pretrained
            weights and normalisation are timm's.
        weights: overrides the weights; None keeps them.

    Raises:
        LeukoclsError: timm has no such network.
    """
    if isinstance(network, str):
        with torch.device("meta"):  # only what it is normalised by is asked for
            known: Any = TimmNetwork(network).backbone.pretrained_cfg
        network = {"backbone": network, "pretrained": True, "options": {}}
        network |= {"mean": list(known["mean"]), "std": list(known["std"])}
    settings = {key: network.get(key) for key in KEYS}
    return settings | ({"weights": weights, "pretrained": False} if weights else {})


def device() -> torch.device:
    """The device that features are computed on: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def backbone_table(
    index: Index, digest: str, settings: Mapping[str, Any], crop: int, size: int, cache: Path
) -> pd.DataFrame:
    """Features of each cell, one row for each row of the index, computed once.

    Args:
        digest: `data_digest(index)`.
        settings: as `settings_of` gives them.
        crop, size: as `leukocls.data.store.open_store`.
        cache: folder of the store and of the features.

    Raises:
        LeukoclsError: a network that cannot be built or does not take images of this size.
    """
    network = FrozenFeatures(**settings, widths=()).eval()
    try:
        network.features(torch.zeros(1, 3, size, size))
    except Exception as error:  # timm's networks check sizes in many ways
        usual = network.backbone.pretrained_cfg.get("input_size")
        raise LeukoclsError(
            f"--features {settings['backbone']}: does not take images of {size} px ({error})."
            f" Choose --size; its own input is {usual}."
        ) from error
    store = open_store(index, digest, cache, crop, size)
    features = cached_features(network, store, 1, cache, batch_size=BATCH, device=device())
    names = [f"f{number:04d}" for number in range(features.shape[-1])]
    # Newton steps need double precision.
    return pd.DataFrame(features[:, 0].astype(np.float64), columns=names)
