import os
import random
import shutil
from pathlib import Path

import pandas as pd
import pytest

from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.data.index import build_index, scan
from leukocls.data.published import subject_counts

# Train folder, prelim folder, prelim labels, final folder.
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
TRAIN = [
    "fold_0/all/UID_1_1_1_all.bmp",
    "fold_0/all/UID_1_2_1_all.bmp",
    "fold_0/all/UID_1_10_1_all.bmp",
    "fold_0/hem/UID_H6_1_1_hem.bmp",
    "fold_1/all/UID_51_3_1_all.bmp",
    "fold_1/hem/UID_H10_1_2_hem.bmp",
    "fold_2/all/UID_20_1_1_all.bmp",
    "fold_2/hem/UID_h3_1_1_hem.bmp",
    "fold_2/hem/UID_H3_2_1_hem.bmp",
]
PRELIM = [
    ("UID_57_29_1_all.bmp", "1.bmp", 1),
    ("UID_H25_4_2_hem.bmp", "2.bmp", 0),
    ("UID_57_3_1_all.bmp", "10.bmp", 1),
    ("UID_H30_1_1_hem.bmp", "11.bmp", 0),
]
FINAL = ["1.bmp", "2.bmp", "10.bmp"]


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


def write_labels(path, rows=PRELIM, start=""):
    lines = ["Patient_ID,new_names,labels", *(",".join(map(str, row)) for row in rows), ""]
    path.write_bytes((start + "\r\n".join(lines)).encode())


def make_tree(base, layout="challenge", train=TRAIN, prelim=PRELIM, final=FINAL):
    """Empty files with the right names: no more is looked at here."""
    train_folder, prelim_folder, labels, final_folder = (base / p for p in LAYOUTS[layout])
    for name in train:
        touch(train_folder / name)
    for _, name, _ in prelim:
        touch(prelim_folder / name)
    for name in final:
        touch(final_folder / name)
    write_labels(labels, prelim)
    return base


def rows(index):
    columns = ["cell", "part", "fold", "subject", "label"]
    return set(index.table[columns].itertuples(index=False, name=None))


EXPECTED_ROWS = {
    ("UID_1_1_1_all.bmp", "train", 0, "1", 1),
    ("UID_1_2_1_all.bmp", "train", 0, "1", 1),
    ("UID_1_10_1_all.bmp", "train", 0, "1", 1),
    ("UID_H6_1_1_hem.bmp", "train", 0, "H6", 0),
    ("UID_51_3_1_all.bmp", "train", 1, "51", 1),
    ("UID_H10_1_2_hem.bmp", "train", 1, "H10", 0),
    ("UID_20_1_1_all.bmp", "train", 2, "20", 1),
    ("UID_h3_1_1_hem.bmp", "train", 2, "H3", 0),
    ("UID_H3_2_1_hem.bmp", "train", 2, "H3", 0),
    ("1.bmp", "prelim", -1, "57", 1),
    ("2.bmp", "prelim", -1, "H25", 0),
    ("10.bmp", "prelim", -1, "57", 1),
    ("11.bmp", "prelim", -1, "H30", 0),
    ("1.bmp", "final", -1, "", -1),
    ("2.bmp", "final", -1, "", -1),
    ("10.bmp", "final", -1, "", -1),
}


def faults(root):
    """The message of the DataFault and its lines, one a fault."""
    with pytest.raises(DataFault) as caught:
        build_index(root)
    assert caught.value.exit_code == 1
    head, *lines = str(caught.value).split("\n  ")
    assert head == f"{root}: {len(lines)} fault(s) in the data"
    return lines


# --- what a good tree gives


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("above", [0, 1, 2])
def test_every_layout_from_every_height(tmp_path, layout, named, above):
    base = make_tree(tmp_path / "a" / "b", layout)
    root = (base, *base.parents)[above]
    index = build_index(root, layout if named else "auto")
    assert index.layout == layout
    assert index.root == root
    assert index.absent == ()
    assert not index.synthetic
    assert rows(index) == EXPECTED_ROWS
    assert len(index.table) == len(EXPECTED_ROWS)
    assert all((root / file).is_file() for file in index.table["file"])


def test_layouts_give_the_same_table(tmp_path):
    tables = [
        build_index(make_tree(tmp_path / layout, layout)).table.drop(columns="file")
        for layout in LAYOUTS
    ]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])


