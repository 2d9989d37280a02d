"""C-NMC 2019: its folders, file names and label file."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from leukocls.common.errors import Fault, LeukoclsError
from leukocls.data.names import UNKNOWN
from leukocls.data.published import MANIFEST, merged_subject
from leukocls.data.rules import DataRules, PublishedRules, SyntheticRules

TRAIN_NAME = re.compile(r"UID_(H?\d+)_(\d+)_(\d+)_(all|hem)\.bmp", re.IGNORECASE)
NUMBERED_NAME = re.compile(r"(\d+)\.bmp", re.IGNORECASE)
LABELS = {"hem": 0, "all": 1}
# Leftovers of operating systems and archivers, ignored like names that begin with a dot.
LEFTOVERS = {"thumbs.db", "desktop.ini", "__macosx"}
NOT_NUMBERED = "not a numbered image (1.bmp, 2.bmp, …)"
FETCH = "fetch the original file"


@dataclass(frozen=True)
class Layout:
    """Paths of the parts below the data root, in one published arrangement of C-NMC 2019."""

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


class CnmcTree(NamedTuple):
    """The names below a data root, as fields of an `Index`; `rows` have its columns NAMED."""

    layout: str
    rows: list[tuple]
    absent: tuple[str, ...]
    labels: Path | None
    rules: DataRules


def scan_tree(root: Path, layout: str, faults: list[Fault]) -> CnmcTree:
    """Read the names below `root`; whatever does not parse or disagrees is added to `faults`.

    Args:
        root: a folder that holds one of LAYOUTS, itself or one or two levels down.
        layout: "auto" or a key of LAYOUTS.

    Raises:
        LeukoclsError: `root` is missing or holds no known layout.
    """
    if not root.is_dir():
        raise LeukoclsError(
            f"{root}: no such folder or file. Set data.root (or LEUKOCLS_DATA) to your copy of"
            " C-NMC 2019 or to the CSV file of other cells, or use data=synthetic."
        )
    base, name = _find_layout(root, layout)
    paths = LAYOUTS[name]
    faults += _strays(base / paths.train)
    rows = _train_rows(root, base / paths.train, faults)
    prelim, absent = _prelim_rows(root, base / paths.prelim, base / paths.prelim_labels, faults)
    rows += prelim + _final_rows(root, base / paths.final, faults)
    if not rows and not faults:
        raise LeukoclsError(
            f"{root}: the folders of the {name} layout are there, but no .bmp image is in them."
            " Unpack the archives again, or use data=synthetic."
        )
    # A folder inside a synthetic tree is synthetic too.
    manifests = [
        folder / MANIFEST
        for folder in (root.resolve(), base.resolve(), *base.resolve().parents[:2])
    ]
    manifest = next((path for path in manifests if path.is_file()), None)
    file = base / paths.prelim_labels
    labels = file if file.is_file() else None
    rules = SyntheticRules(manifest) if manifest else PublishedRules()
    return CnmcTree(name, rows, absent, labels, rules)


def _find_layout(root: Path, layout: str) -> tuple[Path, str]:
    """The folder that holds the data, at most two levels below `root`, and its key of LAYOUTS."""
    if layout != "auto" and layout not in LAYOUTS:
        raise LeukoclsError(f"data.layout={layout}: choose auto, {', '.join(LAYOUTS)}.")
    names = list(LAYOUTS) if layout == "auto" else [layout]
    level = [root]
    for _ in range(3):
        trees = [(base, name) for base in level for name in names if _holds(base, LAYOUTS[name])]
        if len({base for base, _ in trees}) > 1:
            bases = ", ".join(sorted({str(base) for base, _ in trees}))
            raise LeukoclsError(f"{root}: holds several copies of the data: {bases}. Name one.")
        if trees:
            return trees[0]
        level = sorted(p for base in level for p in base.iterdir() if p.is_dir() and is_data(p))
    looked = " or ".join(f"{LAYOUTS[n].train}/fold_0 ({n})".removeprefix("./") for n in names)
    raise LeukoclsError(
        f"{root}: no C-NMC 2019 data here; looked for {looked}, here and two levels down."
        " Set data.root to the unpacked data set, or use data=synthetic. For a folder of other"
        " cells write a CSV first: python -m leukocls.index."
    )


def _holds(base: Path, layout: Layout) -> bool:
    """Whether `base` has a folder of the images of this layout."""
    folds = [base / layout.train / f"fold_{k}" for k in range(3)]
    return any(p.is_dir() for p in (*folds, base / layout.prelim, base / layout.final))


def is_data(path: Path) -> bool:
    """Whether the path is neither hidden nor a leftover."""
    return not path.name.startswith(".") and path.name.lower() not in LEFTOVERS


def _strays(train: Path) -> list[Fault]:
    """Faults for misnamed folds and class folders, and for images outside the class folders."""
    if not train.is_dir():
        return []
    folds = {f"fold_{k}" for k in range(3)}
    like_folds = [p for p in train.iterdir() if p.name.lower().startswith("fold") and p.is_dir()]
    strays = [path for path in like_folds if path.name not in folds]
    for fold in folds:
        inside = (train / fold).iterdir() if (train / fold).is_dir() else ()
        strays += [path for path in inside if is_data(path) and path.name not in LABELS]
    remedy = "name folders fold_0 to fold_2, each with all/ and hem/; move anything else out"
    return [Fault(path, "does not belong here", remedy) for path in strays]


def _images(folder: Path, faults: list[Fault]) -> list[Path]:
    """Every .bmp of a folder; any other file is a fault, unless it is hidden or a leftover."""
    if not folder.is_dir():
        return []
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = path.name.lower()
        if not is_data(path):
            continue
        if not (name.endswith(".bmp") and path.is_file()):
            faults.append(Fault(path, "not a .bmp image", "move it out of the data tree"))
        elif name in images:
            faults.append(Fault(path, f"differs from {images[name]} in case only", "remove one"))
        else:
            images[name] = path
            twin = path.with_suffix(".bmp")
            if path != twin and not twin.exists():
                faults.append(
                    Fault(path, f"the suffix is {path.suffix}", f"rename it to {twin.name}")
                )
    return list(images.values())


def _train_rows(root: Path, folder: Path, faults: list[Fault]) -> list[tuple]:
    rows: list[tuple] = []
    seen: dict[str, Path] = {}
    for fold in range(3):
        for kind in LABELS:
            for path in _images(folder / f"fold_{fold}" / kind, faults):
                match = TRAIN_NAME.fullmatch(path.name)
                if match is None:
                    cause = f"the name is not UID_{{subject}}_{{image}}_{{cell}}_{kind}.bmp"
                    remedy = "restore the original name or remove the file"
                    faults.append(Fault(path, cause, remedy))
                    continue
                subject, image, number, suffix = match.groups()
                problem = _label_conflict(subject, suffix.lower(), kind)
                if problem:
                    remedy = "restore the file from the original archive"
                    faults.append(Fault(path, problem, remedy))
                elif path.name.lower() in seen:
                    cause = f"the same cell as {seen[path.name.lower()]}"
                    faults.append(Fault(path, cause, "remove one"))
                seen[path.name.lower()] = path
                file = path.relative_to(root).as_posix()
                subject = subject.upper()
                row = (path.name, file, "train", fold, subject, LABELS[kind])
                rows.append((*row, int(image), int(number), merged_subject(subject)))
    return rows


def _label_conflict(subject: str, suffix: str, stated: str) -> str:
    """A description of the conflict between a stated label, the name's suffix and its subject.

    Subjects whose id begins with H are healthy. "" if all three agree.
    """
    healthy = "hem" if subject.upper().startswith("H") else "all"
    if suffix == stated == healthy:
        return ""
    return f"labels disagree: stated {stated}, suffix {suffix}, subject {subject} is {healthy}"


def _prelim_rows(
    root: Path, folder: Path, labels: Path, faults: list[Fault]
) -> tuple[list[tuple], tuple[str, ...]]:
    images = {path.name.lower(): path for path in _images(folder, faults)}
    if not images and not labels.exists():
        return [], ()
    truth = read_official_labels(labels, faults)
    rows = []
    for name, path in images.items():
        if NUMBERED_NAME.fullmatch(name) is None:
            faults.append(Fault(path, NOT_NUMBERED, "restore its name"))
        elif not truth:
            continue  # the label file is a fault already, and one more for each image would hide it
        elif name not in truth:
            remedy = "remove it or restore the label file"
            faults.append(Fault(path, f"not listed in {labels}", remedy))
        else:
            _, subject, image, number, label = truth[name]
            file = path.relative_to(root).as_posix()
            row = (path.name, file, "prelim", -1, subject, label, image, number)
            rows.append((*row, merged_subject(subject)))
    return rows, tuple(name for name in truth if name not in images)


class LabelLine(NamedTuple):
    """A line of prelim's label file."""

    original: str
    subject: str
    image: int
    number: int
    label: int


