"""The table of cells: what the file names and the label file say, before any image is opened.

One row a cell, always in the same order, whatever order the file system lists them in.
"""

import csv
import functools
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pandas as pd

from leukocls.data.synthetic import MANIFEST
from leukocls.errors import DataFault, LeukoclsError

TRAIN_NAME = re.compile(r"UID_(H?\d+)_(\d+)_(\d+)_(all|hem)\.bmp", re.IGNORECASE)
NUMBERED_NAME = re.compile(r"(\d+)\.bmp", re.IGNORECASE)
LABELS = {"hem": 0, "all": 1}
UNKNOWN = -1
PARTS = ("train", "prelim", "final")
COLUMNS = ["cell", "file", "part", "fold", "subject", "label", "image", "number"]


@dataclass(frozen=True)
class Layout:
    """Where one way of unpacking C-NMC 2019 puts things, below the data root."""

    train: str
    prelim: str
    prelim_labels: str
    final: str


LAYOUTS = {
    "tcia": Layout(
        "C-NMC_training_data",
        "C-NMC_test_prelim_phase_data",
        "C-NMC_test_prelim_phase_data_labels.csv",
        "C-NMC_test_final_phase_data",
    ),
    "kaggle": Layout(
        "training_data",
        "validation_data/C-NMC_test_prelim_phase_data",
        "validation_data/C-NMC_test_prelim_phase_data_labels.csv",
        "testing_data/C-NMC_test_final_phase_data",
    ),
    "challenge": Layout(".", "phase2", "phase2.csv", "phase3"),
}


@dataclass(frozen=True)
class Index:
    """The cells of one data tree.

    `table` has the columns COLUMNS: `cell` (file name), `file` (path below `root`), `part`,
    `fold` (0-2, −1 outside train), `subject` (upper case, "" if unknown), `label` (ALL 1, HEM 0,
    −1 unknown), `image` and `number` (the field and the cell in it, −1 if unknown).
    `absent` counts the prelim cells that the label file lists and the tree lacks; `manifest` is
    the file that marks a synthetic tree.
    """

    root: Path
    layout: str
    table: pd.DataFrame
    absent: int
    manifest: Path | None

    @property
    def synthetic(self) -> bool:
        """Whether the cells are embedded ones: nothing measured on them holds for people."""
        return self.manifest is not None

    def expected(self) -> dict[str, int]:
        """Cells that a complete tree of this kind holds, by part (folds as fold_0 …)."""
        if self.manifest is not None:
            counts = json.loads(self.manifest.read_text(encoding="utf-8"))["counts"]
            return {str(part): int(count) for part, count in counts.items()}
        return published_counts()

    def counts(self) -> dict[str, int]:
        """Cells present, under the same keys as `expected`."""
        part = self.table["part"].where(
            self.table["part"] != "train", "fold_" + self.table["fold"].astype(str)
        )
        return {str(k): int(n) for k, n in part.value_counts().items()}

    def incomplete(self, parts: tuple[str, ...] = ("fold_0", "fold_1", "fold_2", "prelim")) -> str:
        """Which of `parts` differ from a complete tree, in words; "" if none does."""
        have, want = self.counts(), self.expected()
        # Final is optional, but half of it is a fault.
        parts += ("final",) if have.get("final") else ()
        return ", ".join(
            f"{part} has {have.get(part, 0):,} of {want[part]:,} images"
            for part in parts
            if have.get(part, 0) != want[part]
        )


@functools.cache
def subject_counts() -> pd.DataFrame:
    """Published cells per subject: columns split, fold, label, subject, n_images."""
    with resources.files("leukocls.data").joinpath("cnmc_subject_counts.csv").open() as stream:
        return pd.read_csv(stream)


def published_counts() -> dict[str, int]:
    """Cells in each part of C-NMC 2019 (Gupta & Gupta, TCIA 2019, 10.7937/tcia.2019.dc64i46r)."""
    counts = subject_counts()
    folds = counts[counts["split"] == "train"].groupby("fold")["n_images"].sum()
    prelim = counts.loc[counts["split"] == "prelim", "n_images"].sum()
    # The final part's labels and subjects are not published, its size is.
    return {f"fold_{int(k)}": int(n) for k, n in folds.items()} | {
        "prelim": int(prelim),
        "final": 2586,
    }


