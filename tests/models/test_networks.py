import ast
import importlib.util
import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import leukocls
from leukocls.common.errors import LeukoclsError
from leukocls.models.timm_network import TimmNetwork
from leukocls.models.weights import load_weights, read_state_dict

PACKAGE = Path(leukocls.__file__).parent
TINY = "test_resnet"
# One small network of each of timm's ways to name stages and heads; levit has two heads.
FAMILIES = [
    "test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_mambaout", "test_nfnet",
    "test_byobnet", "resnet18", "mobilenetv3_small_050", "regnetx_002", "densenet121",
    "edgenext_xx_small", "efficientvit_b0", "levit_128s",
]  # fmt: skip


@pytest.fixture(scope="module")
def seresnext():
    return TimmNetwork("legacy_seresnext50_32x4d")


@pytest.fixture
def tiny():
    return TimmNetwork(TINY)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# Stages


def test_seresnext50_is_the_papers_network_and_has_its_three_groups(seresnext):
    assert sum(p.numel() for p in seresnext.parameters()) == 25_512_945
    stages = seresnext.stages()
    assert {stage: len(group) for stage, group in stages.items()} == {
        "early": 45,
        "late": 178,
        "head": 2,
    }
    assert [sum(p.numel() for p in group) for group in stages.values()] == [
        240_752,
        25_270_144,
        2_049,
    ]
    name = {id(p): n for n, p in seresnext.backbone.named_parameters()}
    modules = {stage: {name[id(p)].split(".")[0] for p in g} for stage, g in stages.items()}
    assert modules == {
        "early": {"layer0", "layer1"},
        "late": {"layer2", "layer3", "layer4"},
        "head": {"last_linear"},
    }


@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_parameter_is_in_exactly_one_stage_and_no_stage_is_empty(backbone):
    network = TimmNetwork(backbone)
    stages = network.stages()
    staged = [id(p) for group in stages.values() for p in group]
    assert sorted(staged) == sorted(id(p) for p in network.parameters())
    assert list(stages) == ["early", "late", "head"]
    assert all(stages.values())
    # A fresh head of one output has so many biases; nothing of the body looks like that.
    assert all(p.shape[0] == 1 for p in stages["head"])


@pytest.mark.parametrize("backbone", ["pit_ti_224", "rdnet_tiny"])
def test_a_backbone_without_stages_is_refused_before_anything_is_trained(backbone):
    with pytest.raises(LeukoclsError, match=f"{backbone}: .*stages"), torch.device("meta"):
        TimmNetwork(backbone)


# Cadene's weights


def cadenes_network():
    """SE-ResNeXt50 of `pretrainedmodels`; the file alone, for the package wants `six`."""
    package = importlib.util.find_spec("pretrainedmodels")
    if package is None:
        pytest.skip("pretrainedmodels is not installed")
    path = Path(package.origin).parent / "models" / "senet.py"
    spec = importlib.util.spec_from_file_location("cadenes_senet", path)
    senet = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(senet)
    return senet.se_resnext50_32x4d(pretrained=None).eval()


def test_cadenes_weights_load_whole_and_give_his_features(tmp_path):
    torch.manual_seed(0)
    theirs = cadenes_network()
    for name, buffer in theirs.named_buffers():
        # Statistics as after training: at 0 and 1 a swapped pair would go unseen.
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    path = tmp_path / "se_resnext50_32x4d.pth"
    torch.save(theirs.state_dict(), path)
    ours = TimmNetwork("legacy_seresnext50_32x4d", weights=str(path)).eval()
    assert load_weights(ours.backbone, path, ours.classifier_names) == [
        "last_linear.bias",
        "last_linear.weight",
    ]
    image = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        expected, found = theirs.features(image), ours.backbone.forward_features(image)
    # 0 measured on one build; convolutions may be ordered otherwise on another.
    assert expected.std() > 1e-3
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# Weights from a file


