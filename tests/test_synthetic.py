import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from leukocls import synth
from leukocls.data import synthetic
from leukocls.data.index import build_index
from leukocls.data.synthetic import SyntheticSpec, draw_cells, render, write_tree
from leukocls.errors import LeukoclsError

SPEC = SyntheticSpec(
    train_subjects_all=3,
    train_subjects_hem=3,
    prelim_subjects_all=2,
    prelim_subjects_hem=2,
    cells_per_subject=5,
    final_cells=4,
)
KAGGLE = "C-NMC_Leukemia"
PRELIM = f"{KAGGLE}/validation_data/C-NMC_test_prelim_phase_data"


def digests(root):
    files = (path for path in root.rglob("*") if path.is_file())
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("data") / "tree", SPEC, workers=1)


@pytest.fixture(scope="module")
def images():
    """Two hundred cells and their pixels, drawn as the default spec draws them."""
    cells = draw_cells(replace(SyntheticSpec(), cells_per_subject=3))
    with ThreadPoolExecutor(2) as pool:
        return list(zip(cells, pool.map(render, cells), strict=True))


def test_same_bytes_from_one_and_two_workers(tree, tmp_path):
    again = write_tree(tmp_path / "again", SPEC, workers=2)
    assert digests(again) == digests(tree)
    assert os.listdir(tmp_path) == ["again"]


def test_another_seed_is_another_tree(tree):
    other = draw_cells(replace(SPEC, seed=1))
    assert {cell.severity for cell in other}.isdisjoint(c.severity for c in draw_cells(SPEC))


