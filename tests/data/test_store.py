import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.data import contents, store, verify
from leukocls.data.index import build_index
from leukocls.data.store import boxes, data_digest, open_store
from leukocls.data.verify import checked_index
from leukocls.synthetic.tree import encode_bmp

FILES = {
    "fold_0/all/UID_1_1_1_all.bmp": 450,
    "fold_1/hem/UID_H10_1_1_hem.bmp": 450,
    "fold_2/hem/UID_h3_1_1_hem.bmp": 450,
    "phase2/1.bmp": 450,
    "phase2/2.bmp": 450,
    "phase3/1.bmp": 600,
}
LABELS = (
    "Patient_ID,new_names,labels\r\nUID_57_1_1_all.bmp,1.bmp,1\r\nUID_H25_1_1_hem.bmp,2.bmp,0\r\n"
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Six cells of noise in the challenge layout; only prelim has the longer header."""
    base = tmp_path_factory.mktemp("pristine")
    rng = np.random.default_rng(0)
    for name, side in FILES.items():
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(encode_bmp(pixels, v5=name.startswith("phase2")))
    (base / "phase2.csv").write_bytes(LABELS.encode())
    return base


@pytest.fixture
def tree(pristine, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(pristine, tmp_path / "tree"))


@pytest.fixture
def read_files(monkeypatch):
    """Names of the files that are hashed."""
    names = []

    def counted(path):
        names.append(Path(path).name)
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()

    monkeypatch.setattr(contents, "sha256_file", counted)
    return names


def read(root, cache):
    """The index with the sha256 of each file; the faults of so small a tree do not matter here."""
    return verify.examine(root, "auto", True, cache).index


def digest_of(root, cache):
    return data_digest(read(root, cache))


def change_pixel(path):
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1  # the last bytes of a row may be padding
    path.write_bytes(data)


def names(folder):
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def pillow(path, crop, size):
    with Image.open(path) as image:
        first = round((image.width - crop) / 2)
        image = image.convert("RGB").crop((first, first, first + crop, first + crop))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


# --- the digest


def test_digest_is_over_the_lines_it_says(pristine, tmp_path):
    index = read(pristine, tmp_path)
    lines = [
        f"{hashlib.sha256((pristine / file).read_bytes()).hexdigest()}  {rest}\n"
        for file, rest in {
            "fold_0/all/UID_1_1_1_all.bmp": "train UID_1_1_1_all.bmp 1 1",
            "fold_1/hem/UID_H10_1_1_hem.bmp": "train UID_H10_1_1_hem.bmp H10 0",
            "fold_2/hem/UID_h3_1_1_hem.bmp": "train UID_h3_1_1_hem.bmp H3 0",
            "phase2/1.bmp": "prelim 1.bmp 57 1",
            "phase2/2.bmp": "prelim 2.bmp H25 0",
            "phase3/1.bmp": "final 1.bmp  -1",
        }.items()
    ]
    wanted = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert data_digest(index) == wanted


@pytest.mark.parametrize("name", FILES)
def test_one_changed_pixel_is_other_data(tree, tmp_path, name):
    before = digest_of(tree, tmp_path / "cache")
    change_pixel(tree / name)
    assert digest_of(tree, tmp_path / "cache") != before


def test_a_changed_name_is_other_data(tree, tmp_path):
    before = digest_of(tree, tmp_path / "cache")
    path = tree / "fold_0/all/UID_1_1_1_all.bmp"
    path.rename(path.with_name("UID_1_1_2_all.bmp"))
    assert digest_of(tree, tmp_path / "cache") != before


def test_a_changed_label_file_is_other_data(tree, tmp_path):
    before = digest_of(tree, tmp_path / "cache")
    swapped = LABELS.replace("1.bmp,1\r\n", "?").replace("2.bmp,0\r\n", "1.bmp,0\r\n")
    (tree / "phase2.csv").write_bytes(swapped.replace("?", "2.bmp,1\r\n").encode())
    assert build_index(tree).table["label"].to_list() == [1, 0, 0, 1, 0, -1]
    assert digest_of(tree, tmp_path / "cache") != before


@pytest.mark.parametrize(("column", "value"), [("label", 0), ("subject", "2"), ("part", "prelim")])
def test_what_is_said_of_a_cell_is_in_the_digest(pristine, tmp_path, column, value):
    index = read(pristine, tmp_path)
    table = index.table.copy()
    table.loc[0, column] = value
    changed = replace(index, table=table)
    assert data_digest(changed) != data_digest(index)


def test_time_place_layout_and_listing_order_are_not_in_the_digest(
    pristine, tree, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    before = digest_of(pristine, cache)
    for name in FILES:
        os.utime(tree / name, (1, 1))
    assert digest_of(tree, cache) == before
    above = tree.rename(tmp_path / "elsewhere").parent
    assert digest_of(above, cache) == before
    listing = Path.iterdir

    def shuffled(path):
        entries = sorted(listing(path))
        random.Random(1).shuffle(entries)
        return iter(entries)

    monkeypatch.setattr(Path, "iterdir", shuffled)
    assert digest_of(above / "elsewhere", cache) == before


def test_unchanged_files_are_not_read_again(tree, tmp_path, read_files):
    cache = tmp_path / "cache"
    before = digest_of(tree, cache)
    assert sorted(read_files) == sorted(Path(name).name for name in FILES)
    read_files.clear()
    assert digest_of(tree, cache) == before
    assert read_files == []
    # Only the time has changed: read once more, to the same result.
    os.utime(tree / "phase2/2.bmp", (1, 1))
    assert digest_of(tree, cache) == before
    assert read_files == ["2.bmp"]
    read_files.clear()
    change_pixel(tree / "fold_0/all/UID_1_1_1_all.bmp")
    assert digest_of(tree, cache) != before
    assert read_files == ["UID_1_1_1_all.bmp"]


def test_two_roots_with_one_cache_do_not_mix(pristine, tree, tmp_path):
    cache = tmp_path / "cache"
    change_pixel(tree / "phase2/2.bmp")
    for name in FILES:  # same size and time everywhere: only the root tells them apart
        os.utime(tree / name, ns=(0, (pristine / name).stat().st_mtime_ns))
    first, second = digest_of(pristine, cache), digest_of(tree, cache)
    assert first != second
    assert (digest_of(pristine, cache), digest_of(tree, cache)) == (first, second)


# --- the store


@pytest.mark.parametrize(("crop", "size"), [(300, 300), (450, 450), (299, 299), (450, 64), (9, 20)])
def test_store_equals_pillow(pristine, tmp_path, crop, size):
    index = build_index(pristine)
    images = open_store(index, "d" * 64, tmp_path, crop, size)
    assert (images.shape, images.dtype) == ((len(FILES), size, size, 3), np.uint8)
    for row, file in enumerate(index.table["file"]):
        assert np.array_equal(images[row], pillow(pristine / file, crop, size)), file


def test_store_of_genuine_images_equals_pillow(sample_root, tmp_path):
    index = build_index(sample_root)
    images = open_store(index, "d" * 64, tmp_path, 300, 96)
    for row in range(0, len(index.table), 10):
        file = index.root / index.table["file"][row]
        assert np.array_equal(images[row], pillow(file, 300, 96)), file.name


def test_final_images_are_cropped_about_their_own_centre(pristine, tmp_path):
    index = build_index(pristine)
    images = open_store(index, "d" * 64, tmp_path, 450, 450)
    row = index.table.index[index.table["part"] == "final"].item()
    with Image.open(pristine / "phase3/1.bmp") as image:
        assert np.array_equal(images[row], np.asarray(image)[75:525, 75:525])


def test_store_is_read_only_and_mapped(pristine, tmp_path):
    images = open_store(build_index(pristine), "d" * 64, tmp_path, 8, 8)
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_second_open_builds_nothing(pristine, tmp_path, monkeypatch):
    index = build_index(pristine)
    first = open_store(index, "d" * 64, tmp_path, 16, 8)
    (path,) = tmp_path.glob("*.npy")
    before = path.stat()

    def read(*_):
        raise AssertionError("a source file is read again")

    monkeypatch.setattr(store, "read_crop", read)
    assert np.array_equal(open_store(index, "d" * 64, tmp_path, 16, 8), first)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert names(tmp_path) == sorted([path.name, path.with_suffix(".crc32").name])


def test_another_source_crop_or_size_is_another_store(tree, tmp_path):
    cache = tmp_path / "cache"
    index = read(tree, cache)
    old = open_store(index, data_digest(index), cache, 450, 450)
    kept = old.copy()
    change_pixel(tree / "fold_0/all/UID_1_1_1_all.bmp")
    index = read(tree, cache)
    new = open_store(index, data_digest(index), cache, 450, 450)
    assert (new != old).any(axis=(1, 2, 3)).tolist() == [True] + [False] * 5
    assert np.array_equal(old, kept)
    open_store(index, data_digest(index), cache, 8, 450)
    open_store(index, data_digest(index), cache, 450, 8)
    assert len(list(cache.glob("*.npy"))) == 4


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_packing_leaves_nothing(pristine, tmp_path, monkeypatch, error):
    index = build_index(pristine)
    read = store.read_crop

    def failing(path, side, crop):
        if path.name == "2.bmp":
            raise error
        return read(path, side, crop)

    monkeypatch.setattr(store, "read_crop", failing)
    with pytest.raises(type(error)):
        open_store(index, "d" * 64, tmp_path / "cache", 8, 8)
    assert names(tmp_path / "cache") == []
    monkeypatch.undo()
    assert open_store(index, "d" * 64, tmp_path / "cache", 8, 8).any(axis=(1, 2, 3)).all()


def test_a_damaged_image_stops_packing_by_name(tree, tmp_path):
    index = build_index(tree)
    os.truncate(tree / "phase2/1.bmp", 608_537)
    with pytest.raises(DataFault, match=r"phase2/1\.bmp: is 608,537 bytes long"):
        open_store(index, "d" * 64, tmp_path / "cache", 8, 8)
    assert names(tmp_path / "cache") == []


KILLED = """
import os, signal, sys
from pathlib import Path
from leukocls.data import store, verify
from leukocls.data.index import build_index

read = store.read_crop
def kill(path, side, crop):
    if path.name == "2.bmp":
        os.kill(os.getpid(), signal.SIGKILL)
    return read(path, side, crop)

store.read_crop = kill
store.open_store(build_index(sys.argv[1]), "d" * 64, Path(sys.argv[2]), 64, 64)
"""


def test_killed_packing_leaves_no_store_and_can_be_repeated(pristine, tmp_path):
    cache = tmp_path / "cache"
    done = subprocess.run([sys.executable, "-c", KILLED, str(pristine), str(cache)], check=False)
    assert done.returncode == -signal.SIGKILL
    # What a killed process leaves is hidden and never taken for a store.
    assert [name for name in names(cache) if not name.startswith(".")] == []
    assert names(cache) != []
    index = build_index(pristine)
    images = open_store(index, "d" * 64, cache, 64, 64)
    for row, file in enumerate(index.table["file"]):
        assert np.array_equal(images[row], pillow(pristine / file, 64, 64))
    assert [name for name in names(cache) if name.startswith(".")] == []


@pytest.mark.parametrize(
    ("crop", "size", "says"),
    [
        (0, 300, r"data\.crop=0: choose a side of 1 to 450"),
        (451, 300, r"data\.crop=451: choose a side of 1 to 450"),
        (-1, 300, r"data\.crop=-1"),
        (300, 0, r"data\.size=0: choose a side of 1 to 2048"),
        (300, 2049, r"data\.size=2049: choose a side of 1 to 2048"),
    ],
)
def test_crop_and_size_out_of_range_are_refused(pristine, tmp_path, crop, size, says):
    with pytest.raises(LeukoclsError, match=says) as caught:
        open_store(build_index(pristine), "d" * 64, tmp_path / "cache", crop, size)
    assert caught.value.exit_code == 2
    assert names(tmp_path / "cache") == []


@pytest.mark.parametrize("crop", [1, 450])
def test_ends_of_the_range_are_allowed(pristine, tmp_path, crop):
    assert open_store(build_index(pristine), "d" * 64, tmp_path, crop, 1).shape == (6, 1, 1, 3)


@pytest.mark.parametrize(("more", "parts"), [([], {"train", "prelim"}), (["--final"], {"final"})])
def test_pack_calls_partial_what_it_packs_and_lacks(small_tree, tmp_path, capsys, more, parts):
    """Not the parts that it leaves to another store."""
    from leukocls import pack

    assert pack.main([str(small_tree), "--cache", str(tmp_path), "--json", *more]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {part.split("_")[0].replace("fold", "train") for part in told["counts"]} == parts
    assert told["incomplete"] == ""
    assert told["shape"][0] == sum(told["counts"].values())


def non_black(image):
    """Tight extent, half open, of what is not black: by Pillow's own bounding box."""
    left, top, right, bottom = Image.fromarray(image).getbbox()
    return [top, left, bottom, right]


@pytest.mark.parametrize("root", ["sample_root", "small_tree"])
def test_boxes_are_the_extents_of_the_non_black_pixels(root, request, tmp_path):
    index = checked_index(request.getfixturevalue(root), partial=True, cache=tmp_path)
    whole = open_store(index, "d" * 64, tmp_path, 450, 450)
    files = [np.asarray(Image.open(index.root / file)) for file in index.table["file"]]
    extents = [non_black(image) for image in files]
    assert index.table[["top", "left", "bottom", "right"]].to_numpy().tolist() == extents
    assert index.table[["height", "width"]].to_numpy().tolist() == [
        list(image.shape[:2]) for image in files
    ]
    of_stored = np.array([non_black(image) for image in whole])
    assert boxes(index, 450) == pytest.approx(2 * of_stored / 450 - 1, abs=1e-6)


def test_a_box_is_cut_where_the_crop_cuts_the_cell(sample_root, tmp_path):
    index = checked_index(sample_root, partial=True, cache=tmp_path)
    index = index.only(("train", "prelim"))
    cropped = open_store(index, "d" * 64, tmp_path, 160, 160)
    found = boxes(index, 160)
    assert (np.abs(found).max(1) == 1).any()
    tight = 2 * np.array([non_black(image) for image in cropped]) / 160 - 1
    # A cell that the crop cuts may be narrower inside it than at its widest.
    whole = (np.abs(found) < 1).all(1)
    assert found[whole] == pytest.approx(tight[whole], abs=1e-6)
    assert (found[:, :2] <= tight[:, :2] + 1e-6).all()
    assert (found[:, 2:] >= tight[:, 2:] - 1e-6).all()


def test_crop_box_keeps_the_smallest_square_around_each_cell(small_tree, tmp_path):
    index = checked_index(small_tree, cache=tmp_path)
    images = open_store(index, "d" * 64, tmp_path, "box", 128)
    for row, file in enumerate(index.table["file"]):
        image = Image.open(index.root / file)
        left, top, right, bottom = image.getbbox()
        side = max(right - left, bottom - top)
        first = ((left + right - side) // 2, (top + bottom - side) // 2)
        square = image.crop((*first, first[0] + side, first[1] + side))
        wanted = square.resize((128, 128), Image.Resampling.BILINEAR) if side != 128 else square
        assert np.array_equal(images[row], wanted)
    found = boxes(index, "box")
    assert (found[:, 2:] - found[:, :2]).max(1) == pytest.approx(2)
    assert (np.abs(found[:, :2] + found[:, 2:]) < 0.02).all()


def test_crop_box_needs_a_size(small_tree, tmp_path):
    with pytest.raises(LeukoclsError, match=r"data\.crop=box.*choose data\.size"):
        open_store(checked_index(small_tree, cache=tmp_path), "d" * 64, tmp_path, "box", None)
