"""Command-line options that several verbs share."""

import argparse


def add_split_options(parser: argparse.ArgumentParser, scheme: str) -> None:
    """The options that name one split, as the keys of `leukocls.train` do."""
    add = parser.add_argument
    add("--split-scheme", default=scheme, help="challenge, honest, subject, lofo, cell, or a file")
    add("--fold", type=int, help="the fold to hold out (default: the first)")
    add("--folds", type=int, default=5, help="how many")
    add("--split-seed", type=int, default=0, help="seed of the split, not of a run")
    add("--n-subjects", type=int, help="keep so many training subjects")
    add("--n-cells", type=int, help="then so many of their cells")
