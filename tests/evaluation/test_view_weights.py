"""`evaluate --views` weighs views as the run does; equal logits separate nothing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from leukocls.evaluation.cell_metrics import cell_metrics
from leukocls.evaluation.metrics import are_separated, calibration_slope
from leukocls.evaluation.scoring import _with_views


def test_chosen_views_keep_the_weights_of_the_run() -> None:
    frame = pd.DataFrame({"view_0": [1.0, 2.0], "view_1": [3.0, 4.0], "view_2": [50.0, 60.0]})
    by_run = _with_views(frame, Path("run"), (0, 1), [0.4, 0.1, 0.5])
    np.testing.assert_allclose(by_run["logit"], [(0.4 + 0.3) / 0.5, (0.8 + 0.4) / 0.5])
    equal = _with_views(frame, Path("file"), (0, 1), None)
    np.testing.assert_allclose(equal["logit"], [2.0, 3.0])


def test_equal_logits_are_not_separation() -> None:
    label, logit = np.array([0, 1, 1]), np.zeros(3)
    assert not are_separated(label, logit)
    assert calibration_slope(label, logit) is None
    assert "equal" in cell_metrics(label, logit=logit)["missing"]["calibration_slope"]
    assert are_separated(label, np.array([0.0, 1.0, 1.0]))


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg_overlay", "pretrained_cfg"])
def test_options_that_hide_weights_are_refused(name: str) -> None:
    from leukocls.common.errors import LeukoclsError
    from leukocls.models.timm_network import TimmNetwork

    with pytest.raises(LeukoclsError, match=f"model.options.{name}"):
        TimmNetwork("test_resnet", options={name: "x"})
