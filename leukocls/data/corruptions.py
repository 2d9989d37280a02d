"""Corruptions of cell images: what another microscope, stain, camera or file format may do to them.

Each changes a batch of images in [0, 1] before the network normalises them. What is random depends
on the cell's name alone, so batch size, order and device change nothing; and a cell's random
numbers are the same at every severity, so that severities differ in their amount only.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from kornia.enhance import adjust_brightness_accumulative
from kornia.filters import gaussian_blur2d
from PIL import Image
from skimage.color import rgb_from_hed
from torch import Tensor

from leukocls.common.errors import LeukoclsError
from leukocls.data.random import NOISE_STREAM, SHIFT_STREAM, STAIN_STREAM, cell_generator
from leukocls.data.warp import rotation_matrix, to_grid, to_images, warp_images, zoom_matrix

SEVERITIES = 5
# Standard deviations at which the blur's kernel ends. The batch's largest sigma decides its length,
# and what is beyond this is less than single precision resolves.
TRUNCATED = 6


@dataclass(frozen=True)
class CellImages:
    """A batch of images, and what a corruption must know about them.

    Attributes:
        images: float32 [B, 3, S, S] in [0, 1].
        cells: their names, [B].
        scale: pixels of the image for each pixel of the photograph that it was cut from, [B].
    """

    images: Tensor
    cells: Sequence[str]
    scale: Tensor

    @property
    def inside(self) -> Tensor:
        """Mask of the cell, bool [B, 1, S, S]; the background around it is black."""
        return (self.images > 0).any(1, keepdim=True)


@dataclass(frozen=True)
class Corruption:
    """One way to corrupt images, with its amounts.

    Attributes:
        apply: the corrupted images, float32 [B, 3, S, S] in [0, 1], for an amount.
        amounts: of the severities 1 to SEVERITIES.
        unit: what an amount is, with its unit.
    """

    apply: Callable[[CellImages, float], Tensor]
    amounts: tuple[float, ...]
    unit: str


def blur(batch: CellImages, sigma: float) -> Tensor:
    """Gaussian blur, as out of focus; the cell's edge fades into the black around it.

    Args:
        sigma: of the Gaussian, in pixels of the photograph, so that the size to which a recipe
            resizes its images does not matter.
    """
    own = (sigma * batch.scale).to(batch.images)
    radius = int(np.ceil(TRUNCATED * float(own.max())))
    sides = (2 * radius + 1, 2 * radius + 1)
    blurred = gaussian_blur2d(batch.images, sides, own[:, None].expand(-1, 2), "constant")
    return blurred.clamp(0, 1)


def noise(batch: CellImages, sd: float) -> Tensor:
    """Independent Gaussian noise on each channel of the cell's pixels, as of a camera.

    Args:
        sd: standard deviation, where the range of a channel is 1.
    """
    shape = batch.images.shape[1:]
    drawn = np.stack(
        [
            cell_generator(cell, NOISE_STREAM).standard_normal(tuple(shape), np.float32)
            for cell in batch.cells
        ]
    )
    noisy = batch.images + sd * torch.from_numpy(drawn).to(batch.images)
    return (noisy * batch.inside).clamp(0, 1)


def brightness(batch: CellImages, factor: float) -> Tensor:
    """All pixels times a factor, as of a longer exposure; what is too bright is cut off.

    Args:
        factor: above 1 for brighter images.
    """
    return adjust_brightness_accumulative(batch.images, factor)


def stain(batch: CellImages, most: float) -> Tensor:
    """Another amount of each stain, drawn for each cell: c becomes (1 + u) · c + v.

    The concentrations c are those of Ruifrok & Johnston 2001 (colour deconvolution): optical
    densities −ln(intensity), separated by their vectors of haematoxylin, eosin and DAB. Scaled and
    shifted as by Tellez et al. 2018 (HED augmentation). C-NMC's stain has other vectors; these
    serve as three axes along which stains differ.

    Args:
        most: u and v of each stain are uniform in ± this; v in units of optical density.
    """
    drawn = np.stack(
        [cell_generator(cell, STAIN_STREAM).uniform(-1, 1, (2, 3)) for cell in batch.cells]
    )
    scaled, shifted = (most * torch.from_numpy(drawn)).to(batch.images).unbind(1)
    vectors = torch.from_numpy(rgb_from_hed).to(batch.images)
    density = -batch.images.clamp_min(1 / 255).log()
    found = torch.einsum("bchw,cs->bshw", density, torch.linalg.inv(vectors))
    found = (1 + scaled)[..., None, None] * found + shifted[..., None, None]
    restained = torch.exp(-torch.einsum("bshw,sc->bchw", found, vectors))
    return (restained * batch.inside).clamp(0, 1)


def jpeg(batch: CellImages, quality: float) -> Tensor:
    """Compression as a JPEG file and back, which also leaves traces in the black around the cell.

    Args:
        quality: libjpeg's, 1 to 100.
    """
    stored = (batch.images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    read = np.stack([_as_jpeg(pixels, int(quality)) for pixels in stored])
    return to_images(torch.from_numpy(read).to(batch.images.device))


def _as_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """8-bit pixels [S, S, 3] after JPEG compression and decompression."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=quality)
    return np.asarray(Image.open(stream))


