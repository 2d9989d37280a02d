"""The networks of Marzahl et al. 2019: pooling against torchvision, heads by hand, boxes learnt."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file
from torch import nn
from torchvision.ops import box_iou, roi_align

import leukocls
from leukocls.common.errors import LeukoclsError
from leukocls.models.region import FastaiNetwork, RegionNetwork, concat_pool, iou, region_grid
from leukocls.models.timm_network import NORMALISATION
from leukocls.training.build import build
from leukocls.training.optim import parameter_groups

# timm starts residual branches at 0, and no gradient comes through at first.
OPEN = {"zero_init_last": False}
CONF = Path(leukocls.__file__).parents[1] / "conf"
TINY = "test_resnet"
OPTIONS = ("plain", "boxes", "region")
WHOLE = [-1.0, -1.0, 1.0, 1.0]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=2, size=96):
    return torch.rand(count, 3, size, size, generator=seeded())


def configured(option, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = [f"+model=resnet18_{option}", "model.pretrained=false", *overrides]
        return compose(overrides=given).model


def network(option, backbone=TINY, **arguments):
    """One of the three with a backbone of a second."""
    torch.manual_seed(0)
    arguments = {"outputs": 2, **arguments}
    if option == "plain":
        return FastaiNetwork(backbone, **arguments)
    return RegionNetwork(backbone, attention=option == "region", **arguments)


def lively(option, **arguments):
    """The same with statistics as after training: at 0 and 1 a missing BatchNorm goes unseen."""
    net = network(option, **arguments)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.3, 0.3, generator=seeded(1))
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=seeded(2))
    for name, parameter in net.named_parameters():
        if parameter.ndim == 1 and not name.startswith("backbone"):
            nn.init.uniform_(parameter, -0.5, 0.5, generator=seeded(3))
    return net.eval()


def logits(output):
    return output[0] if isinstance(output, tuple) else output


def given_to(net, module, batch):
    """What `module` is given while `net` sees `batch`."""
    kept = []
    hook = module.register_forward_hook(lambda _module, inputs, _output: kept.append(inputs[0]))
    with torch.no_grad():
        net(batch)
    hook.remove()
    return kept[0]


def propose(net, box):
    """Make the network propose `box` whatever it sees; ±1 exactly, for sigmoid(±40) is 0 or 1."""
    edges = torch.tensor(box)
    nn.init.zeros_(net.box_head[-1].weight)
    with torch.no_grad():
        net.box_head[-1].bias.copy_(((edges + 1) / 2).logit(1e-17).clamp(-40, 40))


# The grid over a box


def boxes(kind, count=32):
    """float64 [count, 4]: ordered and in the image, or what a box can be at worst."""
    edges = torch.rand(count, 2, 2, dtype=torch.float64, generator=seeded(7)) * 2 - 1
    edges = edges.sort(1).values
    if kind == "partly outside":
        edges = 1.8 * edges
    elif kind == "far outside":
        edges = edges + 2 * torch.randint(-1, 2, (count, 1, 2), generator=seeded(8))
    elif kind == "crossed":
        edges[::2] = edges[::2].flip(1)
        edges[1::2, :, 0] = edges[1::2, :, 0].flip(1)
    elif kind == "coinciding":
        edges[:, 1, 0] = edges[:, 0, 0]
        edges[::2, 1, 1] = edges[::2, 0, 1]
    return edges.flatten(1)


def torchvisions(features, box, size):
    """roi_align of one box an image; its boxes are x before y, in cells of the map."""
    height, width = features.shape[-2:]
    scale = torch.tensor([height, width, height, width], dtype=box.dtype) / 2
    cells = ((box + 1) * scale)[:, [1, 0, 3, 2]]
    index = torch.arange(len(box), dtype=box.dtype)[:, None]
    return roi_align(features, torch.cat([index, cells], 1), size, sampling_ratio=1, aligned=True)


@pytest.mark.parametrize(
    "kind", ["inside", "partly outside", "far outside", "crossed", "coinciding"]
)
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (3, 10)])
@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (1, 3)])
def test_the_grid_is_roi_align(shape, size, kind):
    box = boxes(kind)
    features = torch.randn(
        len(box), 3, *shape, dtype=torch.float64, generator=seeded(), requires_grad=True
    )
    found, expected = region_grid(features, box, size), torchvisions(features, box, size)
    assert found.shape == (len(box), 3, *size)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    if kind == "far outside":
        assert (expected == 0).any()
        assert (expected != 0).any()
    weights = torch.randn(found.shape, dtype=torch.float64, generator=seeded(1))
    gradients = [torch.autograd.grad((x * weights).sum(), features) for x in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("centre", "value"),
    [(-1.25, 0), (-1, 3), (-0.5, 3), (0, 3), (0.5, 4), (3, 9), (3.75, 9), (4, 9), (4.25, 0)],
)
def test_samples_beyond_the_map_take_the_border_and_then_nothing(centre, value):
    """One sample along y: rows hold 3, 5, 7, 9; `centre` is counted from the first row's."""
    features = torch.tensor([3.0, 5.0, 7.0, 9.0]).view(1, 1, 4, 1)
    middle = (centre + 0.5) / 2 - 1
    box = torch.tensor([[middle - 0.25, -1, middle + 0.25, 1]])
    assert region_grid(features, box, (1, 1)).item() == value
    assert torchvisions(features, box, (1, 1)).item() == value


