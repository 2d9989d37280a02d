"""Frozen features: nothing of the backbone ever moves, and the cache gives what it would give."""

import os
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch
import torchvision
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

import leukocls
from leukocls.common.errors import LeukoclsError
from leukocls.data.views import image_views
from leukocls.data.warp import to_images
from leukocls.models.frozen import FrozenFeatures
from leukocls.models.weights import load_weights
from leukocls.training.build import build
from leukocls.training.classifier import CellClassifier
from leukocls.training.feature_cache import cached_features
from leukocls.training.losses import CellLoss
from leukocls.training.optim import configure, parameter_groups

CONF = Path(leukocls.__file__).parents[1] / "conf"
TINY = "test_efficientnet"
BACKBONES = [TINY, "test_resnet", "test_vit"]
# One of each of timm's ways from maps or tokens to pooled features.
FAMILIES = [
    "test_resnet", "test_vit", "test_convnext", "test_efficientnet", "regnetx_002", "test_nfnet",
    "test_byobnet", "densenet121", "levit_128s", "edgenext_xx_small", "vgg16",
]  # fmt: skip
OPTIMISERS = {
    "SGD": {"_target_": "torch.optim.SGD", "momentum": 0.9},
    "Adam": {"_target_": "torch.optim.Adam"},
}
SCHEDULE = {"_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 1.0}
CPU = torch.device("cpu")


def images(count=4, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def make(backbone=TINY, **options):
    torch.manual_seed(0)
    if backbone == "test_vit":
        options["options"] = {"img_size": 32}
    network = FrozenFeatures(backbone, mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.3], **options)
    # Statistics as after training: at 0 and 1 much would go unseen.
    torch.manual_seed(1)
    for name, buffer in network.backbone.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return network


def snapshot(module):
    held = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in held}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def composed(option, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"+model={option}", "model.pretrained=false", *overrides]
        return compose(overrides=overrides).model


@pytest.fixture(scope="module")
def vgg16():
    return build(composed("frozen_vgg16"))


# Frozen


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_training_moves_the_head_and_not_a_bit_of_the_backbone(backbone, name):
    network = make(backbone)
    optim = {"optimizer": OPTIMISERS[name], "schedule": SCHEDULE, "weight_decay": 0.1}
    optim |= {"lr": {"early": 1.0, "late": 1.0, "head": 0.1}}
    optimizer, _ = configure(network, optim, steps=4)
    before, head = snapshot(network.backbone), snapshot(network.head)
    for step in range(4):
        network.train(step != 2)  # as found, and after an evaluation
        optimizer.zero_grad()
        network(images() + step).square().sum().backward()
        optimizer.step()
    assert equal(snapshot(network.backbone), before)
    after = snapshot(network.head)
    assert not any(torch.equal(after[name], head[name]) for name in head)
    assert equal({n: t for n, t in network.state_dict().items() if n in network.constants()},
                 {f"backbone.{n}": t for n, t in before.items()
                  if n in network.backbone.state_dict()})  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_lightning_which_keeps_the_mode_it_finds_moves_no_statistic(tmp_path):
    network = make()
    before, head = snapshot(network.backbone), snapshot(network.head)
    batch = {"row": torch.arange(4), "label": torch.tensor([0, 1, 1, 0]), "image": images()}
    optim = {"optimizer": OPTIMISERS["SGD"], "schedule": SCHEDULE, "lr": 0.1, "weight_decay": 0.0}
    loss = CellLoss(pos_weight=1.0)
    classifier = CellClassifier(network, optim, loss=loss, views=1, seed=0, scored=["val"])
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    loader = DataLoader([batch, batch], batch_size=None)
    trainer.fit(classifier, loader, loader)
    assert equal(snapshot(network.backbone), before)
    assert not equal(snapshot(network.head), head)


def test_no_gradient_graph_goes_through_the_backbone():
    network, kept = make(widths=[7]), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = network(images())
    # Features, weights and masks of the head: nothing with pixels is held for a backward pass.
    assert kept
    assert all(tensor.ndim <= 2 for tensor in kept)
    assert output.requires_grad
    assert not network.features(images().requires_grad_()).requires_grad


@pytest.mark.parametrize("frozen", [None, "weights"])
def test_another_freeze_is_refused(frozen):
    with pytest.raises(LeukoclsError, match=r"model\.frozen=.*model=timm trains the backbone"):
        FrozenFeatures(TINY, frozen=frozen)


# Features and head


