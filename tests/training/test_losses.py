import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from leukocls.common.errors import LeukoclsError
from leukocls.training.losses import CellLoss


@pytest.fixture(scope="module")
def cells():
    """Logits, up to ±60, and labels of 300 cells."""
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(300, generator=generator, dtype=torch.float64) * 15
    return logit, (torch.rand(300, generator=generator) < 0.7).long()


@pytest.mark.parametrize("weight", [0.466, 1.0, 3.0])
def test_without_focus_it_is_torchs_weighted_binary_cross_entropy(cells, weight):
    logit, label = cells
    theirs = F.binary_cross_entropy_with_logits(
        logit, label.double(), pos_weight=torch.tensor(weight, dtype=torch.float64)
    )
    assert CellLoss(weight)(logit, label) == pytest.approx(float(theirs), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_is_torchvisions(cells, gamma):
    logit, label = cells
    theirs = sigmoid_focal_loss(logit, label.double(), alpha=-1, gamma=gamma, reduction="mean")
    assert CellLoss(1.0, gamma)(logit, label) == pytest.approx(float(theirs), rel=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_of_two_outputs_is_torchs(cells, smoothing):
    logit, label = cells
    outputs = torch.stack([0.3 * logit, 1.3 * logit], 1)
    theirs = F.cross_entropy(outputs, label, label_smoothing=smoothing)
    ours = CellLoss(1.0, label_smoothing=smoothing)(outputs[:, 1] - outputs[:, 0], label)
    assert ours == pytest.approx(float(theirs), rel=1e-12)


@pytest.mark.parametrize("options", [(0.5, 2.0, 0.1), (1.0, 0.0, 0.0)])
def test_a_mixture_of_targets_costs_the_mixture_of_losses(cells, options):
    logit, label = cells
    label = label.double()
    loss, other, share = CellLoss(*options), label.flip(0), 0.7
    mixed = loss(logit, share * label + (1 - share) * other)
    wanted = share * loss(logit, label) + (1 - share) * loss(logit, other)
    assert mixed == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_gradients_are_finite_and_right_at_any_logit(gamma):
    logit = torch.tensor([-80.0, -3.0, 0.0, 0.5, 80.0]).double().requires_grad_()
    label = torch.tensor([1, 0, 1, 0, 0])
    loss = CellLoss(0.4, gamma, 0.1)
    assert torch.autograd.gradcheck(lambda z: loss(z, label), logit)
    assert torch.isfinite(loss(logit.float(), label))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pos_weight": 0}, r"loss\.pos_weight=0: choose a number above 0"),
        ({"focal_gamma": -1}, r"loss\.focal_gamma=-1: choose a number from 0 up"),
        ({"label_smoothing": 1}, r"loss\.label_smoothing=1: choose a number from 0 to below 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, said):
    with pytest.raises(LeukoclsError, match=said):
        CellLoss(**{"pos_weight": 1.0, **options})
