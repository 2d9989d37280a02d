"""The verb `audit` on files that anybody could have made."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from conftest import edit_record, record
from PIL import Image

from leukocls import audit
from leukocls.artifacts import predictions
from leukocls.artifacts.predictions import sigmoid
from leukocls.artifacts.record import write_record
from leukocls.common.errors import LeukoclsError
from leukocls.data.published import subject_counts
from leukocls.evaluation.audit import audit as audited
from leukocls.synthetic.latents import draw_cells, reprocessed
from leukocls.synthetic.render import render
from leukocls.synthetic.spec import SyntheticSpec

# RECIPES: who is one person in C-NMC.
SAME = [
    {"1", "15", "16", "17", "20", "21"}, {"43", "44"}, {"51", "55", "75", "78"},
    {"H2", "H4", "H5", "H6", "H7"}, {"H3", "H10"}, {"H14", "H24"},
]  # fmt: skip
CHECKS = ["subjects", "cells", "pixels", "once", "complete", "labels", "selection"]
# With the images themselves.
DATA_CHECKS = [*CHECKS[:3], "reprocessed", *CHECKS[3:]]


def cell(subject, number):
    return f"UID_{subject}_{number}_1_{'hem' if subject[0] in 'hH' else 'all'}.bmp"


def table(**sides):
    """A split of C-NMC-like names: of each subject so many cells on each side.

    `table(train={"1": 2}, val={"H1": 3})`.
    """
    rows, serial = [], 0
    for side, subjects in sides.items():
        for subject, cells in subjects.items():
            for _ in range(cells):
                serial += 1
                rows.append((cell(subject, serial), side))
    return pd.DataFrame(rows, columns=["cell", "split"])


HONEST = table(train={"1": 4, "H1": 3}, val={"2": 2, "H7": 2}, prelim={"3": 3, "H8": 2})


def scores(split, *sides):
    """A prediction for each cell of these sides."""
    cells = split["cell"][split["split"].isin(sides)].to_list()
    return pd.DataFrame({"cell": cells, "prob": np.linspace(0.1, 0.9, len(cells))})


@pytest.fixture
def judge(tmp_path, capsys):
    """`python -m leukocls.audit` on two tables: the verdict, its exit code, findings by check."""

    def call(predicted, split, *more, suffix=".csv"):
        paths = []
        for name, frame in (("predictions", predicted), ("split", split)):
            if isinstance(frame, pd.DataFrame):
                paths.append(tmp_path / f"{name}{suffix}")
                write = frame.to_csv if suffix == ".csv" else frame.to_parquet
                write(paths[-1], index=False)
            else:
                paths.append(frame)
        capsys.readouterr()
        code = audit.main([str(paths[0]), "--split", str(paths[1]), *map(str, more), "--json"])
        told = json.loads(capsys.readouterr().out)
        with_images = "--data" in more and (told["compared"] or [""])[-1] == "processed again"
        assert [one["check"] for one in told["findings"]] == (
            DATA_CHECKS if with_images else CHECKS
        )
        assert told["source"] == str(paths[0])
        return told["verdict"], code, {one["check"]: one for one in told["findings"]}

    return call


def persons(names):
    """Who each cell is from, by its name and RECIPES' list."""
    subjects = [name.split("_")[1].upper() for name in names]
    return [next((min(same) for same in SAME if who in same), who) for who in subjects]


