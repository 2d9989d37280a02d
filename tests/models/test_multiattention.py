"""The reconstruction of Saeed et al. 2022: its layers by hand, its experiments end to end."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Train, only_run, record
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

import leukocls
from leukocls.common.errors import LeukoclsError
from leukocls.models.multiattention import MultiAttention, masked_pooling
from leukocls.models.timm_network import TimmNetwork
from leukocls.training.build import build
from leukocls.training.optim import parameter_groups

CONF = Path(leukocls.__file__).parents[1] / "conf"
TINY = "test_efficientnet"
# Parameters of timm's network without its classifier, and channels of its last features.
BACKBONES = {
    "efficientnetv2s_multiattention": ("tf_efficientnetv2_s.in1k", 20_177_488, 1280),
    "efficientnetb3_multiattention": ("tf_efficientnet_b3.aa_in1k", 10_696_232, 1536),
}
EXPERIMENTS = {
    "saeed2022_v2s": "efficientnetv2s_multiattention",
    "saeed2022_b3": "efficientnetb3_multiattention",
}


def images(count=2, size=64):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return MultiAttention(TINY, mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.3], maps=3)


@pytest.fixture
def lively(tiny):
    """The same with statistics as after training, and masks of strong contrast.

    At random weights every mask is .5 everywhere: a wrong pooling would go unseen.
    """
    with torch.no_grad():
        for _ in range(30):
            tiny(images(8, 96))
        for layer in tiny.masks:
            if isinstance(layer, nn.Conv2d):
                layer.weight *= 3
    return tiny.eval()


def seen(network, module, given):
    """What `module` returns while `network` is given images."""
    kept = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    with torch.no_grad():
        network(given)
    hook.remove()
    return kept[0]


def open_fully(layer):
    """Make a convolution before a sigmoid say 1 everywhere."""
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, 40)


# The network


@pytest.mark.parametrize("option", BACKBONES)
def test_the_papers_networks_have_the_layers_of_the_configuration(option):
    name, body, channels = BACKBONES[option]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+model={option}", "model.pretrained=false"]).model
    assert config.backbone == name
    network = build(config).eval()
    assert sum(p.numel() for p in network.backbone.parameters()) == body
    convolutions = [m.weight.shape[:2] for m in network.masks if isinstance(m, nn.Conv2d)]
    assert convolutions == [(64, channels), (16, 64), (8, 16), (4, 8)]
    dense = [m.weight.shape for m in network.head if isinstance(m, nn.Linear)]
    assert dense == [(128, 4 * channels), (1, 128)]
    dropouts = [m.p for m in (*network.masks, *network.head) if isinstance(m, nn.Dropout)]
    assert dropouts == [0.5, 0.25, 0.25]
    cfg = network.backbone.pretrained_cfg
    assert (tuple(config.mean), tuple(config.std)) == (cfg["mean"], cfg["std"])
    with torch.no_grad():
        assert network(images()).shape == (2, 1)
        maps = network.attention_maps(images(size=96))
    assert maps.shape == (2, 4, 3, 3)
    assert ((maps > 0) & (maps < 1)).all()


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("maps", [1, 4])
@pytest.mark.parametrize("backbone", [TINY, "test_resnet"])
def test_shapes(backbone, maps, outputs):
    network = MultiAttention(backbone, outputs=outputs, maps=maps)
    assert network(images(3)).shape == (3, outputs)
    found = network.attention_maps(images(3, 96))
    assert found.shape == (3, maps, 3, 3)
    assert ((found > 0) & (found < 1)).all()


def test_masked_pooling_is_gap_of_the_masked_features_over_gap_of_the_mask(lively):
    given = images(4, 96)
    normed = seen(lively, lively.norm, given).double().numpy()
    gates = seen(lively, lively.gates, given).double().numpy()
    logits = seen(lively, lively.masks, given).double().numpy()
    pooled = seen(lively, lively.head[0], given)
    features, masks = normed * gates, 1 / (1 + np.exp(-logits))
    masked = (masks[:, :, None] * features[:, None]).mean((3, 4))
    expected = masked / masks.mean((2, 3))[:, :, None]
    assert masks.std((2, 3)).min() > 0.02
    assert gates.std() > 0.02
    np.testing.assert_allclose(pooled, expected.reshape(4, -1), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(lively.attention_maps(given), masks, rtol=1e-5)


def test_channel_gates_and_dense_layers_are_as_documented(lively):
    """The whole head once more, from the backbone's features on, by plain matrix products."""
    given = images()
    features = seen(lively, lively.backbone, given).double().numpy()
    w = {name: t.double().numpy() for name, t in lively.state_dict().items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].reshape(len(w[f"{name}.weight"]), -1).T + w[f"{name}.bias"]

    x = features.transpose(0, 2, 3, 1)
    x = (x - w["norm.running_mean"]) / np.sqrt(w["norm.running_var"] + lively.norm.eps)
    x = x * w["norm.weight"] + w["norm.bias"]
    gate = linear(np.maximum(linear(x.mean((1, 2)), "gates.1"), 0), "gates.3")
    x = x / (1 + np.exp(-gate))[:, None, None]
    masks = x
    for layer in ("masks.1", "masks.3", "masks.5"):
        masks = np.maximum(linear(masks, layer), 0)
    masks = 1 / (1 + np.exp(-linear(masks, "masks.7")))
    pooled = np.einsum("bhwk,bhwc->bkc", masks, x) / masks.sum((1, 2))[:, :, None]
    hidden = np.maximum(linear(pooled.reshape(2, -1), "head.2"), 0)
    with torch.no_grad():
        np.testing.assert_allclose(lively(given), linear(hidden, "head.5"), rtol=1e-4, atol=1e-5)


