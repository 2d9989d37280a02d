"""Command-line options that several verbs share."""

import argparse
from pathlib import Path


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the data set and how it is read; the options mirror the keys `data.*` of training."""
    add = parser.add_argument
    add("root", type=Path, metavar="ROOT", help="C-NMC 2019, or the CSV of a data set")
    add("--partial", action="store_true", help="missing files are no fault; marked PARTIAL")
    add("--outside", action="store_true", help="images may lie outside the CSV's folder")
    add("--cache", type=Path, default=Path("outputs/store"), help="what is known of each file")


def add_split_options(parser: argparse.ArgumentParser, scheme: str) -> None:
    """Add the options that name one split; they mirror the keys of `leukocls.train`."""
    add = parser.add_argument
    add(
        "--split-scheme",
        default=scheme,
        help="challenge, honest, subject, lofo, cell, leakage, or a file",
    )
    add("--fold", type=int, help="the fold to hold out (default: the first)")
    add("--folds", type=int, default=5, help="number of folds")
    add("--split-seed", type=int, default=0, help="seed of the split, not of a run")
    add("--n-subjects", type=int, help="number of training subjects to keep")
    add("--n-cells", type=int, help="number of their cells to keep")
    add("--leak", type=float, help="of leakage: share of training cells that are of scored persons")


def add_comparison_options(parser: argparse.ArgumentParser) -> None:
    """Add the runs to compare, the reference arm, and which seeds there should be."""
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUNS", help="run directories, or any above them")
    add("--against", metavar="ARM", help="the reference arm (default: proposal)")
    add("--seeds", type=_seeds, help="planned seeds: 24, 0-23 or 7,42 (default: those of any arm)")
    add("--incomplete", action="store_true", help="take the finished runs if others are missing")


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add how images are made fit for the networks of a bundle, and where these compute."""
    add = parser.add_argument
    add("--resize", action="store_true", help="scale images of another size than the networks know")
    add("--segment", action="store_true", help="cut the cell in the middle out of images that show"
        " more than a cell on black")  # fmt: skip
    add("--device", help="cpu, cuda, … (default: a GPU if there is one)")


def _seeds(text: str) -> list[int]:
    """Seeds from 24 (0 to 23), 0-23 or 7,42,1337."""
    first, to, last = text.partition("-")
    try:
        if "," in text:
            return sorted(map(int, text.split(",")))
        found = range(int(first), int(last) + 1) if to else range(int(first))
    except ValueError:
        found = range(0)
    if not found:
        raise argparse.ArgumentTypeError(f"{text}: give 24 (for 0 to 23), 0-23, or 7,42,1337")
    return list(found)


def whole_number(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: give a whole number of at least 1")
    return int(text)


def png_file(text: str) -> Path:
    """A file name that ends in .png."""
    if Path(text).suffix.lower() != ".png" or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: name a file that ends in .png")
    return Path(text)