@pytest.mark.parametrize("seed", range(3))
def test_order_of_the_file_system_changes_nothing(tmp_path, monkeypatch, seed):
    root = make_tree(tmp_path / "tree", "kaggle")
    expected = build_index(tmp_path).table
    listing, listed = Path.iterdir, []

    def shuffled(path):
        entries = sorted(listing(path))
        random.Random(f"{seed} {path}").shuffle(entries)
        listed.append(path)
        return iter(entries)

    monkeypatch.setattr(Path, "iterdir", shuffled)
    pd.testing.assert_frame_equal(build_index(tmp_path).table, expected)
    # A walk that no longer goes through iterdir would not have been shuffled.
    assert root / "training_data" / "fold_0" / "all" in listed


def test_final_cells_are_in_numeric_order(tmp_path):
    table = build_index(make_tree(tmp_path)).table
    assert table.loc[table["part"] == "final", "cell"].to_list() == ["1.bmp", "2.bmp", "10.bmp"]


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_prelim_is_joined_by_name_not_by_row(tmp_path, start):
    write_labels(make_tree(tmp_path) / "phase2.csv", PRELIM[::-1], start)
    assert rows(build_index(tmp_path)) == EXPECTED_ROWS


def test_case_of_the_label_file_changes_nothing(tmp_path):
    labels = make_tree(tmp_path) / "phase2.csv"
    write_labels(labels, [(name.lower(), new.upper(), label) for name, new, label in PRELIM])
    assert "uid_h25_4_2_hem.bmp,2.BMP,0" in labels.read_text()
    assert rows(build_index(tmp_path)) == EXPECTED_ROWS


def test_suffix_in_upper_case_is_an_image_to_be_renamed(tmp_path):
    make_tree(tmp_path)
    renamed = ("fold_0/all/UID_1_1_1_all", "phase2/1", "phase3/2")
    for name in renamed:
        (tmp_path / f"{name}.bmp").rename(tmp_path / f"{name}.BMP")
    index, found = scan(tmp_path)
    assert {(row[0].lower(), *row[1:]) for row in rows(index)} == {
        (row[0].lower(), *row[1:]) for row in EXPECTED_ROWS
    }
    assert index.absent == ()
    assert {str(fault) for fault in found} == {
        f"{tmp_path / name}.BMP: the suffix is .BMP; rename it to {Path(name).name}.bmp"
        for name in renamed
    }


def test_hidden_files_are_not_ours(tmp_path):
    base = make_tree(tmp_path)
    for name in ("fold_0/all/.DS_Store", "phase2/._1.bmp", "phase3/.hidden"):
        touch(base / name)
    assert rows(build_index(base)) == EXPECTED_ROWS


def test_prelim_images_that_are_not_there_are_counted(tmp_path):
    base = make_tree(tmp_path)
    (base / "phase2" / "10.bmp").unlink()
    assert build_index(base).absent == ("10.bmp",)


def test_prelim_and_final_may_be_missing(tmp_path):
    base = make_tree(tmp_path, prelim=[], final=[])
    (base / "phase2.csv").unlink()
    index = build_index(base)
    assert set(index.table["part"]) == {"train"}
    assert "prelim has 0 of 1,867 images" in index.incomplete()


def test_genuine_sample(sample_root):
    index = build_index(sample_root)
    assert index.layout == "kaggle"
    assert not index.synthetic
    assert index.counts() == {"fold_0": 40, "fold_1": 25, "fold_2": 37, "prelim": 8}
    assert len(index.absent) == 1_867 - 8
    table = index.table
    assert table.loc[table["cell"] == "UID_h3_1_1_hem.bmp", "subject"].to_list() == ["H3"]
    for part in ("fold_0 has 40 of 3,527 images", "prelim has 8 of 1,867 images"):
        assert part in index.incomplete()


