"""Names of arms: short ones say everything, long ones begin with what a sweep varies."""

from pathlib import Path

import pytest
from conftest import Train, small

from leukocls.artifacts.identity import arm_name, name_parts

LONG = [f"model.options.option_{i}={i}" for i in range(5)]


def test_arms_that_differ_in_a_late_key_differ_in_what_can_be_read() -> None:
    names = [arm_name("proposal", [*LONG, f"views={v}"], swept=["views"]) for v in (1, 8)]
    assert [name.rpartition("-")[0][:17] for name in names] == [
        "proposal,views=1,",
        "proposal,views=8,",
    ]
    assert all(len(name) <= 80 for name in names)
    assert len({name[-8:] for name in names}) == 2


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "proposal"),
        (["views=1", "optim.lr=0.1"], "proposal,optim.lr=0.1,views=1"),
        (["data.x=[1,2]"], "proposal,data.x=-1,2--3280704e"),
        (["a" * 69 + "=1"], "proposal," + "a" * 69 + "=1"),
    ],
)
def test_a_name_that_is_not_too_long_is_the_same_in_every_sweep(
    overrides: list[str], name: str
) -> None:
    assert arm_name("proposal", overrides) == name
    assert arm_name("proposal", overrides, swept=["views"]) == name


def test_a_long_name_that_is_there_stays_whoever_asks() -> None:
    before = arm_name("proposal", [*LONG, "views=8"])
    after = arm_name("proposal", [*LONG, "views=8"], swept=["views"], existing=["other", before])
    assert after == before
    assert arm_name("proposal", [*LONG, "views=1"], existing=[before]) != before


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("proposal", ("proposal", {})),
        ("proposal,optim.lr=0.1,views=1", ("proposal", {"optim.lr": "0.1", "views": "1"})),
        ("score=final,cells,proposal,views=1", ("score=final,cells,proposal", {"views": "1"})),
        ("phase=a,norot", ("phase=a,norot", {})),
        (
            arm_name("proposal", [*LONG, "views=8"], swept=["views"]),
            (
                "proposal…1999c9c9",
                {"views": "8", "model.options.option_0": "0", "model.options.option_1": "1"},
            ),
        ),
    ],
)
def test_a_name_is_read_again(name: str, parts: tuple[str, dict[str, str]]) -> None:
    assert name_parts(name) == parts


def test_a_run_alone_finds_what_a_sweep_has_named(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    words = [*small(small_tree, tmp_path / "outputs"), "trainer.limit_train_batches=1"]
    words += ["trainer.max_epochs=1", "trainer.limit_val_batches=1"]
    swept = train(*words, "views=1,2", "-m")
    assert swept.code == 0, swept.err
    arms = sorted(path.name for path in (tmp_path / "outputs/demo").iterdir())
    assert [arm[:17] for arm in arms] == ["proposal,views=1,", "proposal,views=2,"]
    alone = train(*words, "views=2")
    assert (alone.code, "done already" in alone.out) == (0, True)
    assert sorted(path.name for path in (tmp_path / "outputs/demo").iterdir()) == arms
