"""Weights remember whom they have seen, whatever the layout of the data that is scored later."""

import json

import numpy as np
import pytest
from conftest import ROOT, TINY
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.numpy import save_file

from leukocls.common.errors import DataFault
from leukocls.data.duplicates import PIXELS_VERSION
from leukocls.data.index import build_index
from leukocls.training.inputs import inputs_of


def lineage(named, groups):
    """As a run leaves it that has trained on these subjects."""
    return [{"named": named, "digests": PIXELS_VERSION, "chose": {"groups": [], "pixels": []},
             "trained": {"groups": groups, "pixels": ["0"]}}]  # fmt: skip


@pytest.fixture
def marks(tmp_path, monkeypatch):
    """Marks of a run on a CSV of cells `NAME.png`, from weights with a lineage."""
    monkeypatch.delenv("LEUKOCLS_DATA", raising=False)

    def of(cells, before):
        rows = ["cell,subject,label,path,split"]
        for number, (name, subject, label, split) in enumerate(cells):
            image = np.random.default_rng(number).integers(1, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / f"{name}.png")
            rows.append(f"{name},{subject},{label},{name}.png,{split}")
        (tmp_path / "cells.csv").write_text("\n".join(rows))
        weights = tmp_path / "weights.safetensors"
        save_file({"x": np.zeros(1)}, weights, {"lineage": json.dumps(before)})
        words = [f"data.root={tmp_path / 'cells.csv'}", f"data.cache={tmp_path / 'store'}"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("train", [*TINY, *words, f"model.weights={weights}"])
        return inputs_of(config).marks

    return of


def cells(prelim, name):
    """Six subjects of two cells, of which those in `prelim` are held out."""
    subjects = ["3", "2", "20", "H1", "H2", "H3"]
    return [
        (name(subject, k), subject, "HEM" if "H" in subject else "ALL",
         "prelim" if subject in prelim else "train")
        for subject in subjects for k in range(2)
    ]  # fmt: skip


def cnmc(subject, k):
    return f"UID_{subject}_{k}_1_{'hem' if 'H' in subject else 'all'}"


def own(subject, k):
    return f"cell-{subject}-{k}"


@pytest.mark.parametrize(
    ("name", "named", "groups", "expected"),
    [
        (cnmc, True, ["2"], ["LEAKY"]),
        (cnmc, True, ["7"], []),
        # A laboratory's own subject 2 is not C-NMC's.
        (cnmc, False, ["2"], []),
        (own, True, ["2"], []),
        (own, False, ["2"], ["LEAKY"]),
        # C-NMC's 20 and 21 are one person; so a run of 0.1 named them.
        (cnmc, True, ["20+21"], ["LEAKY"]),
        (cnmc, True, ["1+15+16+17+20+21"], ["LEAKY"]),
    ],
)
def test_names_decide_whose_subjects_a_table_has(marks, name, named, groups, expected):
    assert marks(cells({"2", "20", "H3"}, name), lineage(named, groups)) == expected


def test_subjects_of_c_nmc_that_are_one_person_are_one_in_a_table_too(marks, tmp_path):
    marks(cells({"2", "H3"}, cnmc), [])
    table = build_index(tmp_path / "cells.csv").table
    groups = dict(zip(table["subject"], table["group"], strict=True))
    assert groups["20"] == "1+15+16+17+20+21"
    assert groups["H2"] == "H2+H4+H5+H6+H7"
    # 51 and 55 are one person, in both parts as published.
    assert marks(cells({"2", "H3"}, cnmc), []) == []
    both = [*cells({"2", "H3"}, cnmc), (cnmc("51", 0), "51", "ALL", "train")]
    assert marks([*both, (cnmc("55", 0), "55", "ALL", "prelim")], []) == ["LEAKY"]
    with pytest.raises(DataFault, match="is in train and in prelim"):
        marks([*both, (cnmc("21", 0), "21", "ALL", "prelim")], [])
    marks(cells({"2", "H3"}, own), [])
    assert set(build_index(tmp_path / "cells.csv").table["group"]) == set(groups)


@pytest.mark.parametrize(
    ("named", "groups", "expected"),
    [(True, ["7"], []), (True, ["3"], ["LEAKY"]), (False, ["7"], ["LEAKY"])],
    ids=["other subjects", "the same subject", "nothing can be compared"],
)
def test_digests_of_an_older_version_prove_nothing(marks, named, groups, expected):
    """Version 0.1 had other digests of pixels, so only subjects of one kind can be told apart."""
    (older,) = lineage(named, groups)
    del older["digests"]
    assert marks(cells(["3", "H1"], cnmc), [older]) == expected
