from itertools import pairwise
from math import cos, pi, sqrt

import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf
from torch import nn

from leukocls.common.errors import LeukoclsError
from leukocls.models.timm_network import TimmNetwork
from leukocls.training.optim import configure, parameter_groups

# One small network of each of timm's ways to name its layers; levit has two heads.
FAMILIES = [
    "test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_mambaout", "test_nfnet",
    "test_byobnet", "resnet18", "mobilenetv3_small_050", "regnetx_002", "densenet121",
    "edgenext_xx_small", "efficientvit_b0", "levit_128s", "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
]  # fmt: skip


@pytest.fixture
def tiny():
    return TimmNetwork("test_resnet")


@pytest.fixture(scope="module")
def seresnext():
    return TimmNetwork("legacy_seresnext50_32x4d")


RATES = {"early": 1e-6, "late": 1e-4, "head": 1e-2}


def recipe(name):
    path = ROOT / "conf" / "optim" / f"{name}.yaml"
    return OmegaConf.to_container(OmegaConf.load(path))


def test_the_papers_optimiser_has_a_rate_for_each_stage_and_no_decay(seresnext):
    optimizer, _ = configure(seresnext, recipe("prellberg2019"), 6)
    assert type(optimizer) is torch.optim.Adam
    found = {
        g["name"]: (g["lr"], len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups
    }
    assert found == {"early": (1e-6, 45, 0), "late": (1e-4, 178, 0), "head": (1e-2, 2, 0)}


def test_rates_over_six_epochs_are_the_papers(tiny):
    optimizer, schedule = configure(tiny, recipe("prellberg2019"), 6)
    for factor in (1, 1, 0.1, 0.1, 0.01, 0.01):
        found = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert found == pytest.approx({name: rate * factor for name, rate in RATES.items()})
        optimizer.step()
        schedule.step()


def test_one_rate_is_given_to_each_stage(tiny):
    optimizer, schedule = configure(tiny, {**recipe("prellberg2019"), "lr": 1e-3}, 6)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == dict.fromkeys(
        RATES, 1e-3
    )
    assert len(schedule.base_lrs) == 3


@pytest.mark.parametrize(
    "lr", [{"early": 1e-3}, {**RATES, "neck": 1e-3}, {"stem": 1, "body": 1, "head": 1}, {}]
)
def test_rates_must_name_the_networks_stages(tiny, lr):
    with pytest.raises(LeukoclsError, match="the network's stages are early, late, head"):
        parameter_groups(tiny, lr)


def test_frozen_parameters_are_in_no_group_and_a_frozen_network_is_refused(tiny):
    for group in (tiny.stages()["early"], tiny.stages()["late"]):
        for parameter in group:
            parameter.requires_grad_(False)
    groups = parameter_groups(tiny, RATES)
    assert [(group["name"], len(group["params"])) for group in groups] == [("head", 2)]
    with pytest.raises(LeukoclsError, match="nothing to train"):
        parameter_groups(tiny.requires_grad_(False), RATES)


def test_a_network_without_stages_is_one_group():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    groups = parameter_groups(network, 1e-3)
    assert [(g["name"], g["lr"], len(g["params"])) for g in groups] == [("all", 1e-3, 2)]
    with pytest.raises(LeukoclsError, match="the network's stages are all"):
        parameter_groups(network, RATES)


# Layers


@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_trainable_parameter_is_in_exactly_one_layer(backbone):
    network = TimmNetwork(backbone)
    groups = parameter_groups(network, 1e-3, layer_decay=0.75)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    assert len(groups) > 4  # finer than stages
    head = {id(p) for p in network.stages()["head"]}
    assert {id(p) for p in groups[-1]["params"]} == head


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_a_layers_rate_decays_from_the_head_to_the_stem(backbone):
    network = TimmNetwork(backbone)
    groups = parameter_groups(network, 1e-3, layer_decay=0.5)
    assert groups[-1]["lr"] == 1e-3
    assert [b["lr"] / a["lr"] for a, b in pairwise(groups)] == [2.0] * (len(groups) - 1)
    name = {id(p): n for n, p in network.backbone.named_parameters()}
    stem = {name[id(p)].split(".")[0] for p in groups[0]["params"]}
    assert stem <= {"conv1", "bn1", "stem", "patch_embed", "cls_token", "pos_embed", "reg_token"}
    assert len({group["name"] for group in groups}) == len(groups)


def test_layers_of_a_frozen_backbone_keep_their_rates(tiny):
    whole = parameter_groups(tiny, 1e-3, layer_decay=0.5)
    frozen = parameter_groups(TimmNetwork("test_resnet", frozen="all"), 1e-3, layer_decay=0.5)
    assert [(g["name"], g["lr"]) for g in frozen] == [(whole[-1]["name"], 1e-3)]


@pytest.mark.parametrize(
    ("network", "lr", "decay"),
    [
        (TimmNetwork("test_resnet"), RATES, 0.75),
        (TimmNetwork("test_resnet"), 1e-3, 0),
        (TimmNetwork("test_resnet"), 1e-3, 1.5),
        (nn.Linear(2, 1), 1e-3, 0.75),
    ],
)
def test_a_layer_decay_that_cannot_be_is_refused(network, lr, decay):
    with pytest.raises(LeukoclsError, match=r"optim\.layer_decay=.*one number"):
        parameter_groups(network, lr, decay)


# Schedules


def one_cycle(highest, step, steps):
    """fastai 1's cosine cycle as RECIPES tells it: 30 % up from 1/25, then down to 1/2.5e5."""
    top = 0.3 * steps - 1
    if step <= top:
        return highest / 25 + (highest - highest / 25) * (1 - cos(pi * step / top)) / 2
    done = (step - top) / (steps - 1 - top)
    return highest / 2.5e5 + (highest - highest / 2.5e5) * (1 + cos(pi * done)) / 2


def momentum(step, steps):
    top = 0.3 * steps - 1
    done = step / top if step <= top else (step - top) / (steps - 1 - top)
    away = (1 - cos(pi * done)) / 2
    return 0.95 - 0.1 * away if step <= top else 0.85 + 0.1 * away


@pytest.mark.parametrize("steps", [20, 100])
def test_one_cycle_and_discriminative_rates_are_those_of_marzahls_recipe(tiny, steps):
    optimizer, schedule = configure(tiny, recipe("marzahl2019"), steps)
    highest = {"early": 1e-5, "late": sqrt(1e-5 * 2e-3), "head": 2e-3}
    for step in range(steps):
        for group in optimizer.param_groups:
            wanted = one_cycle(highest[group["name"]], step, steps)
            assert group["lr"] == pytest.approx(wanted, rel=1e-9)
            assert group["betas"] == pytest.approx((momentum(step, steps), 0.99))
            assert group["weight_decay"] == 0.01
        optimizer.step()
        schedule.step()
    assert type(optimizer) is torch.optim.AdamW


def test_georgievs_rate_is_constant(tiny):
    optimizer, schedule = configure(tiny, recipe("georgiev"), 6)
    for _ in range(5):
        assert {group["lr"] for group in optimizer.param_groups} == {1e-3}
        optimizer.step()
        schedule.step()
