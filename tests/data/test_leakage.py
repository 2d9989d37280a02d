"""The leakage lab's split: equal but for whose cells train, whatever the data looks like."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_splits import index, keep, make_index, published, tiny  # noqa: F401 (fixtures)

from leukocls.common.errors import LeukoclsError
from leukocls.data.splits import SplitOptions, make_split

HALVES = (0, 1)


def parts(data, leak, fold, seed=0, **sizes):
    """The training cells and the scored cells."""
    split = make_split(data, "leakage", SplitOptions(fold, seed=seed, leak=leak, **sizes))
    assert (split.selection, split.tests, split.leaky) == ("val", (), leak > 0)
    assert split.rows.keys() == {"train", "val"}
    train, val = (data.table.iloc[split.rows[name]] for name in ("train", "val"))
    assert set(data.table["part"].iloc[[*train.index, *val.index]]) == {"train"}
    return train, val


def shape(cells):
    """What every training set has equally many of: cells, persons and persons' sizes by class."""
    sizes = cells.groupby(["label", "group"]).size()
    return {int(label): sorted(of) for label, of in sizes.groupby("label")}


def assert_lab(data, seed, **sizes):
    """All that the lab promises; the scored persons of both halves."""
    found = {
        (leak, fold): parts(data, leak, fold, seed, **sizes) for leak in (0, 1) for fold in HALVES
    }
    for fold in HALVES:
        try:  # whole persons may have no such share
            found[0.5, fold] = parts(data, 0.5, fold, seed, **sizes)
        except LeukoclsError as error:
            said = str(error)
            assert "whole persons" in said
    for (leak, fold), (train, scored) in found.items():
        honest, same = found[0, fold]
        assert same.index.tolist() == scored.index.tolist()
        assert shape(train) == shape(honest)
        # Other cells of the scored persons, and no image of a scored cell.
        assert set(train["copies"]).isdisjoint(scored["copies"])
        for label in (0, 1):
            own = train[train["label"] == label]
            off = abs(own["group"].isin(scored["group"]).mean() - leak)
            assert off <= (0.1 if leak == 0.5 else 0)
        # Every training set is the honest one of one half and the leaky one of the other.
        assert leak == 0.5 or train.index.tolist() == found[1 - leak, 1 - fold][0].index.tolist()
    halves = [set(found[0, fold][1]["group"]) for fold in HALVES]
    assert halves[0].isdisjoint(halves[1])
    return halves