def build_index(root: str | Path, layout: str = "auto") -> Index:
    """Read the names below `root` into one table; no image is opened.

    Args:
        root: a folder that holds one of the three layouts, itself or one or two levels down.
        layout: "auto" or a key of LAYOUTS.

    Raises:
        LeukoclsError: `root` is missing or holds no known layout.
        DataFault: names, folders and labels that do not parse or disagree, all of them listed.
    """
    given = Path(root)
    if not given.is_dir():
        raise LeukoclsError(
            f"{given}: no such folder. Set data.root (or LEUKOCLS_DATA) to your copy of C-NMC 2019,"
            " or use data=synthetic."
        )
    base, name = _find_layout(given, layout)
    paths = LAYOUTS[name]
    faults: list[str] = []
    rows = _train_rows(given, base / paths.train, faults)
    prelim, absent = _prelim_rows(given, base / paths.prelim, base / paths.prelim_labels, faults)
    rows += prelim + _final_rows(given, base / paths.final, faults)
    if faults:
        raise DataFault(_report(given, faults))
    if not rows:
        raise LeukoclsError(
            f"{given}: the folders of the {name} layout are there, but no .bmp image is in them."
            " Unpack the archives again, or use data=synthetic."
        )
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["part"] = pd.Categorical(table["part"], categories=PARTS)
    table = table.sort_values(["part", "fold", "subject", "image", "number", "cell"])
    table = table.reset_index(drop=True)
    table["part"] = table["part"].astype(str)
    for column in ("fold", "label", "image", "number"):
        table[column] = table[column].astype("int64")
    # The mark holds as well for who names the folder inside a synthetic tree.
    manifests = [folder / MANIFEST for folder in (given.resolve(), *base.resolve().parents[:2])]
    manifest = next((path for path in manifests if path.is_file()), None)
    return Index(given, name, table, absent, manifest)


def _find_layout(root: Path, layout: str) -> tuple[Path, str]:
    if layout != "auto" and layout not in LAYOUTS:
        raise LeukoclsError(f"data.layout={layout}: choose auto, {', '.join(LAYOUTS)}.")
    names = list(LAYOUTS) if layout == "auto" else [layout]
    children = sorted(p for p in root.iterdir() if p.is_dir())
    below = sorted(p for child in children for p in child.iterdir() if p.is_dir())
    for base in (root, *children, *below):
        for name in names:
            paths = LAYOUTS[name]
            if (base / paths.train / "fold_0").is_dir() or (base / paths.prelim).is_dir():
                return base, name
    wanted = " or ".join(f"{LAYOUTS[n].train}/fold_0 ({n})".removeprefix("./") for n in names)
    raise LeukoclsError(
        f"{root}: no C-NMC 2019 data here; looked for {wanted}, here and two levels down."
        " Set data.root to the unpacked data set, or use data=synthetic."
    )


def _images(folder: Path, faults: list[str]) -> list[Path]:
    """Every .bmp of a folder; any other visible file is a fault, hidden ones are not ours."""
    if not folder.is_dir():
        return []
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = path.name.lower()
        if name.startswith("."):
            continue
        if not (name.endswith(".bmp") and path.is_file()):
            faults.append(f"{path}: not a .bmp image; move it out of the data tree")
        elif name in found:
            faults.append(f"{path}: differs from {found[name]} in case only; remove one")
        else:
            found[name] = path
    return list(found.values())


def _train_rows(root: Path, folder: Path, faults: list[str]) -> list[tuple]:
    rows: list[tuple] = []
    seen: dict[str, Path] = {}
    for fold in range(3):
        for kind in LABELS:
            for path in _images(folder / f"fold_{fold}" / kind, faults):
                match = TRAIN_NAME.fullmatch(path.name)
                if match is None:
                    faults.append(
                        f"{path}: the name is not UID_{{subject}}_{{image}}_{{cell}}_{kind}.bmp;"
                        " restore the original name or remove the file"
                    )
                    continue
                subject, image, number, suffix = match.groups()
                problem = _label_conflict(subject, suffix.lower(), kind)
                if problem:
                    faults.append(f"{path}: {problem}; restore the file from the original archive")
                elif path.name.lower() in seen:
                    faults.append(f"{path}: the same cell as {seen[path.name.lower()]}; remove one")
                seen[path.name.lower()] = path
                file = path.relative_to(root).as_posix()
                row = (path.name, file, "train", fold, subject.upper(), LABELS[kind])
                rows.append((*row, int(image), int(number)))
    return rows


