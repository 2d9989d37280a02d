"""SYNTHETIC cells that look like C-NMC 2019, in its directory layout, names and BMP format.

Three steps: `draw_cells` draws a table of latent parameters, `render` turns one row into an
image, `write_tree` writes the files. A class acts on an image through one number only, the cell's
`severity`; subject stain, focus and outline are independent of it. So no AUROC can truly exceed the
severity's own, and a class separation of 0 leaves nothing to learn.

Constants come from the genuine data: tight boxes of 188 px (HEM) and 222 px (ALL), 6.7 % of cells
outside the central 300 px, mean nuclear colour (68, 26, 76), rim colour (85, 48, 96), and a
between-cell SD of log colour of (.12, .19, .10) with correlations near .9.
"""

import csv
import json
import os
import shutil
import struct
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from math import cos, exp, pi, sin
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from leukocls.errors import LeukoclsError

GENERATOR_VERSION = 1  # raise it whenever the same spec would give other bytes
MANIFEST = "synthetic.json"
SIDE, FINAL_SIDE = 450, 600  # px
PIXELS_PER_METRE = (3779, 3779)  # as in every genuine file
FIRST_SUBJECT = 101  # above every genuine number, whose known duplicates are merged by name

TRAIN = Path("C-NMC_Leukemia/training_data")
PRELIM = Path("C-NMC_Leukemia/validation_data/C-NMC_test_prelim_phase_data")
FINAL = Path("C-NMC_Leukemia/testing_data/C-NMC_test_final_phase_data")

NUCLEUS_RGB = np.array([64, 25, 74], np.float32)
CYTOPLASM_RGB = np.array([92, 58, 108], np.float32)
DARK_FRAGMENT_RGB = np.array([46, 30, 84], np.float32)
PALE_FRAGMENT_RGB = np.array([104, 82, 100], np.float32)
HUE_LOG_RGB = np.array([0.02, -0.01, -0.02], np.float32)  # red to blue, slowly over a cell
# First principal components: within nuclei, between subjects.
CHROMATIN_LOG_RGB = np.array([0.80, 1.00, 0.35], np.float32)
STAIN_LOG_RGB = (0.65, 1.00, 0.52)


def _option(default: float, least: float, text: str) -> Any:
    return field(default=default, metadata={"least": least, "help": text})


@dataclass(frozen=True)
class SyntheticSpec:
    """What to write. Raises LeukoclsError on values too small to make a tree of all parts.

    A class separation d bounds the AUROC on new subjects by Phi(d / sqrt(2 * 1.09)), .96 by
    default, since severity has an SD of 1 within a subject and of .3 between subjects.
    """

    seed: int = _option(0, 0, "of every random number")
    train_subjects_all: int = _option(32, 3, "ALL subjects in folds 0 to 2")
    train_subjects_hem: int = _option(22, 3, "HEM subjects in folds 0 to 2")
    prelim_subjects_all: int = _option(8, 1, "ALL subjects in prelim")
    prelim_subjects_hem: int = _option(8, 1, "HEM subjects in prelim")
    cells_per_subject: int = _option(13, 1, "mean over subjects, who vary about threefold")
    final_cells: int = _option(20, 4, "unlabelled cells, of four subjects")
    class_separation: float = _option(2.6, 0, "distance of mean severity in SDs within subject")
    subject_stain_sd: float = _option(0.16, 0, "SD over subjects of log green intensity")

    def __post_init__(self) -> None:
        for option in fields(self):
            value, least = getattr(self, option.name), option.metadata["least"]
            if not value >= least:
                raise LeukoclsError(
                    f"{option.name}={value}: too small for a synthetic tree; use at least {least}"
                )


@dataclass(frozen=True)
class Cell:
    """Latent parameters of one cell; lengths in px."""

    name: str  # the dataset name, UID_*.bmp, in every part
    part: str  # fold_0, fold_1, fold_2, prelim or final
    subject: str
    label: int  # ALL = 1
    seed: int
    stream: int  # of this cell's own random numbers, unique in the tree
    severity: float
    size: float  # mean side of the cell's tight box, without what is attached to it
    elongation: float  # log ratio of the axes
    angle: float
    roughness: float  # relative SD of the outline's radius
    notch: float  # relative depth of an indentation, 0 for none
    attached: float  # radius of a fragment that touches the cell, 0 for none
    nucleus_fraction: float  # nucleus radius by cell radius
    chromatin_px: float  # correlation length of the chromatin
    chromatin_contrast: float  # SD of the log green intensity
    nucleoli: int
    focus: float  # blur sigma
    stain: tuple[float, ...]  # log gain of red, green, blue