def test_with_all_attention_at_one_pooling_is_plain_global_average_pooling(lively):
    open_fully(lively.gates[3])
    open_fully(lively.masks[-1])
    given = images(4, 96)
    plain = seen(lively, lively.norm, given).mean((2, 3))
    pooled = seen(lively, lively.head[0], given).view(4, 3, -1)
    assert (lively.attention_maps(given) == 1).all()
    torch.testing.assert_close(pooled, plain[:, None].expand(-1, 3, -1), rtol=1e-4, atol=1e-5)


def test_a_mask_that_is_almost_black_still_pools_what_it_prefers():
    features = torch.tensor([[[[1.0, 5.0]]]])
    logits = torch.tensor([[[[-400.0, -402.0]]]], requires_grad=True)
    pooled = masked_pooling(features, logits)
    share = 1 / (1 + np.exp(-2))
    assert pooled.item() == pytest.approx(share + 5 * (1 - share))
    pooled.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_gradients_reach_every_parameter(tiny):
    # Dropout might close the few units of the last convolution.
    for module in tiny.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    tiny.train()
    (tiny(images(4)) ** 2).sum().backward()
    for name, parameter in tiny.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    for part in (tiny.backbone, tiny.norm, tiny.gates, tiny.masks, tiny.head):
        assert all(p.grad.abs().sum() > 0 for p in part.parameters())


def test_the_maps_train_the_backbone_too(tiny):
    """The attention branch is no bystander that only reads finished features."""
    tiny.train().attention_maps(images(4)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in tiny.backbone.parameters())