def test_weights_load_from_every_format_and_wrapper(tmp_path, tiny):
    state = tiny.backbone.state_dict()
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    save_file(state, tmp_path / "plain.safetensors")
    save_file(prefixed, tmp_path / "prefixed.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    torch.save(state, tmp_path / "before_1.6.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": prefixed, "epoch": 3}, tmp_path / "wrapped.ckpt")
    torch.save({"model": state}, tmp_path / "model.bin")
    for path in sorted(tmp_path.iterdir()):
        other = TimmNetwork(TINY, weights=str(path))
        assert equal(other.backbone.state_dict(), state), path.name


def test_only_a_classifier_of_another_shape_or_absent_stays_random(tmp_path):
    state = timm.create_model(TINY, num_classes=1000).state_dict()
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    for given in (state, body):
        path = tmp_path / "weights.pth"
        torch.save(given, path)
        network = TimmNetwork(TINY)
        before = {name: t.clone() for name, t in network.backbone.state_dict().items()}
        assert load_weights(network.backbone, path, ("fc",)) == ["fc.bias", "fc.weight"]
        after = network.backbone.state_dict()
        assert all(torch.equal(after[name], body[name]) for name in body)
        assert all(torch.equal(after[name], before[name]) for name in ("fc.bias", "fc.weight"))


def change_shape(state):
    state["conv1.0.weight"] = torch.zeros(1, 2)


def lose_the_head(state):
    del state["fc.weight"]


def add_one(state):
    state["extra.weight"] = torch.zeros(1)


def lose_one(state):
    del state["layer1.0.conv1.weight"]


def rename_one(state):
    state["layer1.0.conv9.weight"] = state.pop("layer1.0.conv1.weight")


@pytest.mark.parametrize(
    ("change", "classifier", "said"),
    [
        (lose_one, "fc", r"1 missing \(layer1\.0\.conv1\.weight\)"),
        (add_one, "fc", r"1 unexpected \(extra\.weight\)"),
        (change_shape, "fc", r"1 of another shape \(conv1\.0\.weight\)"),
        (rename_one, "fc", r"1 missing \(layer1\.0\.conv1\.w.*1 unexpected \(layer1\.0\.conv9\.w"),
        (dict.clear, "fc", r"missing \(.*, …\)"),
        (lose_the_head, "", r"1 missing \(fc\.weight\)"),
    ],
)
def test_keys_that_do_not_fit_are_refused_by_name(tmp_path, tiny, change, classifier, said):
    state = dict(tiny.backbone.state_dict())
    before = {name: tensor.clone() for name, tensor in state.items()}
    change(state)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(LeukoclsError, match=said) as refusal:
        load_weights(tiny.backbone, path, classifier)
    assert str(path) in str(refusal.value)
    assert equal(tiny.backbone.state_dict(), before)


def test_weights_without_batchnorms_counter_load(tmp_path, tiny):
    state = tiny.backbone.state_dict()
    old = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    save_file(old, tmp_path / "old.safetensors")
    assert load_weights(tiny.backbone, tmp_path / "old.safetensors", "fc") == []


class Marker:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin"])
@pytest.mark.parametrize(
    "write", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj, 2))]
)
def test_a_pickle_that_would_run_code_is_refused_and_never_fires(tmp_path, tiny, name, write):
    fired, path = tmp_path / "fired", tmp_path / name
    pickle.loads(pickle.dumps(Marker(fired))).close()
    assert fired.exists(), "the marker itself must work"
    fired.unlink()
    write({**tiny.backbone.state_dict(), "conv1.0.weight": Marker(fired)}, path)
    with pytest.raises(LeukoclsError, match="not a readable safetensors file or state dict"):
        TimmNetwork(TINY, weights=str(path))
    assert not fired.exists()


def test_nor_does_it_fire_where_timms_own_options_name_the_file(tmp_path):
    fired, path = tmp_path / "fired", tmp_path / "w.pth"
    torch.save({"conv1.0.weight": Marker(fired)}, path)
    for options in (
        {"checkpoint_path": str(path)},
        {"pretrained_cfg_overlay": {"file": str(path)}},
    ):
        with pytest.raises(LeukoclsError):
            TimmNetwork(TINY, pretrained="pretrained_cfg_overlay" in options, options=options)
    assert not fired.exists()


UNPICKLES = r"(torch|pickle|joblib|dill|shelve)\.(load|loads|open|Unpickler)$|read_pickle$"


