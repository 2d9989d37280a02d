"""Rendering of one synthetic cell: its pixels and its mask from its latent parameters.

The outline, the nucleus and an attached piece are polygons, so that the tight box is known before
any pixel is drawn. Colours, spectrum and outline are fitted to aggregate numbers of 110 genuine
C-NMC images: mean nuclear colour (68, 26, 76), a luminance spectrum that falls as
(1 + (f / .03)²)^−2.6 above a fine grain, outline harmonics that fall as k^−1.6, and outermost
pixels of half the brightness.
"""

from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from leukocls.data.published import SIDE
from leukocls.data.random import random_numbers

CYTOPLASM, NUCLEUS = 1, 2  # values of masks; 0 is background and attached pieces

NUCLEUS_RGB = np.array([66, 25, 75], np.float32)
CYTOPLASM_RGB = np.array([110, 57, 88], np.float32)
DARK_PIECE_RGB = np.array([46, 30, 84], np.float32)
PALE_PIECE_RGB = np.array([98, 60, 95], np.float32)
EDGE_LOG_RGB = np.array([-0.15, 0.22, 0.30], np.float32)  # bluer towards the edge, over 9 px
HUE_LOG_RGB = np.array([0.015, -0.005, -0.015], np.float32)  # red to blue, slowly over a cell
# First principal component within nuclei.
CHROMATIN_LOG_RGB = np.array([0.85, 1.00, 0.50], np.float32)
OUTERMOST = 0.46  # brightness of the outermost pixel relative to the next one
GRAIN_PX = 0.75  # blur of the grain

ANGLES = np.linspace(-pi, pi, 512, endpoint=False)
WAVES = np.arange(3, 49)
WAVE_RMS = WAVES**-1.6 / np.sqrt((WAVES**-3.2).sum())
WAVE_TABLE = np.concatenate([f(np.outer(WAVES, ANGLES)) for f in (np.cos, np.sin)])


@dataclass(frozen=True)
class Cell:
    """One synthetic cell: its name and part, latent parameters, and the effects behind them."""

    name: str  # the dataset name, UID_*.bmp, in every part
    part: str  # fold_0, fold_1, fold_2, prelim or final
    subject: str
    image: int  # number of the field of view
    label: int  # as stated in the tree; ALL = 1
    true_class: int  # the class that its severity is drawn from
    seed: int
    stream: int  # of the cell's own random numbers, unique in the tree except for duplicates
    severity: float
    size: float  # px, mean side of the tight box of the pixels that are not black
    aspect: float  # log of the box's height by its width
    slant: float  # log ratio of the diagonal axes
    offset_x: float  # px, box centre from image centre
    offset_y: float
    roughness: float  # relative RMS of the outline's radius
    notch: float  # depth of an indentation relative to the radius, 0 for none
    nucleus_fraction: float  # nucleus radius by cell radius
    nucleoli: int
    chromatin_px: float  # correlation length of the chromatin
    chromatin_contrast: float  # SD of the log green intensity
    drift: float  # SD of the log green intensity, slowly over the cell
    grain: float  # SD of the log green intensity, between neighbouring pixels
    focus: float  # px, blur sigma
    stain_red: float  # log gain
    stain_green: float
    stain_blue: float
    piece: float  # length of the attached piece by cell radius, 0 for none
    piece_angle: float
    piece_shade: float  # 0 dark to 1 pale
    cut_depth: float  # by cell radius, 0 for no cut
    cut_angle: float
    subject_severity: float
    subject_stain: float  # log green gain
    subject_texture: float  # log drift and log grain
    subject_focus: float  # log blur
    subject_size: float  # in SDs of the size that severity leaves
    subject_chromatin: float  # log correlation length
    field_stain: float
    field_texture: float
    field_focus: float
    outside: bool  # reaches outside the central 300 × 300 px
    duplicate_of: str = ""  # dataset name of the cell that this one is a copy of
    reprocessed_from: str = ""  # dataset name of the cell that this one shows again

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height of the tight box in px."""
        height = 2 * self.size / (1 + np.exp(-self.aspect))
        return round(2 * self.size - height), round(height)


class Shapes(NamedTuple):
    """Polygons [N, 2] of (x, y) in px of the image."""

    body: NDArray[np.float64]
    nucleus: NDArray[np.float64]
    piece: NDArray[np.float64] | None


def _directions(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit vectors [N, 2] (x, y) in the directions of the angles [N]."""
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _body(cell: Cell, rng: np.random.Generator) -> NDArray[np.float64]:
    """Outline of the cell, [512, 2], around 0 with a mean radius of about 1."""
    waves = (rng.standard_normal((2, len(WAVES))) * WAVE_RMS).ravel() @ WAVE_TABLE
    away = np.angle(np.exp(1j * (ANGLES - rng.uniform(-pi, pi))))
    dent = cell.notch * np.exp(-((away / rng.uniform(0.08, 0.25)) ** 2) / 2)
    radius = np.exp(cell.roughness * waves + cell.slant / 2 * np.sin(2 * ANGLES)) * (1 - dent)
    return radius[:, None] * _directions(ANGLES)