@pytest.mark.parametrize("kind", ["inside", "partly outside", "crossed", "coinciding"])
def test_gradients_of_the_grid_are_those_of_finite_differences(kind):
    box = boxes(kind, 4).requires_grad_()
    features = torch.randn(4, 2, 4, 3, dtype=torch.float64, generator=seeded(), requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, b: region_grid(f, b, (3, 5)), (features, box))
    if kind in ("inside", "crossed"):
        (gradient,) = torch.autograd.grad(region_grid(features, box).square().sum(), box)
        assert gradient.abs().min() > 0


@pytest.mark.parametrize("shape", [(8, 8), (7, 12), (15, 9), (1, 1)])
def test_the_whole_image_at_the_maps_own_size_is_the_map(shape):
    features = torch.randn(2, 5, *shape, generator=seeded())
    whole = torch.tensor([WHOLE, WHOLE])
    assert torch.equal(region_grid(features, whole), features)
    assert torch.equal(region_grid(features, whole, shape), features)


def test_crossed_edges_mirror_the_region_and_pooling_cannot_tell():
    features = torch.randn(32, 3, 6, 9, dtype=torch.float64, generator=seeded())
    top, left, bottom, right = boxes("inside").unbind(1)
    straight = region_grid(features, torch.stack([top, left, bottom, right], 1))
    upside_down = region_grid(features, torch.stack([bottom, left, top, right], 1))
    swapped = region_grid(features, torch.stack([top, right, bottom, left], 1))
    torch.testing.assert_close(upside_down, straight.flip(2), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(swapped, straight.flip(3), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(concat_pool(swapped), concat_pool(straight))


@pytest.mark.parametrize("box", [[0.3, -0.2, 0.3, -0.2], [-1.0] * 4, [1.0] * 4, [0.5, 0, -0.5, 0]])
def test_a_region_without_area_has_values_and_gradients(box):
    features = torch.randn(1, 3, 4, 4, generator=seeded(), requires_grad=True)
    edges = torch.tensor([box], requires_grad=True)
    found = region_grid(features, edges)
    if box[0] == box[2]:
        assert torch.equal(found, found[:, :, :1, :1].expand_as(found))
    found.square().sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(edges.grad).all()
    assert torch.isfinite(features.grad).all()


# Intersection over union


@pytest.mark.parametrize("scale", [1, 1e-6, 450])
def test_iou_is_torchvisions(scale):
    first, second = scale * boxes("inside", 64), scale * boxes("inside", 64).roll(5, 0)
    # torchvision's order is left, top, right, bottom.
    expected = box_iou(first[:, [1, 0, 3, 2]], second[:, [1, 0, 3, 2]]).diagonal()
    assert ((expected > 0) & (expected < 1)).sum() > 20
    torch.testing.assert_close(iou(first, second), expected)
    torch.testing.assert_close(iou(first, first), torch.ones(64, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["crossed", "coinciding"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iou_of_boxes_without_area_is_0(kind, dtype):
    bad, good = boxes(kind).to(dtype), boxes("inside").to(dtype)
    # A box crossed along both axes has a positive product of its sides.
    for found in (iou(bad, good), iou(good, bad), iou(bad, bad), iou(0 * good, 0 * good)):
        assert torch.equal(found, torch.zeros(len(good), dtype=dtype))


# Heads


def test_concat_pool_is_fastais():
    """Maximum first, as AdaptiveConcatPool2d has it."""
    features = torch.randn(2, 5, 7, 4, generator=seeded())
    pools = [F.adaptive_max_pool2d(features, 1), F.adaptive_avg_pool2d(features, 1)]
    torch.testing.assert_close(concat_pool(features), torch.cat(pools, 1).flatten(1))


@pytest.mark.parametrize("option", OPTIONS)
def test_heads_have_fastais_layers_and_initial_weights(option):
    net = network(option, width=64)
    channels = net.backbone.num_features
    inputs = {"head": (4 if option == "region" else 2) * channels, "box_head": 2 * channels}
    heads = [name for name in inputs if hasattr(net, name)]
    assert heads == (["head"] if option == "plain" else ["head", "box_head"])
    for name in heads:
        head = getattr(net, name)
        assert [type(layer) for layer in head] == [
            nn.BatchNorm1d, nn.Dropout, nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Dropout, nn.Linear,
        ]  # fmt: skip
        assert [layer.p for layer in head if isinstance(layer, nn.Dropout)] == [0.25, 0.5]
        assert head[2].weight.shape == (64, inputs[name])
        assert head[6].weight.shape == (4 if name == "box_head" else 2, 64)
        assert head[2].weight.std().item() == pytest.approx((2 / inputs[name]) ** 0.5, rel=0.05)
        assert head[6].weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.25)
        assert not head[2].bias.any()
        assert not head[6].bias.any()


@pytest.mark.parametrize("option", OPTIONS)
def test_outputs_are_those_of_plain_matrix_products(option):
    """From the backbone's features on, in NumPy, but for roi_align."""
    net = lively(option)
    with torch.no_grad():
        maps = net.backbone(images(3))
        output = net(images(3))
    w = {name: t.double().numpy() for name, t in net.state_dict().items()}

    def pool(x):
        return np.concatenate([x.max((2, 3)), x.mean((2, 3))], 1)

    def head(x, name):
        for norm, linear, next_ in ((0, 2, True), (4, 6, False)):
            x = (x - w[f"{name}.{norm}.running_mean"]) / np.sqrt(
                w[f"{name}.{norm}.running_var"] + 1e-5
            )
            x = x * w[f"{name}.{norm}.weight"] + w[f"{name}.{norm}.bias"]
            x = x @ w[f"{name}.{linear}.weight"].T + w[f"{name}.{linear}.bias"]
            x = np.maximum(x, 0) if next_ else x
        return x

    features = pool(maps.double().numpy())
    if option != "plain":
        box = 2 * (1 / (1 + np.exp(-head(features, "box_head"))) - 0.5)
        np.testing.assert_allclose(output[1], box, rtol=1e-4, atol=1e-5)
        assert box.std() > 0.05
    if option == "region":
        grid = torchvisions(maps.double(), torch.from_numpy(box), maps.shape[-2:])
        assert not torch.allclose(grid, maps.double(), atol=0.01)
        features = np.concatenate([features, pool(grid.numpy())], 1)
    np.testing.assert_allclose(logits(output), head(features, "head"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("option", OPTIONS)
def test_images_are_normalised_and_weights_of_a_plain_network_are_the_backbones(option, tmp_path):
    theirs = timm.create_model(TINY, num_classes=1000).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    net = network(
        option, weights=str(tmp_path / "w.safetensors"), mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4]
    ).eval()
    scaled = (images().double() - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.4]
    ).view(3, 1, 1)
    with torch.no_grad():
        expected = concat_pool(theirs.forward_features(scaled.float()))
    found = given_to(net, net.head, images())[:, : expected.shape[1]]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# The box and the class


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("option", OPTIONS)
def test_only_a_network_that_says_so_returns_a_box(option, outputs):
    net = network(option, outputs=outputs)
    output = net(3 * images(5))
    assert getattr(net, "proposes_box", False) == isinstance(output, tuple) == (option != "plain")
    assert logits(output).shape == (5, outputs)
    if option != "plain":
        box = output[1]
        assert (box.shape, box.dtype) == ((5, 4), torch.float32)
        assert (box.abs() < 1).all()
        assert box.min() < 0 < box.max()


def test_a_region_of_the_whole_image_pools_what_the_global_pooling_pools():
    net = lively("region")
    propose(net, WHOLE)
    plain, region = given_to(net, net.head, images(4, 160)).chunk(2, 1)
    assert torch.equal(net(images())[1], torch.tensor([WHOLE, WHOLE]))
    assert plain.std() > 0.01
    assert torch.equal(region, plain)


def test_the_class_sees_what_lies_in_the_proposed_box():
    net, (given, _) = lively("region"), blobs(4, 0, 160)
    propose(net, [-0.9, -0.9, -0.4, -0.4])
    plain, upper_left = given_to(net, net.head, given).chunk(2, 1)
    propose(net, [0.4, 0.4, 0.9, 0.9])
    again, lower_right = given_to(net, net.head, given).chunk(2, 1)
    assert torch.equal(plain, again)
    for first, second in ((plain, upper_left), (plain, lower_right), (upper_left, lower_right)):
        assert (first - second).abs().max() > 0.2


@pytest.mark.parametrize("option", ["boxes", "region"])
def test_the_loss_of_the_class_trains_the_box_head_of_region_alone(option):
    # Dropout and ReLU might close the few units of one batch.
    net = network(option, dropouts=[0, 0], options=OPEN).train()
    F.cross_entropy(net(images(8))[0], torch.arange(8) % 2).backward()
    for parameter in net.box_head.parameters():
        if option == "boxes":
            assert parameter.grad is None
        else:
            assert torch.isfinite(parameter.grad).all()
    if option == "region":
        assert all(layer.weight.grad.abs().max() > 1e-6 for layer in net.box_head[2::4])
    assert all(p.grad.abs().sum() > 0 for p in net.backbone.parameters())


@pytest.mark.parametrize("option", ["boxes", "region"])
def test_the_loss_of_the_box_trains_the_backbone_and_never_the_class_head(option):
    net = network(option, options=OPEN).train()
    net(images(8))[1].abs().sum().backward()
    assert all(p.grad is None for p in net.head.parameters())
    assert all(p.grad.abs().sum() > 0 for p in net.backbone.parameters())
    assert all(layer.weight.grad.abs().max() > 0 for layer in net.box_head[2::4])


def blobs(count, seed, size=64):
    """White ellipses on black, [count, 3, size, size], and their boxes [count, 4]."""
    centre = torch.rand(count, 2, generator=seeded(seed)) - 0.5
    radius = 0.15 + 0.3 * torch.rand(count, 2, generator=seeded(seed + 1))
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    offset = (axis - centre[..., None]) / radius[..., None]
    inside = offset[:, 0, :, None] ** 2 + offset[:, 1, None] ** 2 < 1
    drawn = inside.float()[:, None].expand(-1, 3, -1, -1)
    return drawn, torch.cat([centre - radius, centre + radius], 1)


@pytest.mark.slow
def test_boxes_of_blobs_are_learnt():
    given, target = blobs(256, 0, size=32)
    net = network("boxes", width=64, mean=[0.2] * 3, std=[0.4] * 3).train()
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(60):
        chosen = torch.arange(32 * step, 32 * step + 32) % len(given)
        optimiser.zero_grad()
        F.l1_loss(net(given[chosen])[1], target[chosen]).backward()
        optimiser.step()
    given, held_out = blobs(128, 10, size=32)
    with torch.no_grad():
        found = iou(net.eval()(given)[1], held_out).mean()
    constant = iou(target.mean(0, keepdim=True).expand_as(held_out), held_out).mean()
    # 0.21 and 0.6 measured.
    assert constant < 0.25
    assert found > 0.45


# Precision, batches, files


@pytest.mark.parametrize("option", OPTIONS)
def test_evaluation_depends_on_no_other_cell_and_changes_nothing(option):
    net = lively(option)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        together = logits(net(images(4)))
        alone = torch.cat([logits(net(image[None])) for image in images(4)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("option", OPTIONS)
def test_half_precision_trains_and_keeps_the_box_single(option):
    net = network(option).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = net(images(4))
    found = logits(output)
    assert found.dtype == torch.bfloat16
    loss = found.float().square().sum()
    if option != "plain":
        assert output[1].dtype == torch.float32
        loss = loss + output[1].sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_the_grid_keeps_its_precision_under_autocast():
    box = boxes("inside").float()
    features = torch.randn(len(box), 3, 8, 8, generator=seeded()).bfloat16()
    expected = torchvisions(features.float(), box, (8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        found = region_grid(features, box)
    assert found.dtype == torch.float32
    # Positions in bfloat16 are wrong by 1e-2.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_region_exports_for_any_number_of_images():
    net = lively("region")
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(net, (images(2),), dynamic_shapes=({0: batch},))
        module = program.run_decompositions().module()
    with torch.no_grad():
        for count in (1, 5):
            for found, expected in zip(module(images(count)), net(images(count)), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_state_dict_goes_round(option, tmp_path):
    net = lively(option)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    other = network(option)
    assert not torch.equal(logits(other.eval()(images())), logits(net(images())))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with torch.no_grad():
        assert torch.equal(logits(other(images())), logits(net(images())))


# Stages and freezing


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("backbone", [TINY, "resnet18", "test_efficientnet"])
def test_every_parameter_is_in_exactly_one_stage(backbone, option):
    with torch.device("meta"):
        net = network(option, backbone)
    stages = net.stages()
    assert list(stages) == ["early", "late", "head"]
    staged = [id(p) for group in stages.values() for p in group]
    assert sorted(staged) == sorted(id(p) for p in net.parameters())
    added = {id(p) for n, p in net.named_parameters() if not n.startswith("backbone.")}
    assert {id(p) for p in stages["head"]} == added
    assert len(added) == (8 if option == "plain" else 16)
    groups = parameter_groups(net, {"early": 1e-5, "late": 1e-4, "head": 1e-3})
    assert [len(g["params"]) for g in groups] == [len(g) for g in stages.values()]


@pytest.mark.parametrize("option", OPTIONS)
def test_early_is_what_fastai_1_splits_off(option):
    """`_resnet_split`: before the seventh child of the body, which is layer3."""
    net = build(configured(option))
    name = {id(p): n.split(".")[0] for n, p in net.backbone.named_parameters()}
    stages = net.stages()
    assert {name[id(p)] for p in stages["early"]} == {"conv1", "bn1", "layer1", "layer2"}
    assert {name[id(p)] for p in stages["late"]} == {"layer3", "layer4"}


@pytest.mark.parametrize("frozen", ["weights", "all"])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_frozen_backbone_stays_and_the_heads_train(option, frozen):
    net = network(option, frozen=frozen, dropouts=[0, 0], options=OPEN).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trained = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, 0.1)
    output = net(images(8))
    loss = F.cross_entropy(logits(output), torch.arange(8) % 2)
    (loss + (output[1].abs().mean() if option != "plain" else 0)).backward()
    optimiser.step()
    changed = {n for n, t in net.state_dict().items() if not torch.equal(t, before[n])}
    of_norms = {
        f"{owner}.{name}"
        for owner, module in net.backbone.named_modules(prefix="backbone")
        if isinstance(module, NORMALISATION)
        for name in module.state_dict()
    }
    in_backbone = {n for n in changed if n.startswith("backbone.")}
    assert in_backbone == (of_norms if frozen == "weights" else set())
    assert {n for n in before if not n.startswith("backbone.")} <= changed
    constant = {n for n in before if n.startswith("backbone.")} if frozen == "all" else set()
    assert net.constants() == constant


# Configurations


def convolution(inputs, outputs, kernel):
    """A convolution without bias and the BatchNorm behind it."""
    return inputs * outputs * kernel**2 + 2 * outputs


def test_parameters_are_counted_by_hand():
    body = convolution(3, 64, 7)
    for inputs, outputs in ((64, 64), (64, 128), (128, 256), (256, 512)):
        body += convolution(inputs, outputs, 3) + 3 * convolution(outputs, outputs, 3)
        body += convolution(inputs, outputs, 1) if inputs != outputs else 0

    def head(inputs, outputs):
        return 2 * inputs + (inputs + 1) * 512 + 2 * 512 + (512 + 1) * outputs

    expected = {
        "plain": body + head(1024, 2),
        "boxes": body + head(1024, 2) + head(1024, 4),
        "region": body + head(2048, 2) + head(1024, 4),
    }
    assert body == 11_176_512
    for option, count in expected.items():
        net = build(configured(option))
        assert sum(p.numel() for p in net.parameters()) == count


def test_configurations_differ_by_what_their_names_say():
    plain, boxed, region = (dict(configured(option)) for option in OPTIONS)
    assert {**region, "attention": False} == boxed
    assert boxed.pop("attention") is False
    assert boxed.pop("_target_").endswith("RegionNetwork")
    assert plain.pop("_target_").endswith("FastaiNetwork")
    assert plain == boxed
    assert (plain["backbone"], plain["outputs"]) == ("resnet18.tv_in1k", 2)
    cfg = timm.create_model(plain["backbone"]).pretrained_cfg
    assert (tuple(plain["mean"]), tuple(plain["std"])) == (cfg["mean"], cfg["std"])


def test_without_attention_region_is_boxes():
    state = network("boxes").state_dict()
    net = build(configured("region", f"model.backbone={TINY}", "model.attention=false"))
    assert {n: t.shape for n, t in net.state_dict().items()} == {
        n: t.shape for n, t in state.items()
    }


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"width": 0}, r"model\.width=0: choose at least 1"),
        ({"dropouts": [0.5]}, r"model\.dropouts=\[0\.5\]: choose two numbers"),
        ({"dropouts": [0.25, 1]}, r"model\.dropouts=\[0\.25, 1\]: .* below 1"),
        ({"dropouts": [-0.1, 0.5]}, r"model\.dropouts=\[-0\.1, 0\.5\]: .* from 0"),
    ],
)
def test_heads_that_cannot_be_are_refused_by_name(wrong, said):
    with pytest.raises(LeukoclsError, match=said):
        network("region", **wrong)


@pytest.mark.parametrize("backbone", ["test_convnext", "mobilenetv3_small_050", "regnetx_002"])
def test_any_convolutional_backbone_will_do(backbone):
    # MobileNet's maps have more channels than timm's num_features.
    found, box = network("region", backbone).eval()(images())
    assert (found.shape, box.shape) == ((2, 2), (2, 4))


# Tokens, and maps with their channels last.
@pytest.mark.parametrize(("backbone", "size"), [("test_vit", 160), ("test_mambaout", 96)])
def test_a_backbone_without_feature_maps_is_refused(backbone, size):
    with pytest.raises(LeukoclsError, match=r"needs maps.*convolutional"):
        network("plain", backbone).eval()(images(size=size))