def test_nothing_in_the_package_unpickles():
    calls = [
        (path.name, ast.unparse(node))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and re.search(UNPICKLES, ast.unparse(node.func))
    ]
    assert calls
    assert not any(
        "allow_pickle=True" in path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")
    )
    assert all(call.endswith("weights_only=True)") for _, call in calls), calls


def write_broken(path, tiny):
    """Whole, then damaged, each in its own way."""
    state = tiny.backbone.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=path.suffix == ".pth")
    if path.stem == "object":
        torch.save([1, 2], path)
    elif path.stem == "number_keys":
        torch.save({1: torch.zeros(1)}, path)
    elif path.stem == "page":
        path.write_text("<html>404</html>")
    elif path.stem == "empty":
        path.write_bytes(b"")
    elif path.stem == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(path.read_bytes()[:10])


@pytest.mark.parametrize(
    "name",
    [
        *(f"{how}.{kind}" for how in ("page", "empty", "half", "head") for kind in
          ("safetensors", "pth", "before16")),
        "object.pth",
        "number_keys.pth",
    ],
)  # fmt: skip
def test_a_file_that_holds_no_weights_is_refused_by_name(tmp_path, tiny, name):
    path = tmp_path / name
    write_broken(path, tiny)
    with pytest.raises(LeukoclsError, match=f"{name}: (is not a readable|holds no state)") as said:
        read_state_dict(path)
    # torch advises to unpickle what it does not know.
    assert "weights_only" not in str(said.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LeukoclsError, match=r"nowhere\.pth: no such file"):
        TimmNetwork(TINY, weights=str(tmp_path / "nowhere.pth"))


# Backbones by name, pretrained ones, normalisation


@pytest.mark.parametrize(("wrong", "near"), [("resnt18", "resnet18"), ("test_resnets", TINY)])
def test_an_unknown_backbone_is_told_a_near_name(wrong, near):
    with pytest.raises(LeukoclsError, match=f"{wrong}: timm has no such.*{near}"):
        TimmNetwork(wrong)


def test_options_that_timm_refuses_are_a_usage_error():
    with pytest.raises(LeukoclsError, match="cannot build it"):
        TimmNetwork(TINY, options={"colour": "green"})


@pytest.fixture
def no_network(monkeypatch):
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise ConnectionError
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)


@pytest.mark.usefixtures("no_network")
def test_without_a_network_pretrained_weights_give_three_ways_on():
    with pytest.raises(LeukoclsError, match="ConnectionError") as refusal:
        TimmNetwork(TINY, pretrained=True)
    for way in ("connect this machine", "model.weights=FILE", "model.pretrained=false"):
        assert way in str(refusal.value)


@pytest.mark.usefixtures("no_network")
def test_weights_from_a_file_need_no_network_even_when_pretrained_is_asked_for(tmp_path, tiny):
    save_file(tiny.backbone.state_dict(), tmp_path / "w.safetensors")
    network = TimmNetwork(TINY, pretrained=True, weights=str(tmp_path / "w.safetensors"))
    assert equal(network.backbone.state_dict(), tiny.backbone.state_dict())


def test_mean_and_std_are_taken_off_first_and_stay_out_of_the_state_dict(tiny):
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    network = TimmNetwork(TINY, mean=mean, std=std).eval()
    network.load_state_dict(tiny.state_dict())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    channel = (1, 3, 1, 1)
    normal = (images - torch.tensor(mean).view(channel)) / torch.tensor(std).view(channel)
    tiny.eval()
    with torch.no_grad():
        assert torch.equal(network(images), tiny(normal))
        assert torch.equal(tiny(images), tiny.backbone(images))
        assert not torch.allclose(network(images), tiny(images))


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "legacy_seresnext50_32x4d", TINY])
def test_a_fresh_head_is_torchs_own(backbone):
    network = TimmNetwork(backbone)
    (head,) = (network.backbone.get_submodule(name) for name in network.classifier_names)
    bound = head.in_features**-0.5
    assert 0.9 * bound < head.weight.abs().max() <= bound


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_network_has_as_many_outputs_as_asked_for(outputs):
    assert TimmNetwork(TINY, outputs=outputs)(torch.zeros(3, 3, 32, 32)).shape == (3, outputs)