# --- the whole data set, by name


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Every name of C-NMC 2019 as far as counts say; h3 in lower case as the genuine files are."""
    train, prelim = [], []
    for row in subject_counts().itertuples():
        kind = row.label.lower()
        subject = "h3" if (row.split, row.subject) == ("train", "H3") else row.subject
        names = [f"UID_{subject}_1_{n}_{kind}.bmp" for n in range(1, row.n_images + 1)]
        if row.split == "train":
            train += [f"fold_{int(row.fold)}/{kind}/{name}" for name in names]
        else:
            prelim += [(name, "", int(row.label == "ALL")) for name in names]
    prelim = [(name, f"{n}.bmp", label) for n, (name, _, label) in enumerate(prelim, start=1)]
    base = tmp_path_factory.mktemp("complete")
    return build_index(make_tree(base, "tcia", train, prelim, [f"{n}.bmp" for n in range(1, 2587)]))


# RECIPES §1, Table of parts.
@pytest.mark.parametrize(
    ("part", "fold", "subjects", "cells"),
    [
        ("train", 0, (19, 9), (2_397, 1_130)),
        ("train", 1, (11, 3), (2_418, 1_163)),
        ("train", 2, (17, 14), (2_457, 1_096)),
        ("train", None, (47, 26), (7_272, 3_389)),
        ("prelim", -1, (13, 15), (1_219, 648)),
    ],
)
def test_published_counts(complete, part, fold, subjects, cells):
    table = complete.table[complete.table["part"] == part]
    if fold is not None:
        table = table[table["fold"] == fold]
    groups = [table[table["label"] == label] for label in (1, 0)]
    assert tuple(len(group) for group in groups) == cells
    assert tuple(group["subject"].nunique() for group in groups) == subjects
    assert len(table) == sum(cells)


def test_complete_tree_is_complete(complete):
    assert complete.counts() == complete.expected()
    assert complete.expected() == {
        "fold_0": 3_527,
        "fold_1": 3_581,
        "fold_2": 3_553,
        "prelim": 1_867,
        "final": 2_586,
    }
    assert complete.incomplete() == ""
    assert complete.absent == ()
    assert (complete.table["part"] == "train").sum() == 10_661


def test_h3_in_lower_case_is_one_of_the_healthy(complete):
    table = complete.table
    lower = table[table["cell"].str.startswith("UID_h3_")]
    assert len(lower) == 36
    assert lower[["part", "fold", "subject", "label"]].drop_duplicates().to_numpy().tolist() == [
        ["train", 2, "H3", 0]
    ]


def test_every_subject_has_its_published_cells(complete):
    table = complete.table[complete.table["part"] != "final"]
    have = table.groupby(["part", "fold", "label", "subject"]).size().to_dict()
    want = {
        (row.split, -1 if pd.isna(row.fold) else int(row.fold), int(row.label == "ALL"), subject): n
        for row in subject_counts().itertuples()
        for subject, n in [(str(row.subject), row.n_images)]
    }
    assert have == want


@pytest.mark.parametrize("part", ["fold_1/hem/UID_H10_1_2_hem.bmp", "phase2/2.bmp"])
def test_incomplete_names_the_part(tmp_path, part):
    index = build_index(make_tree(tmp_path))
    before = index.counts()
    (tmp_path / part).unlink()
    after = build_index(tmp_path)
    key = "prelim" if "phase2" in part else "fold_1"
    assert after.counts()[key] == before[key] - 1
    assert f"{key} has {before[key] - 1} of " in after.incomplete()


def test_final_is_optional_but_half_of_it_is_not(tmp_path):
    assert "final has 3 of 2,586" in build_index(make_tree(tmp_path)).incomplete()
    shutil.rmtree(tmp_path / "phase3")
    assert "final" not in build_index(tmp_path).incomplete()


# --- synthetic trees


@pytest.mark.parametrize("below", ["..", "", "C-NMC_Leukemia", "C-NMC_Leukemia/training_data"])
def test_a_synthetic_tree_is_known_at_every_height(small_tree, below):
    index = build_index(small_tree / below)
    assert index.synthetic
    complete = below != "C-NMC_Leukemia/training_data"
    assert (index.incomplete() == "") is complete


def test_a_synthetic_tree_that_lost_a_cell_is_incomplete(small_tree, tmp_path):
    # Names and the mark decide; the pixels may stay behind.
    for path in small_tree.rglob("*.bmp"):
        touch(tmp_path / path.relative_to(small_tree))
    labels = next(small_tree.rglob("*.csv"))
    for path in (labels, small_tree / "synthetic.json"):
        shutil.copy(path, tmp_path / path.relative_to(small_tree))
    index = build_index(tmp_path)
    assert index.incomplete() == ""
    (tmp_path / index.table["file"][0]).unlink()
    have = index.expected()["fold_0"]
    assert build_index(tmp_path).incomplete() == f"fold_0 has {have - 1} of {have} images"


# --- faults in the data: D2, D5


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("fold_0/all/UID_1_7_1_hem.bmp", "stated all, suffix hem, subject 1 is all"),
        ("fold_1/hem/UID_H10_7_1_all.bmp", "stated hem, suffix all, subject H10 is hem"),
        ("fold_1/all/UID_H10_7_1_all.bmp", "stated all, suffix all, subject H10 is hem"),
        ("fold_2/all/UID_h3_7_1_all.bmp", "stated all, suffix all, subject h3 is hem"),
        ("fold_2/hem/UID_20_7_1_hem.bmp", "stated hem, suffix hem, subject 20 is all"),
        ("fold_0/all/UID_1_1_1_all_copy.bmp", "the name is not UID_"),
        ("fold_0/all/12.bmp", "the name is not UID_"),
        ("fold_0/all/UID_X1_1_1_all.bmp", "the name is not UID_"),
        ("fold_0/all/notes.txt", "not a .bmp image"),
        ("fold_0/all/UID_1_7_1_all.png", "not a .bmp image"),
        ("fold_0/hem/more/UID_H6_7_1_hem.bmp", "not a .bmp image"),
        ("fold_0/hem/UID_H6_7_1_hem.bmp/1", "not a .bmp image"),
        ("fold_2/all/UID_1_1_1_all.bmp", "the same cell as"),
        ("fold_0/all/UID_1_1_1_all.BMP", "in case only"),
        ("phase2/UID_57_29_1_all.bmp", "not a numbered image"),
        ("phase2/1_copy.bmp", "not a numbered image"),
        ("phase2/1.BMP", "in case only"),
        ("phase2/99.bmp", "not listed in"),
        ("phase2/01.bmp", "not listed in"),
        ("phase2/notes.txt", "not a .bmp image"),
        ("phase3/a.bmp", "not a numbered image"),
        ("phase3/2.BMP", "in case only"),
        ("phase3/notes.txt", "not a .bmp image"),
    ],
)
def test_a_wrong_file_is_named_not_skipped(tmp_path, path, says):
    touch(make_tree(tmp_path) / path)
    (line,) = faults(tmp_path)
    assert says in line
    # Of a folder the folder is named; of two names that differ in case either may be.
    named = "/".join(path.split("/")[:3])
    assert line.lower().startswith(f"{tmp_path / named}: ".lower())
    assert any(word in line for word in ("restore", "remove", "move it out"))


@pytest.mark.parametrize(
    ("rows", "line", "says"),
    [
        ([("UID_57_29_1_all.bmp", "1.bmp", 0)], 2, "stated hem, suffix all, subject 57 is all"),
        ([("UID_H57_29_1_all.bmp", "1.bmp", 1)], 2, "stated all, suffix all, subject H57 is hem"),
        ([("UID_h25_4_2_hem.bmp", "1.bmp", 1)], 2, "stated all, suffix hem, subject h25 is hem"),
        ([PRELIM[0], PRELIM[0]], 3, "1.bmp is listed twice"),
        ([PRELIM[0], ("UID_57_3_1_all.bmp", "1.BMP", 1)], 3, "1.bmp is listed twice"),
    ],
)
def test_a_wrong_line_of_the_label_file_is_named(tmp_path, rows, line, says):
    make_tree(tmp_path, prelim=PRELIM[:1])
    write_labels(tmp_path / "phase2.csv", rows)
    (fault,) = faults(tmp_path)
    assert fault.startswith(f"{tmp_path / 'phase2.csv'}, line {line}: ")
    assert says in fault
    assert "fetch the original file" in fault


@pytest.mark.parametrize(
    "row",
    ["UID_57_29_all.bmp,1.bmp,1", "UID_57_29_1_all.bmp,one.bmp,1", "UID_57_29_1_all.bmp,1.bmp,2",
     "UID_57_29_1_all.bmp,1.bmp,", "UID_57_29_1_all.bmp", ",,"],
)  # fmt: skip
def test_a_line_that_does_not_parse_is_named(tmp_path, row):
    make_tree(tmp_path, prelim=PRELIM[1:])
    with open(tmp_path / "phase2.csv", "a") as stream:
        stream.write(row + "\r\n")
    (fault,) = faults(tmp_path)
    assert fault.startswith(f"{tmp_path / 'phase2.csv'}, line 5: does not parse; fetch")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is missing"),
        (b"", "needs the columns Patient_ID,new_names,labels"),
        (b"Patient_ID,new_names,labels\r\n", "lists no cell"),
        (b"name,label\r\n1.bmp,1\r\n", "needs the columns Patient_ID,new_names,labels"),
        (b"Patient_ID;new_names;labels\r\n", "needs the columns Patient_ID,new_names,labels"),
        (b"PK\x03\x04\xff\xfe\x80", "needs the columns Patient_ID,new_names,labels"),
    ],
)
def test_an_unusable_label_file_is_one_fault_whatever_else_is_wrong(tmp_path, content, says):
    # More images than a report has lines: the cause must not drown in what follows from it.
    base = make_tree(tmp_path, "tcia", prelim=[("", f"{n}.bmp", 1) for n in range(1, 31)])
    labels = base / LAYOUTS["tcia"][2]
    labels.unlink()
    if content is not None:
        labels.write_bytes(content)
    stray = base / LAYOUTS["tcia"][0] / "fold_0" / "all" / "notes.txt"
    unnumbered = base / LAYOUTS["tcia"][1] / "one.bmp"
    touch(stray)
    touch(unnumbered)
    lines = faults(base)
    assert len(lines) == 3
    (line,) = [line for line in lines if line.startswith(f"{labels}: ")]
    assert says in line
    assert "fetch" in line
    assert {line.partition(": ")[0] for line in lines} == {str(labels), str(stray), str(unnumbered)}


def test_six_faults_six_lines(tmp_path):
    wrong = [
        "fold_0/all/UID_1_7_1_hem.bmp",
        "fold_1/hem/UID_51_7_1_hem.bmp",
        "fold_2/hem/notes.txt",
        "phase2/99.bmp",
        "phase3/a.bmp",
    ]
    make_tree(tmp_path)
    for path in wrong:
        touch(tmp_path / path)
    write_labels(tmp_path / "phase2.csv", [*PRELIM, PRELIM[0]])
    lines = faults(tmp_path)
    named = {line.partition(": ")[0] for line in lines}
    labels = f"{tmp_path / 'phase2.csv'}, line 6"
    assert named == {*(str(tmp_path / path) for path in wrong), labels}
    assert len(lines) == 6


def test_a_long_list_of_faults_says_how_many_more(tmp_path):
    make_tree(tmp_path)
    for number in range(23):
        touch(tmp_path / "phase3" / f"{10 + number}.bmp")
        touch(tmp_path / "phase3" / f"{10 + number}.BMP")
    with pytest.raises(DataFault, match=r"23 fault\(s\)") as caught:
        build_index(tmp_path)
    assert str(caught.value).endswith("\n  … and 3 more lines")
    assert str(caught.value).count("in case only") == 20


# --- refusals


@pytest.mark.parametrize(
    ("below", "layout", "says"),
    [
        ("nowhere", "auto", r"nowhere: no such folder or file\. Set data\.root"),
        ("empty", "auto", r"empty: no C-NMC 2019 data here; .*fold_0.*data=synthetic"),
        ("photos", "auto", r"photos: no C-NMC 2019 data here; .*Set data\.root"),
        ("tree", "kaggle", r"tree: no C-NMC 2019 data here; looked for training_data/fold_0"),
        ("deep", "auto", r"deep: no C-NMC 2019 data here"),
        ("hollow", "auto", r"hollow: the folders of the challenge layout are there, but no \.bmp"),
        ("tree", "zip", r"data\.layout=zip: choose auto, tcia, kaggle, challenge"),
    ],
)
def test_a_wrong_root_is_refused_with_a_remedy(tmp_path, below, layout, says):
    make_tree(tmp_path / "tree")
    make_tree(tmp_path / "deep" / "1" / "2" / "3")
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "photos" / "cat.bmp")
    (tmp_path / "hollow" / "fold_0" / "all").mkdir(parents=True)
    with pytest.raises(LeukoclsError, match=says) as caught:
        build_index(tmp_path / below, layout)
    assert caught.value.exit_code == 2
