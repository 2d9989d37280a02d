"""Latent parameters of synthetic cells, drawn from a specification.

For a cell of true class y, in a field of view of a subject, with d = √2 Φ⁻¹(auroc_bayes):

    severity = d (y − ½) + √icc · subject + √(1 − icc) · cell          (standard normal terms)

Size, nucleus-to-cytoplasm ratio, chromatin, nucleoli and outline depend on y through the severity
alone. So no classifier of single cells can exceed `auroc_bayes` in expectation, and the posterior
log odds of ALL given the severity, for classes of equal share, are d · severity. Stain, texture
(slow drift, grain and chromatin) and focus vary between subjects and fields of view, and size
between subjects, independently of the severity: they identify the subject but not the class, unless
`class_nuisance_correlation` makes stain a shortcut. With these SDs and `icc_size` at 0, the cells
of one class are exchangeable given their severity.

Constants come from genuine data. Tight boxes of 184 px (HEM) and 221 px (ALL) and their SDs: folds
0 and 1 of C-NMC, 7,108 images. What is a subject's own in size and chromatin: every third of these.
Colour, outline and spectrum: 110 images. 6.7 % of cells outside the central 300 px: all of C-NMC.
How much of each effect is severity's, and `auroc_bayes`, are chosen so that baselines come near
what they reach on folds 0 and 1 (`benchmarks/likeness.py`).
"""

from collections import defaultdict
from dataclasses import fields, replace
from itertools import zip_longest
from math import exp, pi, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, pdtrik

from leukocls.common.errors import LeukoclsError
from leukocls.data.published import FINAL_CELLS, SIDE, subject_counts
from leukocls.data.random import (
    FIELD_EFFECT_STREAM,
    FIELD_STREAM,
    NORMAL_STREAM,
    ORDER_OF_FILES_STREAM,
    PLACEMENT_STREAM,
    REPROCESSED_STREAM,
    SUBJECT_EFFECT_STREAM,
    SUBJECT_STREAM,
    UNIFORM_STREAM,
    random_numbers,
)
from leukocls.synthetic.render import Cell, window
from leukocls.synthetic.spec import SHIFTS, SyntheticSpec

CENTRAL = 300  # px, side of the central square that an `outside` cell reaches beyond
FIRST_SUBJECT = 101  # above every genuine number: genuine subjects may be merged by name
FINAL_SUBJECTS = (9, 8)  # ALL and HEM, of the published final part
NAMING = ("name", "part", "subject", "image", "label")  # fields that a duplicate does not copy

STAIN_LOG_RGB = np.array([0.65, 1.00, 0.52])  # first principal component between subjects
HUE_SHARE = 0.19  # SD of each channel's own stain, as a fraction of the stain's SD

Array = NDArray[np.float64]


class Subject(NamedTuple):
    """A subject's part (fold_0 …, prelim, final), class (ALL = 1) and number of cells."""

    part: str
    label: int
    cells: int


def _sizes(rng: np.random.Generator, subjects: int, cells: int) -> list[int]:
    """Number of cells of each subject: at least one each, `cells` in total."""
    weights = rng.lognormal(sigma=0.5, size=subjects)
    return (1 + rng.multinomial(cells - subjects, weights / weights.sum())).tolist()


def _subjects(spec: SyntheticSpec) -> list[Subject]:
    """All subjects: train, prelim, final; ALL before HEM, or in the published order."""
    rng = random_numbers(spec.seed, SUBJECT_STREAM)
    subjects = []
    if spec.scale == "full":
        rows = sorted(subject_counts().itertuples(), key=lambda row: row.split == "prelim")
        for row in rows:
            part = "prelim" if row.split == "prelim" else f"fold_{row.fold:.0f}"
            subjects.append(Subject(part, int(row.label == "ALL"), int(row.n_images)))
        final, final_cells = FINAL_SUBJECTS, FINAL_CELLS
    else:
        train = (spec.train_subjects_all, spec.train_subjects_hem)
        prelim = (spec.prelim_subjects_all, spec.prelim_subjects_hem)
        for group, counts in (("train", train), ("prelim", prelim)):
            sizes = _sizes(rng, sum(counts), spec.cells_per_subject * sum(counts))
            for index, cells in enumerate(sizes):
                label = int(index < counts[0])
                fold = f"fold_{(index if label else index - counts[0]) % 3}"
                subjects.append(Subject(fold if group == "train" else group, label, cells))
        final, final_cells = (2, 2), spec.final_cells
    for index, cells in enumerate(_sizes(rng, sum(final), final_cells)):
        subjects.append(Subject("final", int(index < final[0]), cells))
    return subjects


