"""Data sets with one folder of images per class, as rows of a CSV (`leukocls.data.table`)."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from leukocls.common.errors import LeukoclsError
from leukocls.common.tables import listing
from leukocls.data.cnmc import is_data
from leukocls.data.images import FORMATS
from leukocls.data.names import CLASSES, cell_key, subject_of

SUFFIXES = set().union(*FORMATS.values())


@dataclass(frozen=True)
class ClassFolders:
    """The images of a folder with one folder per class.

    Attributes:
        rows: cell, subject ("" unless a name of C-NMC states it), label and path of each image.
        labels: the label of each class folder, "ALL" or "HEM".
        left_out: files that are no images, or lie in neither of the two folders; below the folder.
    """

    rows: list[tuple[str, str, str, str]]
    labels: dict[str, str]
    left_out: list[Path]


def read_class_folders(root: Path, positive: str | None, base: Path | None) -> ClassFolders:
    """The images below `root`, sorted by path; none is opened.

    Args:
        root: holds the two class folders, with images at any depth.
        positive: name of the folder of ALL, one of the only two; None: `all`, beside `hem`.
        base: the folder above `root`, resolved, from which paths count; None makes them absolute.

    Raises:
        LeukoclsError: no two class folders with images, or a name that is not UTF-8.
    """
    if not root.is_dir():
        raise LeukoclsError(f"{root}: no such folder; name the one with the folders of images")
    labels = _labels(root, positive)
    images, left_out = list[Path](), list[Path]()  # as paths below root
    for file in sorted(_files(root)):
        is_image = file.parts[0] in labels and file.suffix.lower() in SUFFIXES
        (images if is_image else left_out).append(file)
    if odd := [ascii(str(file)) for file in images if not _is_utf8(file)]:
        raise LeukoclsError(f"{root}: names that are not UTF-8: {listing(odd)}; rename the files")
    if empty := sorted(set(labels) - {file.parts[0] for file in images}):
        raise LeukoclsError(
            f"{root / empty[0]}: holds no image; use {', '.join(FORMATS)} with their suffixes"
        )
    place = root.resolve().relative_to(base) if base else root.resolve()
    rows = [
        (name, subject_of(file.name), labels[file.parts[0]], (place / file).as_posix())
        for name, file in zip(_cell_names(images), images, strict=True)
    ]
    return ClassFolders(rows, labels, left_out)


def _files(root: Path) -> Iterator[Path]:
    """Files at any depth, as paths below `root`, without hidden ones and leftovers."""
    for folder, _, names in os.walk(root):
        for name in names:
            file = Path(folder, name).relative_to(root)
            if all(is_data(part) for part in (file, *file.parents)):
                yield file


def _labels(root: Path, positive: str | None) -> dict[str, str]:
    """The label of each class folder."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and is_data(path))
    there = f"{root}: holds the folders {', '.join(folders) or '(none)'}"
    known = {name: name.upper() for name in folders if name.upper() in CLASSES}
    if positive is None:
        if sorted(known.values()) != sorted(CLASSES):
            raise LeukoclsError(
                f"{there}; two class folders are needed: all and hem, or two others of which"
                " --positive names that of ALL"
            )
        return known
    if positive not in folders or len(folders) != 2:
        raise LeukoclsError(
            f"{there}; --positive {positive} needs exactly two class folders, one of this name"
        )
    labels = {name: CLASSES[name == positive] for name in folders}
    if any(labels[name] != label for name, label in known.items()):
        raise LeukoclsError(f"{there}; --positive {positive} contradicts their names")
    return labels


def _cell_names(files: list[Path]) -> list[str]:
    """A unique name for each file: without folder and suffix if that is unique, else with them."""
    stems = [file.stem for file in files]
    paths = [file.with_suffix("").as_posix() for file in files]
    for names in (stems, paths):
        if len(set(map(cell_key, names))) == len(names):
            return names
    return [file.as_posix() for file in files]


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