def _rng(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


def _subject_sizes(rng: np.random.Generator, subjects: int, cells: int) -> NDArray[np.int64]:
    """Cells of each subject: at least one each, `cells` in all."""
    weights = rng.lognormal(sigma=0.5, size=subjects)
    return 1 + rng.multinomial(cells - subjects, weights / weights.sum())


def _draw_subject(
    spec: SyntheticSpec, part: str, number: int, label: int, cells: int
) -> Iterator[Cell]:
    """Cells of one subject; subject effects are drawn before cell effects."""
    rng = _rng(spec.seed, number << 32)
    subject = f"{'' if label else 'H'}{number}"
    subject_severity, subject_size, subject_stain, *channels = rng.standard_normal(6).tolist()
    # A field of view holds three cells on average, as in the genuine data.
    images = (1 + np.cumsum(rng.random(cells) < 1 / 3)).tolist()
    seen: Counter[int] = Counter()
    for index, image in enumerate(images):
        z, u = rng.standard_normal(11).tolist(), rng.random(4).tolist()
        severity = spec.class_separation * (label - 0.5) + 0.3 * subject_severity + z[0]
        gain = spec.subject_stain_sd * subject_stain + 0.07 * z[1]
        seen[image] += 1
        yield Cell(
            name=f"UID_{subject}_{image}_{seen[image]}_{'all' if label else 'hem'}.bmp",
            part=part,
            subject=subject,
            label=label,
            seed=spec.seed,
            stream=(number << 32) + 1 + index,
            severity=severity,
            size=201 * exp(0.063 * severity + 0.08 * subject_size + 0.14 * z[2]),
            elongation=abs(0.18 * z[3]),
            angle=pi * u[0],
            roughness=0.035 * exp(0.35 * z[4]),
            notch=(0.08 + 0.12 * u[1]) * (u[2] < 0.25),
            attached=min(6 * exp(1.1 * abs(z[10])), 45.0) * (u[3] < 0.4),
            nucleus_fraction=min(max(0.94 + 0.014 * severity + 0.015 * z[5], 0.8), 0.99),
            chromatin_px=6.5 * exp(-0.27 * severity + 0.1 * z[6]),
            chromatin_contrast=0.14 * exp(-0.16 * severity + 0.1 * z[7]),
            nucleoli=int(rng.poisson(exp(-0.2 + 0.5 * severity))),
            focus=1.3 * exp(0.3 * z[8]),
            stain=tuple(
                slope * gain + 0.03 * own + 0.02 * z[9]
                for slope, own in zip(STAIN_LOG_RGB, channels, strict=True)
            ),
        )


def draw_cells(spec: SyntheticSpec) -> list[Cell]:
    """Latent parameters of every cell, by part; the rows of prelim and final are shuffled."""
    number, cells = FIRST_SUBJECT, []
    train = (spec.train_subjects_all, spec.train_subjects_hem)
    prelim = (spec.prelim_subjects_all, spec.prelim_subjects_hem)
    groups = (
        ("train", *train, spec.cells_per_subject * sum(train)),
        ("prelim", *prelim, spec.cells_per_subject * sum(prelim)),
        ("final", 2, 2, spec.final_cells),
    )
    for stream, (part, n_all, n_hem, total) in enumerate(groups):
        rng = _rng(spec.seed, stream)
        sizes = _subject_sizes(rng, n_all + n_hem, total)
        rows: list[Cell] = []
        for index, size in enumerate(sizes):
            label = int(index < n_all)
            fold = f"fold_{(index if label else index - n_all) % 3}"
            rows += _draw_subject(
                spec, fold if part == "train" else part, number + index, label, int(size)
            )
        number += len(sizes)
        order = range(len(rows)) if part == "train" else rng.permutation(len(rows))
        cells += [rows[i] for i in order]
    return cells


def _outline(cell: Cell, rng: np.random.Generator) -> tuple[NDArray[np.float64], ...]:
    """Radius in px on a grid of angles; the box of the curve has the mean side `cell.size`."""
    angle = np.linspace(-pi, pi, 721)
    k = np.arange(2, 25)[:, None]
    phase, height = rng.uniform(0, 2 * pi, k.shape), rng.standard_normal(k.shape)
    waves = (height / k * np.cos(k * angle + phase)).sum(0)
    axis = np.exp(cell.elongation / 2)
    turned = angle - cell.angle
    radius = (1 + cell.roughness * waves) / np.hypot(np.cos(turned) / axis, np.sin(turned) * axis)
    away = np.angle(np.exp(1j * (angle - rng.uniform(-pi, pi))))
    radius *= 1 - cell.notch * np.exp(-((away / rng.uniform(0.08, 0.25)) ** 2) / 2)
    sides = np.ptp(radius * np.cos(angle)) + np.ptp(radius * np.sin(angle))
    return angle, radius * cell.size * 2 / sides


def _chromatin(cell: Cell, side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Random fields [2, side, side], mean 0 and SD 1, blurred by focus: clumps, slow drift."""
    frequency = 2 * pi * np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    sigma = np.array([cell.chromatin_px / 2, 16.0])[:, None, None]
    blur = np.exp(-((sigma**2 + cell.focus**2) * frequency**2) / 2).astype(np.float32)
    noise = rng.standard_normal((2, side, side), dtype=np.float32)
    blurred = np.fft.irfft2(np.fft.rfft2(noise) * blur)
    return blurred / blurred.std((1, 2), keepdims=True)


def render(cell: Cell) -> NDArray[np.uint8]:
    """Image of one cell, [450, 450, 3] RGB, its tight box centred; exactly 0 outside the cell."""
    rng = _rng(cell.seed, cell.stream)
    angles, radii = _outline(cell, rng)
    # Multiples of 32 keep the Fourier transform fast.
    half = 16 * int((radii.max() + 2 * cell.attached + 2) / 16 + 1)
    y, x = np.mgrid[-half:half, -half:half].astype(np.float32)
    rho = np.hypot(x, y) / np.interp(np.arctan2(y, x), angles, radii).astype(np.float32)
    mask = rho < 1

    clumps, drift = _chromatin(cell, 2 * half, rng)
    chromatin = 0.6 * clumps + 0.8 * drift
    # Genuine chromatin has more bright spots than dark ones: a skewness of .3.
    light = cell.chromatin_contrast * (chromatin + 0.05 * chromatin**2)
    for _ in range(cell.nucleoli):
        turn, reach = rng.uniform(-pi, pi), rng.uniform(0, 0.35) * cell.size
        distance = np.hypot(x - reach * cos(turn), y - reach * sin(turn))
        light += rng.uniform(0.2, 0.4) * np.exp(-((distance / rng.uniform(5, 9)) ** 2) / 2)

    softness = 4 * (2 + cell.focus) / cell.size
    turn = rng.uniform(-pi, pi)
    shifted = rho + 0.05 * (x * cos(turn) + y * sin(turn)) / cell.size
    rim = (1 + np.tanh((shifted - cell.nucleus_fraction) / softness))[..., None] / 2
    nucleus = np.log(NUCLEUS_RGB) + CHROMATIN_LOG_RGB * light[..., None]
    log_rgb = nucleus * (1 - rim) + np.log(CYTOPLASM_RGB) * rim + HUE_LOG_RGB * drift[..., None]

    if cell.attached:
        turn = rng.uniform(-pi, pi)
        reach = float(np.interp(turn, angles, radii)) + 0.5 * cell.attached
        along = x * cos(turn) + y * sin(turn) - reach
        across = y * cos(turn) - x * sin(turn) - 0.1 * along * drift
        fragment = np.hypot(along, across * rng.uniform(0.8, 1.8)) < cell.attached
        pale = rng.random()
        colour = np.log(DARK_FRAGMENT_RGB) * (1 - pale) + np.log(PALE_FRAGMENT_RGB) * pale
        beyond = np.clip((rho - 1) * cell.size / 8, 0, 1)[..., None]
        log_rgb += beyond * (colour - log_rgb + 0.05 * drift[..., None])
        mask |= fragment

    value = np.exp(log_rgb + np.array(cell.stain, np.float32))
    value += rng.random(value.shape, dtype=np.float32)  # so that rounding down leaves no steps
    pixels = np.where(mask[..., None], np.clip(value, 1, 255), 0).astype(np.uint8)
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    tight = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _centred(tight, SIDE)


def _centred(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """`image` in the middle of a black square; what reaches outside is cut off."""
    over = [max(0, length - side) // 2 for length in image.shape[:2]]
    inner = image[over[0] :, over[1] :][:side, :side]
    top, left = ((side - length) // 2 for length in inner.shape[:2])
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return canvas


def encode_bmp(image: NDArray[np.uint8], *, v5: bool = False) -> bytes:
    """24-bit BMP of `image` [H, W, 3] RGB, as genuine files are: 54-byte header, prelim's 138."""
    height, width = image.shape[:2]
    rows = np.zeros((height, (3 * width + 3) // 4 * 4), np.uint8)
    rows[:, : 3 * width] = image[::-1, :, ::-1].reshape(height, -1)
    offset = 138 if v5 else 54
    header = struct.pack("<2sIII", b"BM", offset + rows.size, 0, offset)
    size = offset - len(header)
    header += struct.pack("<IiiHHI", size, width, height, 1, 24, 0)
    header += struct.pack("<IiiII", rows.size, *PIXELS_PER_METRE, 0, 0)
    if v5:
        header += struct.pack("<IIII4s", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b"BGRs")
        # End points of red, green and blue, as the genuine files' writer left them; no gamma.
        header += struct.pack("<9I", 0, 0, 0xFC1EB854, 0, 0, 0xFC666666, 0, 0, 0xFF28F5C4)
        header += struct.pack("<3I4I", 0, 0, 0, 4, 0, 0, 0)  # rendering intent: images
    return header + rows.tobytes()


def _paths(cells: list[Cell]) -> list[Path]:
    """Where each cell is written below the root."""
    numbered, serial = {"prelim": PRELIM, "final": FINAL}, Counter[str]()
    paths = []
    for cell in cells:
        serial[cell.part] += 1
        if cell.part in numbered:
            paths.append(numbered[cell.part] / f"{serial[cell.part]}.bmp")
        else:
            paths.append(TRAIN / cell.part / ("all" if cell.label else "hem") / cell.name)
    return paths


def _write_cell(cell: Cell, path: Path) -> None:
    image = render(cell)
    if cell.part == "final":
        image = _centred(image, FINAL_SIDE)
    path.write_bytes(encode_bmp(image, v5=cell.part == "prelim"))


def _fill(folder: Path, cells: list[Cell], progress: bool, workers: int) -> None:
    paths = _paths(cells)
    for parent in {path.parent for path in paths}:
        (folder / parent).mkdir(parents=True)
    # NumPy lets go of the lock while it works, so threads serve and no process is started under
    # the caller's feet.
    with ThreadPoolExecutor(workers) as pool:
        written = pool.map(_write_cell, cells, [folder / path for path in paths])
        # None hides the bar unless standard error is a terminal.
        hidden = None if progress else True
        deque(tqdm(written, "synthetic", len(cells), unit="cell", disable=hidden), maxlen=0)
    labels = folder / PRELIM.with_name(f"{PRELIM.name}_labels.csv")
    with open(labels, "w", newline="", encoding="ascii") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Patient_ID", "new_names", "labels"])
        for cell, path in zip(cells, paths, strict=True):
            if cell.part == "prelim":
                writer.writerow([cell.name, path.name, cell.label])


def _is_complete(root: Path, manifest: dict[str, Any]) -> bool:
    """Whether `root` holds this very tree; False if it is free, LeukoclsError if it is taken."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise LeukoclsError(
            f"{root}: is there already and is no synthetic tree (no readable {MANIFEST}); "
            "choose another directory"
        ) from None
    if found != manifest:
        raise LeukoclsError(
            f"{root}: holds a synthetic tree of another spec or generator version; "
            "choose another directory, or remove this one"
        )
    images, wanted = sum(1 for _ in root.rglob("*.bmp")), sum(manifest["counts"].values())
    if images != wanted:
        raise LeukoclsError(
            f"{root}: holds {images} images of {wanted}; remove the directory and write it again"
        )
    return True


def write_tree(
    root: str | Path, spec: SyntheticSpec, *, progress: bool = True, workers: int | None = None
) -> Path:
    """Write the cells of `spec` in the Kaggle layout and `synthetic.json` beside it.

    The tree appears under `root` whole or not at all; a killed write leaves a hidden sibling
    `.{name}.*.partial`. The bytes do not depend on `workers` (threads). A tree of the same spec
    is left as it is. Returns the resolved root. Raises LeukoclsError if `root` holds anything
    else, OSError if it cannot be written.
    """
    root = Path(root).resolve()
    cells = draw_cells(spec)
    manifest = {
        "mark": "SYNTHETIC",
        "generator": GENERATOR_VERSION,
        "spec": asdict(spec),
        "counts": dict(Counter(cell.part for cell in cells)),
    }
    if _is_complete(root, manifest):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = root.with_name(f".{root.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir()
    try:
        _fill(partial, cells, progress, workers or min(8, os.cpu_count() or 1))
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        try:
            partial.rename(root)
        except OSError:
            # Somebody else may have written the same tree meanwhile.
            if not _is_complete(root, manifest):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root