def read_official_labels(path: Path, faults: list[Fault]) -> dict[str, LabelLine]:
    """Read prelim's label file: its lines by lower-case `new_names`.

    Whatever does not parse or disagrees is added to `faults`.
    """
    if not path.is_file():
        faults.append(Fault(path, "the prelim label file is missing", FETCH))
        return {}
    before = len(faults)
    # A file that is not UTF-8 fails below, like any other file without the columns.
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as stream:
        reader = csv.DictReader(stream)
        wanted = {"Patient_ID", "new_names", "labels"}
        if not wanted <= set(reader.fieldnames or ()):
            faults.append(Fault(path, "needs the columns Patient_ID,new_names,labels", FETCH))
            return {}
        truth: dict[str, LabelLine] = {}
        for line, row in enumerate(reader, start=2):
            match = TRAIN_NAME.fullmatch((row["Patient_ID"] or "").strip())
            name = (row["new_names"] or "").strip().lower()
            label = (row["labels"] or "").strip()
            where = path.with_name(f"{path.name}, line {line}")
            if match is None or NUMBERED_NAME.fullmatch(name) is None or label not in ("0", "1"):
                faults.append(Fault(where, "does not parse", FETCH))
                continue
            subject, image, number, suffix = match.groups()
            stated = "all" if label == "1" else "hem"
            problem = _label_conflict(subject, suffix.lower(), stated)
            if problem:
                faults.append(Fault(where, problem, FETCH))
            elif name in truth:
                faults.append(Fault(where, f"{name} is listed twice", FETCH))
            truth[name] = LabelLine(match[0], subject.upper(), int(image), int(number), int(label))
    if not truth and len(faults) == before:
        faults.append(Fault(path, "the label file lists no cell", FETCH))
    return truth


def _final_rows(root: Path, folder: Path, faults: list[Fault]) -> list[tuple]:
    rows = []
    for path in _images(folder, faults):
        match = NUMBERED_NAME.fullmatch(path.name)
        if match is None:
            faults.append(Fault(path, NOT_NUMBERED, "restore its name"))
            continue
        file = path.relative_to(root).as_posix()
        # The number orders the final cells as the challenge's submission does.
        rows.append((path.name, file, "final", -1, "", UNKNOWN, int(match[1]), -1, ""))
    return rows