def _size(spec: SyntheticSpec, severity: Array, z: Array) -> Array:
    """Sizes in px, with the requested mean and SD in each class.

    Args:
        severity, z: severity and a standard normal value of each cell, [N].
    """
    gap = spec.size_mean_all - spec.size_mean_hem
    steepest = sqrt(0.5) * min(spec.size_sd_all, spec.size_sd_hem)
    slope = gap / max(spec.separation, abs(gap) / steepest, 1e-9)
    # Φ(severity) has the mean Φ(d / √8) in ALL and the complement in HEM, so that a variance
    # linear in Φ(severity) can have the requested mean in each class.
    rest_all, rest_hem = (sd**2 - slope**2 for sd in (spec.size_sd_all, spec.size_sd_hem))
    middle = (rest_all + rest_hem) / 2
    rise = (rest_all - rest_hem) / max(2 * float(ndtr(spec.separation / sqrt(8))) - 1, 1e-9)
    variance = middle + np.clip(rise, -2 * middle, 2 * middle) * (ndtr(severity) - 0.5)
    mean = (spec.size_mean_all + spec.size_mean_hem) / 2 + slope * severity
    return np.clip(mean + np.sqrt(variance) * z, 80, 400)


def _poisson(mean: Array, u: Array) -> NDArray[np.int64]:
    """Poisson counts by inversion: for a fixed uniform `u` they grow with the mean."""
    return np.maximum(np.ceil(pdtrik(u, mean)), 0).astype(np.int64)


def _placement(spec: SyntheticSpec, size: Array, rng: np.random.Generator) -> dict[str, Any]:
    """Attached pieces, shapes and places of the tight boxes; large cells reach outside first."""
    n, fit = len(size), CENTRAL - 2
    z, u = rng.standard_normal((6, n)), rng.random((3, n))
    attached = u[0] < spec.p_background
    # Cells that are large or have an attached piece are the first to reach outside.
    rank = np.argsort(np.argsort(-(size + 60 * attached + 25 * z[0])))
    outside = (rank < round(spec.p_outside_300 * n)) | (size > fit)
    reach = np.clip(0.2 * np.exp(0.75 * z[1]), 0.05, 0.9)
    reach = np.where(attached, np.where(outside, np.maximum(reach, 0.8), reach), 0)
    # A cell that reaches outside does so at a side of the square rather than at a corner.
    angle = 2 * pi * u[1]
    angle = np.where(outside, pi / 2 * np.round(angle / (pi / 2)) + 0.3 * z[2], angle)
    towards = np.array([np.cos(angle), np.sin(angle)])

    aspect = 0.11 * z[3] - np.cos(2 * angle) * np.log1p(reach / 2)
    longest = np.where(outside, SIDE - 10, fit)
    limit = np.log(longest / np.maximum(2 * size - longest, 1))
    aspect = np.clip(aspect, -limit, limit)
    height = 2 * size / (1 + np.exp(-aspect))
    sides = np.array([2 * size - height, height])

    offset = 1.5 * z[4:] + 0.8 * towards * size * reach / (2 + reach) / 2
    offset = np.where(outside, offset, np.clip(offset, -(fit - sides) / 2, (fit - sides) / 2))
    main = np.abs(towards) == np.abs(towards).max(0)
    least = np.maximum(CENTRAL / 2 + 4 + 20 * u[2] - sides / 2, 0)
    pushed = np.sign(towards) * np.maximum(np.abs(offset), least)
    offset = np.where(outside & main, pushed, offset)
    room = (SIDE - 6 - sides) / 2
    offset_x, offset_y = np.clip(offset, -room, room)
    return {
        "aspect": aspect,
        "offset_x": offset_x,
        "offset_y": offset_y,
        "piece": reach,
        "piece_angle": angle,
        "outside": outside,
    }


def _nuisance(
    spec: SyntheticSpec, subjects: list[Subject], of_subject: NDArray, of_field: NDArray
) -> dict[str, Array]:
    """Effects of the subject and of the field of view on each cell, by name: [N] each.

    Args:
        of_subject, of_field: index of the subject and of the field of each cell, [N].
    """
    z = random_numbers(spec.seed, SUBJECT_EFFECT_STREAM).standard_normal((10, len(subjects)))
    side = np.array([2 * subject.label - 1 for subject in subjects])
    rho = spec.class_nuisance_correlation
    shift = spec.fold_shift * np.array([SHIFTS[subject.part] for subject in subjects])
    stain = rho * side + sqrt(1 - rho**2) * z[1] + shift
    fields_z = spec.sd_field * random_numbers(spec.seed, FIELD_EFFECT_STREAM).standard_normal(
        (3, of_field[-1] + 1)
    )
    effects = {
        "subject_severity": sqrt(spec.icc_severity) * z[0],
        "subject_stain": spec.sd_nuisance_stain * stain,
        "subject_texture": spec.sd_nuisance_texture * z[2],
        "subject_focus": spec.sd_nuisance_focus * (z[3] + shift),
        "subject_size": sqrt(spec.icc_size) * z[7],
        "subject_chromatin": spec.sd_nuisance_texture * z[8],
        "contrast": spec.sd_nuisance_texture * z[9],
        **{f"hue_{i}": HUE_SHARE * spec.sd_nuisance_stain * own for i, own in enumerate(z[4:7])},
    }
    of_fields = dict(zip(("field_stain", "field_texture", "field_focus"), fields_z, strict=True))
    return {name: values[of_subject] for name, values in effects.items()} | {
        name: values[of_field] for name, values in of_fields.items()
    }


