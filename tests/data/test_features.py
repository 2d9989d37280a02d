"""Features of one cell against hand-made discs, ellipses and textures whose values are known."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib import parallel_config
from PIL import Image

from leukocls.common.errors import DataFault
from leukocls.data.features import KINDS, colour, extract, handcrafted, mask, size, tight
from leukocls.data.images import read_image

COLOUR = (90, 40, 120)


def ellipse(
    a: float, b: float, angle: float = 0.0, centre: tuple[float, float] = (225, 225)
) -> np.ndarray:
    """The pixels of a 450 × 450 image within an ellipse of semi-axes a and b, bool."""
    y, x = np.mgrid[:450, :450].astype(float)
    y, x = y - centre[0], x - centre[1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return (along / a) ** 2 + (across / b) ** 2 <= 1


def painted(shape: np.ndarray, value: Any = COLOUR) -> np.ndarray:
    """An image of `shape` in one colour, or in the pixels of `value`, on black."""
    return np.where(shape[..., None], value, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def textured() -> np.ndarray:
    """A tilted ellipse filled with clumps and fine noise, never 0 inside."""
    rng = np.random.default_rng(0)
    clumps = np.kron(rng.integers(20, 120, (45, 45, 3)), np.ones((10, 10, 1)))
    return painted(ellipse(110, 80, 0.6), clumps + rng.integers(0, 20, (450, 450, 3)) + 1)


@pytest.fixture(scope="module")
def cells(small_tree: Path) -> list[Path]:
    """Twelve synthetic cells."""
    return sorted(small_tree.rglob("*.bmp"))[:12]


@pytest.mark.parametrize("radius", [30, 100, 180])
def test_disc_has_the_area_outline_and_box_of_a_circle(radius: int) -> None:
    found = size(painted(ellipse(radius, radius))) | mask(painted(ellipse(radius, radius)))
    assert found["area"] == pytest.approx(np.pi * radius**2, rel=0.005)
    assert found["log_area"] == np.log(found["area"])
    assert found["box_long"] == found["box_short"] == 2 * radius + 1
    assert found["perimeter"] == pytest.approx(2 * np.pi * radius, rel=0.03)
    assert found["circularity"] == pytest.approx(1, abs=0.07)
    assert found["axis_ratio"] == pytest.approx(1, abs=1e-6)
    assert found["solidity"] == pytest.approx(1, abs=0.04)
    assert found["extent"] == pytest.approx(np.pi / 4, rel=0.04)
    # (μ20 + μ02) / A² of a disc; nothing else of it is not symmetric.
    assert found["hu_1"] == pytest.approx(1 / (2 * np.pi), rel=0.005)
    assert [found[f"hu_{k}"] for k in (2, 3, 4)] == pytest.approx([0, 0, 0], abs=1e-9)


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.2])
def test_ellipse_has_its_axes_at_any_angle(angle: float) -> None:
    found = mask(painted(ellipse(120, 60, angle)))
    assert found["axis_ratio"] == pytest.approx(0.5, rel=0.01)
    assert found["area"] == pytest.approx(np.pi * 120 * 60, rel=0.005)
    # ((a² − b²) / (4 π a b))² by the moments of an ellipse
    assert found["hu_2"] == pytest.approx(((4 - 1) / (8 * np.pi)) ** 2, rel=0.01)
    assert found["solidity"] == pytest.approx(1, abs=0.02)


def test_rectangle_is_exact() -> None:
    image = np.zeros((450, 450, 3), np.uint8)
    image[100:140, 300:360] = COLOUR
    found = size(image) | mask(image)
    assert (found["area"], found["box_long"], found["box_short"]) == (2400, 60, 40)
    assert found["solidity"] == found["extent"] == 1
    assert found["axis_ratio"] == pytest.approx(40 / 60)


def test_notch_and_asymmetry_show_in_the_outline() -> None:
    whole = ellipse(100, 100)
    notched = whole & ~ellipse(60, 60, centre=(225, 325))
    before, after = mask(painted(whole)), mask(painted(notched))
    assert after["solidity"] < 0.9 * before["solidity"]
    assert after["circularity"] < 0.9 * before["circularity"]
    assert after["hu_3"] > 1e-5 > before["hu_3"]


def test_colour_of_painted_halves() -> None:
    disc = ellipse(80, 80)
    image = painted(disc, (10, 20, 30))
    image[disc & (np.arange(450) < 225)] = (50, 60, 70)
    inside = image[disc]
    found = colour(image)
    assert found["red_q05"] == 10
    assert found["red_q95"] == 50
    assert found["green_mean"] == pytest.approx(inside[:, 1].mean())
    assert found["blue_sd"] == pytest.approx(inside[:, 2].std())
    assert colour(painted(disc))["green_sd"] == 0


def test_colour_ignores_place_size_and_shape() -> None:
    at_centre = colour(painted(ellipse(80, 80)))
    assert colour(painted(ellipse(80, 80, centre=(90, 340)))) == at_centre
    other = colour(painted(ellipse(150, 60, 0.3)))
    assert other == pytest.approx(at_centre, abs=1e-9)


def test_no_feature_knows_where_the_cell_lies(textured: np.ndarray) -> None:
    moved = np.roll(textured, (-60, 90), (0, 1))
    for kind in KINDS.values():
        assert kind(moved) == kind(textured)


def test_size_and_outline_ignore_what_is_inside(textured: np.ndarray) -> None:
    flat = painted(textured.max(2) > 0)
    assert size(flat) == size(textured)
    assert mask(flat) == mask(textured)


def test_quarter_turns_change_nothing(textured: np.ndarray, cells: list[Path]) -> None:
    for image in (textured, read_image(cells[0])):
        for turns in (1, 2, 3):
            turned = np.rot90(image, turns)
            for kind in (size, mask, colour):
                assert kind(turned) == pytest.approx(kind(image), rel=1e-9, abs=1e-9)
            # Patterns are interpolated on a grid of sums whose rounding turns with it.
            assert handcrafted(turned) == pytest.approx(handcrafted(image), rel=1e-6, abs=1e-3)


def test_nucleus_against_cytoplasm_by_otsu() -> None:
    image = painted(ellipse(100, 100), (90, 100, 110))
    nucleus = ellipse(70, 70)
    image[nucleus] = (60, 25, 80)
    found = handcrafted(image)["log_nucleus_to_cytoplasm"]
    assert found == pytest.approx(np.log(70**2 / (100**2 - 70**2)), abs=0.01)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_bright_spots_in_a_nucleus_are_counted(count: int) -> None:
    rng = np.random.default_rng(1)
    green = 60 + rng.normal(0, 4, (450, 450))
    for k in range(count):
        angle = 2 * np.pi * k / count
        centre = (225 + 50 * np.sin(angle), 225 + 50 * np.cos(angle))
        green[ellipse(6, 6, centre=centre)] += 40
    cytoplasm = ellipse(110, 110) & ~ellipse(95, 95)
    green[cytoplasm] += 60
    found = handcrafted(painted(ellipse(110, 110), np.stack([green] * 3, axis=2)))
    assert found["spots"] == count
    assert (found["spots_share"] > 0) == (count > 0)


def test_texture_tells_coarse_from_fine_whatever_the_stain() -> None:
    disc, rng = ellipse(100, 100), np.random.default_rng(2)
    fine = rng.integers(40, 80, (450, 450, 1))
    coarse = np.kron(rng.integers(40, 80, (45, 45, 1)), np.ones((10, 10, 1), int))
    a, b = (handcrafted(painted(disc, pixels.repeat(3, 2))) for pixels in (fine, coarse))
    assert a["glcm_contrast_1"] > 2 * b["glcm_contrast_1"]
    assert a["power_2_4px"] > b["power_2_4px"] + 1
    assert a["power_16_32px"] < b["power_16_32px"] - 1
    assert b["glcm_correlation_1"] > 0.7
    doubled = handcrafted(painted(disc, 2 * fine.repeat(3, 2)))
    texture = {name: value for name, value in doubled.items() if name[:4] in ("glcm", "lbp_")}
    assert texture == pytest.approx({name: a[name] for name in texture}, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_cells_give_finite_values(kind: str) -> None:
    one_pixel = np.zeros((450, 450, 3), np.uint8)
    one_pixel[7, 9] = COLOUR
    line = np.zeros((450, 450, 3), np.uint8)
    line[7, 9:200, 2] = 1
    flat, full = painted(ellipse(50, 50)), np.full((450, 450, 3), 255, np.uint8)
    for image in (one_pixel, line, flat, full):
        assert np.isfinite(list(KINDS[kind](image).values())).all()


def test_tight_box_holds_dim_pixels_of_any_channel() -> None:
    image = np.zeros((450, 450, 3), np.uint8)
    image[10, 20, 0] = image[30, 40, 1] = image[20, 60, 2] = 1
    box, shape = tight(image)
    assert box.shape == (21, 41, 3)
    assert shape.sum() == 3


@pytest.fixture
def processes() -> Iterator[None]:
    """Measured as anybody does: other tests have it done by threads."""
    with parallel_config(backend="loky"):
        yield


@pytest.mark.usefixtures("processes")
def test_extract_keeps_the_order_and_gives_the_same_twice(cells: list[Path]) -> None:
    table = extract(cells, "handcrafted")
    alone = [handcrafted(read_image(path)) for path in cells]
    assert table.to_dict("records") == alone
    assert extract(cells[::-1], "handcrafted").to_dict("records") == alone[::-1]


@pytest.mark.usefixtures("processes")
def test_an_image_without_a_cell_is_named(cells: list[Path], tmp_path: Path) -> None:
    black = tmp_path / "black.bmp"
    Image.new("RGB", (450, 450)).save(black)
    with pytest.raises(DataFault, match=r"black\.bmp: is all black.*; "):
        extract([*cells, black], "colour")


def test_genuine_cells_have_plausible_features(sample_root: Path) -> None:
    paths = sorted(sample_root.rglob("*.bmp"))[::8]
    table = extract(paths, "handcrafted")
    assert np.isfinite(table.to_numpy()).all()
    assert table["box_long"].between(100, 450).all()
    assert table["solidity"].between(0.7, 1).all()
    assert (table["log_nucleus_to_cytoplasm"] > 0).mean() > 0.7
