import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

import leukocls
from leukocls.common.errors import LeukoclsError
from leukocls.data.augment import Augmentation
from leukocls.models import timm_network
from leukocls.models.timm_network import TimmNetwork
from leukocls.models.weights import weights_file
from leukocls.training.build import build, untrained
from leukocls.training.optim import configure, parameter_groups

CONF = Path(leukocls.__file__).parents[1] / "conf"


def options(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(group, option):
    """One group of the configuration as `train` gets it, defaults of the file included."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[f"+{group}={option}"])[group]


@pytest.mark.parametrize(
    "target",
    [
        "pandas.read_pickle",
        "torch.hub.load",
        "torch.load",
        "builtins.open",
        "builtins.eval",
        "os.system",
        "subprocess.run",
        "hydra.utils.get_method",
        # What our own modules have imported is not ours.
        "leukocls.models.weights.torch.load",
        "leukocls.models.weights.torch.nn.Linear",
        "leukocls.models.timm_network.timm.create_model",
        "leukocls.models.timm_network.nn.Module",
        # Ours, but no network.
        "leukocls.models.weights.load_weights",
        "leukocls.data.store.open_store",
        "leukocls.models.timm_network.TimmNetwork.load_state_dict",
        "leukocls.models.nowhere.Network",
        "leukocls.models..TimmNetwork",
        "torch.optim.lr_scheduler",
        "torch.optim.Adam.step",
        "",
    ],
)
def test_targets_outside_the_allowlist_are_refused_by_name(target):
    with pytest.raises(LeukoclsError, match="not allowed in a configuration") as refusal:
        build({"_target_": target})
    assert f"_target_={target}:" in str(refusal.value)


def test_a_network_that_one_of_our_modules_has_imported_is_refused(monkeypatch):
    monkeypatch.setattr(timm_network, "Linear", nn.Linear, raising=False)
    with pytest.raises(LeukoclsError, match="not allowed in a configuration"):
        build({"_target_": "leukocls.models.timm_network.Linear"})


@pytest.mark.parametrize(
    "hidden",
    [
        {"options": {"act_layer": {"_target_": "os.system", "command": "true"}}},
        {"options": {"layers": [1, [{"_target_": "os.system"}]]}},
        {"weights": {"_target_": "os.system"}},
    ],
)
def test_a_target_inside_a_permitted_one_is_refused(hidden):
    network = {"_target_": "leukocls.models.timm_network.TimmNetwork", "backbone": "test_resnet"}
    for config in ({**network, **hidden}, OmegaConf.create({**network, **hidden})):
        with pytest.raises(LeukoclsError, match=r"_target_=os\.system: not allowed"):
            build(config)


def test_a_target_that_an_interpolation_spells_is_refused():
    config = OmegaConf.create({"_target_": "${name}", "name": "os.system"})
    with pytest.raises(LeukoclsError, match=r"_target_=os\.system: not allowed"):
        build(config)


@pytest.mark.parametrize("text", [
    "${oc.create:{_target_:os.system,command:'true'}}",
    "${oc.env:HOME}",
    "${oc.${name}:{_target_:os.system,command:'true'}}",
])  # fmt: skip
@pytest.mark.parametrize("options", [{"act_layer": "TEXT"}, {"layers": [1, ["TEXT"]]}])
def test_text_that_becomes_an_object_later_is_refused(text, options):
    """Hydra resolves what it is given once more, after the targets were checked."""
    hidden = json.loads(json.dumps(options).replace("TEXT", text))
    network = {"_target_": "leukocls.models.timm_network.TimmNetwork", "backbone": "test_resnet"}
    escaped = OmegaConf.create({**network, "name": "create", "options": {"x": "\\" + text}})
    for config in ({**network, "options": hidden}, escaped):
        with pytest.raises(LeukoclsError, match="not allowed in an option"):
            build(config)


@pytest.mark.parametrize("option", options("augment"))
def test_every_augmentation_of_the_configuration_is_built(option):
    config = composed("augment", option)
    augmentation = build(config)
    assert isinstance(augmentation, Augmentation)
    given = {name: value for name, value in config.items() if name != "_target_"}
    assert {name: getattr(augmentation, name) for name in given} == given


@pytest.mark.parametrize("option", options("model"))
def test_every_network_of_the_configuration_is_built(option):
    config = composed("model", option)
    if OmegaConf.is_missing(config, "backbone"):
        config.backbone = "test_resnet"
    large = str(config.weights).startswith("hf-hub:")
    if config.weights is not None and not large:
        weights_file(config.weights)
    # Without memory and arithmetic, shapes are all that is left.
    with torch.device("meta" if large else "cpu"), torch.no_grad():
        network = untrained(config) if large else build({**config, "pretrained": False})
        side = config.options.get("img_size", 64)
        found = network.eval()(torch.zeros(1, 3, side, side))
    assert isinstance(network, TimmNetwork)
    output, *boxes = found if isinstance(found, tuple) else (found,)
    assert output.shape == (1, config.outputs)
    assert [box.shape for box in boxes] == [(1, 4)] * getattr(network, "proposes_box", False)
    parameter_groups(network, {"early": 1e-3, "late": 1e-3, "head": 1e-3})


@pytest.mark.parametrize("option", options("optim"))
def test_every_optimiser_of_the_configuration_is_built(option):
    optim = OmegaConf.to_container(composed("optim", option))
    optimizer, schedule = configure(TimmNetwork("test_resnet"), optim, 10)
    assert type(optimizer).__name__ == optim["optimizer"]["_target_"].rpartition(".")[2]
    assert type(schedule).__name__ == optim["schedule"]["_target_"].rpartition(".")[2]
    assert schedule.optimizer is optimizer
    # Hydra copies what it is given; the optimiser must hold the network's own parameters.
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 47


def test_our_own_refusals_come_through_unwrapped_and_others_name_the_target():
    augmentation = "leukocls.data.augment.Augmentation"
    with pytest.raises(LeukoclsError, match=r"^augment\.rotation=400: choose"):
        build({"_target_": augmentation, "rotation": 400})
    for wrong in ({"rotation": "far"}, {"colour": 1}):
        with pytest.raises(LeukoclsError, match=f"^{augmentation}: "):
            build({"_target_": augmentation, **wrong})
