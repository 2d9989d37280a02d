"""Evaluation is computed in single precision, whatever the network computes in."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Train, only_run, record, small
from torch import nn

from leukocls.training.classifier import CellClassifier
from leukocls.training.losses import CellLoss


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_mean_of_views_is_taken_outside_autocast(dtype: torch.dtype) -> None:
    module = CellClassifier(Mean(), {}, loss=CellLoss(1.0), views=8, seed=0, scored=["val"])
    module.trainer = SimpleNamespace(world_size=1)
    module.log = lambda *arguments, **options: None  # type: ignore[method-assign]
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 1, 0, 1, 1, 0])
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        module.validation_step({"image": images, "row": torch.arange(6), "label": label}, 0)
    module.on_validation_epoch_end()
    scores = module.scores["val"]
    assert scores["logit"].dtype == scores["views"].dtype == np.float32
    np.testing.assert_allclose(scores["logit"], scores["views"].mean(1), rtol=1e-6)


def test_a_run_in_mixed_precision_ends(small_tree, tmp_path, train: Train) -> None:
    words = [*small(small_tree, tmp_path / "outputs"), "trainer.max_epochs=1"]
    ended = train(*words, "trainer.precision=bf16-mixed")
    assert ended.code == 0, ended.err
    assert record(only_run(tmp_path / "outputs"))["status"] == "done"
