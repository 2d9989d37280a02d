"""Data trees of synthetic cells, in the directory layout, names and BMP format of C-NMC 2019.

The truth about every cell is known and written beside the images. `draw_cells` draws the latent
parameters, `render` turns those of one cell into an image, and `write_tree` writes the files.
"""

import csv
import json
import os
import shutil
import struct
import uuid
from collections import Counter, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from leukocls.common.errors import LeukoclsError
from leukocls.data.published import FINAL_SIDE, MANIFEST, SIDE, labels_digest
from leukocls.synthetic.latents import draw_cells
from leukocls.synthetic.render import Cell, render, render_mask
from leukocls.synthetic.spec import SyntheticSpec

GENERATOR_VERSION = 3  # raise it whenever the same spec would give other bytes
TRUTH = "truth.parquet"
MASKS = Path("masks")
PIXELS_PER_METRE = (3779, 3779)  # as in every genuine file

TRAIN = Path("C-NMC_Leukemia/training_data")
PRELIM = Path("C-NMC_Leukemia/validation_data/C-NMC_test_prelim_phase_data")
FINAL = Path("C-NMC_Leukemia/testing_data/C-NMC_test_final_phase_data")
NUMBERED = {"prelim": PRELIM, "final": FINAL}


def encode_bmp(image: NDArray[np.uint8], *, v5: bool = False) -> bytes:
    """Encode `image`, uint8 [H, W, 3] RGB, as 24-bit BMP like a genuine file.

    Args:
        v5: write the header of prelim's files (138 bytes) instead of the usual one (54 bytes).
    """
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
    """The path of each cell's image below the root."""
    serial: Counter[str] = Counter()
    paths = []
    for cell in cells:
        serial[cell.part] += 1
        if cell.part in NUMBERED:
            paths.append(NUMBERED[cell.part] / f"{serial[cell.part]}.bmp")
        else:
            paths.append(TRAIN / cell.part / ("all" if cell.label else "hem") / cell.name)
    return paths


def truth(cells: list[Cell], spec: SyntheticSpec) -> pd.DataFrame:
    """The truth about each cell: one row each, in the order of `cells`.

    Columns: `cell` (its name in the tree), `file` (its path there), `name` (UID_*), `part`, `fold`
    (−1 outside train) and `subject` as in the index; all fields of Cell; `width` and `height` of
    the tight box in px; the flags `cut`, `background`, `outside` and `noisy`; `logit_bayes`, the
    posterior log odds of ALL given the severity, for classes of equal share. Latents and effects
    describe the pixels: those of a duplicate are the original's.
    """
    paths = _paths(cells)
    table = pd.DataFrame([vars(cell) for cell in cells]).drop(columns=["seed", "stream"])
    fold = [int(cell.part[-1]) if cell.part not in NUMBERED else -1 for cell in cells]
    table["part"] = [cell.part if cell.part in NUMBERED else "train" for cell in cells]
    table.insert(0, "cell", [path.name for path in paths])
    table.insert(1, "file", [path.as_posix() for path in paths])
    table.insert(4, "fold", fold)
    table["width"], table["height"] = zip(*(cell.sides for cell in cells), strict=True)
    table["cut"] = table["cut_depth"] > 0
    table["background"] = table["piece"] > 0
    table["noisy"] = table["label"] != table["true_class"]
    table["logit_bayes"] = spec.separation * table["severity"]
    return table


def _write_cell(cell: Cell, folder: Path, path: Path, masks: bool) -> None:
    """Write the image of one cell, and its mask if `masks`."""
    margin = (FINAL_SIDE - SIDE) // 2 if cell.part == "final" else 0
    image = np.pad(render(cell), ((margin, margin), (margin, margin), (0, 0)))
    (folder / path).write_bytes(encode_bmp(image, v5=cell.part == "prelim"))
    if masks:
        mask = Image.fromarray(np.pad(render_mask(cell), margin))
        mask.save(folder / MASKS / path.with_suffix(".png"))


