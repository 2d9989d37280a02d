"""Cells that were photographed, normalised or segmented again are one cell, under any two names."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from leukocls import verify
from leukocls.common.errors import DataFault
from leukocls.data import near_duplicates
from leukocls.data.images import extent
from leukocls.data.near_duplicates import agreement, candidates, thumbnail, turned
from leukocls.data.splits import make_split
from leukocls.data.verify import checked_index, examine
from leukocls.synthetic.latents import draw_cells, reprocessed
from leukocls.synthetic.render import render
from leukocls.synthetic.spec import SyntheticSpec
from leukocls.synthetic.tree import write_tree

SPEC = SyntheticSpec(
    train_subjects_all=9, train_subjects_hem=9, prelim_subjects_all=2, prelim_subjects_hem=2,
    cells_per_subject=5, final_cells=4, reprocessed=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def cells():
    return [cell for cell in draw_cells(SyntheticSpec()) if cell.part != "final"][:40]


@pytest.fixture(scope="module")
def crops(cells):
    return [tight(render(cell)) for cell in cells]


@pytest.fixture(scope="module")
def again(cells):
    rng = np.random.default_rng(0)
    return [tight(render(reprocessed(cell, rng, 0.5))) for cell in cells]


def tight(image):
    top, left, bottom, right = extent(image)
    return image[top:bottom, left:right]


def searched(crops):
    sides = np.array([crop.shape[:2] for crop in crops])
    names = np.arange(len(crops)).astype(str)
    small = np.stack([thumbnail(crop) for crop in crops])
    found = near_duplicates.near_duplicates(small, sides, names, crops.__getitem__)
    return {pair[:2]: pair for pair in found}


# --- the search


def test_cells_processed_again_are_found_and_no_others(crops, again):
    number = len(crops)
    found = searched([*crops, *again])
    assert set(found) <= {(row, row + number) for row in range(number)}
    assert len(found) >= 0.9 * number
    assert all(pair.correlation > 0.55 and pair.overlap > 0.9 for pair in found.values())


@pytest.mark.parametrize("turn", range(8))
def test_they_are_found_after_quarter_turns_and_flips(crops, again, turn):
    number = len(crops)
    other = [turned(crop, turn) for crop in again]
    assert searched([*crops, *other]).keys() == searched([*crops, *again]).keys()
    assert all(first + number == second for first, second in searched([*crops, *other]))


@pytest.mark.parametrize("block", [1, 7, 512])
def test_candidates_are_those_of_a_comparison_of_all_pairs(crops, again, block, monkeypatch):
    """The oracle compares whole thumbnails in all turns, pair by pair."""
    monkeypatch.setattr(near_duplicates, "BLOCK", block)
    monkeypatch.setattr(near_duplicates, "SEGMENTED", near_duplicates.Limits(0.9, 0))
    images = [*crops[:20], *(turned(crop, i % 8) for i, crop in enumerate(again[:20]))]
    small = np.stack([thumbnail(image) for image in images])
    sides = np.array([image.shape[:2] for image in images])
    expected = {}
    for first in range(len(images)):
        for second in range(first + 1, len(images)):
            for turn in range(8):
                other = np.rot90(
                    small[second][:, ::-1] if turn > 3 else small[second], turn % 4
                ).ravel()
                shape = sides[second][::-1] if turn % 2 else sides[second]
                cosine = np.corrcoef(small[first].ravel(), other)[0, 1]
                if cosine > 0.9 and abs(sides[first] - shape).max() <= 4:
                    best = expected.get((first, second), 0)
                    expected[first, second] = max(best, cosine)
    found = {(a, b): cosine for a, b, cosine, _ in candidates(small, sides)}
    assert len(expected) >= 15
    assert found == pytest.approx(expected, abs=1e-5)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_coarse_vectors_never_exclude_a_pair(seed, mixed):
    """Their product is at least the cosine, whatever the thumbnails are."""
    rng = np.random.default_rng(seed)
    first, other = rng.integers(0, 256, (2, 24, 24, 3))
    second = (mixed * first + (1 - mixed) * other).astype(np.uint8)
    pair = np.stack([first.astype(np.uint8), second])
    cosine = near_duplicates._cosine(pair[:1], pair[1:])[0]
    coarse = near_duplicates._coarse(pair)
    assert coarse[0] @ coarse[1] >= cosine - 1e-5


def test_agreement_is_1_for_a_cell_with_itself_wherever_it_is_cut(crops):
    crop = crops[0]
    assert agreement(crop, crop) == pytest.approx((1, 1), abs=1e-4)
    moved = np.pad(crop, ((4, 0), (2, 0), (0, 0)))
    assert agreement(crop, moved) == pytest.approx((1, 1), abs=1e-3)
    assert agreement(crop, crops[1])[0] < 0.55


def test_cells_on_a_background_are_alike_only_if_they_are_copies(cells, tmp_path):
    """All of them have one outline in one place, so that their thumbnails are alike."""
    fields = []
    for cell in cells:
        image = render(cell)
        fields.append(np.where(image.any(-1, keepdims=True), image, 220)[75:375, 75:375])
        fields[-1] = fields[-1].astype(np.uint8)
    assert searched(fields) == {}
    Image.fromarray(fields[3]).save(tmp_path / "copy.jpg", quality=80)
    fields.append(np.asarray(Image.open(tmp_path / "copy.jpg")))
    assert searched(fields).keys() == {(3, len(cells))}


def test_uniform_images_are_like_none():
    flat = [np.full((40, 40, 3), value, np.uint8) for value in (10, 10, 200, 201)]
    assert searched(flat) == {}


def test_only_the_most_similar_candidates_are_looked_at(crops, again, monkeypatch):
    monkeypatch.setattr(near_duplicates, "MOST", 0)
    assert searched([*crops, *again]) == {}


# --- what verify, splits and training make of them


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("again") / "tree", SPEC, progress=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("again-cache")


@pytest.fixture(scope="module")
def listed(tree):
    pairs = json.loads((tree / "synthetic.json").read_text())["reprocessed"]
    assert len(pairs) == SPEC.reprocessed
    return {frozenset(pair) for pair in pairs}


def test_a_tree_with_reprocessed_cells_has_no_fault_and_merged_persons(tree, cache, listed):
    examination = examine(tree, "auto", False, cache)
    assert examination.faults == []
    table = examination.index.table
    found = {frozenset(table["file"].iloc[list(d.rows)]) for d in examination.duplicates}
    assert found <= listed
    assert len(found) >= 0.6 * len(listed)
    assert {d.kind for d in examination.duplicates} == {"reprocessed"}
    assert not any(d.known for d in examination.duplicates)
    group_of = dict(zip(table["file"], table["group"], strict=True))
    assert all(len({group_of[file] for file in pair}) == 1 for pair in found)


def test_no_split_by_person_has_them_on_two_sides(tree, cache):
    index = checked_index(tree, cache=cache)
    table = index.table
    together = table["group"].str.contains("+", regex=False)
    assert table[together]["group"].nunique() >= 2
    for scheme in ("honest", "subject", "lofo"):
        split = make_split(index, scheme).table(index)
        assert len(split[["group", "split"]].drop_duplicates()) == len(set(split["group"]))


def test_pairs_are_listed_and_drawn(tree, cache, listed, tmp_path, capsys):
    table, sheet = tmp_path / "pairs.csv", tmp_path / "pairs.png"
    words = [str(tree), "--cache", str(cache), "--duplicates", str(table), "--sheet", str(sheet)]
    assert verify.main(words) == 0
    said = capsys.readouterr().out
    pairs = pd.read_csv(table)
    assert {frozenset(pair) for pair in zip(pairs["first"], pairs["second"], strict=True)} <= listed
    assert set(pairs["kind"]) == {"reprocessed"}
    assert pairs["similarity"].is_monotonic_decreasing
    assert pairs["similarity"].between(0.55, 1).all()
    assert (pairs["person"].str.count(r"\+") >= 1).all()
    assert not pairs["fault"].any()
    assert f"{len(pairs)} pairs" in said
    with Image.open(sheet) as image:
        drawn = np.asarray(image)
    # Each pair fills two squares with a black margin around the cells.
    assert (drawn == 0).all(-1).sum() > len(pairs) * 2000


def test_without_pairs_table_and_sheet_are_empty(lab, tmp_path):
    path = table_of(lab, {"a": "P1", "c": "P2"}, {"a": "all", "c": "hem"})
    table, sheet = tmp_path / "pairs.csv", tmp_path / "pairs.png"
    words = [str(path), "--cache", str(tmp_path / "cache")]
    assert verify.main([*words, "--duplicates", str(table), "--sheet", str(sheet)]) == 0
    with open(table, newline="") as stream:
        assert [len(row) for row in csv.reader(stream)] == [13]
    Image.open(sheet).verify()


@pytest.fixture
def lab(tmp_path, crops, again):
    """`a` and `b` show one cell; `c` and `d` show two others."""
    folder = tmp_path / "lab"
    folder.mkdir()
    for name, crop in zip("abcd", (crops[0], again[0], crops[1], crops[2]), strict=True):
        Image.fromarray(crop).save(folder / f"{name}.png")
    return folder


def table_of(lab: Path, subjects, labels, splits=None):
    path = lab / "cells.csv"
    lines = ["cell,path,label,subject,split"]
    lines += [
        f"{name},{name}.png,{labels[name]},{subject},{(splits or {}).get(name, 'train')}"
        for name, subject in subjects.items()
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


SUBJECTS = {"a": "P1", "b": "P2", "c": "P3", "d": "P4"}
LABELS = {"a": "all", "b": "all", "c": "hem", "d": "hem"}


def test_in_other_data_their_subjects_become_one_person(lab, tmp_path, capsys):
    path = table_of(lab, SUBJECTS, LABELS)
    index = checked_index(path, cache=tmp_path / "cache")
    assert sorted(index.table["group"]) == ["P1+P2", "P1+P2", "P3", "P4"]
    assert verify.main([str(path), "--cache", str(tmp_path / "cache")]) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "P1, P2" in one]
    assert line.split() == ["P1,", "P2", "–", "–", "1"]


@pytest.mark.parametrize(
    ("labels", "splits"),
    [(LABELS, {"b": "prelim", "d": "prelim"}), ({**LABELS, "b": "hem"}, {})],
    ids=["two parts", "two classes"],
)
def test_across_parts_or_classes_of_other_data_they_are_a_fault(lab, tmp_path, labels, splits):
    path = table_of(lab, SUBJECTS, labels, splits)
    with pytest.raises(DataFault) as refused:
        checked_index(path, cache=tmp_path / "cache")
    said = str(refused.value)
    assert "a.png" in said
    assert "b.png" in said
    assert "same cell" in said


@pytest.mark.parametrize(("label", "expected"), [("", True), ("all", False), ("hem", False)])
def test_in_final_they_are_no_fault_unless_labelled(lab, tmp_path, label, expected):
    path = table_of(lab, {**SUBJECTS, "b": ""}, {**LABELS, "b": label}, {"b": "final"})
    (pair,) = examine(path, "auto", False, tmp_path / "cache").duplicates
    assert (pair.kind, pair.known, pair.expected) == ("reprocessed", False, expected)


@pytest.mark.parametrize("damage", [b"", b"PK", b"PK\x03\x04" + bytes(60)])
def test_what_was_found_is_remembered_until_an_image_changes(
    lab, tmp_path, monkeypatch, crops, damage
):
    path, cache = table_of(lab, SUBJECTS, LABELS), tmp_path / "cache"
    first = examine(path, "auto", False, cache).duplicates
    with monkeypatch.context() as patch:
        patch.setattr(near_duplicates, "candidates", None)  # would fail if it were called
        assert examine(path, "auto", False, cache).duplicates == first
    Image.fromarray(crops[5]).save(lab / "b.png")
    assert examine(path, "auto", False, cache).duplicates == []
    # Damaged thumbnails are made again.
    (kept,) = cache.glob("*.npz")
    kept.write_bytes(damage)
    (lab / "b.png").unlink()
    Image.fromarray(crops[0][:, ::-1]).save(lab / "b.png")
    (pair,) = examine(path, "auto", False, cache).duplicates
    assert pair.kind == "turned"
