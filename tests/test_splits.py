from dataclasses import replace

import numpy as np
import pytest

from leukocls.data.index import build_index
from leukocls.data.splits import SCHEMES, Split, make_split, part_rows
from leukocls.errors import LeukoclsError


@pytest.fixture(scope="module")
def index(small_tree):
    return build_index(small_tree)


def keep(index, wanted):
    return replace(index, table=index.table[wanted].reset_index(drop=True))


def test_challenge_trains_on_all_folds_and_selects_on_prelim(index):
    split = make_split(index, "challenge")
    table = index.table
    assert split.scheme == "challenge"
    assert set(split.rows) == {"train", "prelim"}
    train, prelim = table.iloc[split.rows["train"]], table.iloc[split.rows["prelim"]]
    assert set(train["part"]) == {"train"}
    assert set(train["fold"]) == {0, 1, 2}
    assert set(prelim["part"]) == {"prelim"}
    # All of it, once, in the index's order; final has no labels and is in neither.
    rows = np.concatenate([split.rows["train"], split.rows["prelim"]])
    assert rows.tolist() == table.index[table["part"] != "final"].tolist()
    assert (table["part"] == "final").any()
    assert set(train["subject"]).isdisjoint(prelim["subject"])


def test_challenge_has_a_selection_and_no_test(index):
    split = make_split(index, "challenge")
    assert split.selection == "prelim"
    assert split.scored == ["prelim"]
    assert not split.leaky


def test_without_final_nothing_changes(index):
    smaller = make_split(keep(index, index.table["part"] != "final"), "challenge")
    split = make_split(index, "challenge")
    for name, rows in split.rows.items():
        assert np.array_equal(smaller.rows[name], rows)


def test_train_is_scored_only_if_it_is_all_there_is():
    rows = np.arange(2)
    several = Split("any", {"train": rows, "val": rows, "prelim": rows}, "val")
    assert several.scored == ["val", "prelim"]
    assert Split("any", {"train": rows}, "train").scored == ["train"]


def test_an_unknown_scheme_is_refused_with_the_known_ones(index):
    with pytest.raises(LeukoclsError, match=r"split_scheme=random: choose one of") as caught:
        make_split(index, "random")
    assert caught.value.exit_code == 2
    assert all(scheme in str(caught.value) for scheme in SCHEMES)


@pytest.mark.parametrize("part", ["train", "prelim"])
def test_a_part_without_images_is_named_with_what_is_there(index, part):
    others = [name for name in ("train", "prelim", "final") if name != part]
    present = ", ".join(others)
    message = rf"part '{part}' holds no image \(present: {present}\)\. Add it"
    with pytest.raises(LeukoclsError, match=message) as caught:
        make_split(keep(index, index.table["part"] != part), "challenge")
    assert str(caught.value).startswith(f"{index.root}: ")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("label", [0, 1])
def test_training_cells_of_one_class_are_refused(index, label):
    table = index.table
    one_class = keep(index, (table["part"] != "train") | (table["label"] == label))
    with pytest.raises(LeukoclsError, match="one class only; training needs ALL and HEM") as caught:
        make_split(one_class, "challenge")
    assert caught.value.exit_code == 2


def test_part_rows_are_those_of_the_part(index):
    for part in ("train", "prelim", "final"):
        rows = part_rows(index, part)
        assert rows.dtype == np.int64
        assert rows.tolist() == [i for i, p in enumerate(index.table["part"]) if p == part]
    with pytest.raises(LeukoclsError, match=r"part 'fold_0' holds no image .*name another part"):
        part_rows(index, "fold_0")