def _latents(spec: SyntheticSpec, true_class: NDArray, effects: dict[str, Array]) -> dict[str, Any]:
    """Latent parameters of the cells, by name: [N] each. The class enters by the severity alone."""
    n = len(true_class)
    z = random_numbers(spec.seed, NORMAL_STREAM).standard_normal((12, n))
    u = random_numbers(spec.seed, UNIFORM_STREAM).random((7, n))
    severity = spec.separation * (true_class - 0.5) + effects["subject_severity"]
    severity += sqrt(1 - spec.icc_severity) * z[0]
    size = _size(spec, severity, effects["subject_size"] + sqrt(1 - spec.icc_size) * z[1])
    stain = effects["subject_stain"] + effects["field_stain"] + 0.085 * z[2]
    chromatin = effects["subject_chromatin"]
    texture = np.exp(effects["subject_texture"] + effects["field_texture"] + 0.15 * z[3])
    focus = effects["subject_focus"] + effects["field_focus"] + 0.2 * z[4]
    gains = {
        f"stain_{name}": slope * stain + effects[f"hue_{i}"] + 0.02 * z[5]
        for i, (name, slope) in enumerate(zip(("red", "green", "blue"), STAIN_LOG_RGB, strict=True))
    }
    placement = _placement(spec, size, random_numbers(spec.seed, PLACEMENT_STREAM))
    # Half of the cuts are parallel to an image axis; none is on the side of an attached piece.
    cut_angle = np.where(z[11] > 0, 2 * pi * u[5], np.floor(4 * u[5]) * pi / 2)
    faces_piece = (np.cos(cut_angle - placement["piece_angle"]) > 0) & (placement["piece"] > 0)
    return {
        "severity": severity,
        "size": size,
        "slant": 0.11 * z[6],
        "roughness": np.minimum(0.036 * np.exp(0.08 * severity + 0.3 * z[7]), 0.07),
        "notch": (0.06 + 0.12 * u[0]) * (u[1] < 0.25),
        "nucleus_fraction": np.clip(
            0.945 + 0.0035 * severity + 0.02 * chromatin + 0.012 * z[8], 0.8, 0.99
        ),
        "nucleoli": _poisson(np.exp(1.1 + 0.5 * severity), u[6]),
        "chromatin_px": 6.0 * np.exp(-0.06 * severity + 0.5 * chromatin + 0.12 * z[9]),
        "chromatin_contrast": 0.105
        * np.exp(-0.03 * severity + 0.5 * effects["contrast"] + 0.22 * z[10]),
        "drift": 0.06 * texture,
        "grain": 0.032 * texture,
        "focus": np.exp(focus),
        **gains,
        "piece_shade": 1 - u[2] ** 10,
        "cut_depth": (0.04 + 0.2 * u[3]) * (u[4] < spec.p_cut),
        "cut_angle": np.where(faces_piece, cut_angle + pi, cut_angle),
        **placement,
    }