@st.composite
def shapes(draw):
    """Persons of any number of cells, some with cells of both classes, some images twice."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = []
    for label in (0, 1):
        for number in range(draw(st.integers(4, 12))):
            for _ in range(int(rng.integers(2, 40))):
                rows.append(("train", -1, f"{'ha'[label]}{number}", label))
            if rng.random() < 0.1:
                rows.append(("train", -1, f"{'ha'[label]}{number}", 1 - label))
    # Copies are of one person and one class.
    pixels = np.arange(len(rows))
    for row in rng.integers(1, len(rows), 20):
        if rows[row] == rows[row - 1]:
            pixels[row] = pixels[row - 1]
    return make_index(rows, pixels)


@settings(deadline=None, max_examples=8, derandomize=True)
@given(shapes(), st.integers(0, 2**64 - 1))
def test_sets_are_equal_but_for_whose_cells_train(data, seed):
    assert_lab(data, seed)


def test_of_the_published_structure_few_persons_are_left_out(published):  # noqa: F811
    halves = assert_lab(published, 0)
    label = published.table.groupby("group")["label"].first()
    for half in halves:  # of 20 HEM and 39 ALL
        assert [sum(label[who] == y for who in half) for y in (0, 1)] == [10, 19]
    scored = [parts(published, 0, fold)[1] for fold in HALVES]
    total = published.table[published.table["part"] == "train"].drop_duplicates("copies")
    assert sum(map(len, scored)) == pytest.approx(len(total) / 3, rel=0.03)


def test_smaller_sets_are_equal_and_part_of_larger_ones(published):  # noqa: F811
    assert_lab(published, 0, n_subjects=20, n_cells=333)
    for leak in (0, 1):
        sets = [
            parts(published, leak, 0, **sizes) for sizes in ({"n_subjects": 8}, {"n_cells": 90}, {})
        ]
        assert {tuple(val.index) for _, val in sets} == {tuple(sets[2][1].index)}
        few, some, whole = (set(train.index) for train, _ in sets)
        assert few < whole
        assert some < whole
        assert len(some) == 90
        assert [train["group"].nunique() for train, _ in (sets[0], sets[2])] == [8, 29]


def test_the_split_seed_decides_and_nothing_else(published):  # noqa: F811
    def rows(seed, leak=0.5):
        return make_split(published, "leakage", SplitOptions(1, seed=seed, leak=leak)).rows

    for name in ("train", "val"):
        assert np.array_equal(rows(3)[name], rows(3)[name])
        assert not np.array_equal(rows(3)[name], rows(4)[name])
    # Without a share or a fold it is the honest set of the first half.
    default = make_split(published, "leakage")
    assert np.array_equal(default.rows["train"], parts(published, 0, 0)[0].index)
    assert not default.leaky


def test_images_of_one_cell_count_once(index):  # noqa: F811
    """`copies` is filled in by verify; two images of one cell are never on two sides."""
    assert index.table["copies"].is_unique  # the small tree has no copies
    table = index.table
    person = table["group"].iloc[0]
    own = table.index[table["group"] == person]
    doubled = keep(index, table.index >= 0)
    doubled.table.loc[own, "copies"] = doubled.table["copies"].iloc[0]
    for fold in HALVES:
        train, val = parts(doubled, 1, fold)
        assert person not in {*train["group"], *val["group"]}  # one cell cannot be divided


REFUSED = {
    "one person": (lambda t: t[(t["label"] == 1) | (t["group"] == "p3")], "of one subject"),
    "one cell each": (
        lambda t: t[(t["label"] == 1) | ~t["group"].duplicated()],
        "needs two subjects of HEM with two cells each",
    ),
    "no subject": (lambda t: t.assign(group=""), "have no subject"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_data_that_cannot_give_it_is_refused(tiny, fault):  # noqa: F811
    change, said = REFUSED[fault]
    table = change(tiny.table).reset_index(drop=True)
    changed = keep(tiny, tiny.table.index >= 0)
    object.__setattr__(changed, "table", table)
    with pytest.raises(LeukoclsError, match=said) as caught:
        make_split(changed, "leakage")
    assert caught.value.exit_code == 2


def test_shares_and_folds_that_cannot_be_are_refused(tiny):  # noqa: F811
    for leak in (-0.1, 1.5, "1", True):
        with pytest.raises(LeukoclsError, match=f"leak={leak}: choose a share from 0 to 1"):
            SplitOptions(leak=leak)
    with pytest.raises(LeukoclsError, match="fold=2: leakage has the folds 0 to 1"):
        make_split(tiny, "leakage", SplitOptions(2))
    with pytest.raises(LeukoclsError, match="leak=1: only split_scheme=leakage has it"):
        make_split(tiny, "subject", SplitOptions(folds=2, leak=1))
    # Three pairs of equally large persons have thirds.
    assert parts(tiny, 0.3, 0)[0]["group"].nunique() == 6
    with pytest.raises(LeukoclsError, match=r"leak=0\.5: whole persons of HEM .* is 0\.33"):
        make_split(tiny, "leakage", SplitOptions(0, leak=0.5))
    with pytest.raises(LeukoclsError, match=r"leak=0\.01: .* is 0\.00"):
        make_split(tiny, "leakage", SplitOptions(0, leak=0.01))
    with pytest.raises(LeukoclsError, match=r"data\.n_subjects=7: the training set has 6"):
        make_split(tiny, "leakage", SplitOptions(0, n_subjects=7))


def test_numbers_of_cells_are_those_of_the_smaller_person():
    """By hand: of 9 cells 3 are scored, of 6 two; so both persons train with four."""
    rows = [
        ("train", -1, f"{'ha'[label]}{number}", label)
        for label in (0, 1)
        for number, cells in enumerate((9, 6))
        for _ in range(cells)
    ]
    data = make_index(rows, range(len(rows)))
    for leak in (0, 1):
        sets = [parts(data, leak, fold) for fold in HALVES]
        assert [shape(train) for train, _ in sets] == 2 * [{0: [4], 1: [4]}]
        scored = pd.concat([val for _, val in sets])
        assert sorted(scored.groupby("group").size()) == [2, 2, 3, 3]
