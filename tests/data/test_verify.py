"""`verify`: every fault of D1-D5 by name, and nothing else; copies; what is remembered."""

import csv
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import small
from PIL import Image

from leukocls import verify as verb
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.data import contents, rules, verify
from leukocls.data.duplicates import pixel_digest
from leukocls.data.published import MANIFEST
from leukocls.data.verify import checked_index, examine
from leukocls.synthetic.tree import encode_bmp

# Train folder, prelim folder, prelim labels, final folder (RECIPES §1).
LAYOUTS = {
    "tcia": (
        "C-NMC_training_data",
        "C-NMC_test_prelim_phase_data",
        "C-NMC_test_prelim_phase_data_labels.csv",
        "C-NMC_test_final_phase_data",
    ),
    "kaggle": (
        "training_data",
        "validation_data/C-NMC_test_prelim_phase_data",
        "validation_data/C-NMC_test_prelim_phase_data_labels.csv",
        "testing_data/C-NMC_test_final_phase_data",
    ),
    "challenge": (".", "phase2", "phase2.csv", "phase3"),
}
# Each name with the number of its picture: 20 and 21 share one, as in the genuine data.
TRAIN = {
    "fold_0/all/UID_1_1_1_all.bmp": 1,
    "fold_0/all/UID_1_1_2_all.bmp": 2,
    "fold_0/all/UID_20_1_1_all.bmp": 3,
    "fold_0/hem/UID_H6_1_1_hem.bmp": 4,
    "fold_0/hem/UID_H6_1_2_hem.bmp": 5,
    "fold_1/all/UID_2_1_1_all.bmp": 6,
    "fold_1/hem/UID_H1_1_1_hem.bmp": 7,
    "fold_2/all/UID_21_1_1_all.bmp": 3,
    "fold_2/hem/UID_h3_1_1_hem.bmp": 8,
}
PRELIM = [
    ("UID_57_1_1_all.bmp", "1.bmp", 1),
    ("UID_H25_4_1_hem.bmp", "2.bmp", 0),
    ("UID_57_1_2_all.bmp", "3.bmp", 1),
    ("UID_58_1_1_all.bmp", "4.bmp", 1),
]
FINAL = ["1.bmp", "2.bmp", "3.bmp"]
COUNTS = {"fold_0": 5, "fold_1": 2, "fold_2": 2, "prelim": 4, "final": 3}
SUBJECTS = {
    "fold_0": {"1": 2, "20": 1, "H6": 2},
    "fold_1": {"2": 1, "H1": 1},
    "fold_2": {"21": 1, "H3": 1},
    "prelim": {"57": 2, "58": 1, "H25": 1},
}
DUPLICATES = [["fold_0/all/UID_20_1_1_all.bmp", "fold_2/all/UID_21_1_1_all.bmp"]]
ONE = "fold_0/all/UID_1_1_1_all.bmp"
TWO = "fold_1/all/UID_2_1_1_all.bmp"


def picture(number, side=450, at=(200, 190)):
    """One cell: noise without symmetry or black in a black frame."""
    image = np.zeros((side, side, 3), np.uint8)
    image[at[0] : at[0] + 30, at[1] : at[1] + 41] = np.random.default_rng(number).integers(
        1, 256, (30, 41, 3)
    )
    return image


