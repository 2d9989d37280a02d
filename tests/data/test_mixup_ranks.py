"""Mixup draws other partners on every rank, and on one device what it drew before."""

import torch

from leukocls.data.augment import Augmentation


def test_ranks_draw_apart() -> None:
    augment, label = Augmentation(mixup=0.4), torch.tensor([0, 1] * 8)
    images = torch.rand(16, 3, 4, 4)
    first, second = (augment.mix(images, label, seed=1, step=2, rank=rank)[0] for rank in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, augment.mix(images, label, 1, 2)[0])
