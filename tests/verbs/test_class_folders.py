"""A folder with one folder of images per class becomes the CSV of a data set."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from leukocls import index, verify
from leukocls.common.errors import LeukoclsError
from leukocls.data.index import build_index


@pytest.fixture
def folder(tmp_path):
    """`folder(path, …)`: a folder with images at these paths, and other files."""

    def make(*paths):
        for number, path in enumerate(paths):
            file = tmp_path / "lab" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            image = np.random.default_rng(number).integers(1, 256, (9, 9, 3), dtype=np.uint8)
            if file.suffix.lower() in (".png", ".tif", ".jpg"):
                Image.fromarray(image).save(file)
            else:
                file.write_text("no image")
        return tmp_path / "lab"

    return make


@pytest.fixture
def document(capsys):
    def run(*words):
        capsys.readouterr()
        assert index.main([*map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def refused(*words):
    with pytest.raises(LeukoclsError) as caught:
        index.main([*map(str, words)])
    assert caught.value.exit_code == 2
    return str(caught.value)


PATHS = ["all/a.png", "all/P7/b.TIF", "hem/ü, 1.jpg"]
OTHERS = [
    "all/notes.txt",
    "c.png",
    "more/d.png",
    "all/.hidden.png",
    "all/Thumbs.db",
    "__MACOSX/e.png",
]


def test_two_class_folders_become_a_table(folder, document, tmp_path):
    lab, out = folder(*PATHS, *OTHERS), tmp_path / "cells.csv"
    found = document(lab, "--out", out)
    assert found == {
        "file": str(out),
        "labels": {"all": "ALL", "hem": "HEM"},
        "cells": {"ALL": 2, "HEM": 1},
        "without_subject": 3,
        "left_out": ["all/notes.txt", "c.png", "more/d.png"],
    }
    rows = pd.read_csv(out, dtype=str, keep_default_na=False)
    assert list(rows) == ["cell", "subject", "label", "path"]
    assert rows.to_numpy().tolist() == [
        ["b", "", "ALL", "lab/all/P7/b.TIF"],
        ["a", "", "ALL", "lab/all/a.png"],
        ["ü, 1", "", "HEM", "lab/hem/ü, 1.jpg"],
    ]
    # What is written is read, and needs no more than its subjects.
    assert len(build_index(out).table) == 3
    assert verify.main([str(out), "--cache", str(tmp_path / "cache")]) == 0


def test_what_is_left_to_do_is_said(folder, tmp_path, capsys):
    out = tmp_path / "lab/the cells.csv"
    assert index.main([str(folder(*PATHS)), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "subject of 3 cells is empty" in printed
    assert f"python -m leukocls.verify '{out}'" in printed  # as a shell takes it
    assert set(build_index(out).table["file"]) == set(PATHS)


def test_other_names_of_classes(folder, document, tmp_path):
    lab = folder("blasts/a.png", "normal/b.png", ".cache/c.png")
    found = document(lab, "--positive", "blasts", "--out", tmp_path / "cells.csv")
    assert found["labels"] == {"blasts": "ALL", "normal": "HEM"}
    table = build_index(tmp_path / "cells.csv").table
    assert dict(zip(table["cell"], table["label"], strict=True)) == {"a": 1, "b": 0}


@pytest.mark.parametrize(
    ("paths", "options"),
    [
        (["blasts/a.png", "normal/b.png"], []),
        (["all/a.png", "normal/b.png"], []),
        (["all/a.png", "ALL/b.png"], []),
        (["blasts/a.png", "normal/b.png"], ["--positive", "blast"]),
        (["blasts/a.png", "normal/b.png", "third/c.png"], ["--positive", "blasts"]),
        (["all/a.png", "hem/b.png"], ["--positive", "hem"]),
        (["all/a.png", "hem/b.txt"], []),
        (["a.png"], []),
    ],
)
def test_classes_that_cannot_be_told_are_refused(folder, tmp_path, paths, options):
    lab = folder(*paths)
    assert refused(lab, "--out", tmp_path / "cells.csv", *options).startswith(str(lab))
    assert not (tmp_path / "cells.csv").exists()


def test_names_are_unique(folder, document, tmp_path):
    out = tmp_path / "cells.csv"
    document(folder("all/1.png", "hem/1.png"), "--out", out)
    assert set(build_index(out).table["cell"]) == {"all/1", "hem/1"}
    out.unlink()
    document(folder("all/1.png", "all/1.tif", "hem/1.png"), "--out", out)
    assert set(build_index(out).table["cell"]) == {"all/1.png", "all/1.tif", "hem/1.png"}


def test_names_of_c_nmc_state_the_subject(folder, document, tmp_path):
    out = tmp_path / "cells.csv"
    found = document(folder("all/UID_7_1_1_all.png", "hem/UID_H3_1_1_hem.png"), "--out", out)
    assert found["without_subject"] == 0
    assert set(build_index(out).table["subject"]) == {"7", "H3"}


def test_nothing_is_overwritten(folder, tmp_path):
    out = tmp_path / "cells.csv"
    out.write_text("mine")
    assert refused(folder(*PATHS), "--out", out).startswith(str(out))
    assert out.read_text() == "mine"


def test_the_table_lies_above_its_images_unless_told(folder, document, tmp_path, capsys):
    lab, out = folder(*PATHS), tmp_path / "elsewhere/cells.csv"
    out.parent.mkdir()
    assert "--outside" in refused(lab, "--out", out)
    document(lab, "--out", out, "--outside")
    words = [str(out), "--cache", str(tmp_path / "cache")]
    assert verify.main(words) == 1
    assert verify.main([*words, "--outside"]) == 0


def test_names_that_are_not_utf_8_are_refused(folder, tmp_path):
    lab = folder(*PATHS)
    (lab / "all/a.png").rename(lab / "all/Pr\udce4p.png")
    assert "UTF-8" in refused(lab, "--out", tmp_path / "cells.csv")
    assert not (tmp_path / "cells.csv").exists()