def _fill(
    folder: Path, cells: list[Cell], paths: list[Path], masks: bool, progress: bool, workers: int
) -> None:
    """Write all images and the label file below `folder`."""
    for parent in {path.parent for path in paths}:
        (folder / parent).mkdir(parents=True)
        if masks:
            (folder / MASKS / parent).mkdir(parents=True)
    # NumPy releases the GIL, so threads are enough and no process is needed.
    with ThreadPoolExecutor(workers) as pool:
        written = pool.map(_write_cell, cells, repeat(folder), paths, repeat(masks))
        # None hides the bar unless standard error is a terminal.
        hidden = None if progress else True
        bar = tqdm(written, "synthetic", len(cells), unit="cell", disable=hidden, leave=False)
        deque(bar, maxlen=0)
    labels = folder / PRELIM.with_name(f"{PRELIM.name}_labels.csv")
    with open(labels, "w", newline="", encoding="ascii") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Patient_ID", "new_names", "labels"])
        for cell, path in zip(cells, paths, strict=True):
            if cell.part == "prelim":
                writer.writerow([cell.name, path.name, cell.label])


def _is_complete(root: Path, manifest: dict[str, Any]) -> bool:
    """Whether `root` already holds this tree.

    Raises:
        LeukoclsError: it holds anything else, or an incomplete tree.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        present = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise LeukoclsError(
            f"{root}: exists already and is not a synthetic tree (no readable {MANIFEST}); "
            "choose another directory"
        ) from None
    if present != manifest:
        raise LeukoclsError(
            f"{root}: holds a synthetic tree of another specification or version; "
            "choose another one (data.root=), or remove it"
        )
    wanted = sum(manifest["counts"].values())
    for kind, suffix in (("images", "bmp"), ("masks", "png"))[: 1 + manifest["masks"]]:
        present = sum(1 for _ in root.rglob(f"*.{suffix}"))
        if present != wanted:
            raise LeukoclsError(
                f"{root}: holds {present} {kind} of {wanted}; remove the directory and write it "
                "again"
            )
    return True


def _manifest(
    spec: SyntheticSpec, cells: list[Cell], paths: list[Path], masks: bool
) -> dict[str, Any]:
    """The content of the manifest: options, counts, digest of the labels, copies."""
    subjects: dict[str, Counter[str]] = defaultdict(Counter)
    for cell in cells:
        if cell.part != "final":
            subjects[cell.part][cell.subject] += 1
    path_of = {cell.name: path.as_posix() for cell, path in zip(cells, paths, strict=True)}
    copies = [cell for cell in cells if cell.duplicate_of]
    return {
        "mark": "SYNTHETIC",
        "generator": GENERATOR_VERSION,
        "spec": asdict(spec),
        "masks": masks,
        "counts": dict(Counter(cell.part for cell in cells)),
        "labels_sha256": labels_digest(
            (path.name, cell.name, cell.label)
            for cell, path in zip(cells, _paths(cells), strict=True)
            if cell.part == "prelim"
        ),
        "subjects": subjects,
        "duplicates": [[path_of[cell.duplicate_of], path_of[cell.name]] for cell in copies],
        "reprocessed": [
            [path_of[cell.reprocessed_from], path_of[cell.name]]
            for cell in cells
            if cell.reprocessed_from
        ],
    }


def write_tree(
    root: str | Path,
    spec: SyntheticSpec,
    *,
    masks: bool = False,
    progress: bool = True,
    workers: int | None = None,
) -> Path:
    """Write the cells of `spec` in the Kaggle layout, with `synthetic.json` and `truth.parquet`.

    The tree appears under `root` complete or not at all; a killed write leaves a hidden sibling
    `.{name}.*.partial`. An existing tree with the same options is left as it is.

    Args:
        masks: also write masks/<path of the image>.png, the values of `render_mask`.
        progress: whether to show a progress bar.
        workers: number of threads, which does not change the bytes; None for one per core, at most
            eight.

    Returns:
        The resolved root.

    Raises:
        LeukoclsError: `root` holds anything else.
        OSError: the files cannot be written.
    """
    root = Path(root).resolve()
    cells = draw_cells(spec)
    paths = _paths(cells)
    manifest = _manifest(spec, cells, paths, masks)
    if _is_complete(root, manifest):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = root.with_name(f".{root.name}.{uuid.uuid4().hex}.partial")
    draft.mkdir()
    try:
        _fill(draft, cells, paths, masks, progress, workers or min(8, os.cpu_count() or 1))
        truth(cells, spec).to_parquet(draft / TRUTH, index=False)
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        try:
            draft.rename(root)
        except OSError:
            # Another process may have written the same tree meanwhile.
            if not _is_complete(root, manifest):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root