@pytest.mark.parametrize("backbone", FAMILIES)
def test_features_are_pooled_vectors_of_timms_width(backbone, request):
    network = request.getfixturevalue(backbone) if backbone == "vgg16" else FrozenFeatures(backbone)
    fixed = network.backbone.pretrained_cfg["input_size"][-1]
    given = images(2, fixed if backbone in ("test_vit", "levit_128s") else 64)
    features = network.features(given)
    assert features.shape == (2, network.num_features)
    assert network.num_features == network.backbone.num_features
    assert network(given).shape == (2, 1)


@pytest.mark.parametrize(
    "backbone",
    # The last two have a pretrained layer between pooled and classified features.
    ["test_resnet", "test_vit", "test_convnext", "test_mambaout", "mobilenetv3_small_050"],
)
def test_features_are_what_timms_classifier_would_see(backbone, tmp_path):
    torch.manual_seed(0)
    plain = timm.create_model(backbone, num_classes=1000).eval()
    save_file(plain.state_dict(), tmp_path / "w.safetensors")
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.2, 0.3]
    weights = str(tmp_path / "w.safetensors")
    network = FrozenFeatures(backbone, weights=weights, mean=mean, std=std)
    given = images(2, 160)
    normal = torchvision.transforms.functional.normalize(given, mean, std)
    with torch.no_grad():
        expected = plain.forward_head(plain.forward_features(normal), pre_logits=True)
    assert expected.std() > 1e-3
    torch.testing.assert_close(network.features(given), expected, rtol=1e-5, atol=1e-6)


def test_vgg16_is_torchvisions_without_its_dense_layers(vgg16):
    theirs = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"]).eval()
    theirs.load_state_dict(vgg16.backbone.features.state_dict())
    given = images(2)
    normalise = torchvision.models.VGG16_Weights.IMAGENET1K_V1.transforms()
    normal = torchvision.transforms.functional.normalize(given, normalise.mean, normalise.std)
    with torch.no_grad():
        expected = nn.AdaptiveAvgPool2d(7)(theirs(normal)).mean((2, 3))
    assert expected.std() > 0
    torch.testing.assert_close(vgg16.features(given), expected, rtol=1e-4, atol=1e-7)
    assert not any("pre_logits" in name for name in vgg16.state_dict())
    assert sum(p.numel() for p in vgg16.backbone.parameters()) == 14_714_688
    trained = 512 * 256 + 256 + 256 * 128 + 128 + 128 + 1
    assert sum(p.numel() for p in vgg16.parameters() if p.requires_grad) == trained


def test_vggs_file_of_weights_is_loaded_with_its_dense_layers_and_then_loses_them(tmp_path):
    small = {"mlp_ratio": 1 / 64}  # for a test that is small
    plain = timm.create_model("vgg11", **small)
    save_file(plain.state_dict(), tmp_path / "w.safetensors")
    network = FrozenFeatures("vgg11", weights=str(tmp_path / "w.safetensors"), options=small)
    assert equal(network.backbone.features.state_dict(), plain.features.state_dict())
    assert {n.split(".")[0] for n in network.backbone.state_dict()} == {"features"}


@pytest.mark.parametrize("widths", [[], [5], [7, 5]])
def test_the_head_is_dense_layers_with_relu_and_one_logit(widths):
    network = make(widths=widths, outputs=2).eval()
    x = network.features(images())
    w = {name: t.double().numpy() for name, t in network.head.state_dict().items()}
    dense = sorted({name.split(".")[0] for name in w}, key=int)
    assert [len(w[f"{i}.bias"]) for i in dense] == [*widths, 2]
    hidden = x.double().numpy()
    for i in dense:
        hidden = hidden @ w[f"{i}.weight"].T + w[f"{i}.bias"]
        if i != dense[-1]:
            hidden = np.maximum(hidden, 0)
    with torch.no_grad():
        np.testing.assert_allclose(network(images()), hidden, rtol=1e-5, atol=1e-6)
        assert torch.equal(network(images()), network(x))