def test_evaluation_is_deterministic_and_training_is_not(tiny):
    given = images(4)
    with torch.no_grad():
        assert not torch.equal(tiny.train()(given), tiny(given))
        tiny.eval()
        before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
        assert torch.equal(tiny(given), tiny(given))
        assert torch.equal(tiny.attention_maps(given), tiny.attention_maps(given))
        torch.testing.assert_close(tiny(given)[:1], tiny(given[:1]), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("backbone", [TINY, "tf_efficientnetv2_s", "tf_efficientnet_b3"])
def test_every_parameter_is_in_exactly_one_stage(backbone, attention):
    with torch.device("meta"):
        network = MultiAttention(backbone, attention=attention)
        plain = TimmNetwork(backbone).stages()
    stages = network.stages()
    assert list(stages) == ["early", "late", "head"]
    staged = [id(p) for group in stages.values() for p in group]
    assert sorted(staged) == sorted(id(p) for p in network.parameters())
    # The backbone's stages are those of the plain network; only the head differs.
    assert all(len(stages[name]) == len(plain[name]) for name in ("early", "late"))
    rates = {"early": 1e-5, "late": 1e-4, "head": 1e-3}
    assert [len(g["params"]) for g in parameter_groups(network, rates)] == [
        len(group) for group in stages.values()
    ]


def test_without_attention_it_is_timms_network(tmp_path):
    plain = TimmNetwork(TINY, mean=[0.5] * 3, std=[0.5] * 3).eval()
    save_file(plain.backbone.state_dict(), tmp_path / "w.safetensors")
    network = MultiAttention(
        TINY, weights=str(tmp_path / "w.safetensors"), mean=[0.5] * 3, std=[0.5] * 3,
        attention=False,
    ).eval()  # fmt: skip
    assert network.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(network(images()), plain(images()))
    with pytest.raises(LeukoclsError, match=r"model\.attention=false: .* no attention maps"):
        network.attention_maps(images())


def test_weights_of_a_plain_network_are_its_backbones(tmp_path, tiny):
    plain = TimmNetwork(TINY, outputs=1000, mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.3]).eval()
    save_file(plain.backbone.state_dict(), tmp_path / "w.safetensors")
    network = MultiAttention(
        TINY, weights=str(tmp_path / "w.safetensors"), mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.3]
    ).eval()
    normal = (images() - plain.mean) / plain.std
    with torch.no_grad():
        expected = plain.backbone.forward_features(normal)
    assert torch.equal(seen(network, network.backbone, images()), expected)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"maps": 0}, "model.maps: choose at least 1"),
        ({"widths": [64, 0]}, "model.widths: choose at least 1"),
        ({"reduction": 0}, "model.reduction: choose at least 1"),
        ({"dense": -1}, "model.dense: choose at least 1"),
        ({"dropout": 1}, "model.dropout=1: choose a number from 0 to below 1"),
        ({"attention_dropout": -0.1}, "model.attention_dropout=-0.1: choose"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(wrong, said):
    with pytest.raises(LeukoclsError, match=said):
        MultiAttention(TINY, **wrong)


def test_a_backbone_without_feature_maps_is_refused():
    with pytest.raises(LeukoclsError, match=r"needs maps.*convolutional"):
        MultiAttention("test_vit").eval()(images(size=160))


# The experiments, through the real command line


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_reconstruction_says_so_wherever_it_fills_a_gap(experiment):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=[f"experiment={experiment}"])
        plain = compose("train", overrides=[f"experiment={experiment}", "ablation=noattention"])
    assert config.reconstruction
    assert config.split_scheme == "subject"
    assert config.model.backbone == BACKBONES[EXPERIMENTS[experiment]][0]
    # The ablation changes the attention and nothing else.
    difference = OmegaConf.to_container(plain)
    difference["model"]["attention"] = True
    assert difference == OmegaConf.to_container(config)
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    for word in ("RECONSTRUCTION", "a warning, not a target", "Not yet measured here"):
        assert word.lower() in text.lower().replace("\n# ", " ")


def limited(experiment, tree, tmp_path):
    """An experiment within what a CPU does in seconds, by the command line alone."""
    return [
        f"experiment={experiment}", f"data.root={tree}", f"outputs={tmp_path / 'outputs'}",
        f"data.cache={tmp_path / 'store'}", "model.pretrained=false", "data.size=64",
        "data.batch_size=4", "trainer.max_epochs=1", "trainer.limit_train_batches=1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "mark"),
    [(["ablation=noattention"], "RECONSTRUCTION"), (["split_scheme=cell"], "LEAKY")],
)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_trains_without_attention_and_by_cells(
    experiment: str,
    overrides: list[str],
    mark: str,
    small_tree: Path,
    tmp_path: Path,
    train: Train,
) -> None:
    command = limited(experiment, small_tree, tmp_path)
    done = train(*command, f"model.backbone={TINY}", *overrides)
    assert done.code == 0, done.err
    said = record(only_run(tmp_path / "outputs"))
    assert said["status"] == "done"
    assert {mark, "RECONSTRUCTION"} <= set(said["marks"])