def put(path, content):
    """A new file of these pixels or bytes, whatever was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(encode_bmp(content) if isinstance(content, np.ndarray) else content)


def cut(path, length):
    put(path, path.read_bytes()[:length])


def encoded(image, kind, mode="RGB"):
    stream = io.BytesIO()
    Image.fromarray(image).convert(mode).save(stream, kind)
    return stream.getvalue()


def write_labels(path, rows=PRELIM, end="\r\n"):
    lines = ["Patient_ID,new_names,labels", *(",".join(map(str, row)) for row in rows), ""]
    put(path, end.join(lines).encode())


def write_complete(root, layout="challenge"):
    """A small tree that lacks nothing, if SUBJECTS and COUNTS are what was published."""
    train, prelim, labels, final = (root / place for place in LAYOUTS[layout])
    for name, number in TRAIN.items():
        put(train / name, picture(number))
    for place, (_, name, _) in enumerate(PRELIM):
        put(prelim / name, encode_bmp(picture(20 + place), v5=True))
    for place, name in enumerate(FINAL):
        put(final / name, picture(30 + place, 600, at=(250, 260)))
    write_labels(labels)
    return root


def write_manifest(root, **changes):
    lines = sorted(f"{name},{original},{label}\n".lower() for original, name, label in PRELIM)
    said = {"counts": COUNTS, "subjects": SUBJECTS, "duplicates": DUPLICATES}
    said["labels_sha256"] = hashlib.sha256("".join(lines).encode()).hexdigest()
    said |= changes
    (root / MANIFEST).write_text(json.dumps(said))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = write_complete(tmp_path_factory.mktemp("pristine"))
    yield root
    # Tests work on links to these files and must replace what they change.
    for name, number in TRAIN.items():
        assert (root / name).read_bytes() == encode_bmp(picture(number)), name


def linked(root, copy):
    """The same tree in another place, at no cost; `put` replaces a file, it never writes to it."""
    return Path(shutil.copytree(root, copy, copy_function=os.link))


@pytest.fixture
def bare(pristine, tmp_path):
    """A tree that a test may change; without a manifest it is taken for C-NMC 2019."""
    tree = linked(pristine, tmp_path / "tree")
    write_labels(tree / "phase2.csv")
    return tree


@pytest.fixture
def tree(bare):
    """The same, complete by its own manifest: no check needs 12,000 files."""
    write_manifest(bare)
    return bare


@pytest.fixture
def told(capsys, tmp_path):
    """The verb with --json: its exit code and the one document it prints."""

    def run(root, *options):
        capsys.readouterr()
        code = verb.main([str(root), "--cache", str(tmp_path / "cache"), "--json", *options])
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def lines(capsys, tmp_path):
    """The verb as people see it: its exit code, all lines, and those below "… fault(s):"."""

    def run(root, *options):
        capsys.readouterr()
        code = verb.main([str(root), "--cache", str(tmp_path / "cache"), *options])
        shown = capsys.readouterr().out.splitlines()
        heads = [place for place, line in enumerate(shown) if line.endswith("fault(s):")]
        faults = shown[heads[0] + 1 :] if heads else []
        assert not heads or shown[heads[0]] == f"{len(faults)} fault(s):"
        return code, shown, faults

    return run


def causes(document):
    """Path and cause of each fault; every one has a remedy."""
    assert all(fault["remedy"] for fault in document["faults"])
    return {(fault["path"], fault["cause"]) for fault in document["faults"]}


# --- the genuine sample


@pytest.fixture(scope="module")
def sample_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("sample") / "cache"


def test_the_sample_is_whole_and_its_copies_are_known(sample_root, sample_cache, capsys):
    arguments = [str(sample_root), "--partial", "--cache", str(sample_cache)]
    assert verb.main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["faults"] == []
    assert document["marks"] == ["PARTIAL"]
    assert {p: one["cells"] for p, one in document["parts"].items()} == {
        "fold_0": 40, "fold_1": 25, "fold_2": 37, "prelim": 8, "final": 0,
    }  # fmt: skip
    assert all(one["as_published"] is None for one in document["parts"].values())
    found = document["duplicates"]
    assert all(one["expected"] and one["known"] for one in found)
    assert Counter((one["kind"], *sorted(one["subjects"])) for one in found) == {
        ("identical", "20", "21"): 2,
        ("identical", "H2", "H4"): 1,
        ("reprocessed", "H2", "H6"): 2,
    }
    # The files themselves are the oracle: no others are the same byte for byte.
    content = [path.read_bytes() for path in sorted(sample_root.rglob("*.bmp"))]
    assert len(content) - len(set(content)) == 3

    assert verb.main(arguments) == 0
    shown = capsys.readouterr().out
    (twenty,) = [line for line in shown.splitlines() if line.startswith("  1, 16, 20, 21 ")]
    assert twenty.split()[4:8] == ["2", "–", "–", "known;"]
    (healthy,) = [line for line in shown.splitlines() if line.startswith("  H2, H4, H5, H6, H7 ")]
    assert healthy.split()[5:9] == ["1", "–", "2", "known;"]
    for scheme in ("honest", "subject", "lofo", "challenge", "cell"):
        assert scheme in shown
    assert "No fault found in what is there." in shown
    assert "As published" not in shown


def test_merged_groups_of_the_sample(sample_root, sample_cache):
    table = examine(sample_root, "auto", True, sample_cache).index.table
    groups = table[table["group"].str.contains("+", regex=False)].groupby("group")["subject"]
    assert {name: set(of) for name, of in groups} == {
        "1+15+16+17+20+21": {"1", "16", "20", "21"},
        "43+44": {"44"},
        "51+55+75+78": {"51", "78"},
        "H2+H4+H5+H6+H7": {"H2", "H4", "H5", "H6", "H7"},
        "H3+H10": {"H3", "H10"},
        "H14+H24": {"H14"},
    }


def test_without_partial_every_shortage_of_the_sample_is_named(sample_root, sample_cache, capsys):
    code = verb.main([str(sample_root), "--cache", str(sample_cache), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == 1
    says = {
        sample_root / "training_data/fold_0": "fold_0 has 40 of 3,527 images",
        sample_root / "training_data/fold_1": "fold_1 has 25 of 3,581 images",
        sample_root / "training_data/fold_2": "fold_2 has 37 of 3,553 images",
        sample_root / LAYOUTS["kaggle"][1]: "prelim has 8 of 1,867 images, without 1.bmp, 3.bmp",
    }
    found = {Path(fault["path"]): fault for fault in document["faults"]}
    assert found.keys() == says.keys()
    assert len(document["faults"]) == len(says)
    for path, fault in found.items():
        assert fault["cause"].startswith(says[path])
        assert "--partial" in fault["remedy"]
        assert "data.partial=true" in fault["remedy"]


GENUINE = [
    "fold_0/all/UID_20_1_1_all.bmp", "fold_0/all/UID_1_1_1_all.bmp",
    "fold_0/all/UID_1_2_1_all.bmp", "fold_0/hem/UID_H6_1_1_hem.bmp",
    "fold_0/hem/UID_H11_1_1_hem.bmp", "fold_2/hem/UID_h3_1_1_hem.bmp",
]  # fmt: skip


@pytest.fixture(scope="module")
def genuine_files(sample_root, tmp_path_factory):
    """Six genuine training cells, all genuine prelim cells and the genuine label file."""
    root = tmp_path_factory.mktemp("genuine") / "files"
    for name in (f"training_data/{name}" for name in GENUINE):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sample_root / name, root / name)
    shutil.copytree(
        sample_root / "validation_data", root / "validation_data", copy_function=shutil.copyfile
    )
    return root


@pytest.fixture
def genuine_few(genuine_files, tmp_path):
    return linked(genuine_files, tmp_path / "genuine")


def turned(path, quarter):
    return np.rot90(np.asarray(Image.open(path)), quarter).copy()


def swap_two_originals(path):
    """Names and labels permuted together against the new names: every line agrees with itself."""
    rows = list(csv.reader(path.read_text().splitlines()))
    first, other = 1, next(i for i, row in enumerate(rows) if row[2] != rows[1][2] and i)
    for column in (0, 2):
        rows[first][column], rows[other][column] = rows[other][column], rows[first][column]
    put(path, "".join(f"{','.join(row)}\r\n" for row in rows).encode())


GENUINE_FAULTS = {
    "cut": (
        lambda r: cut(r / "training_data" / GENUINE[1], 608_453),
        {GENUINE[1]: "is 608,453 bytes long"},
    ),
    "foreign subject": (
        lambda r: put(r / "training_data/fold_0/all/UID_2_1_1_all.bmp", picture(1)),
        {"fold_0/all/UID_2_1_1_all.bmp": "subject 2 has 1 images in fold_0, 0 are published"},
    ),
    "healthy with two digits": (
        lambda r: (r / "training_data" / GENUINE[3]).rename(
            r / "training_data/fold_0/hem/UID_H06_1_1_hem.bmp"
        ),
        {"fold_0/hem/UID_H06_1_1_hem.bmp": "subject H06 has 1 images in fold_0, 0 are published"},
    ),
    "copy": (
        lambda r: shutil.copyfile(
            r / "training_data" / GENUINE[1],
            r / "training_data/fold_0/all/UID_1_99_1_all.bmp",
        ),
        {GENUINE[1]: r"the same file as .*UID_1_99_1_all\.bmp"},
    ),
    "turned copy": (
        lambda r: put(
            r / "training_data/fold_0/hem/UID_H11_99_1_hem.bmp",
            turned(r / "training_data" / GENUINE[4], 1),
        ),
        {GENUINE[4]: r"turned, flipped or moved: .*UID_H11_99_1_hem\.bmp"},
    ),
    "permuted labels": (
        lambda r: swap_two_originals(r / LAYOUTS["kaggle"][2]),
        {f"../{LAYOUTS['kaggle'][2]}": "names and labels are not those published"},
    ),
}


def matches(document, base, says):
    """Exactly the faults of `says` (path below `base`: regular expression of the cause)."""
    found = {os.path.normpath(path): cause for path, cause in causes(document)}
    wanted = {os.path.normpath(base / path): cause for path, cause in says.items()}
    assert found.keys() == wanted.keys()
    assert len(document["faults"]) == len(wanted)
    for path, cause in wanted.items():
        assert re.search(cause, found[path])


@pytest.mark.parametrize("name", GENUINE_FAULTS)
def test_one_fault_among_genuine_cells_is_the_one_that_is_told(genuine_few, told, name):
    inject, says = GENUINE_FAULTS[name]
    assert told(genuine_few, "--partial")[0] == 0
    inject(genuine_few)
    code, document = told(genuine_few, "--partial")
    assert code == 1
    matches(document, genuine_few / "training_data", says)


def test_all_faults_among_genuine_cells_at_once(genuine_few, told):
    # A cut file has no pixels to compare: its copy must be made from another.
    cases = {name: case for name, case in GENUINE_FAULTS.items() if name != "copy"}
    says = {}
    for inject, wanted in cases.values():
        inject(genuine_few)
        says |= wanted
    code, document = told(genuine_few, "--partial")
    assert code == 1
    matches(document, genuine_few / "training_data", says)


def test_order_and_line_ends_of_the_genuine_label_file_do_not_matter(genuine_few, told):
    labels = genuine_few / LAYOUTS["kaggle"][2]
    head, *rows = labels.read_text().split()
    before = examine(genuine_few, "auto", True, genuine_few.parent / "cache").index.table
    np.random.default_rng(0).shuffle(rows)
    put(labels, "".join(f"{row}\n" for row in (head, *rows)).encode())
    assert told(genuine_few, "--partial")[0] == 0
    after = examine(genuine_few, "auto", True, genuine_few.parent / "cache").index.table
    assert after.equals(before)


@pytest.mark.parametrize(
    ("source", "copy", "quarter"),
    [
        # 20 = 21 and H2 = H4 are known; one more image of 20, or a turned one of 21, is not.
        ("fold_0/all/UID_20_1_1_all.bmp", "fold_0/all/UID_20_99_1_all.bmp", 0),
        ("fold_0/all/UID_20_1_1_all.bmp", "fold_0/all/UID_20_99_1_all.bmp", 1),
        ("fold_0/all/UID_20_1_1_all.bmp", "fold_2/all/UID_21_99_1_all.bmp", 1),
    ],
)
def test_subjects_with_known_copies_may_not_have_others(
    genuine_few, sample_root, told, source, copy, quarter
):
    folder = genuine_few / "training_data"
    (folder / "fold_2/all").mkdir()
    for path in (sample_root / "training_data/fold_2/all").glob("UID_21_*"):
        shutil.copyfile(path, folder / "fold_2/all" / path.name)
    assert told(genuine_few, "--partial")[0] == 0
    put(folder / copy, turned(folder / source, quarter))
    code, document = told(genuine_few, "--partial")
    assert code == 1
    assert any(copy in path + cause for path, cause in causes(document))


# --- a tree without fault


@pytest.mark.parametrize("options", [(), ("--partial",)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_complete_tree_has_no_fault_in_any_layout(tmp_path, told, layout, options):
    root = write_complete(tmp_path / "tree", layout)
    write_manifest(root)
    code, document = told(root, *options)
    assert (code, document["faults"], document["layout"]) == (0, [], layout)
    assert document["marks"] == ["SYNTHETIC"]
    parts = document["parts"]
    assert {part: one["cells"] for part, one in parts.items()} == COUNTS
    assert {part: one["expected"] for part, one in parts.items()} == COUNTS
    assert [one["subjects"] for one in parts.values()] == [3, 2, 2, 3, 0]
    (copies,) = document["duplicates"]
    assert sorted(copies["subjects"]) == ["20", "21"]
    assert (copies["kind"], copies["expected"]) == ("identical", True)


def test_the_table_of_a_checked_index_has_digests(tree, tmp_path):
    index = checked_index(tree, cache=tmp_path / "cache")
    for row in index.table.itertuples():
        content = (tree / row.file).read_bytes()
        assert row.sha256 == hashlib.sha256(content).hexdigest()
        assert row.pixels == pixel_digest(np.asarray(Image.open(tree / row.file)))


def test_the_report_of_a_tree_without_fault(tree, lines):
    code, shown, faults = lines(tree)
    assert (code, faults) == (0, [])
    assert shown[0] == f"{tree} (challenge layout)"
    assert "*** SYNTHETIC ***" in shown
    assert shown[-1] == "No fault found in what is there."
    assert any(line.split() == ["fold_0", "5", "5", "3", "–"] for line in shown)
    assert any(line.startswith("  1, 20, 21 ") for line in shown)


def test_a_missing_root_is_a_refusal_not_a_fault(tmp_path, command):
    done = command("verify", tmp_path / "nowhere", "--json", cwd=tmp_path)
    assert (done.wait(), done.out) == (2, "")
    assert "nowhere: no such folder or file. Set data.root" in done.err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LeukoclsError, match="no such folder"):
        verb.main([str(tmp_path / "nowhere")])


def test_json_is_all_that_is_printed(tree, tmp_path, command):
    cut(tree / ONE, 10)
    done = command("verify", tree, "--json", "--cache", tmp_path / "cache")
    assert (done.wait(), done.err) == (1, "")
    document = json.loads(done.out)
    assert document.keys() == {
        *("root", "layout", "marks", "parts", "faults", "duplicates", "notes")
    }
    (fault,) = document["faults"]
    assert fault.keys() == {"path", "cause", "remedy"}
    assert fault["path"] == str(tree / ONE)
    (copies,) = document["duplicates"]
    assert copies.keys() == {*("cells", "subjects", "kind", "similarity", "known", "expected")}
    assert document["parts"].keys() == COUNTS.keys()


# --- each fault alone: D1-D4


def rename(old, new):
    return lambda tree: (tree / old).rename(tree / new)


def write(path, content):
    return lambda tree: put(tree / path, content)


def labelled(rows):
    return lambda tree: write_labels(tree / "phase2.csv", rows)


def bmp(edit):
    """The BMP of a good cell with fields of its header overwritten: (offset, format, value)."""
    data = bytearray(encode_bmp(picture(1)))
    for offset, fmt, value in edit:
        struct.pack_into(fmt, data, offset, value)
    return bytes(data)


GREY, PALETTE = (encoded(picture(1), "BMP", mode) for mode in ("L", "P"))
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
# Fault: what is done, then the path below the root and the cause, complete by --partial.
ALONE = {
    # D1: names
    "added to a known subject": (
        write("fold_0/all/UID_1_9_9_all.bmp", picture(99)),
        {"fold_0": "subject 1 has 3 images in fold_0, 2 are published"},
    ),
    "added of an unknown subject": (
        write("fold_0/all/UID_99_1_1_all.bmp", picture(99)),
        {"fold_0/all/UID_99_1_1_all.bmp": "subject 99 has 1 images in fold_0, 0 are published"},
    ),
    "added to prelim": (write("phase2/5.bmp", picture(99)), {"phase2/5.bmp": "not listed in"}),
    "added to final": (
        write("phase3/4.bmp", picture(99, 600)),
        {"phase3": "final has 4 images, 3 are published"},
    ),
    "renamed to another subject": (
        rename(ONE, "fold_0/all/UID_7_1_1_all.bmp"),
        {"fold_0/all/UID_7_1_1_all.bmp": "subject 7 has 1 images in fold_0, 0 are published"},
    ),
    "renamed to no name": (
        rename(ONE, "fold_0/all/cell1.bmp"),
        {"fold_0/all/cell1.bmp": "the name is not UID_"},
    ),
    ".BMP": (
        rename(ONE, ONE.replace(".bmp", ".BMP")),
        {ONE.replace(".bmp", ".BMP"): "the suffix is .BMP"},
    ),
    ".BMP in prelim": (
        rename("phase2/1.bmp", "phase2/1.BMP"),
        {"phase2/1.BMP": "the suffix is .BMP"},
    ),
    "_copy.bmp": (
        lambda tree: shutil.copyfile(tree / ONE, tree / ONE.replace(".bmp", "_copy.bmp")),
        {ONE.replace(".bmp", "_copy.bmp"): "the name is not UID_"},
    ),
    "_copy.bmp in prelim": (
        lambda tree: shutil.copyfile(tree / "phase2/1.bmp", tree / "phase2/1_copy.bmp"),
        {"phase2/1_copy.bmp": "not a numbered image"},
    ),
    "not an image": (write("fold_1/hem/notes.txt", b"x"), {"fold_1/hem/notes.txt": "not a .bmp"}),
    "folder ALL": (rename("fold_0/all", "fold_0/ALL"), {"fold_0/ALL": "does not belong here"}),
    "folder fold_3": (rename("fold_2", "fold_3"), {"fold_3": "does not belong here"}),
    "folder Fold_1": (rename("fold_1", "Fold_1"), {"Fold_1": "does not belong here"}),
    "file beside the classes": (
        write("fold_0/UID_1_1_3_all.bmp", picture(99)),
        {"fold_0/UID_1_1_3_all.bmp": "does not belong here"},
    ),
    # D2: labels
    "cell in the other class": (
        rename(ONE, "fold_0/hem/UID_1_1_1_all.bmp"),
        {"fold_0/hem/UID_1_1_1_all.bmp": "stated hem, suffix all, subject 1 is all"},
    ),
    "suffix of the other class": (
        rename(ONE, "fold_0/all/UID_1_1_1_hem.bmp"),
        {"fold_0/all/UID_1_1_1_hem.bmp": "stated all, suffix hem, subject 1 is all"},
    ),
    "H without right": (
        rename(ONE, "fold_0/all/UID_H1_1_1_all.bmp"),
        {
            "fold_0/all/UID_H1_1_1_all.bmp": "stated all, suffix all, subject H1 is hem"
            "|subject H1 has 1 images in fold_0, 0 are published"
        },
    ),
    "one label swapped": (
        labelled([*PRELIM[:2], (*PRELIM[2][:2], 0), PRELIM[3]]),
        {"phase2.csv, line 4": "stated hem, suffix all, subject 57 is all"},
    ),
    "labels alone permuted": (
        labelled([(*row[:2], 1 - row[2]) for row in PRELIM[:2]] + PRELIM[2:]),
        {"phase2.csv, line 2": "stated hem", "phase2.csv, line 3": "stated all"},
    ),
    "a name twice": (
        labelled([*PRELIM, PRELIM[1]]),
        {"phase2.csv, line 6": "2.bmp is listed twice"},
    ),
    "labels empty": (labelled([]), {"phase2.csv": "lists no cell"}),
    "label file of 0 bytes": (write("phase2.csv", b""), {"phase2.csv": "needs the columns"}),
    "label file gone": (lambda tree: (tree / "phase2.csv").unlink(), {"phase2.csv": "is missing"}),
    # D3: subjects and pixels
    "subject of train in prelim": (
        labelled([("UID_1_9_9_all.bmp", "1.bmp", 1), *PRELIM[1:]]),
        {
            "phase2/1.bmp": r"subject 1(\+15\+16\+17\+20\+21 is in train and in prelim|"
            r" has 1 images)"
        },
    ),
    "merged subject of train in prelim": (
        labelled([("UID_H2_9_9_hem.bmp", "2.bmp", 0), PRELIM[0], *PRELIM[2:]]),
        {"phase2/2.bmp": r"subject H2(\+H4\+H5\+H6\+H7 is in train and in prelim| has 1 images)"},
    ),
    "subject in another fold": (
        rename(ONE, "fold_1/all/UID_1_1_1_all.bmp"),
        {"fold_1/all/UID_1_1_1_all.bmp": "subject 1 has 1 images in fold_1, 0 are published"},
    ),
    "H01 for H1": (
        rename("fold_1/hem/UID_H1_1_1_hem.bmp", "fold_1/hem/UID_H01_1_1_hem.bmp"),
        {"fold_1/hem/UID_H01_1_1_hem.bmp": "subject H01 has 1 images in fold_1, 0 are published"},
    ),
    "H025 for H25 in the label file": (
        labelled([PRELIM[0], ("UID_H025_4_1_hem.bmp", "2.bmp", 0), *PRELIM[2:]]),
        {"phase2/2.bmp": "subject H025 has 1 images in prelim, 0 are published"},
    ),
    "exact copy": (write(TWO, picture(1)), {ONE: f"the same file as .*{TWO}"}),
    "exact copy of the other class": (
        write("fold_0/hem/UID_H6_1_1_hem.bmp", picture(1)),
        {ONE: "the same file as .*UID_H6_1_1_hem"},
    ),
    "third copy of a known pair": (
        write(TWO, picture(3)),
        {"fold_0/all/UID_20_1_1_all.bmp": f"the same file as .*{TWO}.*UID_21_1_1_all"},
    ),
    "copy with another header": (
        write(TWO, encode_bmp(picture(1), v5=True)),
        {ONE: f"turned, flipped or moved: .*{TWO}"},
    ),
    "copy in final": (
        write("phase3/2.bmp", picture(1, 600)),
        {ONE: "turned, flipped or moved: .*phase3/2.bmp"},
    ),
    **{
        name: (write(TWO, edit(picture(1)).copy()), {ONE: f"turned, flipped or moved: .*{TWO}"})
        for name, edit in {
            "copy rotated by 90°": np.rot90,
            "copy rotated by 180°": lambda image: np.rot90(image, 2),
            "copy rotated by 270°": lambda image: np.rot90(image, 3),
            "copy upside down": np.flipud,
            "copy mirrored": np.fliplr,
            "copy transposed": lambda image: image.transpose(1, 0, 2),
            "copy moved": lambda image: np.roll(image, (-31, 77), (0, 1)),
            "copy at the edge": lambda image: np.roll(image, (-200, 219), (0, 1)),
        }.items()
    },
    # D4: images
    "one byte short": (
        write(ONE, encode_bmp(picture(1))[:-1]),
        {ONE: "is 608,453 bytes long, its header says 608,454"},
    ),
    "one byte long": (write(ONE, encode_bmp(picture(1)) + b"\0"), {ONE: "is 608,455 bytes long"}),
    "PNG named .bmp": (write(ONE, encoded(picture(1), "PNG")), {ONE: "is not a BMP image"}),
    "grey": (write(ONE, GREY), {ONE: "not an uncompressed 8-bit RGB BMP .8 bits"}),
    "palette": (write(ONE, PALETTE), {ONE: "not an uncompressed 8-bit RGB BMP .8 bits"}),
    "RGBA": (write(ONE, encoded(picture(1), "BMP", "RGBA")), {ONE: r"8-bit RGB BMP \(32 bits"}),
    "16-bit": (write(ONE, bmp([(28, "<H", 16)])), {ONE: r"8-bit RGB BMP \(16 bits"}),
    "compressed": (write(ONE, bmp([(30, "<I", 1)])), {ONE: r"24 bits a pixel, compression 1"}),
    "header of 10000²": (
        write(ONE, bmp([(18, "<i", 10_000), (22, "<i", 10_000)])),
        {ONE: "is 10000×10000 pixels, not 450×450"},
    ),
    "size of final in train": (write(ONE, picture(1, 600)), {ONE: "is 600×600 pixels, not 450"}),
    "size of train in final": (write("phase3/1.bmp", picture(30)), {"phase3/1.bmp": "not 600"}),
    "0 bytes": (write(ONE, b""), {ONE: r"is empty \(0 bytes\)"}),
    "HTML page": (write(ONE, HTML), {ONE: "is not a BMP image"}),
    "all black": (write(ONE, picture(1) * 0), {ONE: "all pixels are black"}),
    "damaged in prelim": (write("phase2/2.bmp", HTML), {"phase2/2.bmp": "is not a BMP image"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_a_fault_alone_is_named_with_path_and_remedy(tree, told, name):
    inject, says = ALONE[name]
    inject(tree)
    code, document = told(tree, "--partial")
    assert code == 1
    found = causes(document)
    assert {path for path, _ in found} == {str(tree / path) for path in says}
    for path, cause in found:
        assert re.search(says[os.path.relpath(path, tree)], cause)
    # A tree that must be complete has these faults as well.
    code, document = told(tree)
    assert code == 1
    assert causes(document) >= found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("gone", "place", "says"),
    [
        ("fold_1", None, "fold_1 has 0 of 2 images"),
        (ONE, "fold_0", "fold_0 has 4 of 5 images: subject 1 has 1 of 2 (1 in all)"),
        ("phase2/3.bmp", "phase2", "prelim has 3 of 4 images, without 3.bmp (1 in all)"),
        ("phase3/2.bmp", "phase3", "final has 2 of 3 images"),
    ],
)
def test_what_is_missing_is_a_fault_unless_partial(tmp_path, told, layout, gone, place, says):
    root = write_complete(tmp_path / "tree", layout)
    write_manifest(root)
    train, prelim, _, final = LAYOUTS[layout]
    phases = {"phase2": prelim, "phase3": final}

    def located(name):
        head, *rest = name.split("/")
        return (root / phases.get(head, f"{train}/{head}")).joinpath(*rest)

    shutil.rmtree(located(gone)) if located(gone).is_dir() else located(gone).unlink()
    code, document = told(root)
    assert code == 1
    # A part of which nothing is there has no folder that could be named.
    path = root if place is None else located(place)
    (fault,) = document["faults"]
    assert (fault["path"], fault["cause"]) == (str(path), says)
    assert "fetch what is missing" in fault["remedy"]
    assert "--partial" in fault["remedy"]
    code, document = told(root, "--partial")
    assert (code, document["faults"]) == (0, [])
    assert document["marks"] == ["SYNTHETIC", "PARTIAL"]
    index = checked_index(root, partial=True, cache=tmp_path / "cache")
    assert len(index.table) == sum(one["cells"] for one in document["parts"].values())
    with pytest.raises(DataFault, match="fetch what is missing"):
        checked_index(root, cache=tmp_path / "cache")


def test_a_cell_exchanged_for_another_subject_s_is_one_too_many_there(tree, told):
    """As many cells as must be, but not of those subjects: no count of the part can see it."""
    (tree / ONE).rename(tree / "fold_0/all/UID_20_9_9_all.bmp")
    code, document = told(tree)
    assert code == 1
    assert causes(document) == {
        (
            str(tree / "fold_0"),
            "subject 20 has 2 images in fold_0, 1 are published",
        ),
    }


def test_a_training_cell_in_prelim_is_told_as_copy(tree, told):
    put(tree / "phase2/1.bmp", np.rot90(picture(1)).copy())
    code, document = told(tree)
    assert code == 1
    assert causes(document) == {
        (str(tree / ONE), f"turned, flipped or moved: {tree / 'phase2/1.bmp'}"),
    }


@pytest.mark.parametrize(
    "leftover",
    ["fold_1/hem/Thumbs.db", "fold_1/desktop.ini", "fold_0.zip", "phase2/.DS_Store", "phase3.zip",
     "__MACOSX/fold_0/all/._UID_1_1_1_all.bmp", "fold_0/__MACOSX/x.bmp"],
)  # fmt: skip
def test_what_systems_and_archivers_leave_behind_is_no_fault(tree, told, leftover):
    put(tree / leftover, b"x")
    code, document = told(tree)
    assert (code, document["faults"]) == (0, [])


def test_a_copy_that_an_archiver_made_is_not_taken_for_the_data(tree, told):
    put(tree.parent / "__MACOSX/fold_0/all/._UID_1_1_1_all.bmp", b"x")
    code, document = told(tree.parent)
    assert (code, document["faults"]) == (0, [])


def test_two_copies_below_a_root_are_refused_by_name(tree, capsys):
    linked(tree, tree.parent / "again")
    with pytest.raises(LeukoclsError, match=r"several copies of the data: .*again, .*tree. Name"):
        verb.main([str(tree.parent), "--cache", str(tree.parent / "cache")])


@pytest.mark.parametrize(
    "edit",
    [
        lambda path: write_labels(path, PRELIM[::-1]),
        lambda path: write_labels(path, end="\n"),
        lambda path: write_labels(path, [(a.lower(), b.upper(), c) for a, b, c in PRELIM]),
        lambda path: put(path, b"\xef\xbb\xbf" + path.read_bytes()),
    ],
    ids=["shuffled", "LF", "case", "BOM"],
)
def test_how_the_label_file_is_written_is_no_fault(tree, told, tmp_path, edit):
    before = checked_index(tree, cache=tmp_path / "cache").table
    edit(tree / "phase2.csv")
    assert told(tree)[0] == 0
    assert checked_index(tree, cache=tmp_path / "cache").table.equals(before)


def test_hidden_files_and_what_lies_beside_are_no_fault(tree, told):
    for name in ("fold_0/all/.DS_Store", "fold_0/.DS_Store", "phase3/._1.bmp", "README.txt"):
        put(tree / name, b"x")
    assert told(tree)[0] == 0


# --- one report: D5


def six_faults(tree):
    """Six faults of six kinds; each is told in one line whether the tree is partial or not."""
    cut(tree / ONE, 608_453)
    put(tree / TWO, np.rot90(picture(4)).copy())
    (tree / "fold_2/hem/UID_h3_1_1_hem.bmp").rename(tree / "fold_2/hem/UID_h3_1_1_hem.BMP")
    write_labels(tree / "phase2.csv", [(*PRELIM[0][:2], 0), *PRELIM[1:]])
    put(tree / "phase2/3.bmp", encoded(picture(22), "PNG"))
    (tree / "phase3/2.bmp").unlink()
    return {
        ONE: ("is 608,453 bytes long", "fetch the file again"),
        "fold_0/hem/UID_H6_1_1_hem.bmp": ("turned, flipped or moved", "remove the copies"),
        "fold_2/hem/UID_h3_1_1_hem.BMP": ("the suffix is .BMP", "rename it to UID_h3_1_1_hem.bmp"),
        "phase2.csv, line 2": ("labels disagree: stated hem", "fetch the original file"),
        "phase2/3.bmp": ("is not a BMP image", "fetch the file again"),
        "phase3": ("final has 2 of 3 images", "fetch what is missing"),
    }


def test_six_faults_six_lines(tree, told, lines):
    says = {str(tree / path): words for path, words in six_faults(tree).items()}
    code, document = told(tree)
    assert code == 1
    assert len(document["faults"]) == 6
    assert {fault["path"] for fault in document["faults"]} == says.keys()
    for fault in document["faults"]:
        cause, remedy = says[fault["path"]]
        assert cause in fault["cause"]
        assert remedy in fault["remedy"]
    code, shown, faults = lines(tree)
    assert (code, len(faults)) == (1, 6)
    assert "6 fault(s):" in shown
    assert {line.split(": ")[0] for line in faults} == says.keys()
    assert not any("No fault" in line or "As published" in line for line in shown)


def test_training_refuses_the_same_tree_with_the_same_lines(tree, lines, tmp_path, train):
    six_faults(tree)
    _, _, faults = lines(tree)
    with pytest.raises(DataFault) as caught:
        checked_index(tree, cache=tmp_path / "cache")
    assert caught.value.exit_code == 1
    head, *refused = str(caught.value).split("\n  ")
    assert head == f"{tree}: 6 fault(s) in the data"
    assert refused == faults
    outcome = train(*small(tree, tmp_path / "outputs"))
    assert outcome.code == 1
    assert str(caught.value) in outcome.err
    assert not list(tmp_path.rglob("run.json"))


def repeat_labels(tree, number):
    """List cells of prelim twice: a fault of its own for each."""
    with open(tree / "phase2.csv", "a") as labels:
        for cell in range(900, 900 + number):
            labels.write(f"UID_1_{cell}_1_all.bmp,{cell}.bmp,1\n" * 2)


def test_a_long_list_is_cut_in_the_refusal_and_not_in_the_verb(tree, lines, tmp_path):
    repeat_labels(tree, 23)
    code, _, faults = lines(tree)
    assert (code, len(faults)) == (1, 23)
    with pytest.raises(DataFault, match=r"23 fault\(s\)") as caught:
        checked_index(tree, cache=tmp_path / "cache")
    refused = str(caught.value).split("\n  ")[1:]
    assert refused[:20] == faults[:20]
    assert refused[20:] == ["… and 3 more lines\n`python -m leukocls.verify --json` names each"]


def test_twenty_faults_are_all_in_the_refusal(tree, lines, tmp_path):
    repeat_labels(tree, 20)
    with pytest.raises(DataFault) as caught:
        checked_index(tree, cache=tmp_path / "cache")
    assert str(caught.value).split("\n  ")[1:] == lines(tree)[2]
    assert "more" not in str(caught.value)


# --- a complete genuine copy, imitated in small


def file_digest(folder, pattern):
    """RECIPES §1: sha256 over the sorted lines `{sha256 of the file}  {file name}`."""
    every = [(hashlib.sha256(p.read_bytes()).hexdigest(), p.name) for p in folder.glob(pattern)]
    text = "".join(sorted(f"{sha}  {name}\n" for sha, name in every))
    return hashlib.sha256(text.encode()).hexdigest(), len(every)


@pytest.fixture
def publish(monkeypatch):
    """Make what a tree holds now what was published."""

    def publish(tree):
        places = {f"fold_{k}": (tree / f"fold_{k}", "*/*.bmp") for k in range(3)}
        places |= {"prelim": (tree / "phase2", "*.bmp"), "final": (tree / "phase3", "*.bmp")}
        found = {part: file_digest(*place) for part, place in places.items()}
        digests = {part: digest for part, (digest, _) in found.items()}
        counts = {part: number for part, (_, number) in found.items()}
        lines = [f"{name},{original},{label}\n".lower() for original, name, label in PRELIM]
        labels = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
        monkeypatch.setattr(verify, "PART_DIGESTS", digests)
        monkeypatch.setattr(rules, "LABELS_DIGEST", labels)
        monkeypatch.setattr(rules, "published_counts", lambda: counts)
        monkeypatch.setattr(rules, "published_subjects", lambda: SUBJECTS)
        return tree

    return publish


@pytest.fixture
def genuine(bare, publish):
    return publish(bare)


def test_a_complete_genuine_copy_exits_0(genuine, told, lines):
    code, document = told(genuine)
    assert (code, document["faults"], document["marks"]) == (0, [], [])
    assert {part: one["as_published"] for part, one in document["parts"].items()} == dict.fromkeys(
        COUNTS, True
    )
    code, shown, _ = lines(genuine)
    assert code == 0
    assert shown[-1] == "As published."
    assert any(line.split() == ["prelim", "4", "4", "3", "yes"] for line in shown)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        (ONE, "fold_0"),
        ("fold_1/hem/UID_H1_1_1_hem.bmp", "fold_1"),
        ("fold_2/hem/UID_h3_1_1_hem.bmp", "fold_2"),
        ("phase2/4.bmp", "phase2"),
        ("phase3/1.bmp", "phase3"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--partial",)])
def test_one_changed_pixel_is_a_fault_of_its_part(genuine, told, name, folder, options):
    data = bytearray((genuine / name).read_bytes())
    data[len(data) // 2] ^= 1
    put(genuine / name, bytes(data))
    code, document = told(genuine, *options)
    assert code == 1
    (fault,) = document["faults"]
    assert fault["path"] == str(genuine / folder)
    assert "not those published (sha256)" in fault["cause"]
    assert "fetch the part again" in fault["remedy"]
    published = [one["as_published"] for one in document["parts"].values()]
    assert sorted(published) == [False, True, True, True, True]


def test_two_exchanged_files_are_a_fault_of_their_part(genuine, told):
    """A label swapped by content: names, counts and pixels all stay."""
    healthy = genuine / "fold_0/hem/UID_H6_1_1_hem.bmp"
    mine, other = (genuine / ONE).read_bytes(), healthy.read_bytes()
    put(genuine / ONE, other)
    put(healthy, mine)
    code, document = told(genuine)
    assert code == 1
    assert {path for path, _ in causes(document)} == {str(genuine / "fold_0")}


def test_a_cell_renamed_within_its_subject_is_a_fault_of_its_part(genuine, told):
    (genuine / ONE).rename(genuine / "fold_0/all/UID_1_7_7_all.bmp")
    code, document = told(genuine)
    assert code == 1
    assert {path for path, _ in causes(document)} == {str(genuine / "fold_0")}


def test_names_and_labels_permuted_together_are_a_fault_of_the_label_file(genuine, told):
    swap_two_originals(genuine / "phase2.csv")
    code, document = told(genuine)
    assert code == 1
    (fault,) = document["faults"]
    assert fault["path"] == str(genuine / "phase2.csv")
    assert "not those published" in fault["cause"]
    assert "fetch the original file" in fault["remedy"]


@pytest.mark.parametrize("edit", [{"rows": PRELIM[::-1]}, {"end": "\n"}], ids=["shuffled", "LF"])
def test_the_published_label_file_may_be_written_otherwise(genuine, lines, edit):
    write_labels(genuine / "phase2.csv", **edit)
    code, shown, _ = lines(genuine)
    assert (code, shown[-1]) == (0, "As published.")


def test_an_unknown_copy_inside_a_genuine_part_is_reported_and_no_fault(bare, publish, told, lines):
    put(bare / "fold_0/hem/UID_H6_1_2_hem.bmp", picture(4))
    publish(bare)
    code, document = told(bare)
    assert (code, document["faults"]) == (0, [])
    (copies,) = [one for one in document["duplicates"] if one["subjects"] == ["H6", "H6"]]
    assert copies["expected"]
    assert "Cells that one subject has more than once: 1 same file." in lines(bare)[1]
    # Once the part is no longer the published one, nothing vouches for its copies.
    (bare / ONE).unlink()
    code, document = told(bare, "--partial")
    assert code == 1
    (fault,) = document["faults"]
    assert fault["path"] == str(bare / "fold_0/hem/UID_H6_1_1_hem.bmp")


def test_a_copy_between_a_genuine_part_and_another_is_a_fault(genuine, told):
    put(genuine / TWO, picture(1))
    code, document = told(genuine)
    assert code == 1
    assert str(genuine / ONE) in {path for path, _ in causes(document)}


def test_a_stray_file_does_not_hide_a_changed_one(genuine, told):
    """Both are in one part, and the stray one cannot be why its digest differs."""
    put(genuine / "fold_0/all/notes.txt", b"x")
    put(genuine / ONE, picture(98))
    code, document = told(genuine)
    assert code == 1
    assert {path for path, _ in causes(document)} == {
        str(genuine / "fold_0/all/notes.txt"),
        str(genuine / "fold_0"),
    }


def test_final_may_be_absent_but_not_half_there(genuine, told, lines):
    kept = (genuine / "phase3/1.bmp").read_bytes()
    shutil.rmtree(genuine / "phase3")
    code, document = told(genuine)
    assert (code, document["faults"], document["marks"]) == (0, [], [])
    assert lines(genuine)[1][-1] == "As published."
    put(genuine / "phase3/1.bmp", kept)
    code, document = told(genuine)
    assert code == 1
    assert causes(document) == {(str(genuine / "phase3"), "final has 1 of 3 images")}
    code, document = told(genuine, "--partial")
    assert (code, document["marks"]) == (0, ["PARTIAL"])


@pytest.mark.parametrize("kept", ["phase3", "phase2"])
def test_a_part_alone_is_recognised(genuine, told, lines, kept):
    part = {"phase2": "prelim", "phase3": "final"}[kept]
    for folder in {"fold_0", "fold_1", "fold_2", "phase2", "phase3"} - {kept}:
        shutil.rmtree(genuine / folder)
    if kept == "phase3":
        (genuine / "phase2.csv").unlink()
    code, document = told(genuine, "--partial")
    assert (code, document["faults"], document["layout"]) == (0, [], "challenge")
    assert document["parts"][part]["as_published"]
    assert lines(genuine, "--partial")[0] == 0
    code, document = told(genuine)
    assert code == 1
    wanted = {"fold_0 has 0 of 5 images", "fold_1 has 0 of 2 images", "fold_2 has 0 of 2 images"}
    said = {cause for _, cause in causes(document)}
    assert wanted <= said
    assert said - wanted == (set() if kept == "phase2" else {"prelim has 0 of 4 images"})


# --- what is remembered


@pytest.fixture
def read_files(monkeypatch):
    """Names of the images that are read."""
    names, read = [], contents.read_with_form

    def counted(path, side=None):
        names.append(path.name)
        return read(path, side)

    monkeypatch.setattr(contents, "read_with_form", counted)
    return names


def pixels(root, cache):
    found = examine(root, "auto", False, cache)
    assert found.faults == []
    return dict(zip(found.index.table["file"], found.index.table["pixels"], strict=True))


def test_a_second_look_reads_no_file(tree, tmp_path, read_files):
    first = pixels(tree, tmp_path / "cache")
    assert len(read_files) == len(first) == sum(COUNTS.values())
    read_files.clear()
    assert pixels(tree, tmp_path / "cache") == first
    assert read_files == []
    assert pixels(tree, tmp_path / "another") == first
    assert len(read_files) == sum(COUNTS.values())


def test_a_changed_file_is_read_again_even_with_its_old_time(tree, tmp_path, read_files):
    put(tree / ONE, picture(1))
    before = pixels(tree, tmp_path / "cache")
    status = (tree / ONE).stat()
    read_files.clear()
    with open(tree / ONE, "r+b") as stream:  # the same inode, the same size
        stream.write(encode_bmp(picture(98)))
    os.utime(tree / ONE, ns=(status.st_atime_ns, status.st_mtime_ns))
    now = (tree / ONE).stat()
    assert (now.st_size, now.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    after = pixels(tree, tmp_path / "cache")
    assert read_files == [Path(ONE).name]
    assert {file for file in before if before[file] != after[file]} == {ONE}


def test_a_damaged_file_is_told_every_time(tree, told):
    for _ in range(2):
        cut(tree / ONE, 100)
        code, document = told(tree)
        assert code == 1
        assert causes(document) == {
            (str(tree / ONE), "is 100 bytes long, its header says 608,454 and its pixels need"
             " 608,454")
        }  # fmt: skip
    put(tree / ONE, picture(1))
    assert told(tree)[0] == 0


def memory(cache):
    (path,) = cache.glob("contents-*.json")
    return path


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"null", b"[]", b"\xff\xfe\0", b'{"version": 5}',
        b'{"version": 5, "files": {}, "near_duplicates": [["a", "b", 1]]}',
        b'{"version": 5, "files": null}', b'{"version": 5, "files": []}',
        b'{"version": 5, "files": {"fold_0/all/UID_1_1_1_all.bmp": null}}',
        b'{"version": 5, "files": {"fold_0/all/UID_1_1_1_all.bmp": 3}}',
    ],
)  # fmt: skip
def test_a_damaged_memory_is_ignored(tree, tmp_path, read_files, damage):
    cache = tmp_path / "cache"
    first = pixels(tree, cache)
    memory(cache).write_bytes(damage)
    read_files.clear()
    assert pixels(tree, cache) == first
    assert len(read_files) == sum(COUNTS.values())
    read_files.clear()
    assert pixels(tree, cache) == first
    assert read_files == []


@pytest.mark.parametrize("older", [0, 1])
def test_a_memory_of_another_version_is_ignored_and_one_of_this_is_believed(tree, tmp_path, older):
    cache = tmp_path / "cache"
    first = pixels(tree, cache)
    stored = json.loads(memory(cache).read_text())
    stored["version"] -= older
    stored["files"][ONE][4] = "0" * 64
    memory(cache).write_text(json.dumps(stored))
    assert pixels(tree, cache)[ONE] == (first[ONE] if older else "0" * 64)


def test_cut_entries_of_a_memory_are_ignored(tree, tmp_path, read_files):
    cache = tmp_path / "cache"
    first = pixels(tree, cache)
    stored = json.loads(memory(cache).read_text())
    stored["files"] = {file: entry[:3] for file, entry in stored["files"].items()}
    memory(cache).write_text(json.dumps(stored))
    read_files.clear()
    assert pixels(tree, cache) == first
    assert len(read_files) == sum(COUNTS.values())


def test_two_roots_with_one_cache_do_not_mix(pristine, tree, tmp_path, read_files):
    cache = tmp_path / "cache"
    write_manifest(copy := linked(pristine, tmp_path / "copy"))
    for path, number in ((tree / ONE, 98), (copy / ONE, 1)):
        put(path, picture(number))
        os.utime(path, (1, 1))  # same name, size and time
    mine, theirs = pixels(tree, cache), pixels(copy, cache)
    assert {file for file in mine if mine[file] != theirs[file]} == {ONE}
    read_files.clear()
    assert (pixels(tree, cache), pixels(copy, cache)) == (mine, theirs)
    assert read_files == []
    assert len(list(cache.glob("contents-*.json"))) == 2


def test_nothing_is_written_into_the_data(tree, told):
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    told(tree)
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before


# --- the digest of what is seen


def orbit(image):
    """All turned and flipped forms of the tight crop, as nested tuples: an independent oracle."""
    grid = [[tuple(map(int, pixel)) for pixel in row] for row in image]

    def without_margin(rows):
        while not any(map(any, rows[0])):
            rows = rows[1:]
        while not any(map(any, rows[-1])):
            rows = rows[:-1]
        return rows

    turn = [list(row) for row in zip(*without_margin(grid), strict=True)]
    forms = [turn := without_margin(turn)]
    for _ in range(3):
        turn = [list(row) for row in zip(*turn[::-1], strict=True)]
        forms.append(turn)
    forms += [form[::-1] for form in forms]
    return frozenset(tuple(map(tuple, form)) for form in forms)


def assert_one_digest_an_orbit(images):
    """Equal digests for equal orbits, and for no others."""
    orbits, digests = {}, {}
    for image in images:
        form, digest = orbit(image), pixel_digest(image)
        assert orbits.setdefault(form, digest) == digest
        assert digests.setdefault(digest, form) == form
    return len(orbits)


def binary(height, width):
    for bits in itertools.product((0, 1), repeat=height * width):
        if any(bits):
            yield np.repeat(np.array(bits, np.uint8).reshape(height, width, 1), 3, axis=2)


def test_equal_digests_are_equal_up_to_turns_flips_and_place():
    """Every black-and-white image of 3×3 and 2×4 pixels: one digest for each class of copies."""
    images = [*binary(3, 3), *binary(2, 4)]
    assert len(images) == 511 + 255
    assert 0 < assert_one_digest_an_orbit(images) < len(images) / 4


def test_colours_count_and_no_channel_is_overlooked():
    colours = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2)]
    images = [
        np.array(four, np.uint8).reshape(2, 2, 3)
        for four in itertools.product(colours, repeat=4)
        if any(map(any, four))
    ]
    assert len(images) == 5**4 - 1
    assert_one_digest_an_orbit(images)


@pytest.mark.parametrize("seed", range(20))
def test_copies_of_a_cell_have_its_digest_and_changed_ones_another(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2)
    cell = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    cell[rng.integers(height), rng.integers(width)] = 255
    want = pixel_digest(cell)
    for k, flip in itertools.product(range(4), (False, True)):
        copy = np.rot90(cell[::-1] if flip else cell, k)
        canvas = np.zeros((60, 50, 3), np.uint8)
        top, left = rng.integers(0, 60 - copy.shape[0] + 1), rng.integers(0, 50 - copy.shape[1] + 1)
        canvas[top : top + copy.shape[0], left : left + copy.shape[1]] = copy
        assert pixel_digest(canvas) == want
    changed = cell.copy()
    changed[height // 2, width // 2, rng.integers(3)] ^= 1
    assert (pixel_digest(changed) == want) is (orbit(changed) == orbit(cell))


def test_the_shape_is_in_the_digest():
    data = np.arange(1, 19, dtype=np.uint8)
    shapes = [(2, 3, 3), (3, 2, 3), (1, 6, 3)]
    assert len({pixel_digest(data.reshape(shape)) for shape in shapes}) == 3
    assert pixel_digest(data.reshape(1, 6, 3)) == pixel_digest(data.reshape(6, 1, 3))
    # A black pixel inside is not a margin.
    apart = np.zeros((1, 3, 3), np.uint8)
    apart[0, ::2] = 9
    together = np.full((1, 2, 3), 9, np.uint8)
    assert pixel_digest(apart) != pixel_digest(together)


def test_a_black_image_has_no_digest():
    with pytest.raises(ValueError, match="all pixels are black"):
        pixel_digest(np.zeros((4, 4, 3), np.uint8))