def test_dropout_acts_after_each_dense_layer_and_in_training_alone():
    network = make(dropout=0.25)
    assert [m.p for m in network.head if isinstance(m, nn.Dropout)] == [0.25, 0.25]
    assert [type(m) for m in network.head[:3]] == [nn.Linear, nn.ReLU, nn.Dropout]
    assert not torch.equal(network(images()), network(images()))
    assert torch.equal(network.features(images()), network.eval().features(images()))
    assert torch.equal(network(images()), network(images()))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"widths": [64, 0]}, r"model\.widths=\[64, 0\]: choose at least 1"),
        ({"dropout": 1}, r"model\.dropout=1: choose a number from 0 to below 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(wrong, said):
    with pytest.raises(LeukoclsError, match=said):
        FrozenFeatures(TINY, **wrong)


# Stages, state dict, configuration


@pytest.mark.parametrize("backbone", [*BACKBONES, "densenet121", "levit_128s", "vgg16"])
def test_stages_hold_every_parameter_once_and_only_the_head_is_trained(backbone, request):
    network = request.getfixturevalue(backbone) if backbone == "vgg16" else FrozenFeatures(backbone)
    stages = network.stages()
    assert list(stages) == ["early", "late", "head"]
    staged = [id(p) for group in stages.values() for p in group]
    assert sorted(staged) == sorted(id(p) for p in network.parameters())
    assert not any(p.requires_grad for p in network.backbone.parameters())
    assert all(p.requires_grad for p in network.head.parameters())
    (group,) = parameter_groups(network, {"early": 1e-6, "late": 1e-4, "head": 1e-2})
    assert (group["name"], group["lr"]) == ("head", 1e-2)
    assert {id(p) for p in group["params"]} == {id(p) for p in network.head.parameters()}
    assert network.constants() == {f"backbone.{name}" for name in network.backbone.state_dict()}


def test_a_checkpoint_gives_the_same_network(tmp_path):
    network = make().eval()
    save_file(network.state_dict(), tmp_path / "best.safetensors")
    torch.manual_seed(1)
    other = FrozenFeatures(TINY, mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.3]).eval()
    assert not torch.equal(other(images()), network(images()))
    assert load_weights(other, tmp_path / "best.safetensors", classifier=()) == []
    assert torch.equal(other(images()), network(images()))
    assert other.fingerprint() == network.fingerprint()


@pytest.mark.parametrize("option", ["frozen_vgg16", "frozen_efficientnetb0"])
def test_configurations_are_of_pretrained_weights_and_their_normalisation(option):
    config = composed(option)
    cfg = timm.get_pretrained_cfg(config.backbone)
    assert cfg.hf_hub_id
    assert (tuple(config.mean), tuple(config.std)) == (cfg.mean, cfg.std)
    other = build(composed(option, "model.backbone=test_resnet", "model.widths=[3]"))
    assert isinstance(other, FrozenFeatures)
    assert other(images()).shape == (4, 1)


# The cache


@pytest.fixture
def store(tmp_path):
    """Eleven images as open_store gives them."""
    cells = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), np.uint8)
    np.save(tmp_path / "0123-crop32-size32.npy", cells)
    return np.load(tmp_path / "0123-crop32-size32.npy", mmap_mode="r")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def cached(network, store, cache, plan=4, batch_size=4):
    return cached_features(network, store, plan, cache, batch_size=batch_size, device=CPU)


def calls(network):
    """Grows by the shape of each batch that reaches the backbone."""
    seen = []
    network.backbone.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    return seen


@pytest.mark.parametrize("backbone", BACKBONES)
def test_cached_features_give_the_live_logits(backbone, store, cache):
    network = make(backbone).eval()
    features = cached(network, store, cache)
    assert isinstance(features, np.memmap)
    assert (features.shape, features.dtype) == ((11, 4, network.num_features), np.float32)
    assert not features.flags.writeable
    live, kept = to_images(torch.from_numpy(np.array(store))), torch.from_numpy(np.array(features))
    with torch.no_grad():
        # To the bit in the same batches …
        for rows in (slice(0, 4), slice(4, 8), slice(8, 11)):
            for v, view in enumerate(image_views(live[rows], 4)):
                assert torch.equal(network(view), network(kept[rows, v]))
        # … and but for rounding in others, as in training: some processors compute an image
        # otherwise at another place in its batch.
        for rows in ([5, 0, 7, 2], list(range(11))):
            for v, view in enumerate(image_views(live[rows], 4)):
                torch.testing.assert_close(
                    network(view), network(kept[rows, v]), rtol=1e-4, atol=1e-5
                )
    assert (kept[:, 0] - kept[:, 1]).abs().max() > 1e-3
    assert (kept[0] - kept[1]).abs().max() > 1e-3


