import hashlib
import os

import numpy as np
import pandas as pd
import pytest

from leukocls.artifacts import predictions
from leukocls.common.errors import LeukoclsError


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    views = rng.normal(size=(6, 2)).astype(np.float32)
    logit = views.mean(axis=1)
    return pd.DataFrame(
        {
            "epoch": [0, 0, 0, 1, 1, 1],
            "split": ["prelim", "prelim", "final"] * 2,
            "cell": ["10.bmp", "2.bmp", "2.bmp"] * 2,
            "subject": ["57", "H3", ""] * 2,
            "label": [1, 0, -1] * 2,
            "view_0": views[:, 0],
            "view_1": views[:, 1],
            "logit": logit,
            "prob": 1 / (1 + np.exp(-logit.astype(np.float64))),
        }
    )


def test_round_trip_keeps_types_and_values(frame, tmp_path):
    path = tmp_path / "predictions.parquet"
    predictions.write(path, frame)
    back = predictions.read(path)
    assert back["epoch"].dtype == np.int32
    assert back["label"].dtype == np.int8
    assert back["view_1"].dtype == np.float32
    assert back["logit"].dtype == np.float32
    assert back["prob"].dtype == np.float64
    assert back["cell"].to_list() == ["2.bmp", "10.bmp", "2.bmp"] * 2
    for column in ("view_0", "view_1", "logit", "prob"):
        assert sorted(back[column]) == sorted(frame[column])
    assert predictions.digest(back) == predictions.digest(frame)


def test_digest_ignores_row_order_and_the_files_bytes(frame, tmp_path):
    expected = predictions.digest(frame)
    shuffled = frame.sample(frac=1, random_state=1)[list(frame.columns[::-1])]
    assert predictions.digest(shuffled) == expected
    shuffled.to_parquet(tmp_path / "a.parquet", compression="gzip", row_group_size=2)
    assert predictions.digest(predictions.read(tmp_path / "a.parquet")) == expected


def test_digest_is_over_little_endian_values_in_key_order():
    one = pd.DataFrame(
        {
            "epoch": [1, 0],
            "split": ["val", "val"],
            "cell": ["a", "b"],
            "subject": ["H3", "57"],
            "label": [0, 1],
            "view_0": [0.0, 2.0],
            "logit": [0.0, 2.0],
            "prob": [0.5, 1 / (1 + np.exp(-2.0))],
        }
    )
    state = hashlib.sha256()
    for part in (
        b"epoch:int32:2\n" + np.array([0, 1], "<i4").tobytes(),
        b'split:str:2\n["val", "val"]cell:str:2\n["b", "a"]subject:str:2\n["57", "H3"]',
        b"label:int8:2\n" + bytes([1, 0]),
        b"view_0:float32:2\n" + np.array([2, 0], "<f4").tobytes(),
        b"logit:float32:2\n" + np.array([2, 0], "<f4").tobytes(),
        b"prob:float64:2\n" + np.array([1 / (1 + np.exp(-2.0)), 0.5], "<f8").tobytes(),
    ):
        state.update(part)
    assert predictions.digest(one) == state.hexdigest()


@pytest.mark.parametrize(
    ("column", "value"),
    [("epoch", 7), ("split", "val"), ("cell", "3.bmp"), ("subject", "58"), ("label", 0)],
)
def test_digest_sees_one_changed_value(frame, column, value):
    edited = frame.copy()
    edited.loc[0, column] = value
    assert predictions.digest(edited) != predictions.digest(frame)


def test_digest_sees_the_last_bit_of_a_view(frame):
    edited = frame.copy()
    edited.loc[3, "view_1"] = np.nextafter(edited.loc[3, "view_1"], np.float32(9))
    assert predictions.digest(edited) != predictions.digest(frame)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: f.drop(columns="subject"), "column subject is missing"),
        (lambda f: f.drop(columns="view_0"), "column view_0 is missing"),
        (lambda f: f.rename(columns={"view_1": "view_3"}), "gaps"),
        (lambda f: f.assign(note="x"), "unexpected column note"),
        (lambda f: f.iloc[:0], "no rows"),
        (lambda f: f.assign(label=2), "a label is none of"),
        (lambda f: f.assign(label=257), "a label is none of"),
        (lambda f: f.assign(epoch=0.5), "no 32-bit integer"),
        (lambda f: f.assign(epoch=2**32), "no 32-bit integer"),
        (lambda f: f.assign(prob=0.25), "not the sigmoid"),
        (lambda f: f.assign(view_0=np.nan), "view_0 holds missing"),
        (lambda f: f.assign(view_0=np.inf), "infinite"),
        (lambda f: f.assign(epoch="first"), "wrong type"),
        (lambda f: pd.concat([f, f.iloc[:1]]), "there twice"),
    ],
)
def test_what_is_not_the_format_is_refused(frame, tmp_path, edit, message):
    path = tmp_path / "predictions.parquet"
    edit(frame).to_parquet(path)
    with pytest.raises(LeukoclsError, match=message) as caught:
        predictions.read(path)
    assert str(path) in str(caught.value)
    with pytest.raises(LeukoclsError, match=message):
        predictions.write(tmp_path / "b.parquet", edit(frame))
    assert os.listdir(tmp_path) == ["predictions.parquet"]


@pytest.mark.parametrize("content", [None, b"", b"PAR1 cut short"])
def test_unreadable_files_are_named(tmp_path, content):
    path = tmp_path / "predictions.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LeukoclsError, match=r"predictions\.parquet"):
        predictions.read(path)


def test_persons_are_kept_and_no_part_of_the_digest(frame, tmp_path):
    merged = frame.assign(person=frame["subject"].replace({"57": "57+58", "": None}))
    assert predictions.digest(merged) == predictions.digest(frame)
    predictions.write(tmp_path / "a.parquet", merged)
    back = predictions.read(tmp_path / "a.parquet")
    assert back.columns[:5].to_list() == ["epoch", "split", "cell", "subject", "person"]
    assert predictions.persons(back).to_list() == back["person"].to_list()
    assert dict(zip(back["subject"], back["person"], strict=True)) == {
        "57": "57+58", "H3": "H3", "": ""
    }  # fmt: skip
    # Without the column, C-NMC's merged subjects, where the names of the cells are C-NMC's.
    assert predictions.persons(frame).to_list() == frame["subject"].to_list()
    named = frame.assign(
        cell=[f"UID_{s or 9}_1_{k}_hem.bmp" for k, s in enumerate(frame["subject"])]
    )
    assert predictions.persons(named).to_list() == ["57", "H3+H10", ""] * 2


def test_an_unknown_subject_may_be_null(frame, tmp_path):
    nulls = frame.assign(subject=frame["subject"].replace({"": None}))
    assert predictions.digest(nulls) == predictions.digest(frame)