def shift(batch: CellImages, percent: float) -> Tensor:
    """Shift by whole pixels in a direction that is drawn for each cell; black comes in.

    Args:
        percent: of the image's side.
    """
    side = batch.images.shape[-1]
    angle = np.array(
        [cell_generator(cell, SHIFT_STREAM).uniform(0, 2 * np.pi) for cell in batch.cells]
    )
    moved = torch.from_numpy(np.column_stack([np.cos(angle), np.sin(angle)]))
    matrix = rotation_matrix(
        moved.new_zeros(len(angle)), (percent / 100 * side * moved).round(), side
    )
    theta = to_grid(matrix, side)[:, :2].to(batch.images)
    return warp_images(batch.images, theta, "nearest", "zeros")


def scale(batch: CellImages, factor: float) -> Tensor:
    """Another magnification about the image's centre, bilinear; black comes in.

    Args:
        factor: below 1 for smaller cells.
    """
    factors = torch.full((len(batch.cells),), factor, dtype=torch.float64)
    theta = zoom_matrix(factors, factors.new_zeros(len(factors), 2))[:, :2].to(batch.images)
    return warp_images(batch.images, theta, "bilinear", "zeros")


# Smaller rather than larger: ALL cells are larger on average, so a cell of ALL comes to look like a
# normal one, and the image's edge cuts no cell.
CORRUPTIONS = {
    "blur": Corruption(blur, (1, 2, 3, 4, 6), "sigma in px of the photograph"),
    "noise": Corruption(noise, (0.02, 0.04, 0.06, 0.09, 0.13), "SD, of a range of 1"),
    "brightness": Corruption(brightness, (1.1, 1.2, 1.35, 1.5, 1.75), "factor"),
    "stain": Corruption(stain, (0.05, 0.1, 0.15, 0.2, 0.3), "largest change of a stain"),
    "jpeg": Corruption(jpeg, (80, 60, 40, 20, 10), "quality"),
    "shift": Corruption(shift, (2, 5, 8, 12, 16), "% of the side"),
    "scale": Corruption(scale, (0.95, 0.9, 0.85, 0.8, 0.7), "factor"),
}


def corrupted(batch: CellImages, name: str, severity: int) -> Tensor:
    """The images under a corruption, float32 [B, 3, S, S] in [0, 1]; at severity 0 as they are.

    Args:
        name: a key of CORRUPTIONS.
        severity: 0 to SEVERITIES.
    """
    if severity == 0:
        return batch.images
    corruption = CORRUPTIONS[name]
    return corruption.apply(batch, corruption.amounts[severity - 1])


def check_names(names: Sequence[str]) -> None:
    """Refuse names that are no key of CORRUPTIONS, or are there twice.

    Raises:
        LeukoclsError: naming them.
    """
    unknown = [name for name in names if name not in CORRUPTIONS]
    if unknown or len(set(names)) < len(names) or not names:
        raise LeukoclsError(
            f"--corruptions {','.join(names)}: choose from {', '.join(CORRUPTIONS)}, each once."
        )