def draw_cells(spec: SyntheticSpec) -> list[Cell]:
    """Draw the latent parameters of every cell, part by part; prelim and final are shuffled.

    The standard normal and uniform draws depend on the seed alone, so that two specifications with
    the same subjects and counts differ only by the option that was changed.

    Raises:
        LeukoclsError: train is too small for the duplicates and the reprocessed cells.
    """
    subjects = _subjects(spec)
    of_subject = np.repeat(np.arange(len(subjects)), [subject.cells for subject in subjects])
    first = np.diff(of_subject, prepend=-1) > 0
    rng = random_numbers(spec.seed, FIELD_STREAM)
    # A field of view holds three cells on average, as in the genuine data.
    starts = first | (rng.random(len(first)) < 1 / 3)
    of_field = np.cumsum(starts) - 1
    image = of_field - of_field[first][of_subject] + 1
    number = np.arange(len(first)) - starts.nonzero()[0][of_field] + 1
    label = np.array([subject.label for subject in subjects])[of_subject]
    true_class = label ^ (rng.random(len(label)) < spec.label_noise)
    effects = _nuisance(spec, subjects, of_subject, of_field)

    names = [f"{'' if s.label else 'H'}{FIRST_SUBJECT + i}" for i, s in enumerate(subjects)]
    columns: dict[str, Any] = {
        "name": [
            f"UID_{names[s]}_{i}_{k}_{'all' if y else 'hem'}.bmp"
            for s, i, k, y in zip(of_subject, image, number, label, strict=True)
        ],
        "part": [subjects[s].part for s in of_subject],
        "subject": [names[s] for s in of_subject],
        "image": image,
        "label": label,
        "true_class": true_class,
        "seed": [spec.seed] * len(label),
        "stream": np.arange(len(label)) + (FIRST_SUBJECT << 32),
        **{name: values for name, values in effects.items() if not name.startswith("hue")},
        **_latents(spec, true_class, effects),
        "duplicate_of": [""] * len(label),
        "reprocessed_from": [""] * len(label),
    }
    order = [option.name for option in fields(Cell)]
    values = [np.asarray(columns[name]).tolist() for name in order]
    cells = [Cell(*row) for row in zip(*values, strict=True)]
    return _shuffled(_with_copies(cells, spec), spec.seed)


def reprocessed(cell: Cell, rng: np.random.Generator, degree: float = 1.0) -> Cell:
    """The same cell as if photographed, stain-normalised and segmented again.

    Stain, focus, grain, outline, size and place change; the chromatin stays.

    Args:
        degree: size of the changes; with 1 the two images correlate as those of C-NMC do
            (`benchmarks/near_duplicates.py`).
    """
    red, green, blue, focus, grain, rough = rng.normal(0, degree, 6).tolist()
    wider, right, down = (degree * rng.uniform(-3, 3, 3)).tolist()
    again = replace(
        cell,
        stain_red=cell.stain_red + 0.08 * red,
        stain_green=cell.stain_green + 0.08 * green,
        stain_blue=cell.stain_blue + 0.08 * blue,
        focus=cell.focus * exp(0.4 * focus),
        grain=cell.grain * exp(0.3 * grain),
        roughness=cell.roughness * exp(0.15 * rough),
        size=cell.size + wider / 2,
        offset_x=cell.offset_x + right,
        offset_y=cell.offset_y + down,
    )
    # Noise is drawn for a window that fits the cell; another window would show another cell.
    return again if window(again)[1] == window(cell)[1] else replace(again, size=cell.size)


def _with_copies(cells: list[Cell], spec: SyntheticSpec) -> list[Cell]:
    """Replace cells of fold_2 by cells of fold_0: first copies, then cells processed again.

    Few pairs of subjects share many images, as in C-NMC.
    """
    count = spec.duplicates + spec.reprocessed
    of_subject: dict[tuple[str, int], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, cell in enumerate(cells):
        of_subject[cell.part, cell.label][cell.subject].append(index)
    couples = [
        zip(*(of_subject[fold, label].values() for fold in ("fold_0", "fold_2")), strict=False)
        for label in (1, 0)
    ]
    in_turn = [couple for both in zip_longest(*couples) for couple in both if couple]
    pairs = [pair for couple in in_turn for pair in zip(*couple, strict=False)]
    if len(pairs) < count:
        what = "duplicates" if spec.duplicates else "reprocessed"
        raise LeukoclsError(f"{what}={count}: give at most {len(pairs)} with these subjects")
    cells, rng = list(cells), random_numbers(spec.seed, REPROCESSED_STREAM)
    for place, (source, copy) in enumerate(pairs[:count]):
        own = {name: getattr(cells[copy], name) for name in NAMING}
        if place < spec.duplicates:
            cells[copy] = replace(cells[source], **own, duplicate_of=cells[source].name)
        else:
            again = reprocessed(cells[source], rng)
            cells[copy] = replace(again, **own, reprocessed_from=cells[source].name)
    return cells


def _shuffled(cells: list[Cell], seed: int) -> list[Cell]:
    """Cells part by part, prelim and final in random order, so that file numbers tell nothing."""
    rng = random_numbers(seed, ORDER_OF_FILES_STREAM)
    rows: list[Cell] = []
    for part in ("fold_0", "fold_1", "fold_2", "prelim", "final"):
        of_part = [cell for cell in cells if cell.part == part]
        mixed = part in ("prelim", "final")
        rows += [of_part[place] for place in rng.permutation(len(of_part))] if mixed else of_part
    return rows
