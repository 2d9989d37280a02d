"""Corruptions of images, against scipy, NumPy, Pillow and scikit-image."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from kornia.enhance import jpeg_codec_differentiable
from PIL import Image
from scipy import ndimage
from skimage.color import combine_stains, rgb2hed, rgb_from_hed
from torch import Tensor

from leukocls.common.errors import LeukoclsError
from leukocls.data.corruptions import CORRUPTIONS, SEVERITIES, CellImages, check_names, corrupted
from leukocls.data.random import NOISE_STREAM, SHIFT_STREAM, STAIN_STREAM, cell_generator

SIDE = 48
NAMES = ["UID_1_1_1_all.bmp", "UID_H2_3_4_hem.bmp", "UID_7_2_2_all.bmp", "a b.png"]


def cells(side: int = SIDE) -> CellImages:
    """Four coloured discs of 8-bit texture on black."""
    random = np.random.default_rng(5)
    y, x = np.indices((side, side)) - (side - 1) / 2
    inside = np.hypot(y, x) < side / 3.5
    colour = np.array([90, 40, 100])[:, None, None] + random.integers(-25, 26, (4, 3, side, side))
    images = torch.from_numpy((colour * inside).astype(np.float32) / 255)
    return CellImages(images, NAMES, torch.tensor([0.16, 0.2, 0.25, 0.16], dtype=torch.float64))


def apply(name: str, severity: int) -> np.ndarray:
    return corrupted(cells(), name, severity).numpy()


def amount(name: str, severity: int) -> float:
    return CORRUPTIONS[name].amounts[severity - 1]


SEVERE = range(1, SEVERITIES + 1)


@pytest.mark.parametrize("severity", SEVERE)
def test_blur_is_scipys_with_sigma_in_pixels_of_the_photograph(severity: int) -> None:
    batch, sigma = cells(), amount("blur", severity)
    expected = [
        ndimage.gaussian_filter(image, (0, s, s), mode="constant", truncate=7)
        for image, s in zip(batch.images.numpy(), sigma * batch.scale.numpy(), strict=True)
    ]
    np.testing.assert_allclose(apply("blur", severity), expected, atol=1e-6)


@pytest.mark.parametrize("severity", SEVERE)
def test_noise_is_normal_on_the_cell_alone(severity: int) -> None:
    batch = cells()
    clean, sd = batch.images.numpy(), amount("noise", severity)
    drawn = [
        cell_generator(cell, NOISE_STREAM).standard_normal((3, SIDE, SIDE), np.float32)
        for cell in NAMES
    ]
    inside = (clean > 0).any(1, keepdims=True)
    expected = np.where(inside, np.clip(clean + sd * np.stack(drawn), 0, 1), 0)
    np.testing.assert_allclose(apply("noise", severity), expected, atol=1e-6)
    # Standard normal, each cell its own.
    assert np.std(drawn) == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(np.reshape(drawn, (4, -1)))[0, 1:]).max() < 0.05


@pytest.mark.parametrize("severity", SEVERE)
def test_brightness_is_a_factor(severity: int) -> None:
    expected = np.clip(cells().images.numpy() * np.float32(amount("brightness", severity)), 0, 1)
    np.testing.assert_allclose(apply("brightness", severity), expected, atol=1e-6)


@pytest.mark.parametrize("severity", SEVERE)
def test_stain_scales_and_shifts_the_concentrations_of_scikit_image(severity: int) -> None:
    """Of three colours that are mixtures of the stains: scikit-image cuts negative ones off."""
    most, unit = amount("stain", severity), -np.log(1e-6)  # its concentrations are in this unit
    mixed = np.array([[0.3, 0.1, 0.05], [0.1, 0.2, 0.02], [0.05, 0.05, 0.1]])
    density = np.array([[0.08, 0.05, 0.01], [0.02, 0.1, 0.02], [0.05, 0.03, 0.06]])
    assert mixed.shape == density.shape
    colours = combine_stains(density[None], rgb_from_hed)[0]
    images = torch.from_numpy(colours.T[None, :, :, None].repeat(3, 3).astype(np.float32))
    images = images.expand(2, -1, -1, -1)
    batch = CellImages(images, NAMES[:2], torch.ones(2))
    found = corrupted(batch, "stain", severity).numpy()
    for one, cell in zip(found, NAMES, strict=False):
        scaled, shifted = most * cell_generator(cell, STAIN_STREAM).uniform(-1, 1, (2, 3))
        stains = rgb2hed(colours[None])[0] * (1 + scaled) + shifted / unit
        expected = np.exp(-unit * stains @ rgb_from_hed).clip(0, 1)
        np.testing.assert_allclose(one[:, :, 0].T, expected, atol=1e-5)


@pytest.mark.parametrize("severity", SEVERE)
def test_jpeg_is_what_a_file_gives_back(severity: int) -> None:
    """Near what kornia computes without a file, and exactly what one image gives."""
    batch, quality = cells(), amount("jpeg", severity)
    found = corrupted(batch, "jpeg", severity)
    near = jpeg_codec_differentiable(batch.images, torch.tensor([quality]))
    error, change = (found - near).abs().mean(), (found - batch.images).abs().mean()
    assert error < 0.25 * change
    pixels = (batch.images[1].permute(1, 2, 0) * 255).round().byte().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=int(quality))
    alone = np.asarray(Image.open(stream)).transpose(2, 0, 1)
    np.testing.assert_array_equal((found[1] * 255).round().numpy(), alone)


@pytest.mark.parametrize("severity", SEVERE)
def test_shift_moves_whole_pixels_and_brings_in_black(severity: int) -> None:
    batch = cells()
    for one, image, cell in zip(apply("shift", severity), batch.images.numpy(), NAMES, strict=True):
        angle = cell_generator(cell, SHIFT_STREAM).uniform(0, 2 * np.pi)
        far = amount("shift", severity) / 100 * SIDE
        x, y = int(np.round(far * np.cos(angle))), int(np.round(far * np.sin(angle)))
        expected = ndimage.shift(image, (0, y, x), order=0, mode="constant")
        np.testing.assert_array_equal(one, expected)


@pytest.mark.parametrize("severity", SEVERE)
def test_scale_shrinks_about_the_centre(severity: int) -> None:
    factor = amount("scale", severity)
    matrix = np.diag([1, 1 / factor, 1 / factor])
    centre = np.array([1, (SIDE - 1) / 2, (SIDE - 1) / 2])
    for one, image in zip(apply("scale", severity), cells().images.numpy(), strict=True):
        expected = ndimage.affine_transform(
            image, matrix, centre - matrix @ centre, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(one, expected, atol=1e-5)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_stay_in_range_and_change_more_with_severity(name: str) -> None:
    batch = cells()
    found = [corrupted(batch, name, severity) for severity in range(SEVERITIES + 1)]
    assert found[0] is batch.images
    assert all(images.dtype == torch.float32 for images in found)
    assert all(float(images.min()) >= 0 and float(images.max()) <= 1 for images in found)
    away = torch.stack([(images - batch.images).square().mean() for images in found])
    assert (away.diff() > 0).all(), away


@pytest.mark.parametrize("name", ["noise", "brightness", "stain"])
def test_the_background_stays_black(name: str) -> None:
    outside = ~cells().inside.expand(-1, 3, -1, -1)
    assert outside.any()
    for severity in SEVERE:
        assert not corrupted(cells(), name, severity)[outside].any()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_batches_and_order_change_nothing(name: str) -> None:
    batch, order = cells(), [2, 0, 3, 1]

    def some(rows: list[int]) -> CellImages:
        names = [NAMES[row] for row in rows]
        return replace(batch, images=batch.images[rows], cells=names, scale=batch.scale[rows])

    def each(rows: list[int]) -> Tensor:
        return torch.cat([corrupted(some([row]), name, 4) for row in rows])

    whole = corrupted(some(order), name, 4)
    torch.testing.assert_close(whole, each(order), rtol=0, atol=1e-6)
    torch.testing.assert_close(whole, corrupted(batch, name, 4)[order], rtol=0, atol=1e-6)


def test_unknown_names_are_refused() -> None:
    check_names(["jpeg", "blur"])
    for names in (["fog"], ["blur", "blur"], []):
        with pytest.raises(LeukoclsError, match="--corruptions"):
            check_names(names)
