"""Data as a laboratory has it: separators, names, kinds of images, and what is said about them."""

import json
import unicodedata
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from PIL import Image

from leukocls import baseline, pack, split, verify
from leukocls.common.errors import DataFault, Fault, LeukoclsError, report
from leukocls.data.index import build_index, scan
from leukocls.data.splits import SplitOptions, make_split
from leukocls.data.summary import image_notes, subject_notes
from leukocls.data.verify import checked_index
from leukocls.training.inputs import load_index

HEADER = ["cell", "subject", "label", "path"]
# Six subjects of two cells: three of each class.
ROWS = [
    (f"c{who}{cell}", f"P{who}", "ALL" if who < 3 else "HEM", f"images/c{who}{cell}.png")
    for who in range(6)
    for cell in range(2)
]


def picture(number, side=20):
    """A cell of its own, without black pixels."""
    return np.random.default_rng(number).integers(1, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def lab(tmp_path):
    folder = tmp_path / "lab"
    (folder / "images").mkdir(parents=True)
    for number, (_, _, _, path) in enumerate(ROWS):
        Image.fromarray(picture(number)).save(folder / path)
    return folder


def written(lab, rows=ROWS, header=HEADER, separator=","):
    table = lab / "cells.csv"
    table.write_text("".join(separator.join(row) + "\n" for row in (header, *rows)))
    return table


def checked(table, tmp_path, **options):
    return checked_index(table, cache=tmp_path / "cache", **options)


@pytest.fixture
def said(capsys, tmp_path):
    """A verb's exit code and document."""

    def run(module, *words):
        capsys.readouterr()
        code = module.main([*map(str, words), "--cache", str(tmp_path / "cache"), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


# --- the file


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separators_case_and_encoding(lab, separator, encoding):
    header = [*HEADER[:2], "LABEL", "Path", "Split"]
    rows = [(*row, "val" if row[1] in ("P0", "P3") else "train") for row in ROWS]
    table = written(lab, rows, [header[0].title(), *header[1:]], separator)
    text = table.read_text()
    wanted = build_index(written(lab)).table
    table.write_bytes(text.replace("\n", "\r\n").encode(encoding))
    index = build_index(table)
    pd.testing.assert_frame_equal(index.table, wanted)
    # The CSV itself may be the split.
    by_file = make_split(index, str(table)).table(index)
    assert set(by_file["subject"][by_file["split"] == "val"]) == {"P0", "P3"}


def test_a_comma_in_a_name_is_no_separator(lab):
    rows = [(f"{name}, left", *rest) for name, *rest in ROWS]
    table = build_index(written(lab, rows, separator=";")).table
    assert set(table["cell"]) == {row[0] for row in rows}


def test_a_file_of_another_encoding_is_named(lab):
    table = written(lab)
    table.write_bytes(table.read_text().replace("P0", "Pü").encode("cp1252"))
    with pytest.raises(LeukoclsError, match="UTF-8") as caught:
        build_index(table)
    assert str(caught.value).startswith(str(table))


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_table", ["NFC", "NFD"])
def test_umlauts_and_backslashes(lab, on_disk, in_table):
    """A name from macOS has its umlauts as two characters, a path from Windows its backslashes."""
    name = "Präparat-ß"
    (lab / "images/c00.png").rename(lab / unicodedata.normalize(on_disk, f"images/{name}.png"))
    rows = [(name, "Müller", "ALL", f"images\\{name}.png"), *ROWS[1:]]
    rows[1] = (ROWS[1][0], "Mu\u0308ller", *ROWS[1][2:])
    table = written(lab, [tuple(unicodedata.normalize(in_table, v) for v in row) for row in rows])
    index, faults = scan(table)
    assert (faults, index.absent) == ([], ())
    # One person, however it is spelt.
    found = index.table[index.table["group"] == "MÜLLER"]
    assert set(found["cell"]) == {name, "c01"}
    assert (index.root / found.set_index("cell").loc[name, "file"]).is_file()


# --- where images lie


@pytest.mark.parametrize("how", ["../other/a.png", "/ABSOLUTE/a.png", "linked/a.png", "C:\\a.png"])
def test_images_lie_below_the_table_unless_told(lab, said, tmp_path, how):
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(picture(99)).save(other / "a.png")
    (lab / "linked").symlink_to(other)
    rows = [(*ROWS[0][:3], how.replace("/ABSOLUTE", str(other))), *ROWS[1:]]
    table = written(lab, rows)
    code, document = said(verify, table)
    assert code == 1
    assert [fault["path"] for fault in document["faults"]] == [f"{table}, row 2"]
    words = ["--split-scheme", "subject", "--folds", "3", "--out", tmp_path / "split.csv"]
    for module, options in ((split, words), (pack, ["--crop", "20"])):
        with pytest.raises(DataFault, match="outside"):
            said(module, table, *options)
    if how.startswith("C:"):
        return
    assert said(verify, table, "--outside")[0] == 0
    assert said(split, table, *words, "--outside")[0] == 0
    assert said(pack, table, "--crop", "20", "--outside")[1]["shape"] == [12, 20, 20, 3]
    outputs = ["--features", "size", "--outputs", tmp_path / "outputs", *words[:4]]
    with pytest.raises(DataFault, match="outside"):
        said(baseline, table, *outputs)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        words = [f"data.root={table}", f"data.cache={tmp_path / 'cache'}"]
        with pytest.raises(DataFault, match=r"data\.outside=true"):
            load_index(compose("train", words).data)
        allowed = compose("train", [*words, "data.outside=true"])
        assert len(load_index(allowed.data).table) == len(ROWS)


# --- images of several kinds


def test_conversions_sizes_and_the_crop_are_said(lab, said, tmp_path):
    def save(number, image, mode):
        Image.fromarray(image).convert(mode).save(lab / ROWS[number][3])

    save(0, picture(0), "L")
    save(1, picture(1), "L")
    save(2, picture(2), "RGBA")
    deep = np.random.default_rng(3).integers(2**8, 2**16, (20, 20)).astype(np.uint16)
    Image.fromarray(deep).save(lab / ROWS[3][3])
    Image.fromarray(picture(4, 61)[:40]).save(lab / ROWS[4][3])
    # A cell in black: only it counts, not its frame.
    frame = np.zeros((90, 80, 3), np.uint8)
    frame[20:60, 30:50] = 9
    Image.fromarray(frame).save(lab / ROWS[5][3])
    table = written(lab)
    index = checked(table, tmp_path)
    converted = Counter(index.table["converted"])
    assert converted == {"": 8, "grey": 2, "RGB with alpha": 1, "16-bit grey": 1}
    sizes, crop, kinds = image_notes(index, 30)
    assert "20×20 to 80×90" in sizes
    assert "cuts 2 of 12 cells" in crop
    assert "data.crop=61 cuts none" in crop
    assert "1 16-bit grey, 1 RGB with alpha, 2 grey" in kinds
    assert "cuts 1 of 12" in image_notes(index, 60)[1]
    assert "cuts 0 of 12" in image_notes(index, 61)[1]
    assert len(image_notes(index, "box")) == 2
    same = replace(index, table=index.table[index.table["height"] == 20])
    assert "images of 20×20 pixels" in image_notes(same, 30)[0]
    assert set(said(verify, table)[1]["notes"]) >= {sizes, kinds}
    assert said(pack, table, "--crop", "30")[1]["notes"] == [sizes, crop, kinds]
    # Known from the cache, too.
    assert Counter(checked(table, tmp_path).table["converted"]) == converted


def test_the_smallest_whole_crop_cuts_nothing(lab, tmp_path):
    """Odd margins are rounded: whatever the place of the cell, one pixel less would cut it."""
    table = written(lab)
    rng = np.random.default_rng(0)
    for _ in range(8):
        height, width, side = rng.integers(24, 40, 3)
        frame = np.zeros((height, width, 3), np.uint8)
        top, left = (rng.integers(0, length - 20) for length in (height, width))
        frame[top : top + side % 20 + 1, left : left + 20] = 9
        Image.fromarray(frame).save(lab / ROWS[0][3])
        index = checked(table, tmp_path)
        note = image_notes(index, 5)[1]
        whole = int(note.partition("; data.crop=")[2].split()[0])
        assert "cuts 0 of" in image_notes(index, whole)[1]
        assert "cuts 0 of" not in image_notes(index, whole - 1)[1]


def test_nothing_is_said_of_c_nmc(small_tree, tmp_path):
    index = checked(small_tree, tmp_path)
    assert image_notes(index, 20) == subject_notes(index) == []


# --- equal faults


def test_equal_faults_share_a_line(lab, tmp_path, capsys):
    image = Image.fromarray(picture(0)).convert("CMYK")
    rows = []
    for number in range(130):
        image.save(lab / f"images/{number}.tif")
        rows.append((f"c{number}", "P1", "ALL", f"images/{number}.tif"))
    rows += [(f"d{number}", "P1", "blast", "images/c00.png") for number in range(2)]
    table = written(lab, rows)
    cache = ["--cache", str(tmp_path / "cache")]
    assert verify.main([str(table), *cache]) == 1
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if "CMYK" in line)
    assert "130" in line
    assert line.count(".tif") == 3
    assert text.count("row ") == 2
    with pytest.raises(DataFault) as caught:
        checked(table, tmp_path)
    assert "132 fault(s)" in str(caught.value)
    assert str(caught.value).count("CMYK") == 1
    assert verify.main([str(table), *cache, "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["faults"]) == 132


def test_different_faults_have_a_line_each(tmp_path):
    faults = [Fault(tmp_path / f"{k}.png", f"cause {k}", "remedy") for k in range(30)]
    assert report(tmp_path, faults, most=40).count("cause") == 30
    assert report(tmp_path, faults).count("cause") == 20


# --- subjects and classes


def test_subjects_of_both_classes_are_allowed_and_said(lab, said, tmp_path):
    rows = [*ROWS[:1], (*ROWS[1][:2], "HEM", ROWS[1][3]), *ROWS[2:]]
    table = written(lab, rows)
    code, document = said(verify, table)
    assert (code, document["faults"]) == (0, [])
    assert any("P0 (1 in all)" in note for note in document["notes"])
    index = checked(table, tmp_path)
    for fold in range(3):
        sides = make_split(index, "subject", SplitOptions(fold=fold, folds=3)).table(index)
        assert sides.groupby("subject")["split"].nunique().max() == 1
    scheme = ["--split-scheme", "subject", "--folds", "3", "--out", str(tmp_path / "split.csv")]
    assert split.main([str(table), *scheme, "--cache", str(tmp_path / "cache")]) == 0


@pytest.mark.parametrize("scheme", ["subject", "cell", "all"])
def test_one_class_is_said(lab, tmp_path, scheme):
    table = written(lab, ROWS[:6])
    index = checked(table, tmp_path)
    with pytest.raises(LeukoclsError, match=f"{table}: all 6 labelled cells are ALL") as caught:
        make_split(index, scheme)
    assert caught.value.exit_code == 2
    assert any("no cell is HEM" in note for note in subject_notes(index))


def test_one_subject_of_a_class_is_said(lab, tmp_path):
    rows = [(name, "P3" if label == "HEM" else who, label, path) for name, who, label, path in ROWS]
    table = written(lab, rows)
    index = checked(table, tmp_path)
    for folds in (2, 5):
        with pytest.raises(LeukoclsError, match=r"HEM cells are of one subject, P3.*cell"):
            make_split(index, "subject", SplitOptions(folds=folds))
    assert make_split(index, "cell").leaky
    notes = subject_notes(index)
    assert any("one subject, P3" in note for note in notes)
    assert any("split_scheme=cell (LEAKY" in note for note in notes)


def test_too_many_folds_name_the_class_and_the_most(lab, tmp_path):
    index = checked(written(lab, ROWS[:10]), tmp_path)
    with pytest.raises(LeukoclsError, match=r"HEM has cells of 2 subjects only\. .*folds=2"):
        make_split(index, "subject")


@pytest.mark.parametrize(("known", "fitting"), [(True, "subject"), (False, r"cell \(LEAKY")])
def test_without_prelim_a_scheme_that_fits_is_named(lab, tmp_path, known, fitting):
    rows = [(name, who if known else "", *rest) for name, who, *rest in ROWS]
    index = checked(written(lab, rows), tmp_path)
    for scheme in ("challenge", "honest"):
        with pytest.raises(LeukoclsError, match=f"needs the part prelim.*split_scheme={fitting}"):
            make_split(index, scheme)
    assert make_split(index, "all").rows["train"].size == len(ROWS)
    assert any(f"split_scheme={fitting}".replace("\\", "") in note for note in subject_notes(index))


# --- whose data it is


def test_messages_about_a_table_do_not_speak_of_c_nmc(lab, tmp_path, capsys):
    image = lab / ROWS[0][3]
    Image.fromarray(picture(0)).save(image.with_suffix(".bmp"))
    cut = image.with_suffix(".bmp").read_bytes()[:-1]
    image.with_suffix(".bmp").write_bytes(cut)
    for number in (4, 5):
        Image.fromarray(picture(77)).save(lab / ROWS[number][3])
    rows = [(*row, "prelim" if row[0] in ("c20", "c30") else "train") for row in ROWS]
    rows[0] = (*ROWS[0][:3], "images/c00.bmp", "train")
    rows[2] = (*ROWS[2][:3], "images/none.png", "train")
    table = written(lab, rows, [*HEADER, "split"])
    assert verify.main([str(table), "--cache", str(tmp_path / "cache")]) == 1
    said = capsys.readouterr().out
    for words in (
        "C-NMC",
        "official",
        "publish",
        "archive",
        "lofo",
        "challenge",
        "restore the name",
    ):
        assert words not in said
    with pytest.raises(DataFault) as caught:
        checked(table, tmp_path)
    assert "archive" not in str(caught.value)


def test_copies_within_a_table_are_told_of_without_the_schemes_of_c_nmc(lab, tmp_path, capsys):
    for number in (0, 2):
        Image.fromarray(picture(77)).save(lab / ROWS[number][3])
    assert verify.main([str(written(lab)), "--cache", str(tmp_path / "cache")]) == 0
    said = capsys.readouterr().out
    assert "  P0, P1  " in said
    assert "lofo" not in said


def test_a_table_that_is_not_there_is_no_missing_folder(tmp_path):
    with pytest.raises(LeukoclsError, match="no such folder or file"):
        build_index(tmp_path / "cells.csv")
