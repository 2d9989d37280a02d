"""Other data sets: one CSV of images in any format, through every door that C-NMC goes through."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import only_run, record, small, train_here
from PIL import Image

from leukocls import pack
from leukocls import verify as verb
from leukocls.artifacts import predictions
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.data.index import COLUMNS, build_index, scan
from leukocls.data.splits import SplitOptions, make_split
from leukocls.data.store import data_digest, open_store
from leukocls.data.verify import checked_index, examine

SUFFIXES = (".png", ".tif", ".jpg", ".bmp", ".tiff", ".jpeg")
HEADER = ["cell", "subject", "label", "path"]


def picture(number):
    """A cell of its own size, some smaller and some larger than the crop; no pixel is black."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(20, 90, 2)
    return rng.integers(1, 256, (height, width, 3), dtype=np.uint8)


def put(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    Image.fromarray(image).save(path)


def laboratory():
    """Rows cell, subject, label, path: six subjects of each class with two to four cells."""
    rows = []
    for number in range(12):
        subject, kind = f"P{number}", "ALL" if number % 2 else "HEM"
        for cell in range(2 + number % 3):
            name = f"{subject}-{cell}"
            suffix = SUFFIXES[len(rows) % len(SUFFIXES)]
            # Either way of writing a label may be used, even in one file.
            label = kind if cell else {"ALL": "1", "HEM": "0"}[kind]
            rows.append((name, subject, label, f"{kind.lower()}/{name}{suffix}"))
    return rows


ROWS = laboratory()
LABEL = {name: int(label in ("1", "ALL")) for name, _, label, _ in ROWS}


def as_csv(rows, header=HEADER):
    return "".join(",".join(map(str, row)) + "\n" for row in (header, *rows))


def write_csv(path, rows, header=HEADER):
    path.write_text(as_csv(rows, header))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("laboratory")
    for number, (_, _, _, path) in enumerate(ROWS):
        put(folder / path, picture(number))
    return folder


@pytest.fixture
def folder(images, tmp_path):
    """The images in a folder of the test's own, as links that are replaced, never written to."""
    for _, _, _, path in ROWS:
        (tmp_path / "lab" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lab" / path).hardlink_to(images / path)
    return tmp_path / "lab"


@pytest.fixture
def table(folder):
    return write_csv(folder / "cells.csv", ROWS)


@pytest.fixture
def told(capsys, tmp_path):
    """`verify --json`: the exit code, and path and cause of each fault, all with a remedy."""

    def run(root, *options):
        capsys.readouterr()
        code = verb.main([str(root), "--cache", str(tmp_path / "cache"), "--json", *options])
        document = json.loads(capsys.readouterr().out)
        assert all(fault["remedy"] for fault in document["faults"])
        return code, {(fault["path"], fault["cause"]) for fault in document["faults"]}

    return run


def replaced(number, **changes):
    """ROWS with one of them changed, by column."""
    row = [changes.get(column, value) for column, value in zip(HEADER, ROWS[number], strict=True)]
    return [*ROWS[:number], tuple(row), *ROWS[number + 1 :]]


def names(index, rows):
    return set(index.table["cell"].iloc[rows])


# --- what a good table gives


def test_the_index_of_a_table(table):
    index, faults = scan(table)
    assert faults == []
    assert (index.layout, index.root, index.source) == ("table", table.parent, table)
    assert not index.synthetic
    assert not index.published
    assert index.incomplete() == ""
    assert index.counts() == index.expected() == {"train": len(ROWS)}
    assert index.table.columns.to_list() == COLUMNS
    found = index.table.set_index("cell")
    assert sorted(found.index) == sorted(LABEL)
    for name, subject, _, path in ROWS:
        row = found.loc[name]
        assert (row["subject"], row["group"], row["file"]) == (subject, subject, path)
        assert (row["label"], row["part"], row["fold"]) == (LABEL[name], "train", -1)


def test_the_order_of_the_rows_changes_nothing(folder, table, tmp_path):
    other = write_csv(folder / "reversed.csv", ROWS[::-1])
    first, second = (checked_index(path, cache=tmp_path / "cache") for path in (table, other))
    pd.testing.assert_frame_equal(first.table, second.table)
    assert data_digest(first) == data_digest(second)


@pytest.mark.parametrize("words", [("1", "0"), ("ALL", "HEM"), ("all", "hem"), ("All", "Hem")])
def test_labels_are_numbers_or_names(folder, words):
    rows = [(name, subject, words[1 - LABEL[name]], path) for name, subject, _, path in ROWS]
    index = build_index(write_csv(folder / "cells.csv", rows))
    assert dict(zip(index.table["cell"], index.table["label"], strict=True)) == LABEL


def test_parquet_other_columns_spaces_and_line_ends_do_not_matter(folder, table):
    wanted = build_index(table).table
    frame = pd.DataFrame(ROWS, columns=HEADER)
    frame.assign(stain="Giemsa").to_parquet(folder / "cells.parquet")
    pd.testing.assert_frame_equal(build_index(folder / "cells.parquet").table, wanted)
    spaced = [tuple(f" {value} " for value in row) for row in ROWS]
    text = as_csv(spaced, [*HEADER]).replace("\n", "\r\n")
    (folder / "spaced.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    pd.testing.assert_frame_equal(build_index(folder / "spaced.csv").table, wanted)


def test_the_column_split_names_the_parts(folder):
    words = ["train", "val", "prelim", "final"]
    rows = [(*row, words[int(row[1][1:]) % 4]) for row in ROWS]
    # Whoever wants only predictions of final need not know its labels.
    rows = [(*row[:2], "", *row[3:]) if row[4] == "final" else row for row in rows]
    index = build_index(write_csv(folder / "cells.csv", rows, [*HEADER, "split"]))
    found = index.table.set_index("cell")
    for name, _, label, _, word in rows:
        part = "train" if word == "val" else word
        assert found.loc[name, "part"] == part
        assert found.loc[name, "label"] == (LABEL[name] if label else -1)
    assert set(index.counts()) == {"train", "prelim", "final"}


def test_the_store_holds_the_central_crop_on_black(table, tmp_path):
    index = checked_index(table, cache=tmp_path / "cache")
    digest = data_digest(index)
    store = open_store(index, digest, tmp_path / "cache", 64, 64)
    assert store.shape == (len(ROWS), 64, 64, 3)
    smaller, larger = 0, 0
    for row, file in enumerate(index.table["file"]):
        with Image.open(index.root / file) as image:
            left, top = round((image.width - 64) / 2), round((image.height - 64) / 2)
            smaller, larger = smaller + (left < 0), larger + (left > 0)
            # Pillow fills what lies outside with black.
            oracle = np.asarray(image.crop((left, top, left + 64, top + 64)))
        assert np.array_equal(store[row], oracle), file
    assert min(smaller, larger) > 5


def test_the_store_is_resized_and_may_be_larger_than_cnmc(table, tmp_path):
    index = checked_index(table, cache=tmp_path / "cache")
    store = open_store(index, "d" * 64, tmp_path / "cache", 500, 32)
    with Image.open(index.root / index.table["file"][0]) as image:
        left, top = round((image.width - 500) / 2), round((image.height - 500) / 2)
        crop = image.crop((left, top, left + 500, top + 500))
        oracle = np.asarray(crop.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(store[0], oracle)
    with pytest.raises(LeukoclsError, match=r"data\.crop=2049: choose a side of 1 to 2048"):
        open_store(index, "d" * 64, tmp_path / "cache", 2049, 32)


def test_the_digest_of_a_table_is_that_of_its_files_and_rows(table, tmp_path):
    index = checked_index(table, cache=tmp_path / "cache")
    lines = [
        f"{hashlib.sha256((index.root / row.file).read_bytes()).hexdigest()}  "
        f"train {row.cell} {row.subject} {row.label}\n"
        for row in index.table.itertuples()
    ]
    assert data_digest(index) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_verify_and_pack_take_a_table(table, told, tmp_path, capsys):
    assert told(table) == (0, set())
    cache = ["--cache", str(tmp_path / "cache")]
    assert verb.main([str(table), *cache]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{table} (table layout)\n")
    assert "No fault found in what is there." in shown
    assert "without a subject" not in shown
    assert pack.main([str(table), "--crop", "40", *cache, "--json"]) == 0
    packed = json.loads(capsys.readouterr().out)
    assert packed["shape"] == [len(ROWS), 40, 40, 3]
    assert packed["counts"] == {"train": len(ROWS)}
    assert packed["incomplete"] == ""
    assert Path(packed["store"]).is_file()


# --- splits


@pytest.mark.parametrize("seed", range(3))
def test_subject_keeps_people_apart(table, seed):
    index = build_index(table)
    held_out = []
    for fold in range(5):
        split = make_split(index, "subject", SplitOptions(fold=fold, seed=seed))
        assert not split.leaky
        sides = split.table(index).groupby("split")["subject"].agg(set)
        assert sides["train"].isdisjoint(sides["val"])
        assert set(split.table(index)["cell"]) == set(LABEL)
        held_out += names(index, split.rows["val"])
    assert sorted(held_out) == sorted(LABEL)


def test_cell_takes_people_apart_and_is_leaky(table):
    index = build_index(table)
    split = make_split(index, "cell")
    assert split.leaky
    sides = split.table(index).groupby("split")["subject"].agg(set)
    assert sides["train"] & sides["val"]


def test_honest_scores_prelim_once(folder):
    rows = [(*row, "prelim" if row[1] in ("P10", "P11") else "train") for row in ROWS]
    index = build_index(write_csv(folder / "cells.csv", rows, [*HEADER, "split"]))
    split = make_split(index, "honest")
    assert (split.selection, split.tests, split.leaky) == ("val", ("prelim",), False)
    wanted = {row[0] for row in rows if row[4] == "prelim"}
    assert names(index, split.rows["prelim"]) == wanted
    assert names(index, split.rows["train"]).isdisjoint(wanted)
    assert (
        names(index, split.rows["train"]) | names(index, split.rows["val"]) == set(LABEL) - wanted
    )


def test_the_file_s_own_split_is_a_scheme(folder):
    words = {"P0": "val", "P1": "val", "P10": "prelim", "P11": "prelim"}
    rows = [(*row, words.get(row[1], "train")) for row in ROWS]
    table = write_csv(folder / "cells.csv", rows, [*HEADER, "split"])
    index = build_index(table)
    split = make_split(index, str(table))
    for word in ("train", "val", "prelim"):
        assert names(index, split.rows[word]) == {row[0] for row in rows if row[4] == word}
    assert (split.selection, split.tests, split.leaky) == ("val", ("prelim",), False)
    # The same person on two sides of val: allowed by hand, and marked.
    rows = [(*row[:4], "val" if row[0] in ("P0-0", "P1-0") else "train") for row in ROWS]
    table = write_csv(folder / "leaky.csv", rows, [*HEADER, "split"])
    assert make_split(build_index(table), str(table)).leaky


def test_schemes_that_need_what_a_table_lacks_are_refused(table):
    index = build_index(table)
    for scheme in ("lofo", "challenge", "honest"):
        with pytest.raises(LeukoclsError, match="subject") as caught:
            make_split(index, scheme)
        assert "C-NMC" not in str(caught.value)


def test_without_subjects_only_cell_splits(folder, told, tmp_path, capsys):
    rows = [(name, "" if name == "P3-1" else subject, *rest) for name, subject, *rest in ROWS]
    table = write_csv(folder / "cells.csv", rows)
    index = checked_index(table, cache=tmp_path / "cache")
    assert index.table.set_index("cell").loc["P3-1", ["subject", "group"]].to_list() == ["", ""]
    with pytest.raises(
        LeukoclsError, match=r"1 cells have no subject.*split_scheme=cell"
    ) as caught:
        make_split(index, "subject")
    assert caught.value.exit_code == 2
    assert make_split(index, "cell").leaky
    assert told(table) == (0, set())
    assert verb.main([str(table), "--cache", str(tmp_path / "cache")]) == 0
    assert "1 cells without a subject: only split_scheme=cell can split them" in (
        capsys.readouterr().out
    )


# --- copies and people in two places


def test_one_image_under_two_subjects_makes_them_one(folder, table, told, tmp_path):
    # P1 and P3 are ALL; the copy is turned and in another lossless format.
    files = {"P1-0": "one.png", "P3-0": "other.tif"}
    put(folder / files["P1-0"], picture(70))
    put(folder / files["P3-0"], np.rot90(picture(70)).copy())
    write_csv(table, [(*row[:3], files.get(row[0], row[3])) for row in ROWS])
    assert told(table) == (0, set())
    index = checked_index(table, cache=tmp_path / "cache")
    groups = index.table.groupby("group")["subject"].agg(set).to_dict()
    assert groups.pop("P1+P3") == {"P1", "P3"}
    assert all(subjects == {group} for group, subjects in groups.items())
    (copies,) = examine(table, "auto", False, tmp_path / "cache").duplicates
    assert set(index.table["cell"][list(copies.rows)]) == {"P1-0", "P3-0"}
    assert copies.kind == "turned"
    for fold in range(5):
        split = make_split(index, "subject", SplitOptions(fold=fold))
        val = set(index.table["subject"].iloc[split.rows["val"]])
        assert len(val & {"P1", "P3"}) in (0, 2)


@pytest.mark.parametrize(
    "pairs", [(("P1", "P3"), ("P3", "P5")), (("P1", "P5"), ("P3", "P5")), (("P1", "P3", "P5"),)]
)
def test_merging_is_transitive(folder, table, tmp_path, pairs):
    """Subjects with an image in common are one, whichever image links them."""
    files = {}
    for number, pair in enumerate(pairs):
        for subject in pair:
            name = f"{subject}-{number}"
            files[name] = f"{name}.png"
            put(folder / files[name], picture(70 + number))
    assert files.keys() <= LABEL.keys()
    rows = [(*row[:3], files.get(row[0], row[3])) for row in ROWS]
    index = checked_index(write_csv(table, rows), cache=tmp_path / "cache")
    groups = dict(zip(index.table["subject"], index.table["group"], strict=True))
    merged = {"P1", "P3", "P5"}
    assert {subject for subject, group in groups.items() if group == "P1+P3+P5"} == merged
    assert all(subject in merged or group == subject for subject, group in groups.items())


def copied(folder, *cells):
    """The rows with one image for all of `cells`."""
    for name in cells:
        put(folder / f"{name}.png", picture(70))
    return [(*row[:3], f"{row[0]}.png" if row[0] in cells else row[3]) for row in ROWS]


def test_one_image_in_two_classes_is_a_fault(folder, told):
    table = write_csv(folder / "cells.csv", copied(folder, "P1-0", "P2-0"))
    code, faults = told(table)
    assert code == 1
    assert faults == {(str(folder / "P1-0.png"), f"the same file as {folder / 'P2-0.png'}")}


def test_one_image_in_two_parts_is_a_fault(folder, told):
    rows = [
        (*row, "prelim" if row[1] in ("P10", "P11") else "train")
        for row in copied(folder, "P1-0", "P11-0")
    ]
    code, faults = told(write_csv(folder / "cells.csv", rows, [*HEADER, "split"]))
    assert code == 1
    assert (str(folder / "P1-0.png"), f"the same file as {folder / 'P11-0.png'}") in faults


def test_a_subject_in_train_and_prelim_is_a_fault(folder, told, tmp_path):
    rows = [(*row, "prelim" if row[0] in ("P10-0", "P11-0", "P11-1") else "train") for row in ROWS]
    table = write_csv(folder / "cells.csv", rows, [*HEADER, "split"])
    code, faults = told(table)
    assert code == 1
    path = {row[0]: str(folder / row[3]) for row in ROWS}
    assert {cause for _, cause in faults} == {
        "subject P10 is in train and in prelim",
        "subject P11 is in train and in prelim",
    }
    assert {named for named, _ in faults} == {path["P10-0"], path["P11-0"]}
    with pytest.raises(DataFault, match="keep a subject in one part"):
        checked_index(table, cache=tmp_path / "cache")


# --- what is wrong with a table


@pytest.mark.parametrize(
    ("rows", "row", "says"),
    [
        (replaced(3, label="2"), 5, "the label is '2', not one of 1, ALL, 0, HEM"),
        (replaced(3, label="blast"), 5, "the label is 'blast'"),
        (replaced(3, label=""), 5, "the label is ''"),
        (replaced(0, label="-1"), 2, "the label is '-1'"),
        (
            replaced(5, cell=ROWS[1][0]),
            7,
            f"the cell's name '{ROWS[1][0]}' is empty or not unique",
        ),
        (
            [*ROWS, ROWS[0]],
            len(ROWS) + 2,
            f"the cell's name '{ROWS[0][0]}' is empty or not unique",
        ),
        (replaced(1, cell=""), 3, "the cell's name '' is empty"),
        (replaced(2, path=""), 4, "the path is empty"),
        (replaced(2, path="  "), 4, "the path is empty"),
    ],
)
def test_a_wrong_row_is_named_with_its_number(folder, told, tmp_path, rows, row, says):
    table = write_csv(folder / "cells.csv", rows)
    code, faults = told(table)
    assert code == 1
    ((path, cause),) = faults
    assert path == f"{table}, row {row}"
    assert cause.startswith(says)
    # Files may be missing, rows may not be wrong.
    assert told(table, "--partial") == (1, faults)
    with pytest.raises(DataFault, match="correct the row"):
        checked_index(table, partial=True, cache=tmp_path / "cache")
    with pytest.raises(DataFault, match="correct the row"):
        build_index(table)


@pytest.mark.parametrize("word", ["test", "Train", "validation", "1"])
def test_an_unknown_split_is_named(folder, told, word):
    rows = [(*row, word if number == 4 else "train") for number, row in enumerate(ROWS)]
    table = write_csv(folder / "cells.csv", rows, [*HEADER, "split"])
    code, faults = told(table)
    assert code == 1
    assert faults == {
        (f"{table}, row 6", f"the split is '{word}', not one of train, val, prelim, final")
    }


def test_empty_lines_are_no_rows(folder, told):
    head, *lines = as_csv(replaced(3, label="2")).splitlines()
    table = folder / "cells.csv"
    table.write_text("\n".join([head, "", *lines[:2], "", *lines[2:], "", ""]))
    code, faults = told(table)
    assert code == 1
    assert {path for path, _ in faults} == {f"{table}, row 5"}


def test_all_wrong_rows_are_in_one_report(folder, told):
    rows = replaced(0, label="2")
    rows[4] = (rows[3][0], *rows[4][1:])
    rows[6] = (*rows[6][:3], "")
    (folder / rows[9][3]).unlink()
    (folder / rows[9][3]).write_bytes(b"<!DOCTYPE html>")
    table = write_csv(folder / "cells.csv", rows)
    code, faults = told(table)
    assert code == 1
    assert {path for path, _ in faults} == {
        f"{table}, row 2", f"{table}, row 6", f"{table}, row 8", str(folder / rows[9][3]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("cell,subject,label\na,1,1\n", r"no column path; a data set is a CSV with cell,subject"),
        ("name,patient,class,file\na,1,1,a.png\n", r"no column cell, subject, label, path"),
        ("Cell,cell,subject,label,path\na,a,1,1,a.png\n", r"duplicate column name"),
        ("cell;subject;label;path\na,1,1,a.png\n", r"semicolons"),
        ("cell,subject,label,path\n", r"no rows; a data set is a CSV"),
        ("cell,subject,label,path\na,1,1\n", r"4 columns, row 2.* another number"),
        ("cell,cell,subject,label,path\na,a,1,1,a.png\n", r"duplicate column name"),
        ("", r"is empty"),
        ("\n\n", r"is empty"),
    ],
)
def test_what_is_no_table_of_cells_is_refused(tmp_path, content, says):
    table = tmp_path / "cells.csv"
    table.write_text(content)
    with pytest.raises(LeukoclsError, match=says) as caught:
        verb.main([str(table), "--cache", str(tmp_path / "cache")])
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(f"{table}: ")


def test_an_image_as_root_is_refused(table, tmp_path):
    path = table.parent / ROWS[0][3]
    with pytest.raises(LeukoclsError, match="neither CSV") as caught:
        checked_index(path, cache=tmp_path / "cache")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("mode", "kind", "name"),
    [
        ("CMYK", "TIFF", "a.tif"),
        ("P", "PNG", "a.png"),
        ("RGB", "PNG", "a.bmp"),
    ],
)
def test_an_image_that_is_not_8_bit_rgb_is_named(folder, told, mode, kind, name):
    Image.fromarray(picture(1)).convert(mode).save(folder / name, kind)
    table = write_csv(folder / "cells.csv", replaced(2, path=name))
    code, faults = told(table)
    assert code == 1
    assert {path for path, _ in faults} == {str(folder / name)}
    assert told(table, "--partial") == (1, faults)


def test_a_missing_image_is_a_fault_unless_partial(folder, table, told, tmp_path):
    for name in (ROWS[0][3], ROWS[5][3]):
        (folder / name).unlink()
    code, faults = told(table)
    assert code == 1
    cause = f"images that the table lists are missing: {ROWS[0][0]}, {ROWS[5][0]} (2 in all)"
    assert faults == {(str(table), cause)}
    with pytest.raises(DataFault, match=r"data\.partial=true"):
        checked_index(table, cache=tmp_path / "cache")
    assert told(table, "--partial") == (0, set())
    index = checked_index(table, partial=True, cache=tmp_path / "cache")
    assert set(index.table["cell"]) == set(LABEL) - {ROWS[0][0], ROWS[5][0]}
    assert index.incomplete() == "2 images that the table lists are missing"


# --- the real command line


def test_a_laboratory_s_own_cells_train(table, tmp_path, train):
    outputs = tmp_path / "outputs"
    outcome = train(*small(table, outputs), "split_scheme=subject", "data.crop=64")
    assert outcome.code == 0, outcome.err
    run = only_run(outputs)
    said = record(run)
    assert (said["status"], said["split_scheme"], said["marks"]) == ("done", "subject", [])
    assert said["selection"]["set"] == "val"
    index = checked_index(table, cache=tmp_path / "store")
    assert said["data_digest"] == data_digest(index)
    split = pd.read_csv(run / "split.csv", dtype=str)
    wanted = make_split(index, "subject").table(index).astype(str)
    pd.testing.assert_frame_equal(split, wanted, check_dtype=False)
    sides = split.groupby("split")["subject"].agg(set)
    assert sides["train"].isdisjoint(sides["val"])
    assert dict(zip(split["cell"], split["label"].astype(int), strict=True)) == LABEL
    frame = predictions.read(run / "predictions.parquet")
    assert set(frame["split"]) == {"val"}
    for _, cells in frame.groupby("epoch"):
        assert sorted(cells["cell"]) == sorted(split["cell"][split["split"] == "val"])
        assert dict(zip(cells["cell"], cells["label"], strict=True)).items() <= LABEL.items()


def test_marks_of_a_partial_and_leaky_run(folder, table, tmp_path, train):
    (folder / ROWS[0][3]).unlink()
    outputs = tmp_path / "outputs"
    command = [*small(table, outputs), "split_scheme=cell", "trainer.max_epochs=1"]
    refused = train(*command)
    assert refused.code == 1
    assert f"{table}: images that the table lists are missing: {ROWS[0][0]}" in refused.err
    assert not list(outputs.rglob("run.json"))
    outcome = train(*command, "data.partial=true")
    assert outcome.code == 0, outcome.err
    said = record(only_run(outputs))
    assert sorted(said["marks"]) == ["LEAKY", "PARTIAL"]
    assert said["split_scheme"] == "cell"


@pytest.mark.parametrize("spelling", ["p10", "P010", "p0010"])
def test_a_subject_spelt_otherwise_is_the_same(folder, told, spelling):
    rows = [(*row, "train") for row in ROWS if row[0] != "P10-0"]
    (moved,) = (row for row in ROWS if row[0] == "P10-0")
    rows.append((moved[0], spelling, *moved[2:], "prelim"))
    code, faults = told(write_csv(folder / "cells.csv", rows, [*HEADER, "split"]))
    assert code == 1
    assert {cause for _, cause in faults} == {"subject P10 is in train and in prelim"}


@pytest.fixture(scope="module")
def trained_here(images, tmp_path_factory):
    """A run on the first eight subjects, and where it is."""
    folder = tmp_path_factory.mktemp("trained_here")
    rows = [row for row in ROWS if int(row[1][1:]) < 8]
    for row in ROWS:
        (folder / row[3]).parent.mkdir(exist_ok=True)
        (folder / row[3]).hardlink_to(images / row[3])
    table = write_csv(folder / "cells.csv", rows)
    words = small(table, folder / "outputs")
    words += ["split_scheme=subject", "folds=3", "data.crop=64", "data.batch_size=8"]
    words += ["trainer.max_epochs=1", "views=1"]
    words.remove("views=4")
    train_here(*words)
    return only_run(folder / "outputs")


def scored(run, table, tmp_path, train):
    """Heading and marks of what a run says of the prelim cells of another table."""
    outcome = train(
        f"checkpoint={run}", "score=prelim", f"data.root={table}", "data.batch_size=8",
        f"outputs={tmp_path / 'scored'}", f"data.cache={tmp_path / 'store'}", "data.partial=true",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    heading = next(w for w in ("TEST", "SELECTION", "UNKNOWN") if f"{w}   " in outcome.out)
    return heading, record(only_run(tmp_path / "scored"))["marks"]


def elsewhere(folder, subject_of):
    """The last four subjects' cells as prelim, under the names of `subject_of`."""
    rows = [row for row in ROWS if int(row[1][1:]) >= 8]
    prelim = [(name, subject_of(who), label, path, "prelim") for name, who, label, path in rows]
    return write_csv(folder / "other.csv", prelim, [*HEADER, "split"])


@pytest.mark.parametrize(
    ("subject_of", "said"),
    [
        (lambda who: f"lab2-{who}", ("TEST", [])),
        (lambda who: f"P{int(who[1:]) - 8}", ("SELECTION", ["LEAKY"])),
        (lambda who: "", ("SELECTION", ["LEAKY"])),
    ],
    ids=["other people", "people of the same names", "nobody knows"],
)
def test_cells_scored_later_are_a_test_only_if_known_to_be_apart(
    trained_here, folder, tmp_path, train, subject_of, said
):
    table = elsewhere(folder, subject_of)
    assert scored(trained_here, table, tmp_path, train) == said


def test_a_merged_subject_is_known_by_its_members(trained_here, folder, tmp_path, train):
    """A trained subject has another name beside its own in the data that is scored."""
    split = pd.read_csv(trained_here / "split.csv", dtype=str)
    who = split["subject"][(split["split"] == "train") & (split["label"] == "0")].iloc[0]
    new = [row for row in ROWS if row[1] == "P8"]
    rows = [(f"{name}-x", who, label, path, "prelim") for name, _, label, path in new]
    rows += [(name, "P100", label, path, "prelim") for name, _, label, path in new]
    rows += [(name, "Q9", *rest, "prelim") for name, known, *rest in ROWS if known == "P9"]
    table = write_csv(folder / "other.csv", rows, [*HEADER, "split"])
    groups = set(checked_index(table, cache=tmp_path / "store").table["group"])
    assert groups == {f"{who}+P100", "Q9"}
    assert scored(trained_here, table, tmp_path, train) == ("SELECTION", ["LEAKY"])


def test_a_leaky_file_has_no_test(folder, tmp_path, train):
    """Its prelim shares subjects with val, which chose the epoch."""
    side = {"P8": ("val", "prelim"), "P9": ("val", "prelim")}
    rows = [(name, side.get(who, ("train",) * 2)[int(name[-1]) % 2]) for name, who, _, _ in ROWS]
    split = write_csv(folder / "split.csv", rows, ["cell", "split"])
    table = write_csv(folder / "cells.csv", ROWS)
    words = [*small(table, tmp_path / "outputs"), f"split_scheme={split}", "trainer.max_epochs=1"]
    outcome = train(*words)
    assert outcome.code == 0, outcome.err
    assert "*** LEAKY ***" in outcome.out
    assert "TEST   " not in outcome.out
    assert "SELECTION   " in outcome.out