def _piece(cell: Cell, rng: np.random.Generator) -> NDArray[np.float64]:
    """Outline of the attached piece, [N, 2]: a ragged, bent strip that starts inside the cell.

    It reaches `cell.piece` radii beyond the cell's outline.
    """
    along = np.linspace(0, 1, 48)
    waves = np.sin(np.outer(np.arange(2, 9), along) * pi + rng.uniform(0, 2 * pi, (2, 7, 1)))
    ragged = (waves / np.arange(2, 9)[:, None] ** 1.3).sum(1)
    swell = 1 + rng.uniform(-0.5, 0.6) * along
    half = max(cell.piece * rng.uniform(0.25, 0.9), 0.08) * swell * np.sqrt(1.1 - along**8)
    width = half * np.clip(1 + 0.7 * ragged, 0.4, 1.8)
    reach = 0.7 + (0.3 + cell.piece) * along
    middle = cell.piece_angle + rng.normal(0, 0.3) * along**2
    angle = np.concatenate([middle + width[0] / reach, (middle - width[1] / reach)[::-1]])
    return np.concatenate([reach, reach[::-1]])[:, None] * _directions(angle)


def _cut(
    polygons: list[NDArray[np.float64]], cell: Cell, rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    """Cut the polygons off along one or two straight lines, by moving points onto them."""
    angle = cell.cut_angle
    # A second line could flatten an attached piece.
    for _ in range(1 + (not cell.piece and rng.random() < 0.4)):
        normal = np.array([cos(angle), sin(angle)])
        polygons = [
            p - np.maximum(p @ normal - (1 - cell.cut_depth), 0)[:, None] * normal for p in polygons
        ]
        angle += rng.uniform(0.6, 1.4)
    return polygons


def _shapes(cell: Cell, rng: np.random.Generator) -> Shapes:
    """The cell's polygons, scaled and moved so that their tight box is that of `cell`."""
    body = _body(cell, rng)
    turn, away = rng.uniform(-pi, pi), abs(rng.normal(0, 0.025))
    # The nucleus itself is not cut: its outline may end outside the cell, where nothing is drawn.
    nucleus = cell.nucleus_fraction * body + away * np.array([cos(turn), sin(turn)])
    visible = [body, _piece(cell, rng)] if cell.piece else [body]
    if cell.cut_depth:
        visible = _cut(visible, cell, rng)
    points = np.concatenate(visible)
    low, high = points.min(0), points.max(0)
    box = np.array(cell.sides) - 1
    centre = np.floor(SIDE / 2 + np.array([cell.offset_x, cell.offset_y]) - box / 2) + box / 2
    scale = box / (high - low)
    nucleus, body, *piece = [(p - (low + high) / 2) * scale + centre for p in (nucleus, *visible)]
    return Shapes(body, nucleus, piece[0] if piece else None)


def _raster(polygon: NDArray[np.float64], origin: NDArray[np.int64], side: int) -> Image.Image:
    """The filled polygon, 0 or 255, in a square window of `side` px with the corner `origin`."""
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).polygon((polygon - origin).ravel().tolist(), fill=255)
    return image