def _label_conflict(subject: str, suffix: str, stated: str) -> str:
    """Folder (or label file), suffix and the H of a healthy subject must say the same."""
    healthy = "hem" if subject.upper().startswith("H") else "all"
    if suffix == stated == healthy:
        return ""
    return f"labels disagree: stated {stated}, suffix {suffix}, subject {subject} is {healthy}"


def _prelim_rows(
    root: Path, folder: Path, labels: Path, faults: list[str]
) -> tuple[list[tuple], int]:
    images = {path.name.lower(): path for path in _images(folder, faults)}
    if not images and not labels.exists():
        return [], 0
    truth = read_official_labels(labels, faults)
    rows = []
    for name, path in images.items():
        if NUMBERED_NAME.fullmatch(name) is None:
            faults.append(f"{path}: not a numbered image (1.bmp, 2.bmp, …); restore its name")
        elif not truth:
            continue  # the label file is a fault already; one more an image would bury it
        elif name not in truth:
            faults.append(f"{path}: not listed in {labels}; remove it or restore the label file")
        else:
            subject, image, number, label = truth[name]
            file = path.relative_to(root).as_posix()
            rows.append((path.name, file, "prelim", -1, subject, label, image, number))
    return rows, len(truth.keys() - images.keys())


def read_official_labels(path: Path, faults: list[str]) -> dict[str, tuple[str, int, int, int]]:
    """The prelim truth: lower-case `new_names` → (subject, image, number, label).

    What does not parse or disagrees is appended to `faults`.
    """
    if not path.is_file():
        faults.append(f"{path}: the prelim label file is missing; fetch it with the data set")
        return {}
    before = len(faults)
    # What is not UTF-8 fails below like any other file without the columns.
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as stream:
        reader = csv.DictReader(stream)
        wanted = {"Patient_ID", "new_names", "labels"}
        if not wanted <= set(reader.fieldnames or ()):
            faults.append(
                f"{path}: needs the columns Patient_ID,new_names,labels; fetch the original file"
            )
            return {}
        truth: dict[str, tuple[str, int, int, int]] = {}
        for line, row in enumerate(reader, start=2):
            match = TRAIN_NAME.fullmatch((row["Patient_ID"] or "").strip())
            name = (row["new_names"] or "").strip().lower()
            label = (row["labels"] or "").strip()
            where = f"{path}, line {line}"
            if match is None or NUMBERED_NAME.fullmatch(name) is None or label not in ("0", "1"):
                faults.append(f"{where}: does not parse; fetch the original file")
                continue
            subject, image, number, suffix = match.groups()
            stated = "all" if label == "1" else "hem"
            problem = _label_conflict(subject, suffix.lower(), stated)
            if problem:
                faults.append(f"{where}: {problem}; fetch the original file")
            elif name in truth:
                faults.append(f"{where}: {name} is listed twice; fetch the original file")
            truth[name] = (subject.upper(), int(image), int(number), int(label))
    if not truth and len(faults) == before:
        faults.append(f"{path}: the label file lists no cell; fetch the original file")
    return truth


def _final_rows(root: Path, folder: Path, faults: list[str]) -> list[tuple]:
    rows = []
    for path in _images(folder, faults):
        match = NUMBERED_NAME.fullmatch(path.name)
        if match is None:
            faults.append(f"{path}: not a numbered image (1.bmp, 2.bmp, …); restore its name")
            continue
        file = path.relative_to(root).as_posix()
        # The number orders the final cells as the challenge's submission does.
        rows.append((path.name, file, "final", -1, "", UNKNOWN, int(match[1]), -1))
    return rows


def _report(root: Path, faults: list[str]) -> str:
    shown = sorted(faults)[:20]
    more = f"\n  … and {len(faults) - len(shown)} more" if len(faults) > len(shown) else ""
    return f"{root}: {len(faults)} fault(s) in the data\n  " + "\n  ".join(shown) + more