def test_the_backbone_sees_pixels_over_255_normalised(store, cache):
    network = make()
    seen = calls(network)
    cached(network, store, cache, plan=1)
    pixels = np.float32(store).transpose(0, 3, 1, 2) / np.float32(255)
    mean, std = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.2, 0.3])
    expected = (pixels - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_array_equal(torch.cat(seen), expected)
    assert [len(batch) for batch in seen] == [4, 4, 3]


def test_the_second_time_the_backbone_is_not_called(store, cache):
    network = make()
    seen = calls(network)
    first = np.array(cached(network, store, cache))
    assert len(seen) == 3 * 4
    again = make(widths=[3]).eval()  # another head, another mode: the same features
    more = calls(again)
    np.testing.assert_array_equal(cached(again, store, cache), first)
    assert not more
    assert len(list(cache.glob("*.npy"))) == 1


def nudged(name):
    """A network of which one number of one tensor is the next that float32 can hold."""
    network = make()
    with torch.no_grad():
        number = network.backbone.state_dict()[name].view(-1)[:1]
        number.copy_(torch.nextafter(number, torch.tensor(9.0)))
    return network


def normalised(name):
    network = make()
    getattr(network, name)[0, 1] += 1e-6
    return network


OTHERS = {
    "a weight": lambda: nudged("conv_stem.weight"),
    "a statistic": lambda: nudged("bn1.running_var"),
    "mean": lambda: normalised("mean"),
    "std": lambda: normalised("std"),
    "options that leave no trace in the weights": lambda: make(options={"global_pool": "max"}),
    "another backbone": lambda: make("test_resnet"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_network_has_another_file(what, store, cache):
    cached(make(), store, cache)
    other = OTHERS[what]()
    seen = calls(other)
    cached(other, store, cache)
    assert seen
    assert len(list(cache.glob("*.npy"))) == 2


def test_another_image_size_view_plan_batch_or_machine_has_another_file(
    store, cache, tmp_path, monkeypatch
):
    network = make()
    np.save(tmp_path / "0123-crop32-size16.npy", store[:, ::2, ::2])
    small = np.load(tmp_path / "0123-crop32-size16.npy", mmap_mode="r")
    (tmp_path / "4567-crop32-size32.npy").write_bytes(Path(store.filename).read_bytes())
    data = np.load(tmp_path / "4567-crop32-size32.npy", mmap_mode="r")
    for n, (given, plan, batch_size) in enumerate(
        [(store, 4, 4), (small, 4, 4), (data, 4, 4), (store, 2, 4), (store, 4, 5)]
    ):
        cached(network, given, cache, plan, batch_size)
        assert len(list(cache.glob("*.npy"))) == n + 1
    for where, what, value in (
        (torch, "__version__", "0.0"),
        (timm, "__version__", "0.0"),
        (torch, "get_num_threads", lambda: 99),
        (torch, "are_deterministic_algorithms_enabled", lambda: "perhaps"),
        (torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS"),
    ):
        count = len(list(cache.glob("*.npy")))
        with monkeypatch.context() as patch:
            patch.setattr(where, what, value)
            cached(network, store, cache)
        assert len(list(cache.glob("*.npy"))) == count + 1, what


@pytest.mark.parametrize(
    "damage",
    ["short", "empty", "no header", "cells", "views", "width", "type", "one bit", "no checksums"],
)
def test_a_damaged_file_is_made_anew(damage, store, cache):
    network = make()
    whole = np.array(cached(network, store, cache))
    (path,) = cache.glob("*.npy")
    good = path.read_bytes()
    bad = {
        "short": lambda: path.write_bytes(good[:-1]),
        "empty": lambda: path.write_bytes(b""),
        "no header": lambda: path.write_bytes(b"\0" * len(good)),
        "cells": lambda: np.save(path, whole[1:]),
        "views": lambda: np.save(path, whole[:, 1:]),
        "width": lambda: np.save(path, whole[..., 1:]),
        "type": lambda: np.save(path, whole.view(np.int32)),
        "one bit": lambda: path.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]),
        "no checksums": path.with_suffix(".crc32").unlink,
    }
    bad[damage]()
    seen = calls(network)
    np.testing.assert_array_equal(cached(network, store, cache), whole)
    assert seen
    assert path.read_bytes() == good


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_writing_leaves_no_file(stop, store, cache, monkeypatch):
    network = make()
    if isinstance(stop, OSError):

        def full(descriptor):
            raise stop

        monkeypatch.setattr(os, "fsync", full)
    else:
        seen = calls(network)

        def interrupt(module, given):
            if len(seen) > 5:
                assert list(cache.iterdir())  # in the middle of it
                raise stop

        network.backbone.register_forward_pre_hook(interrupt)
    with pytest.raises(type(stop)) as raised:
        cached(network, store, cache)
    assert list(cache.iterdir()) == []
    if isinstance(stop, OSError):
        assert Path(raised.value.filename).parent == cache


def test_a_file_that_is_there_outlives_a_failed_attempt_at_another(store, cache, monkeypatch):
    kept = np.array(cached(make(), store, cache))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(5)))
    with pytest.raises(OSError, match="features-"):
        cached(make(), store, cache, plan=1)
    np.testing.assert_array_equal(cached(make(), store, cache), kept)
    assert sorted(path.suffix for path in cache.iterdir()) == [".crc32", ".npy"]