# --- shared subjects


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_split_by_cells_is_leaky_and_by_how_much(judge, suffix):
    """A random fifth of the cells of C-NMC's train, as published numbers often hold out."""
    counts = subject_counts().query("split == 'train'")
    names = [cell(row.subject, k) for row in counts.itertuples() for k in range(row.n_images // 9)]
    rng = np.random.default_rng(0)
    split = pd.DataFrame(
        {"cell": names, "split": rng.choice(["train", "val"], len(names), p=[0.8, 0.2])}
    )
    held = split["cell"][split["split"] == "val"].to_list()
    trained = set(persons(split["cell"][split["split"] == "train"]))
    shared = [name for name, who in zip(held, persons(held), strict=True) if who in trained]
    assert 0 < len(shared) <= len(held)

    verdict, code, found = judge(scores(split, "val"), split, suffix=suffix)
    assert (verdict, code) == ("leaky", 1)
    assert found["subjects"]["ok"] is False
    assert found["subjects"]["overlap"] == pytest.approx(len(shared) / len(held), abs=1e-12)
    assert found["subjects"]["cells"] == shared
    assert len(found["subjects"]["values"]) == len(set(persons(shared)))
    words = f"{len(shared):,} of {len(held):,} scored cells"
    assert found["subjects"]["text"].startswith(words)
    assert (found["cells"]["ok"], found["cells"]["overlap"]) == (True, 0.0)


@pytest.mark.parametrize("seed", range(30))
def test_cells_of_trained_subjects_are_found_and_no_others(seed):
    rng = np.random.default_rng(seed)
    who = ["20", "21", "h3", "H10", "H2", "H6", "5", "9", "H20", "51"]
    drawn = rng.choice(who, 25)
    split = pd.DataFrame({"cell": [cell(name, k) for k, name in enumerate(drawn)]})
    sides = rng.choice(["train", "val"], len(who), p=[0.6, 0.4])
    split["split"] = [sides[who.index(name)] for name in drawn]
    split.loc[rng.random(25) < rng.choice([0, 0.1]), "split"] = "val"
    split = pd.concat([split, table(train={"77": 1}, val={"88": 1})], ignore_index=True)
    predicted = scores(split, "val").assign(subject="", label=-1)
    found = audited(predicted, split, {}, None)
    person = pd.Series(persons(split["cell"]))
    trained = set(person[split["split"] == "train"])
    shared = split["cell"][(split["split"] == "val") & person.isin(trained)].to_list()
    assert found["findings"][0]["cells"] == shared
    assert found["verdict"] == ("leaky" if shared else "unknown")


@pytest.mark.parametrize(
    ("trained", "scored"), [("20", "21"), ("75", "78"), ("H5", "H6"), ("h3", "H10"), ("H10", "h3")]
)
def test_known_duplicates_of_c_nmc_leak_by_name_alone(judge, trained, scored):
    split = table(train={trained: 3, "9": 2, "H9": 2}, val={scored: 4, "8": 1, "H20": 1})
    verdict, code, found = judge(scores(split, "val"), split)
    assert (verdict, code) == ("leaky", 1)
    assert found["subjects"]["overlap"] == pytest.approx(4 / 6)
    assert {persons([name])[0] for name in found["subjects"]["cells"]} == set(
        persons([cell(scored, 1)])
    )
    assert found["pixels"]["ok"] is None


def test_numbers_of_other_data_sets_are_not_those_of_c_nmc(judge):
    """Subjects 20 and 21 of a laboratory's own cells are two people."""
    own = pd.DataFrame(
        {
            "cell": [f"c{k}" for k in range(8)],
            "subject": ["20", "20", "H2", "H2", "21", "21", "H4", "H4"],
            "split": ["train"] * 4 + ["val"] * 4,
        }
    )
    verdict, code, found = judge(scores(own, "val"), own)
    assert (verdict, code) == ("unknown", 0)
    assert found["subjects"]["ok"] is True
    assert found["subjects"]["overlap"] == 0
    # The same subject on both sides is one person there too.
    own["subject"] = ["a", "a", "b", "b", "d", "d", "b", "c"]
    verdict, _, found = judge(scores(own, "val"), own)
    assert verdict == "leaky"
    assert found["subjects"]["cells"] == ["c6"]
    assert found["subjects"]["values"] == ["B"]


@pytest.mark.parametrize(
    ("trained", "scored"), [("P07", "p7"), ("h101", "H101"), ("101", "101.0"), ("p7 ", "P007")]
)
def test_two_spellings_of_a_subject_are_one_person(judge, trained, scored):
    own = pd.DataFrame({"cell": list("abcdef"), "split": ["train"] * 3 + ["val"] * 3})
    own["subject"] = [trained, "x", "y", scored, "z", "w"]
    verdict, code, found = judge(scores(own, "val"), own)
    assert (verdict, code) == ("leaky", 1)
    assert found["subjects"]["cells"] == ["d"]


def test_two_spellings_in_names_are_one_person_whatever_the_column_says(judge):
    split = table(train={"H3": 2, "1": 2}, val={"H3": 1, "2": 1})
    split["cell"] = split["cell"].str.replace("_H3_5_", "_H03_5_")
    for subject in (["H3", "H3", "1", "1", "H3", "2"], ["H3", "H3", "1", "1", "H03", "2"]):
        verdict, _, found = judge(scores(split, "val"), split.assign(subject=subject))
        assert (verdict, found["subjects"]["cells"]) == ("leaky", [split["cell"][4]])


def test_persons_of_the_predictions_count(judge):
    """A run's predictions know that two subjects share images; the split does not."""
    split = pd.DataFrame({"cell": list("abcdef"), "split": ["train"] * 3 + ["val"] * 3})
    split["subject"] = ["s1", "s2", "s3", "s4", "s5", "s6"]
    predicted = scores(split, "val").assign(subject=["s4", "s5", "s6"])
    assert judge(predicted, split)[2]["subjects"]["ok"] is True
    persons = ["S1+S4", "S5", "S6"]
    verdict, _, found = judge(predicted.assign(person=persons), split)
    assert (verdict, found["subjects"]["cells"]) == ("leaky", ["d"])
    # Subjects by other numbers than the split's say nothing of them.
    renamed = predicted.assign(subject=["x", "y", "z"], person=["x+s1", "y", "z"])
    assert judge(renamed, split)[2]["subjects"]["ok"] is True


@pytest.mark.parametrize(
    "twin",
    ["images/{}.bmp", "{}.png", "images\\{}.BMP", "./a/b/{}.jpeg", "{}"],
)
@pytest.mark.parametrize("name", ["UID_3_9_1_all", "c9", "17"])
def test_a_cell_that_was_trained_on_by_another_name_is_found(judge, twin, name):
    split = pd.DataFrame(
        {
            "cell": ["c1", "c2", twin.format(name), name + ".bmp", "c4"],
            "split": ["train"] * 3 + ["val"] * 2,
            "subject": list("vwxyz"),
        }
    )
    verdict, _, found = judge(scores(split, "val"), split)
    assert (verdict, found["cells"]["cells"]) == ("leaky", [name + ".bmp"])


def test_folders_tell_cells_of_one_name_apart(judge):
    split = pd.DataFrame(
        {"cell": ["a/1.png", "a/2.png", "b/1.png", "b/3.png"], "subject": list("wxyz")}
    ).assign(split=["train", "train", "val", "val"])
    predicted = scores(split, "val")
    found = judge(predicted, split)[2]
    assert all(found[check]["ok"] for check in ("cells", "once", "complete"))
    # Other people's predictions may name them without the folder, where that is enough.
    predicted["cell"] = ["b/1", "3.png"]
    assert judge(predicted, split)[2]["complete"]["ok"] is True
    predicted["cell"] = ["1", "3"]
    assert judge(predicted, split)[2]["complete"]["cells"] == ["1"]


def test_spelling_of_names_hides_nothing(judge):
    split = table(train={"1": 2, "H1": 2}, val={"1": 1, "H7": 2})
    predicted = scores(split, "val")
    predicted["cell"] = predicted["cell"].str.upper().str.removesuffix(".BMP")
    verdict, _, found = judge(predicted, split.assign(split=split["split"].str.title()))
    assert verdict == "leaky"
    assert found["subjects"]["cells"] == [cell("1", 5)]
    assert found["complete"]["ok"] is True


def test_subjects_come_from_the_split_or_the_predictions(judge):
    split = pd.DataFrame({"cell": list("abcdef"), "split": ["train"] * 3 + ["val"] * 3})
    predicted = pd.DataFrame({"cell": list("def"), "prob": 0.5})
    verdict, code, found = judge(predicted, split)
    assert (verdict, code) == ("unknown", 0)
    assert found["subjects"]["ok"] is None
    assert "no subjects" in found["subjects"]["text"]
    verdict, _, found = judge(predicted, split.assign(subject=list("xyzxww")))
    assert (verdict, found["subjects"]["cells"]) == ("leaky", ["d"])
    some = judge(predicted, split.assign(subject=[*list("xyzx"), "", "w"]))[2]["subjects"]
    assert (some["ok"], some["cells"]) == (False, ["d"])
    assert some["overlap"] == pytest.approx(1 / 3)
    assert "of 1 cells the subject is unknown" in some["text"]


def test_training_subjects_that_nobody_names_prove_nothing(judge):
    """Whether the scored cells' subjects were trained on is then not to be seen."""
    split = pd.DataFrame({"cell": list("abcdef"), "split": ["train"] * 3 + ["val"] * 3})
    predicted = pd.DataFrame({"cell": list("def"), "prob": 0.5})
    named = predicted.assign(subject=list("xww"))
    verdict, _, found = judge(named, split)
    assert (verdict, found["subjects"]["ok"]) == ("unknown", None)
    partly = split.assign(subject=["", "", "z", "x", "w", "w"])
    assert judge(predicted, partly)[2]["subjects"]["ok"] is None


def test_no_column_talks_a_name_away(judge):
    """A name is a fact; a column may have been made to look apart."""
    split = table(train={"20": 2, "H1": 2}, val={"20": 1, "21": 1, "H7": 2})
    verdict, _, found = judge(scores(split, "val"), split.assign(subject=list("abcdefgh")))
    assert verdict == "leaky"
    assert found["subjects"]["cells"] == split["cell"][4:6].to_list()


@pytest.mark.parametrize("missing", [None, np.nan])
def test_subjects_that_a_parquet_file_leaves_out_are_unknown(judge, missing):
    """All missing ones are not one subject called nan."""
    split = pd.DataFrame({"cell": list("abcdef"), "split": ["train"] * 3 + ["val"] * 3})
    predicted = pd.DataFrame({"cell": list("def"), "prob": 0.5})
    verdict, _, found = judge(predicted, split.assign(subject=missing), suffix=".parquet")
    assert (verdict, found["subjects"]["ok"]) == ("unknown", None)


# --- pixels


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A data set of eight images, of which d0 is c0 of another subject turned and moved."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    rows = []
    for k in range(8):
        image = np.zeros((24, 24, 3), np.uint8)
        image[4:16, 6:14] = rng.integers(1, 256, (12, 8, 3))
        rows.append((f"c{k}", f"s{k}", k % 2, f"c{k}.png"))
        if k == 0:
            first = image
        if k == 5:
            image = np.roll(np.rot90(first), 3, axis=0)
        Image.fromarray(image).save(root / f"c{k}.png")
    data = pd.DataFrame(rows, columns=["cell", "subject", "label", "path"])
    data.to_csv(root / "cells.csv", index=False)
    return root / "cells.csv", data.assign(split=["train"] * 4 + ["val"] * 4)


def test_a_turned_copy_under_another_subject_is_found_with_the_images(judge, pictures, tmp_path):
    data, split = pictures
    predicted = scores(split, "val")
    verdict, code, found = judge(predicted, split)
    assert (verdict, code, found["pixels"]["ok"]) == ("unknown", 0, None)
    assert "--data" in found["pixels"]["text"]
    verdict, code, found = judge(predicted, split, "--data", data, "--cache", tmp_path / "cache")
    assert (verdict, code) == ("leaky", 1)
    # Subjects that share an image are one, so that all cells of both are.
    assert found["subjects"]["ok"] is False
    assert found["pixels"]["ok"] is False
    assert found["pixels"]["cells"] == ["c5"]
    assert found["pixels"]["overlap"] == 0.25
    # With the copy on the side of its original nothing is shared.
    apart = split.assign(split=["train"] * 4 + ["val", "train", "val", "val"])
    verdict, code, found = judge(
        scores(apart, "val"), apart, "--data", data, "--cache", tmp_path / "cache"
    )
    assert (verdict, code) == ("unknown", 0)
    assert found["pixels"]["ok"] is True
    assert [check for check in CHECKS if found[check]["ok"] is None] == ["selection"]


def test_a_cell_that_was_processed_again_is_found_with_the_images(judge, tmp_path):
    """Neither its subject nor its pixels tell: it is scored under another subject's name."""
    cells = [cell for cell in draw_cells(SyntheticSpec()) if cell.part != "final"][:8]
    cells[5] = reprocessed(cells[0], np.random.default_rng(0), 0.5)
    rows = []
    for k, cell in enumerate(cells):
        Image.fromarray(render(cell)).save(tmp_path / f"c{k}.png")
        rows.append((f"c{k}", f"s{k}" if k % 5 else "", k % 5 > 2, f"c{k}.png"))
    data = pd.DataFrame(rows, columns=["cell", "subject", "label", "path"])
    data = data.assign(label=data["label"].astype(int))
    data.to_csv(tmp_path / "cells.csv", index=False)
    split = data.assign(split=["train"] * 4 + ["val"] * 4)
    more = ("--data", tmp_path / "cells.csv", "--cache", tmp_path / "cache")
    verdict, code, found = judge(scores(split, "val"), split, *more)
    assert (verdict, code) == ("leaky", 1)
    assert found["reprocessed"]["ok"] is False
    assert found["reprocessed"]["cells"] == ["c5"]
    assert found["pixels"]["ok"] is True


def test_labels_are_compared_with_those_of_the_data(judge, pictures, tmp_path):
    """Flipped in both files, so that they agree."""
    data, split = pictures
    apart = split.drop(columns="path").query("cell != 'c5'")
    flipped = apart.assign(label=apart["label"].where(apart["cell"] != "c6", 1 - apart["label"]))
    predicted = scores(apart, "val").assign(label=[0, 1, 1])
    assert judge(predicted, flipped)[2]["labels"]["ok"] is True
    found = judge(predicted, flipped, "--data", data, "--cache", tmp_path / "cache")[2]
    assert (found["labels"]["ok"], found["labels"]["cells"]) == (False, ["c6"])


def test_cells_of_the_data_that_both_files_lack_are_named(judge, pictures, tmp_path):
    """The harder half of prelim, dropped from predictions and split."""
    data, split = pictures
    cells = pd.read_csv(data)
    parts = data.parent / "parts.csv"
    cells.assign(split=["train"] * 4 + ["prelim"] * 4).to_csv(parts, index=False)
    split = split.assign(split=["train"] * 4 + ["prelim"] * 4)
    half = split[split["cell"] != "c5"][:-1]
    options = ["--cache", tmp_path / "cache"]
    assert judge(scores(half, "prelim"), half)[2]["complete"]["ok"] is True
    verdict, _, found = judge(scores(half, "prelim"), half, "--data", parts, *options)
    assert (verdict, found["complete"]["cells"]) == ("broken", ["c5", "c7"])
    # Without parts in the data nobody knows who was meant to be scored, but for one person's cells.
    persons = data.parent / "persons.csv"
    cells.assign(subject=[*"abcdefgg"]).to_csv(persons, index=False)
    verdict, _, found = judge(scores(half, "prelim"), half, "--data", persons, *options)
    assert (verdict, found["complete"]["ok"]) == ("unknown", None)
    assert found["complete"]["cells"] == ["c7"]


def test_images_that_are_not_there_prove_nothing(judge, pictures, tmp_path):
    """The training images are missing, among them the one that c5 is a copy of."""
    data, split = pictures
    some = pd.read_csv(data)[4:]
    part = data.parent / "some.csv"
    some.to_csv(part, index=False)
    verdict, _, found = judge(
        scores(split, "val"), split, "--data", part, "--cache", tmp_path / "cache"
    )
    assert verdict == "unknown"
    assert found["pixels"]["ok"] is None


# --- cells: once each, all, no others


def test_a_cell_that_is_scored_twice_is_named(judge):
    predicted = scores(HONEST, "prelim")
    twice = predicted["cell"][2]
    for name in (twice, twice.upper(), twice.removesuffix(".bmp")):
        again = pd.concat([predicted, predicted[2:3].assign(cell=name, prob=0.99)])
        verdict, code, found = judge(again, HONEST)
        assert (verdict, code) == ("broken", 1)
        assert found["once"]["ok"] is False
        assert found["once"]["cells"] == [name]
        assert "1 cells are scored more than once" in found["once"]["text"]
    assert judge(predicted, HONEST)[2]["once"]["ok"] is True


def test_cells_that_are_not_scored_are_named(judge):
    predicted = scores(HONEST, "prelim")
    verdict, code, found = judge(predicted[2:], HONEST)
    assert (verdict, code) == ("broken", 1)
    assert found["complete"]["cells"] == predicted["cell"][:2].to_list()
    assert "2 cells of prelim are not scored" in found["complete"]["text"]
    # Val is not what is reported, so nothing is missing of it.
    assert judge(predicted, HONEST)[2]["complete"]["ok"] is True
    # In one epoch of two as well.
    several = pd.concat([predicted.assign(epoch=0), predicted[:-1].assign(epoch=1)])
    verdict, _, found = judge(several, HONEST)
    assert verdict == "broken"
    assert found["complete"]["cells"] == predicted["cell"][-1:].to_list()


def test_scored_cells_that_the_split_does_not_know_are_named(judge):
    strangers = pd.DataFrame({"cell": [cell("66", 1), cell("66", 2)], "prob": 0.5})
    predicted = pd.concat([scores(HONEST, "prelim"), strangers])
    verdict, code, found = judge(predicted, HONEST)
    assert (verdict, code) == ("broken", 1)
    assert found["complete"]["cells"] == strangers["cell"].to_list()
    assert "not in the split" in found["complete"]["text"]


def test_scored_cells_that_trained_are_leaky(judge):
    predicted = pd.concat([scores(HONEST, "prelim"), scores(HONEST, "train")[:2]])
    verdict, code, found = judge(predicted, HONEST)
    assert (verdict, code) == ("leaky", 1)
    for check in ("cells", "subjects"):
        assert found[check]["cells"] == HONEST["cell"][:2].to_list()
        assert found[check]["overlap"] == pytest.approx(2 / 7)
    # Unless the file itself says that they are the training set's.
    for word in ("train", "Training"):
        said = predicted.assign(split=["prelim"] * 5 + [word] * 2)
        assert judge(said, HONEST)[0] == "unknown"


def test_a_cell_on_both_sides_of_the_split_is_counted_once(judge):
    both = pd.concat([HONEST, HONEST[-1:].assign(split="train")])
    verdict, _, found = judge(scores(HONEST, "prelim"), both)
    assert verdict == "leaky"
    assert set(found["cells"]["cells"]) == set(HONEST["cell"][-1:])
    assert found["cells"]["overlap"] == pytest.approx(1 / 5)
    # Both prelim cells of its subject were seen in training, in a sense.
    assert found["subjects"]["overlap"] == pytest.approx(2 / 5)


def test_labels_that_contradict_are_named(judge):
    predicted = scores(HONEST, "prelim").assign(label=[1, 1, 0, 0, 0])
    for words in ((1, 0), ("ALL", "HEM"), ("all", "hem"), ("1.0", "0.0")):
        is_hem = HONEST["cell"].str.endswith("hem.bmp")
        split = HONEST.assign(label=np.where(is_hem, words[1], words[0]))
        verdict, code, found = judge(predicted, split)
        assert (verdict, code) == ("broken", 1)
        assert found["labels"]["cells"] == [predicted["cell"][2]]
        assert judge(predicted.assign(label=[1, 1, 1, 0, 0]), split)[2]["labels"]["ok"] is True


def test_labels_that_contradict_the_names_are_named(judge):
    """Flipped in both files: the names still say what the cells are."""
    predicted = scores(HONEST, "prelim").assign(label=[1, 1, 0, 0, 1])
    is_hem = HONEST["cell"].str.endswith("hem.bmp")
    label = np.where(is_hem, "0", "1")
    label[[-3, -1]] = ["0", "1"]
    verdict, _, found = judge(predicted, HONEST.assign(label=label))
    assert (verdict, found["labels"]["cells"]) == (
        "broken",
        HONEST["cell"].iloc[[-3, -1]].to_list(),
    )


# --- selection


def test_an_honest_split_of_strangers_is_not_proved(judge):
    verdict, code, found = judge(scores(HONEST, "prelim"), HONEST)
    assert (verdict, code) == ("unknown", 0)
    assert {check: found[check]["ok"] for check in CHECKS} == {
        "subjects": True, "cells": True, "pixels": None, "once": True, "complete": True,
        "labels": True, "selection": None,
    }  # fmt: skip
    assert "val could choose" in found["selection"]["text"]
    bare = HONEST[HONEST["split"] != "val"]
    _, _, found = judge(scores(bare, "prelim"), bare)
    assert "no set to choose" in found["selection"]["text"]


def test_several_epochs_without_a_run_are_a_selection(judge):
    predicted = scores(HONEST, "prelim")
    several = pd.concat([predicted.assign(epoch=epoch) for epoch in (0, 1, 2)])
    verdict, code, found = judge(several, HONEST)
    assert (verdict, code) == ("selection", 1)
    assert found["once"]["ok"] is True
    assert "several epochs" in found["selection"]["text"]
    assert judge(predicted.assign(epoch=2), HONEST)[0] == "unknown"


def test_an_honest_file_with_all_epochs_of_its_selection_set_is_no_selection(judge):
    val, prelim = scores(HONEST, "val"), scores(HONEST, "prelim")
    curve = [val.assign(epoch=epoch) for epoch in (0, 1, 2)]
    for named in (False, True):
        predicted = pd.concat([*curve, prelim.assign(epoch=1)])
        if named:
            predicted["split"] = predicted["cell"].map(HONEST.set_index("cell")["split"])
        verdict, code, found = judge(predicted, HONEST)
        assert (verdict, code, found["selection"]["ok"]) == ("unknown", 0, None)
        assert "val could choose" in found["selection"]["text"]
    both = pd.concat([*curve, *(prelim.assign(epoch=epoch) for epoch in (0, 1))])
    assert judge(both, HONEST)[0] == "selection"


def test_subjects_that_chose_are_no_test(judge):
    """A subject of val in prelim: its cells chose what they are scored by."""
    split = pd.concat([HONEST, pd.DataFrame({"cell": [cell("2", 99)], "split": ["prelim"]})])
    verdict, code, found = judge(scores(split, "prelim"), split)
    assert (verdict, code) == ("selection", 1)
    assert found["selection"]["cells"] == [cell("2", 99)]
    assert found["subjects"]["ok"] is True


def test_the_worst_finding_is_the_verdict(judge):
    predicted = scores(HONEST, "prelim")
    several = pd.concat([predicted.assign(epoch=epoch) for epoch in (0, 1)])
    verdict, _, found = judge(several.query(f"cell != '{predicted['cell'][0]}'"), HONEST)
    assert [check for check in CHECKS if found[check]["ok"] is False] == ["complete", "selection"]
    assert verdict == "broken"
    shared = pd.concat([HONEST, pd.DataFrame({"cell": [cell("3", 99)], "split": ["train"]})])
    verdict, _, found = judge(several.query(f"cell != '{predicted['cell'][0]}'"), shared)
    assert found["complete"]["ok"] is False
    assert verdict == "leaky"


@pytest.fixture
def run(tmp_path):
    """A run directory with what audit reads: the record, predictions and split."""

    def write(split=HONEST, chosen_on="val", marks=(), epochs=(0, 1), **record):
        directory = tmp_path / "outputs" / "x" / "proposal" / "seed_000"
        directory.mkdir(parents=True, exist_ok=True)
        frames = []
        for name in sorted(set(split["split"]) - {"train"}):
            for epoch in epochs if name == chosen_on else epochs[-1:]:
                frame = scores(split, name).assign(epoch=epoch, split=name)
                frames.append(frame.drop(columns="prob"))
        frame = pd.concat(frames, ignore_index=True)
        frame["subject"] = [name.split("_")[1].upper() for name in frame["cell"]]
        frame["label"] = frame["cell"].str.endswith("all.bmp").astype(int)
        frame["logit"] = np.linspace(-2, 2, len(frame)).astype(np.float32)
        frame["view_0"], frame["prob"] = frame["logit"], sigmoid(frame["logit"])
        predictions.write(directory / "predictions.parquet", frame)
        split = split.assign(subject=[name.split("_")[1].upper() for name in split["cell"]])
        # As a run writes it: with what tells images apart.
        split = split.assign(pixels=[f"pixels of {name}" for name in split["cell"]])
        split.to_csv(directory / "split.csv", index=False)
        written = hashlib.sha256((directory / "split.csv").read_bytes()).hexdigest()
        said = {
            "id": "x-proposal-s0-01234567", "status": "done", "marks": list(marks),
            "selection": {"rule": "last", "set": chosen_on, "epoch": epochs[-1]},
            "threshold": 0.5, "data_digest": "0" * 64,
            "predictions_sha256": predictions.digest(frame),
            "inputs": {"split": written},
        } | record  # fmt: skip
        write_record(directory, said)
        return directory

    return write


@pytest.fixture
def told(capsys):
    """The verdict, exit code and findings of `audit RUN`."""

    def call(*arguments):
        capsys.readouterr()
        code = audit.main([*map(str, arguments), "--json"])
        said = json.loads(capsys.readouterr().out)
        return said["verdict"], code, {one["check"]: one for one in said["findings"]}

    return call


def test_a_verdict_says_which_copies_were_looked_for(run, capsys):
    directory = run()
    bare = pd.read_csv(directory / "split.csv")[["cell", "split"]]
    bare.to_csv(directory / "bare.csv", index=False)
    for more, compared in (([], True), (["--split", str(directory / "bare.csv")], False)):
        audit.main([str(directory), *more, "--json"])
        found = json.loads(capsys.readouterr().out)["compared"]
        assert (len(found) == 4 and "flipped" in found) if compared else found == []
    audit.main([str(directory)])
    words = " ".join(capsys.readouterr().out.split())
    assert all(kind in words for kind in ("exact copies", "turned", "flipped", "moved"))


def test_a_selection_set_that_the_split_lacks_is_no_proof():
    split, record = HONEST.assign(pixels=HONEST["cell"]), {"selection": {"set": "dev"}}
    predicted = scores(HONEST, "prelim").assign(subject="", label=-1)
    result = audited(predicted, split, record, None)
    assert result["verdict"] == "selection"


def test_a_run_that_selected_elsewhere_is_honest(run, told):
    directory = run()
    for source in (directory, directory / "predictions.parquet"):
        verdict, code, found = told(source)
        assert (verdict, code) == ("honest", 0)
        assert all(one["ok"] is True for one in found.values())
        assert "val" in found["selection"]["text"]
        assert found["pixels"]["overlap"] == 0


def test_a_run_that_reports_what_it_selected_on_is_a_selection(run, told):
    for chosen_on, split in (
        ("prelim", HONEST[HONEST["split"] != "val"]),
        ("val", HONEST[HONEST["split"] != "prelim"]),
    ):
        verdict, code, found = told(run(split, chosen_on))
        assert (verdict, code) == ("selection", 1)
        assert f"chosen on {chosen_on}, which is reported" in found["selection"]["text"]


def test_a_run_whose_subjects_overlap_is_leaky(run, told):
    split = HONEST.assign(split=["train", "val"] * 6 + ["prelim"] * (len(HONEST) - 12))
    verdict, code, found = told(run(split))
    assert (verdict, code) == ("leaky", 1)
    assert found["subjects"]["ok"] is False


def test_a_run_that_is_marked_leaky_is_never_called_honest(run, told, capsys):
    """Its index knew of an image that two subjects share, whom nobody merges by name."""
    group = [{"1": "1+2", "2": "1+2"}.get(who, who) for who in persons(HONEST["cell"])]
    directory = run(HONEST.assign(group=group), marks=["LEAKY"])
    verdict, code, _ = told(directory)
    assert (verdict, code) == ("leaky", 1)
    audit.main([str(directory)])
    assert "HONEST. " not in capsys.readouterr().out


def test_a_run_keeps_its_marks_whatever_split_it_is_judged_by(run, capsys):
    directory = run(marks=["SYNTHETIC", "LEAKY"])
    arguments = [str(directory), "--split", str(directory / "split.csv")]
    audit.main([*arguments, "--json"])
    assert json.loads(capsys.readouterr().out)["marks"] == ["SYNTHETIC", "LEAKY"]
    audit.main(arguments)
    assert "*** SYNTHETIC LEAKY ***" in capsys.readouterr().out


@pytest.mark.parametrize("signed", [False, True])
def test_a_record_with_an_edited_selection_set_is_refused(run, told, signed):
    """One word, and the set that chose the epoch would be a test."""
    directory = run(HONEST[HONEST["split"] != "val"], "prelim")
    selection = record(directory)["selection"] | {"set": "val"}
    if signed:
        edit_record(directory, selection=selection)
    else:
        path = directory / "run.json"
        path.write_text(json.dumps(record(directory) | {"selection": selection}))
    with pytest.raises(LeukoclsError, match=r"run\.json: (edited|its selection)") as caught:
        told(directory)
    assert caught.value.exit_code == 2


def test_a_split_that_was_edited_since_is_refused(run, told):
    directory = run(HONEST.assign(split=HONEST["split"].replace({"val": "train"})), "prelim")
    path = directory / "split.csv"
    path.write_text(path.read_text().replace("train", "val", 1))
    with pytest.raises(LeukoclsError, match=r"split\.csv: is not the split the run was trained on"):
        told(directory)


def test_predictions_that_were_edited_since_are_not_called_honest(run, told):
    directory = run()
    path = directory / "predictions.parquet"
    frame = predictions.read(path)
    frame["logit"] = frame["view_0"] = -frame["logit"]
    predictions.write(path, frame.assign(prob=sigmoid(frame["logit"])))
    try:
        verdict, code, _ = told(directory)
    except LeukoclsError as error:
        verdict, code = "refused", error.exit_code
    assert verdict in ("refused", "broken"), verdict
    assert code in (1, 2)


# --- folds


def folded(subjects_apart):
    names = ["1", "1", "2", "2", "H1", "H1", "H7", "H7"]
    fold = [0, 0, 1, 1, 1, 1, 0, 0] if subjects_apart else [0, 1] * 4
    return pd.DataFrame({"cell": [cell(name, k) for k, name in enumerate(names)], "fold": fold})


def test_a_table_of_folds_is_judged_fold_by_fold(judge):
    whole = folded(True)["cell"].to_frame().assign(prob=0.5)
    verdict, code, found = judge(whole, folded(True))
    assert (verdict, code) == ("unknown", 0)
    assert found["subjects"]["ok"] is True
    assert found["cells"]["ok"] is True  # a cell is in the training set of all folds but its own
    assert found["complete"]["ok"] is True
    verdict, code, found = judge(whole, folded(False))
    assert (verdict, code) == ("leaky", 1)
    assert found["subjects"]["overlap"] == 1.0
    # One cell astray leaks its subject's others, and they leak it.
    astray = folded(True)
    astray.loc[0, "fold"] = 1
    verdict, _, found = judge(whole, astray)
    assert found["subjects"]["cells"] == astray["cell"][:2].to_list()
    # Folds that were not scored are trained on all the same.
    one_fold = whole[astray["fold"] == 0]
    verdict, _, found = judge(one_fold, astray)
    assert (verdict, found["subjects"]["cells"]) == ("leaky", [astray["cell"][1]])
    assert found["complete"]["ok"] is True


def test_a_cell_in_two_folds_is_leaky(judge):
    split = pd.concat([folded(True), folded(True)[:1].assign(fold=1)])
    whole = folded(True)["cell"].to_frame().assign(prob=0.5)
    verdict, _, found = judge(whole, split)
    assert verdict == "leaky"
    assert set(found["cells"]["cells"]) == {split["cell"].iloc[0]}


# --- what it prints, and what it refuses


def test_people_get_the_findings_and_the_verdict_in_words(tmp_path, capsys):
    split = table(train={"20": 3, "H1": 2}, val={"21": 12, "H7": 1})
    split.to_csv(tmp_path / "split.csv", index=False)
    scores(split, "val").to_csv(tmp_path / "theirs.csv", index=False)
    arguments = [str(tmp_path / "theirs.csv"), "--split", str(tmp_path / "split.csv")]
    assert audit.main(arguments) == 1
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == str(tmp_path / "theirs.csv")
    assert [line.split()[:2] for line in lines[:7]] == [
        [{"subjects": "BAD", "pixels": "unseen", "selection": "unseen"}.get(check, "good"), check]
        for check in CHECKS
    ]
    assert "12 of 13 scored cells (92.3%)" in lines[0]
    assert cell("21", 6) in lines[0]
    assert "(12 in all)" in lines[0]
    assert lines[8].startswith("LEAKY. ")


BAD = {
    "no such file": (None, HONEST, "gone.csv: no such file"),
    "no scores": (HONEST[["cell"]], HONEST, "predictions.csv: no column prob, logit"),
    "no names": (HONEST[["split"]].assign(prob=1), HONEST, "predictions.csv: no column cell"),
    "no split": (scores(HONEST, "val"), HONEST[["cell"]], "split.csv: needs the columns cell and"),
    "no cell": (scores(HONEST, "val"), HONEST[["split"]], "split.csv: needs the columns cell and"),
    "no train": (scores(HONEST, "val"), HONEST[7:], "names no cell to train on"),
    "all train": (scores(HONEST, "val"), HONEST.assign(split="train"), "or none to score"),
    "strangers": (pd.DataFrame({"cell": ["x"], "prob": 1.0}), HONEST, "no cell of the split is in"),
    "no probability": (scores(HONEST, "val").assign(prob=7), HONEST, "not between 0 and 1"),
}


@pytest.mark.parametrize("fault", BAD)
def test_wrong_files_get_one_clear_message(fault, judge, tmp_path):
    predicted, split, words = BAD[fault]
    with pytest.raises(LeukoclsError) as caught:
        judge(tmp_path / "gone.csv" if predicted is None else predicted, split)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_file_without_its_split_is_refused(tmp_path):
    path = tmp_path / "theirs.csv"
    scores(HONEST, "val").to_csv(path, index=False)
    with pytest.raises(LeukoclsError, match=r"theirs\.csv: name its split with --split"):
        audit.main([str(path)])
    with pytest.raises(LeukoclsError, match="not a run directory"):
        audit.main([str(tmp_path)])


def test_the_real_command_prints_one_document(tmp_path, command):
    split = table(train={"20": 3, "H1": 2}, val={"21": 2, "H7": 1})
    split.to_csv(tmp_path / "split.csv", index=False)
    scores(split, "val").to_csv(tmp_path / "theirs.csv", index=False)
    words = ["theirs.csv", "--split", "split.csv", "--json"]
    done = command("audit", *words, cwd=tmp_path)
    assert (done.wait(), done.err) == (1, "")
    assert json.loads(done.out)["verdict"] == "leaky"
    missing = command("audit", "gone.csv", *words[1:], cwd=tmp_path)
    assert missing.wait() == 2
    assert missing.out == ""
    assert missing.err.startswith("error: gone.csv: no such file")
    assert len(missing.err.splitlines()) == 1


def test_a_table_of_splits_and_folds_is_judged_by_its_folds(judge):
    """Training cells that are scored are scored out of their fold."""
    train = HONEST["split"] == "train"
    fold = HONEST["cell"].str.contains("_H1_").map({True: "1", False: "0"}).where(train, "")
    split = HONEST.assign(fold=fold)
    predicted = scores(split, "train")
    verdict, _, found = judge(predicted, split)
    assert found["subjects"]["ok"] is True
    assert found["cells"]["ok"] is True
    assert verdict != "leaky"
    shared = split.assign(fold=["0", "1"] * (len(split) // 2) + ["0"] * (len(split) % 2))
    assert judge(predicted, shared)[0] == "leaky"


def test_a_run_judged_by_its_own_split_is_what_it_is_without(run, told):
    directory = run()
    alone = told(directory)
    assert alone[0] == "honest"
    assert told(directory, "--split", directory / "split.csv")[:2] == alone[:2]
    # By another split nothing is known of what the run chose by.
    HONEST.to_csv(directory / "other.csv", index=False)
    assert told(directory, "--split", directory / "other.csv")[0] != "honest"
    marked = run(marks=["LEAKY"])
    assert told(marked, "--split", directory / "other.csv")[0] == "leaky"


def test_the_column_group_hides_no_subject(judge):
    """In a split with both columns, a person is trained on if either says so."""
    subjects = [*"aaabbbccdd"]
    split = pd.DataFrame({"cell": [f"x{k}" for k in range(10)], "subject": subjects})
    split = split.assign(group=subjects, split=["train"] * 6 + ["val"] * 4)
    split = split.assign(label=[0, 0, 0, 1, 1, 1, 0, 0, 1, 1], pixels=split["cell"])
    predicted = split[split["split"] == "val"][["cell", "label"]].assign(prob=0.3)
    assert judge(predicted, split)[0] != "leaky"
    edited = split.assign(subject=["C", *subjects[1:]])
    verdict, _, found = judge(predicted, edited)
    assert (verdict, found["subjects"]["ok"]) == ("leaky", False)
