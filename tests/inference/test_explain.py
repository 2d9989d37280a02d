"""Maps of what networks look at: against the formula, in the image's own frame, of every system."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from PIL import Image

import leukocls
from leukocls import bundle, explain
from leukocls.artifacts.marks import MEANINGS
from leukocls.common.errors import LeukoclsError
from leukocls.data.images import read_image
from leukocls.data.views import image_views
from leukocls.inference.bundle import Bundle, Member
from leukocls.inference.saliency import CAM, REGION, Maps, _back
from leukocls.inference.saliency import maps as maps_for
from leukocls.inference.sheet import sheet
from leukocls.inference.torch_predictor import TorchPredictor
from leukocls.models.frozen import FrozenFeatures
from leukocls.models.multiattention import MultiAttention
from leukocls.models.region import RegionNetwork
from leukocls.models.timm_network import TimmNetwork

SIDE = 64


def predictor_of(network: torch.nn.Module, views: int | str = 1) -> TorchPredictor:
    """A predictor with this network alone, which sees whole images of SIDE px."""
    member = Member({}, Path(), "", SIDE, SIDE, None, views, 1.0, 0.0)
    found = TorchPredictor.__new__(TorchPredictor)
    document = {"threshold": {"logit": 0.0}, "calibration": None}
    found.bundle, found.level = Bundle(Path(), document, [member]), None
    found.device, found.side = torch.device("cpu"), None
    found.members, found.networks, found.references = [member], [network.eval()], None
    return found


def drawn(number: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(number)
    return [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(number)]


def maps(predictor: TorchPredictor, images: list[np.ndarray]) -> tuple[np.ndarray, Maps]:
    """The maps for the class that each image is called."""
    called = predictor.scores(images).logit > predictor.bundle.threshold
    return maps_for(predictor, images, called)


def network(seed: int = 0) -> TimmNetwork:
    torch.manual_seed(seed)
    return TimmNetwork("test_resnet").eval()


def test_of_pooled_features_it_is_the_class_activation_map() -> None:
    """With mean pooling and one linear layer Grad-CAM is the weighted sum of the feature maps."""
    one, images = network(), drawn(3)
    seen, found = maps(predictor_of(one), images)
    assert (seen == np.stack(images)).all()
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        features = one.backbone.forward_features(batch)
        logit = one(batch)[:, 0]
        weights = one.backbone.get_classifier().weight[0]
        plain = torch.einsum("c,nchw->nhw", weights, features) * logit.sign()[:, None, None]
        wanted = F.interpolate(plain.relu()[:, None], (SIDE, SIDE), mode="bilinear")[:, 0]
        wanted = wanted / wanted.amax((1, 2), keepdim=True).clamp(min=1e-12)
    assert found[CAM] == pytest.approx(wanted.numpy(), abs=1e-4)
    assert found.keys() == {CAM}


@pytest.mark.parametrize("views", [4, 8])
def test_a_turned_image_has_the_turned_map(views: int) -> None:
    one, (image,) = predictor_of(network(), views), drawn(1)
    _, plain = maps(one, [image])
    _, turned = maps(one, [np.ascontiguousarray(np.rot90(image))])
    assert turned[CAM][0] == pytest.approx(np.rot90(plain[CAM][0]), abs=0.02)


@pytest.mark.parametrize("views", [8, "corners"])
def test_each_view_is_brought_back_into_the_images_frame(views: int | str) -> None:
    """A smooth image, seen in each view and brought back, is itself where the view shows it."""
    line = torch.linspace(-1, 1, SIDE)
    x, y = line.expand(SIDE, -1), line[:, None].expand(-1, SIDE)
    smooth = torch.sin(2 * x) + torch.cos(3 * y + x)
    frame = torch.stack([x, y, torch.ones_like(x)])[None]
    pairs = zip(image_views(smooth[None, None], views), image_views(frame, views), strict=True)
    for number, (view, origin) in enumerate(pairs):
        grid = F.affine_grid(_back(origin[0], line)[None], [1, 1, SIDE, SIDE], align_corners=True)
        again = F.grid_sample(view, grid, align_corners=True)[0, 0]
        inside = (grid[0].abs().amax(-1) < 0.95) & (x**2 + y**2 < 0.8)
        assert (again - smooth)[inside].abs().max() < 0.12, number
        assert inside.float().mean() > 0.4


def test_the_map_back_of_a_rotation_is_the_rotation() -> None:
    line = torch.linspace(-1, 1, 201)
    x, y = line.expand(201, -1), line[:, None].expand(-1, 201)
    frame = torch.stack([x, y, torch.ones_like(x)])[None]
    origin = list(image_views(frame, 8))[1][0]
    c = math.cos(math.pi / 4)
    # Anticlockwise by 45°, with y downwards.
    wanted = torch.tensor([[c, c, 0], [-c, c, 0]])
    assert torch.allclose(_back(origin, line), wanted, atol=2e-3)


def test_other_weights_look_elsewhere() -> None:
    """The sanity check of Adebayo et al. 2018."""
    images = drawn(2)
    first, second = (maps(predictor_of(network(seed)), images)[1][CAM] for seed in (0, 1))
    assert np.abs(first - second).max() > 0.2


def test_boxes_and_masks_are_maps_of_their_own() -> None:
    region, attention = RegionNetwork("test_resnet"), MultiAttention("test_resnet", maps=3)
    _, found = maps(predictor_of(region, 4), drawn())
    assert found.keys() == {CAM, REGION}
    _, masks = maps(predictor_of(attention, 4), drawn())
    assert masks.keys() == {CAM, "attention 1", "attention 2", "attention 3"}
    batch = torch.from_numpy(np.stack(drawn())).permute(0, 3, 1, 2).float() / 255
    _, plain = maps(predictor_of(attention), drawn())
    with torch.inference_mode():
        wanted = attention.eval().attention_maps(batch)[:, 1:2]
        wanted = F.interpolate(wanted, (SIDE, SIDE), mode="bilinear")[:, 0].numpy()
    assert plain["attention 2"] == pytest.approx(wanted, abs=1e-4)
    for one in (*found.values(), *masks.values()):
        assert one.shape == (2, SIDE, SIDE)
        assert one.min() >= 0
        assert one.max() <= 1


def test_the_region_is_the_box_that_the_network_proposes() -> None:
    class Fixed(RegionNetwork):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logit, _ = super().forward(images)
            return logit, torch.tensor([[-0.5, 0.0, 0.25, 1.0]]).expand(len(images), -1)

    _, found = maps(predictor_of(Fixed("test_resnet")), drawn(1))
    wanted = np.zeros((SIDE, SIDE), np.float32)
    wanted[SIDE // 4 : 5 * SIDE // 8, SIDE // 2 :] = 1
    inside = np.s_[2:-2, 2:-2]
    assert found[REGION][0][inside] == pytest.approx(wanted[inside], abs=1e-3)


def test_a_frozen_backbone_has_maps_and_a_transformer_has_none() -> None:
    _, found = maps(predictor_of(FrozenFeatures("test_resnet")), drawn())
    assert found[CAM].max() > 0
    options = {"img_size": SIDE}
    with pytest.raises(LeukoclsError, match="feature maps"):
        maps(predictor_of(TimmNetwork("test_vit", options=options)), drawn())


def test_a_sheet_is_drawn(
    trained: Path, once: Callable[..., Path], small_tree: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def make(folder: Path) -> None:
        assert bundle.main([str(trained), "--out", str(folder / "bundle")]) == 0

    made = once("bundle-to-predict", make) / "bundle"
    paths = [str(path) for path in sorted(small_tree.rglob("UID_*.bmp"))[:3]]
    out = tmp_path / "new/sheet.png"
    assert explain.main([str(made), *paths, "--out", str(out)]) == 0
    with Image.open(out) as sheet:
        assert sheet.width > 300
        assert sheet.height > 500
    (tmp_path / "bad.png").write_bytes(b"no image")
    words = [str(made), paths[0], str(tmp_path / "bad.png"), "--out", str(tmp_path / "2.png")]
    assert explain.main(words) == 3
    assert "bad.png" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        explain.main([str(made), paths[0], "--out", str(tmp_path / "sheet.pdf")])
    assert stop.value.code == 2
    assert ".png" in capsys.readouterr().err
    with pytest.raises(LeukoclsError, match="at most"):
        explain.main([str(made), str(small_tree), "--out", str(tmp_path / "3.png")])
    with pytest.raises(LeukoclsError, match="none of"):
        explain.main([str(made), str(tmp_path / "bad.png"), "--out", str(tmp_path / "4.png")])


@pytest.mark.parametrize("kinds", [1, 5])
def test_the_heading_is_on_the_sheet(kinds: int) -> None:
    """With all marks: the last words are that it is no diagnosis."""
    marks = " ".join(MEANINGS)
    heading = f"{marks} · called ALL above p(ALL) 0.123 · RESEARCH USE ONLY; NOT A DIAGNOSIS"
    table = pd.DataFrame({"cell": ["UID_H99_99_99_hem.bmp"], "prob": [0.5], "label": ["ALL"]})
    maps = {f"map {kind}": np.zeros((1, 8, 8)) for kind in range(kinds)}
    drawn = sheet(np.zeros((1, 8, 8, 3), np.uint8), maps, table, heading)
    drawn.draw_without_rendering()
    assert drawn.get_suptitle().replace("\n", " ") == heading
    (title,) = (text for text in drawn.texts if "DIAGNOSIS" in text.get_text())
    box = title.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= drawn.bbox.x1
    assert box.y1 <= drawn.bbox.y1
    assert box.y0 >= drawn.axes[0].title.get_window_extent().y1


def test_an_ensemble_is_explained(
    trained: Path, trained_once: Callable[..., Path], small_tree: Path, tmp_path: Path
) -> None:
    region = trained_once("model=resnet18_region", *TINY[1:], "trainer.max_epochs=1")
    runs = [str(trained), str(region)]
    assert bundle.main([*runs, "--out", str(tmp_path / "both")]) == 0
    images = [read_image(path) for path in sorted(small_tree.rglob("UID_*.bmp"))[:2]]
    seen, found = maps(leukocls.load_bundle(tmp_path / "both"), images)
    assert found.keys() == {CAM, REGION}
    assert seen.shape[:3] == found[CAM].shape
