"""The leakage lab from runs to a paired difference, and learning curves from runs to points."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, Train, record, small
from sklearn.metrics import f1_score, roc_auc_score
from test_compare import frame_of, write_run

from leukocls import audit, baseline, compare, evaluate
from leukocls.common.errors import LeukoclsError
from leukocls.evaluation.comparison import scored_comparison
from leukocls.evaluation.intervals import jackknife
from leukocls.evaluation.learning_curve import learning_curve
from leukocls.evaluation.person_counts import Persons

Fit = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def fit(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """`fit(folder, *options)`: both folds of a baseline by size, fitted once."""
    root = tmp_path_factory.mktemp("lab")

    def fitted(folder: str, *options: str) -> list[Path]:
        words = [str(small_tree), "--features", "size", "--cache", str(root / "store"), *options]
        outputs = root / folder
        for fold in ("0", "1"):
            assert baseline.main([*words, "--fold", fold, "--outputs", str(outputs)]) == 0
        return sorted(path.parent for path in outputs.rglob("run.json"))

    return fitted


@pytest.fixture
def lab(fit: Fit) -> dict[int, list[Path]]:
    """The runs of both halves by leak."""
    words = ("--split-scheme", "leakage", "--leak")
    return {leak: fit(f"leak-{leak}", *words, str(leak)) for leak in (0, 1)}


def printed(capsys: pytest.CaptureFixture[str], main: Any, *words: object) -> Any:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_compare_says_what_the_leak_is_worth(
    lab: dict[int, list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    frames = {
        leak: pd.concat([pd.read_parquet(run / "predictions.parquet") for run in of])
        for leak, of in lab.items()
    }
    assert sorted(frames[0]["cell"]) == sorted(frames[1]["cell"])
    runs = [*lab[0], *lab[1]]
    document = printed(capsys, compare.main, *runs)
    assert (document["heading"], document["test_set"]) == ("leaky", None)
    assert document["marks"] == ["SYNTHETIC", "LEAKY"]
    names = [f"size,leak={leak}.0,split_scheme=leakage" for leak in (1, 0)]
    assert [arm["name"] for arm in document["arms"]] == names
    assert document["reference"] == names[0]
    area = {leak: roc_auc_score(of["label"], of["logit"]) for leak, of in frames.items()}
    (worth,) = (one for one in document["differences"] if one["metric"] == "auroc")
    assert worth["difference"] == pytest.approx(area[1] - area[0])
    assert worth["interval"]["low"] < worth["difference"] < worth["interval"]["high"]
    assert document["persons"] == {"ALL": 6, "HEM": 4}
    compare.main([*map(str, runs)])
    assert capsys.readouterr().out.startswith("LEAKY   on val of all folds")
    turned = printed(capsys, compare.main, *runs, "--against", names[1])
    assert turned["reference"] == names[1]
    # Each arm alone says what it is.
    for leak, heading in ((0, "out-of-fold"), (1, "leaky")):
        assert printed(capsys, evaluate.main, "--pool", *lab[leak])["heading"] == heading
        assert all(("LEAKY" in record(run)["marks"]) == bool(leak) for run in lab[leak])
        assert {record(run)["identity"]["leak"] for run in lab[leak]} == {float(leak)}
    assert audit.main([str(lab[1][0])]) == 1


def test_other_splits_and_other_draws_are_no_pair(lab: dict[int, list[Path]], fit: Fit) -> None:
    by_cell = fit("cell", "--split-scheme", "cell", "--folds", "2")
    with pytest.raises(LeukoclsError, match="split_scheme cell"):
        compare.main([*map(str, [*lab[1], *by_cell])])
    other = fit("other", "--split-scheme", "leakage", "--leak", "1", "--split-seed", "1")
    with pytest.raises(LeukoclsError, match="scored cells"):
        compare.main([*map(str, [*lab[0], *other])])


def test_the_experiment_trains_both_leaks_and_halves(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    words = ["experiment=leakage", *TINY, "data=cnmc", f"data.root={small_tree}", "data.size=32"]
    words += ["threads=1", "data.batch_size=8", "trainer.max_epochs=1"]
    places = [f"outputs={tmp_path}", f"data.cache={small_tree.parent / 'store'}"]
    # The file sweeps both; what the command line says takes its place.
    planned = train(*words, *places, "leak=0,0.5", "plan=true", "-m")
    assert planned.code == 0, planned.err
    jobs = re.findall(r"^(\d)  +(\S+)  +missing", planned.out, re.M)
    assert sorted(jobs) == [("0", "0"), ("0", "0.5"), ("1", "0"), ("1", "0.5")]

    done = train(*small(small_tree, tmp_path), "split_scheme=leakage", "leak=1", "selection=last",
                 "trainer.max_epochs=1", "data.batch_size=7")  # fmt: skip
    assert done.code == 0, done.err
    run = Path(done.out.splitlines()[-1])
    assert (record(run)["identity"]["leak"], record(run)["marks"]) == (1, ["SYNTHETIC", "LEAKY"])
    split = pd.read_csv(run / "split.csv", dtype=str)
    groups = [set(of["group"]) for _, of in split.groupby("split")]
    assert groups[0] == groups[1]
    assert not split["cell"].duplicated().any()


# --- learning curves


def test_folds_are_one_run_of_a_point(fit: Fit) -> None:
    words = ("--split-scheme", "subject", "--folds", "2")
    few, whole = fit("few", *words, "--n-subjects", "4"), fit("whole", *words)
    points = learning_curve(scored_comparison([*few, *whole]))["points"]
    assert [(one["n_subjects"], one["n"]) for one in points] == [(4, 1), (None, 1)]
    for point, runs in zip(points, (few, whole), strict=True):
        splits = [
            pd.read_csv(run / "split.csv", dtype=str).query("split == 'train'") for run in runs
        ]
        assert point["persons"] == np.mean([split["group"].nunique() for split in splits])
        assert point["cells"] == np.mean([len(split) for split in splits])
        frame = pd.concat([pd.read_parquet(run / "predictions.parquet") for run in runs])
        expected = f1_score(frame["label"], frame["logit"] > 0, average="weighted")
        assert point["mean"] == pytest.approx(expected)
        assert point["curve"].endswith("size,folds=2,split_scheme=subject")


@pytest.fixture
def curve(tmp_path: Path) -> Path:
    """Two sizes and all persons, two seeds by two draws of the persons each."""
    for n in (3, 6, None):
        for seed in (0, 1):
            for draw in (0, 1):
                size = f",data.n_subjects={n}" if n else ""
                where = tmp_path / f"x/proposal{size},split_seed={draw}/seed_{seed:03d}"
                identity = {"seed": seed, "split_seed": draw, "data.n_subjects": n}
                frame = frame_of("prelim", 1, seed + 2 * draw, 0.2 * (n or 9))
                name = f"{n}-{seed}-{draw}"
                write_run(where, frame, identity=identity, id=name)
                number = n or 12
                rows = [[f"{k}.bmp", f"p{k % number}", "train"] for k in range(5 * number + draw)]
                rows.append(["v.bmp", "q", "val"])
                split = pd.DataFrame(rows, columns=["cell", "group", "split"])
                split.to_csv(where / "split.csv", index=False)
    return tmp_path / "x"


def test_points_are_means_over_seeds_and_draws(curve: Path) -> None:
    found = learning_curve(scored_comparison([curve]), "auroc")
    assert (found["heading"], found["marks"]) == ("selection", ["SYNTHETIC"])
    assert sum(found["persons"].values()) == 12
    points = found["points"]
    assert [one["curve"] for one in points] == ["x/proposal"] * 3
    assert [(one["n_subjects"], one["persons"], one["cells"]) for one in points] == [
        (3, 3, 15.5), (6, 6, 30.5), (None, 12, 60.5),
    ]  # fmt: skip
    for point, n in zip(points, (3, 6, 9), strict=True):
        frames = [frame_of("prelim", 1, k, 0.2 * n).sort_values("cell") for k in (0, 1, 2, 3)]
        areas = [roc_auc_score(of["label"], of["logit"]) for of in frames]
        assert sorted(point["values"]) == pytest.approx(sorted(areas))
        assert point["mean"] == pytest.approx(np.mean(areas))
        assert point["sd"] == pytest.approx(np.std(areas))
        sums = [
            Persons.of(of["label"], of["logit"] > 0, of["subject"], of["logit"]) for of in frames
        ]
        limits = jackknife(sums, "auroc").limits
        assert limits is not None
        assert point["interval"] == pytest.approx(limits)
        assert (point["n"], point["reason"]) == (4, None)


def test_what_is_no_curve_is_refused(curve: Path) -> None:
    with pytest.raises(LeukoclsError, match="no other size of its training set"):
        learning_curve(scored_comparison(sorted(curve.glob("proposal,split_seed=*"))))
    with pytest.raises(LeukoclsError, match="macro_f1: choose one of"):
        learning_curve(scored_comparison([curve]), "macro_f1")
    run = curve / "proposal,split_seed=0/seed_000"
    write_run(run, frame_of("prelim", 1, 0, 1.0), status="failed")
    with pytest.raises(LeukoclsError, match="sweep is incomplete"):
        learning_curve(scored_comparison([curve]))
    (run / "split.csv").unlink()
    identity = {"seed": 0, "split_seed": 0, "data.n_subjects": None}
    write_run(run, frame_of("prelim", 1, 0, 1.0), identity=identity)
    with pytest.raises(LeukoclsError, match=r"split\.csv"):
        learning_curve(scored_comparison([curve]))