# Bytes of the file and of its header, side in px: what the genuine files have.
@pytest.mark.parametrize(
    ("part", "size", "offset", "side"),
    [
        ("training_data", 608_454, 54, 450),
        ("validation_data", 608_538, 138, 450),
        ("testing_data", 1_080_054, 54, 600),
    ],
)
def test_files_have_the_genuine_format(tree, part, size, offset, side):
    paths = list((tree / KAGGLE / part).rglob("*.bmp"))
    assert paths
    for path in paths:
        data = path.read_bytes()
        stride = -(-3 * side // 4) * 4
        magic, stated, _, start, header = struct.unpack_from("<2sIIII", data)
        shape = struct.unpack_from("<iiHHII", data, 18)
        assert (len(data), magic, stated, start, header) == (size, b"BM", size, offset, offset - 14)
        assert shape == (side, side, 1, 24, 0, stride * side)
        rows = np.frombuffer(data, np.uint8, offset=offset).reshape(side, stride)
        bottom_up_bgr = rows[::-1, : 3 * side].reshape(side, side, 3)[..., ::-1]
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("BMP", "RGB")
            assert np.array_equal(np.asarray(image), bottom_up_bgr)
        assert not rows[:, 3 * side :].any()


def test_the_index_reads_it_as_it_reads_genuine_data(tree):
    index = build_index(tree)
    table = index.table
    assert index.synthetic
    assert index.incomplete() == ""
    assert index.absent == 0
    assert sum(index.counts().values()) == len(table) == 54
    train = table[table["part"] == "train"]
    assert set(zip(train["fold"], train["label"], strict=True)) == {
        (fold, label) for fold in range(3) for label in (0, 1)
    }
    prelim = table[table["part"] == "prelim"]
    assert set(prelim["label"]) == {0, 1}
    assert set(train["subject"]).isdisjoint(prelim["subject"])
    # Genuine subjects end at 78 and H50; their known duplicates are merged by name.
    assert {int(subject.lstrip("H")) > 100 for subject in table["subject"] if subject} == {True}


def test_label_file_agrees_with_the_cells(tree):
    lines = (tree / f"{PRELIM}_labels.csv").read_bytes().decode("ascii").split("\r\n")
    cells = [cell for cell in draw_cells(SPEC) if cell.part == "prelim"]
    rows = [f"{cell.name},{i}.bmp,{cell.label}" for i, cell in enumerate(cells, start=1)]
    assert lines == ["Patient_ID,new_names,labels", *rows, ""]
    with Image.open(tree / PRELIM / "7.bmp") as image:
        assert np.array_equal(np.asarray(image), render(cells[6]))
    subjects = [cell.subject for cell in cells]
    assert sorted(subjects) != subjects


def test_final_cells_are_centred_in_a_larger_black_frame(tree):
    cells = [cell for cell in draw_cells(SPEC) if cell.part == "final"]
    for number, cell in enumerate(cells, start=1):
        folder = tree / KAGGLE / "testing_data" / "C-NMC_test_final_phase_data"
        with Image.open(folder / f"{number}.bmp") as image:
            assert np.array_equal(
                np.asarray(image), np.pad(render(cell), ((75, 75), (75, 75), (0, 0)))
            )


def test_one_cell_on_exact_zero(images):
    for cell, image in images:
        inside = image.any(-1)
        assert image[inside].min() >= 1, cell
        assert ndimage.label(inside)[1] == 1, cell


def test_sizes_are_those_of_genuine_cells(images):
    sides, outside = defaultdict(list), []
    for cell, image in images:
        inside = image.any(-1)
        extents = [np.ptp(inside.any(axis).nonzero()[0]) + 1 for axis in (0, 1)]
        sides[cell.label].append(np.mean(extents))
        outside.append(inside.sum() > inside[75:375, 75:375].sum())
    # Genuine means 188 and 221 px; with 70 subjects the standard error of a mean is 4 px.
    assert np.mean(sides[0]) == pytest.approx(188, abs=12)
    assert np.mean(sides[1]) == pytest.approx(221, abs=12)
    # Genuine 6.7 %.
    assert 0.02 < np.mean(outside) < 0.12


def test_stain_belongs_to_the_subject_not_to_the_class(images):
    means = defaultdict(list)
    for cell, image in images:
        means[cell.subject].append(np.log(image[image.any(-1)].mean()))
    groups = [np.array(values) for values in means.values() if len(values) > 1]
    within = np.sqrt(np.mean([values.var(ddof=1) for values in groups]))
    between = np.std([values.mean() for values in groups])
    assert between > within
    healthy = [np.mean(values) for subject, values in means.items() if subject.startswith("H")]
    ill = [np.mean(values) for subject, values in means.items() if not subject.startswith("H")]
    assert np.mean(healthy) == pytest.approx(np.mean(ill), abs=1.2 * between)


def test_no_separation_no_difference():
    cells = draw_cells(replace(SyntheticSpec(), class_separation=0.0, cells_per_subject=100))
    size = {label: np.mean([c.size for c in cells if c.label == label]) for label in (0, 1)}
    # Subject effects alone give the difference a standard error of 5 px.
    assert size[1] == pytest.approx(size[0], abs=15)


def test_a_complete_tree_is_left_alone(tree):
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    assert write_tree(tree, SPEC) == tree
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before


def test_what_is_there_is_refused_and_kept(tree, tmp_path):
    with pytest.raises(LeukoclsError, match=f"{tree}: .*another spec.*remove"):
        write_tree(tree, replace(SPEC, seed=1))
    foreign = tmp_path / "photos" / "cat.bmp"
    foreign.parent.mkdir()
    foreign.write_bytes(b"miaow")
    with pytest.raises(LeukoclsError, match=r"photos: .*synthetic\.json.*another directory"):
        write_tree(foreign.parent, SPEC)
    assert foreign.read_bytes() == b"miaow"
    assert os.listdir(tmp_path) == ["photos"]


def test_a_tree_that_lost_a_file_is_refused(tmp_path):
    root = write_tree(tmp_path / "tree", SPEC)
    (root / PRELIM / "1.bmp").unlink()
    with pytest.raises(LeukoclsError, match="53 images of 54"):
        write_tree(root, SPEC)


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic, "encode_bmp", full)
    with pytest.raises(OSError, match="No space left"):
        write_tree(tmp_path / "tree", SPEC)
    assert os.listdir(tmp_path) == []


def test_killed_write_leaves_no_tree_and_can_be_repeated(tmp_path):
    root = tmp_path / "tree"
    process = subprocess.Popen([sys.executable, "-m", "leukocls.synth", str(root)])
    deadline = time.monotonic() + 30
    while len(list(tmp_path.rglob("*.bmp"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.rglob("*.bmp"))
    assert not root.exists()
    assert not list(tmp_path.rglob("synthetic.json"))
    assert build_index(write_tree(root, SPEC)).incomplete() == ""


@pytest.mark.parametrize(
    "change", [{"train_subjects_hem": 2}, {"cells_per_subject": 0}, {"class_separation": -1.0}]
)
def test_impossible_spec_is_refused(change):
    with pytest.raises(LeukoclsError, match=f"{next(iter(change))}=.*at least"):
        SyntheticSpec(**change)


def test_verb_prints_where_what_and_that_it_is_synthetic(tree, capsys):
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in vars(SPEC).items()]
    assert synth.main([str(tree), *flags, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["root"], document["mark"]) == (str(tree), "SYNTHETIC")
    assert document["spec"] == vars(SPEC)
    assert document["counts"]["prelim"] == 20
    assert synth.main([str(tree), *flags]) == 0
    out = capsys.readouterr().out
    assert str(tree) in out
    assert "54 cells" in out
    assert "SYNTHETIC" in out