def _blurred(image: Image.Image, sigma: float) -> NDArray[np.float32]:
    """The blurred image in [0, 1]; `sigma` in px."""
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(sigma)), np.float32)
    return blurred / np.float32(255)


@cache
def _squared_frequency(side: int) -> NDArray[np.float32]:
    """Squared angular frequency in 1/px², in the order of rfft2."""
    frequency = 2 * pi * np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    return (frequency**2).astype(np.float32)


@cache
def _slow_waves(side: int) -> NDArray[np.float32]:
    """Cosines of 0 to 1.5 periods over the side, [side, 4]."""
    return np.cos(pi * np.outer(np.linspace(0, 1, side), np.arange(4))).astype(np.float32)


def _chromatin(cell: Cell, side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Log green intensity around 0, [side, side]: chromatin clumps blurred by focus, and grain."""
    w2 = _squared_frequency(side)
    # Both spectra integrate to their variance over all frequencies.
    clumps = cell.chromatin_contrast**2 * 5.6 * pi * cell.chromatin_px**2
    power = clumps * (1 + cell.chromatin_px**2 * w2) ** np.float32(-2.4)
    power *= np.exp(-(cell.focus**2) * w2)
    power += cell.grain**2 * 4 * pi * GRAIN_PX**2 * np.exp(-(GRAIN_PX**2) * w2)
    noise = rng.standard_normal((side, side // 2 + 1, 2), np.float32).view(np.complex64)[..., 0]
    light = np.fft.irfft2(noise * np.sqrt(power / 2), norm="ortho")
    # Genuine chromatin has more bright spots than dark ones: a skewness of .3.
    skewed = light + 0.05 / cell.chromatin_contrast * light**2
    return np.asarray(skewed, np.float32)


def _drift(side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A smooth random field, [side, side], with mean 0 and an SD of about 1."""
    order = np.add.outer(np.arange(4), np.arange(4))
    height = rng.standard_normal((4, 4)) * np.where(order, 1 / np.maximum(order, 1), 0)
    waves = _slow_waves(side)
    return waves @ height.astype(np.float32) @ waves.T


def _add_nucleoli(
    light: NDArray[np.float32],
    nucleus: NDArray[np.float64],
    count: int,
    rng: np.random.Generator,
) -> None:
    """Add bright spots to `light` in place, inside the nucleus.

    Args:
        light: log green intensity of a window, [side, side].
        nucleus: polygon [N, 2] in px of that window.
    """
    middle, radius = nucleus.mean(0), np.ptp(nucleus, 0).mean() / 2
    for _ in range(count):
        turn, reach = rng.uniform(-pi, pi), rng.uniform(0, 0.7) * radius
        left, top = (middle + reach * np.array([cos(turn), sin(turn)])).astype(int) - 24
        spot = np.exp(-((np.arange(-24, 25) / rng.uniform(5, 9)) ** 2) / 2).astype(np.float32)
        patch = light[max(top, 0) : top + 49, max(left, 0) : left + 49]
        rows, columns = spot[max(-top, 0) :], spot[max(-left, 0) :]
        bright = np.float32(rng.uniform(0.15, 0.35))
        patch += bright * np.outer(rows[: patch.shape[0]], columns[: patch.shape[1]])


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of the mask: a thin strip may fall into several parts."""
    parts, count = ndimage.label(mask)
    return mask if count == 1 else parts == np.bincount(parts[mask]).argmax()


def _without_edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without its outermost pixels (erosion by the four neighbours)."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1]
    inner[1:-1, 1:-1] &= mask[1:-1, :-2] & mask[1:-1, 2:]
    return inner


def window(cell: Cell) -> tuple[NDArray[np.int64], int]:
    """Corner (x, y) and side in px of a square around the cell; the side is a multiple of 32."""
    side = 32 * -(-(max(cell.sides) + 6) // 32)
    corner = SIDE / 2 + np.array([cell.offset_x, cell.offset_y]) - side / 2
    return corner.round().astype(np.int64), side


def _framed(
    window: NDArray[np.uint8], corner: NDArray[np.int64], frame: int = SIDE
) -> NDArray[np.uint8]:
    """`window` [H, W, ...] pasted at `corner` (x, y) into a black square; the rest is cut off."""
    x, y = corner
    side = len(window)
    canvas = np.zeros((frame, frame, *window.shape[2:]), np.uint8)
    into = canvas[max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)]
    into[:] = window[max(-y, 0) :, max(-x, 0) :][: into.shape[0], : into.shape[1]]
    return canvas


def render(cell: Cell) -> NDArray[np.uint8]:
    """Render one cell: [450, 450, 3] RGB, exactly 0 outside the cell and its attached piece."""
    rng = random_numbers(cell.seed, cell.stream)
    shapes = _shapes(cell, rng)
    corner, side = window(cell)
    body = _raster(shapes.body, corner, side)
    mask = np.asarray(body) > 0

    light = _chromatin(cell, side, rng)
    drift = _drift(side, rng)
    _add_nucleoli(light, shapes.nucleus - corner, cell.nucleoli, rng)
    nucleus = _raster(shapes.nucleus, corner, side)
    rim, edge = 1 - _blurred(nucleus, 2 + cell.focus), 1 - _blurred(nucleus, 9)
    light = light * (1 - 0.6 * rim) + np.float32(cell.drift) * drift
    to_piece = None
    if shapes.piece is not None:
        to_piece = 1 - _blurred(body, 3)
        mask = _largest(mask | (np.asarray(_raster(shapes.piece, corner, side)) > 0))

    piece_rgb = DARK_PIECE_RGB ** (1 - cell.piece_shade) * PALE_PIECE_RGB**cell.piece_shade
    level = np.where(_without_edge(mask), np.float32(1), np.float32(OUTERMOST))
    dither = rng.random(mask.shape, dtype=np.float32)  # so that rounding down leaves no steps
    pixels = np.empty((*mask.shape, 3), np.uint8)
    for channel, stain in enumerate((cell.stain_red, cell.stain_green, cell.stain_blue)):
        inner, outer = np.log(NUCLEUS_RGB[channel]), np.log(CYTOPLASM_RGB[channel])
        log = inner + np.float32(stain) + (outer - inner) * rim
        log += CHROMATIN_LOG_RGB[channel] * light + HUE_LOG_RGB[channel] * drift
        log += EDGE_LOG_RGB[channel] * edge
        if to_piece is not None:
            log += (np.log(piece_rgb[channel]) - outer - EDGE_LOG_RGB[channel]) * to_piece
        value = np.exp(log) * level + dither
        pixels[..., channel] = np.where(mask, np.clip(value, 1, 255), 0)
    return _framed(pixels, corner)


def render_mask(cell: Cell) -> NDArray[np.uint8]:
    """Render the mask of one cell, [450, 450]: CYTOPLASM, NUCLEUS, 0 for all else."""
    shapes = _shapes(cell, random_numbers(cell.seed, cell.stream))
    corner, side = window(cell)
    body, nucleus = (np.asarray(_raster(p, corner, side)) > 0 for p in shapes[:2])
    mask = np.where(body, np.where(nucleus, NUCLEUS, CYTOPLASM), 0).astype(np.uint8)
    return _framed(mask, corner)
