"""Arms and seeds compared from their predictions alone, through the command line."""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import edit_record, record
from made_up_runs import (
    SEEDS,
    frame_of,
    selected_on_prelim,
    write_honest,
    write_run,
    write_sweep,
)
from scipy import stats as oracle
from sklearn import metrics as scores

from leukocls import compare
from leukocls.artifacts import predictions
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.evaluation import comparison, metrics, published_results
from leukocls.reporting import tables

KEYS = {
    "arms": {"name", "n", "planned", "seeds", *comparison.METRICS},
    "tests": {
        *("a", "b", "metric", "test", "alternative", "statistic", "p", "p_holm", "effect"),
        *("effect_name", "family"),
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Four arms of four seeds each."""
    return write_sweep(tmp_path_factory.mktemp("made") / "prellberg2019")


@pytest.fixture
def sweep(made, tmp_path):
    """Those arms, for a test to change."""
    return Path(shutil.copytree(made, tmp_path / "outputs" / made.name))


@pytest.fixture
def honest(tmp_path):
    """Runs that select on val and score prelim once, by the selected epoch."""
    return write_honest(tmp_path / "outputs" / "x")


def refused(*argv, fault=LeukoclsError):
    with pytest.raises(fault) as caught:
        compare.main([*map(str, argv)])
    assert caught.value.exit_code == (1 if fault is DataFault else 2)
    return str(caught.value)


def arm_of(document, name):
    (arm,) = (arm for arm in document["arms"] if arm["name"] == name)
    return arm


def values_of(root, arm, split="prelim", which="weighted_f1"):
    """By scikit-learn, from the stored file."""
    found = []
    for seed in SEEDS:
        cells = pd.read_parquet(root / arm / f"seed_{seed:03d}" / "predictions.parquet")
        cells = cells[(cells["epoch"] == 1) & (cells["split"] == split)]
        called = cells["logit"] > 0
        values = {
            "weighted_f1": scores.f1_score(cells["label"], called, average="weighted"),
            "accuracy": scores.accuracy_score(cells["label"], called),
            "specificity": scores.recall_score(1 - cells["label"], ~called),
            "auroc": scores.roc_auc_score(cells["label"], cells["logit"]),
        }
        found.append(values[which])
    return found


# --- reductions


def test_reductions_over_seeds_are_recomputed(made):
    document = comparison.compare([made])
    of = itertools.product(
        ("proposal", "norot", "nospeclr_1e-4"), ("weighted_f1", "accuracy", "specificity", "auroc")
    )
    for name, metric in of:
        arm, known = arm_of(document, name), values_of(made, name, which=metric)
        found = arm[metric]
        assert found["values"] == pytest.approx(known, rel=1e-12)
        assert found["mean"] == pytest.approx(np.mean(known))
        assert found["sd"] == pytest.approx(np.std(known, ddof=0))
        assert (found["min"], found["max"]) == pytest.approx((min(known), max(known)))
        # 1.02938 is the expected maximum of four standard normal values, 0.921318 c₄ of four.
        spread = np.std(known, ddof=1) / 0.921318
        assert found["expected_max"] == pytest.approx(np.mean(known) + 1.02938 * spread, abs=1e-6)
        assert (arm["n"], arm["planned"], arm["seeds"]) == (4, 4, [0, 1, 2, 3])
        assert found["interval"]["low"] < found["mean"] < found["interval"]["high"]
    assert arm_of(document, "proposal")["weighted_precision"]["interval"] is None
    assert document["ddof"] == 0


def right_by_person(root, arm):
    """Share of cells that are called rightly: a row for each seed, a column for each HEM person."""
    rows = []
    for seed in SEEDS:
        cells = pd.read_parquet(root / arm / f"seed_{seed:03d}" / "predictions.parquet")
        cells = cells[(cells["epoch"] == 1) & (cells["label"] == 0)]
        rows.append((cells["logit"] <= 0).groupby(cells["subject"]).mean())
    return np.array(rows)


def test_differences_are_of_the_same_persons_and_cover_other_persons_and_seeds(made):
    """Specificity, whose persons have equally many cells: means of means, by hand."""
    document = comparison.compare([made])
    assert document["persons"] == {"ALL": 8, "HEM": 4}
    a, b = (right_by_person(made, arm) for arm in ("proposal", "nospeclr_1e-4"))
    (row,) = (
        row
        for row in document["differences"]
        if (row["b"], row["metric"]) == ("nospeclr_1e-4", "specificity")
    )
    assert (row["a"], row["n"]) == ("proposal", [4, 4])
    assert row["difference"] == pytest.approx(a.mean() - b.mean())
    persons = (a.mean(0) - b.mean(0)).var(ddof=1) / a.shape[1]
    seeds = 0.0
    for arm in (a, b):
        rest = arm - arm.mean(0) - arm.mean(1, keepdims=True) + arm.mean()
        both = (rest**2).sum() / (3 * 3) / 4  # of persons and seeds, in the mean over persons
        seeds += max(0, arm.mean(1).var(ddof=1) - both) / 4
    low, high, df = (row["interval"][key] for key in ("low", "high", "df"))
    half = oracle.t.ppf(0.975, df) * np.sqrt(persons + seeds)
    assert (low, high) == pytest.approx((row["difference"] - half, row["difference"] + half))
    assert row["variance_by_seeds"] == pytest.approx(seeds / (persons + seeds))
    assert [one["difference"] for one in row["power"]] == [0.015, 0.03]
    assert 0.05 < row["power"][0]["power"] < row["power"][1]["power"] < 1


def test_runs_without_persons_have_no_interval(sweep):
    for path in sweep.rglob("predictions.parquet"):
        frame = predictions.read(path).assign(subject="")
        predictions.write(path, frame)
        edit_record(path.parent, predictions_sha256=predictions.digest(frame))
    document = comparison.compare([sweep])
    assert document["persons"] is None
    assert document["differences"] == []
    assert arm_of(document, "proposal")["auroc"]["interval"] is None
    assert "Patients" not in tables.comparison_text(document)


def test_json_has_the_keys_of_interfaces(sweep, capsys):
    assert compare.main([str(sweep), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.keys() >= {
        *("arms", "tests", "selection_set", "test_set", "marks", "sources"),
    }
    for key, names in KEYS.items():
        assert all(one.keys() >= names for one in document[key])
    of_metric = {"values", "mean", "sd", "min", "max", "interval"}
    assert document["arms"][0]["auroc"].keys() >= of_metric
    runs = [run.parent for run in sweep.rglob("run.json")]
    assert document["sources"] == {
        record(run)["id"]: record(run)["predictions_sha256"] for run in runs
    }
    assert len(runs) == 16
    assert document["marks"] == ["SYNTHETIC"]


def test_the_papers_numbers_stand_beside_the_arms_they_belong_to(sweep, tmp_path):
    document = comparison.compare([sweep])
    printed = arm_of(document, "proposal")["accuracy"]["paper"]
    assert printed == {"min": 0.8640, "mean": 0.8796, "sd": 0.0090, "max": 0.8988}
    assert arm_of(document, "norot")["weighted_f1"]["paper"] == {"mean": 0.8692, "sd": 0.0081}
    assert arm_of(document, "norot")["accuracy"]["paper"] is None
    assert arm_of(document, "proposal,optim.lr=1")["weighted_f1"]["paper"] is None
    shown = tables.comparison_text(document)
    row = next(line for line in shown.split("\n") if line.startswith("  specificity"))
    assert re.search(r" 75\.31 +80\.36 ± 2\.39 +84\.72$", row)
    assert "paper's mean ± SD" in shown
    assert published_results.SOURCE in shown
    assert shown.count("paper: p < 0.001") == 1
    values = values_of(sweep, "proposal")
    assert ", ".join(f"{s}:{100 * v:.2f}" for s, v in enumerate(values)) in shown
    shutil.move(sweep, tmp_path / "demo")
    shown = tables.comparison_text(comparison.compare([tmp_path / "demo"]))
    assert "paper" not in shown.casefold()


def test_the_papers_table_is_that_of_the_paper():
    table = published_results.RESULTS["prellberg2019", "proposal"]
    assert table.keys() == {*metrics.RECORDED}
    for row in table.values():
        assert row["min"] < row["mean"] - row["sd"] < row["mean"] + row["sd"] < row["max"]
    # Accuracy is the support-weighted recall by definition, and the paper prints it so.
    assert table["accuracy"] == table["weighted_recall"]


# --- which set


def test_selection_is_never_headed_test(sweep):
    document = comparison.compare([sweep])
    assert (document["selection_set"], document["test_set"]) == ("prelim", None)
    shown = tables.comparison_text(document)
    assert shown.startswith("SELECTION   on prelim")
    assert "\n*** SYNTHETIC ***\n" in shown
    assert "TEST" not in shown
    assert document["arms"][0]["chosen"] is None


def test_a_test_set_is_the_table_and_the_chosen_seed_is_shown_on_it(honest):
    document = comparison.compare([honest])
    assert (document["selection_set"], document["test_set"]) == ("val", "prelim")
    shown = tables.comparison_text(document)
    assert shown.startswith("TEST   on prelim; selection set: val\n")
    on_val, on_test = (values_of(honest, "proposal", split) for split in ("val", "prelim"))
    arm = arm_of(document, "proposal")
    assert arm["weighted_f1"]["values"] == pytest.approx(on_test, rel=1e-12)
    best = int(np.argmax(on_val))
    assert arm["chosen"] == {
        "seed": best,
        "selection": pytest.approx(on_val[best]),
        "test": pytest.approx(on_test[best]),
    }
    assert f"val would choose seed {best} ({100 * on_val[best]:.2f})" in shown


def test_leaky_runs_have_no_test(honest):
    for run in honest.rglob("run.json"):
        edit_record(run.parent, marks=["LEAKY"])
    document = comparison.compare([honest])
    assert (document["test_set"], document["marks"]) == (None, ["LEAKY"])
    assert arm_of(document, "proposal")["weighted_f1"]["values"] == pytest.approx(
        values_of(honest, "proposal", "val")
    )
    assert tables.comparison_text(document).startswith("SELECTION   on val")


def test_a_run_without_selection_or_test_is_refused(sweep):
    run = sweep / "norot" / "seed_001"
    selection = {"rule": "last", "set": "train", "epoch": 1}
    write_run(run, frame_of("train", 1, 1, 1.0), selection=selection, split_scheme="all")
    message = refused(sweep)
    assert message.startswith(f"{run}: has numbers neither on a selection set nor on a test")


def test_marks_are_those_of_any_run(sweep):
    edit_record(sweep / "norot" / "seed_001", marks=["SYNTHETIC", "LIMITED"])
    document = comparison.compare([sweep])
    assert document["marks"] == ["SYNTHETIC", "LIMITED"]
    assert "*** SYNTHETIC LIMITED ***" in tables.comparison_text(document)


# --- tests


def test_arms_that_share_runs_are_paired_and_others_are_not(sweep):
    document = comparison.compare([sweep])
    assert document["reference"] == "proposal"
    assert document["arms"][0]["name"] == "proposal"
    a = {name: values_of(sweep, "proposal", which=name) for name in ("weighted_f1", "auroc")}
    for row in document["tests"]:
        if row["metric"] not in a:
            continue
        x, y = a[row["metric"]], values_of(sweep, row["b"], which=row["metric"])
        if row["b"] == "norot":
            known = oracle.wilcoxon(np.subtract(x, y), alternative="greater")
            assert (row["test"], row["n"]) == ("Wilcoxon signed-rank", 4)
            walsh = [(p + q) / 2 for i, p in enumerate(np.subtract(x, y))
                     for q in np.subtract(x, y)[i:]]  # fmt: skip
            assert row["hodges_lehmann"] == pytest.approx(np.median(walsh), abs=1e-12)
            assert "matched" in row["effect_name"]
        else:
            known = oracle.mannwhitneyu(x, y, alternative="greater")
            assert (row["test"], row["n"]) == ("Mann-Whitney U", [4, 4])
            assert row["effect"] == pytest.approx(2 * known.statistic / 16 - 1)
            shifts = np.subtract.outer(x, y)
            assert row["hodges_lehmann"] == pytest.approx(np.median(shifts), abs=1e-12)
            limits = row["hodges_lehmann_interval"]
            ends = (shifts.min(), shifts.max())
            assert (limits["low"], limits["high"]) == pytest.approx(ends, abs=1e-12)
        assert (row["statistic"], row["p"]) == pytest.approx((known.statistic, known.pvalue))
        assert (row["a"], row["alternative"]) == ("proposal", "greater")
    assert tables.NOISE in tables.comparison_text(document)
    # View 0 of one proposal shares nothing with another.
    others = comparison.compare([sweep / "norot", sweep / "proposal,optim.lr=1"])
    assert {row["test"] for row in others["tests"]} == {"Mann-Whitney U"}


def test_the_same_training_is_shared_however_it_came_about(sweep):
    """Trained again to the same bits, or with another epoch chosen, it is no independent run."""
    chosen = set()
    for seed in SEEDS:
        frame = selected_on_prelim(seed, 1.0)
        f1 = [
            scores.f1_score(cells["label"], cells["logit"] > 0, average="weighted")
            for _, cells in frame.groupby("epoch")
        ]
        chosen.add(epoch := int(np.argmax(f1)))
        selection = {"rule": "best_weighted_f1", "set": "prelim", "epoch": epoch}
        write_run(sweep / "proposal,optim.lr=1" / f"seed_{seed:03d}", frame, selection=selection)
    assert 0 in chosen
    tests = comparison.compare([sweep])["tests"]
    by_arm = {row["b"]: row["test"] for row in tests}
    assert by_arm == {
        "norot": "Wilcoxon signed-rank",
        "proposal,optim.lr=1": "Wilcoxon signed-rank",
        "nospeclr_1e-4": "Mann-Whitney U",
    }


def test_holm_is_over_weighted_f1_alone(sweep):
    tests = comparison.compare([sweep])["tests"]
    assert len(tests) == 3 * len(comparison.METRICS)
    family = sorted((r for r in tests if r["family"] == "weighted_f1"), key=lambda r: r["p"])
    assert [r["metric"] for r in family] == ["weighted_f1"] * 3
    p = [r["p"] for r in family]
    known = [3 * p[0], max(3 * p[0], 2 * p[1]), max(3 * p[0], 2 * p[1], p[2])]
    assert [r["p_holm"] for r in family] == pytest.approx([min(1, v) for v in known])
    others = [r for r in tests if r["metric"] != "weighted_f1"]
    assert {(r["family"], r["p_holm"]) for r in others} == {("exploratory", None)}


def test_the_reference_can_be_named(sweep):
    document = comparison.compare([sweep], against="norot")
    assert document["reference"] == document["arms"][0]["name"] == "norot"
    assert {row["a"] for row in document["tests"]} == {"norot"}
    assert "Reference arm: norot" in tables.comparison_text(document)
    assert "no such arm; choose one of " in refused(sweep, "--against", "rotnot")
    without = [sweep / "proposal,optim.lr=1", sweep / "norot"]
    assert comparison.compare(without)["reference"] == "proposal,optim.lr=1"
    without = [sweep / "nospeclr_1e-4", sweep / "norot"]
    assert comparison.compare(without)["reference"] == "nospeclr_1e-4"


def test_what_is_undefined_is_null_with_a_reason(sweep, capsys):
    for run in sweep.rglob("run.json"):
        frame = predictions.read(run.parent / "predictions.parquet")
        frame = frame[frame["label"] == 1]
        predictions.write(run.parent / "predictions.parquet", frame)
        edit_record(run.parent, predictions_sha256=predictions.digest(frame))
    assert compare.main([str(sweep), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    arm = arm_of(document, "proposal")
    for metric in ("auroc", "specificity"):
        assert arm[metric]["values"] == [None] * 4
        assert arm[metric]["mean"] is arm[metric]["sd"] is arm[metric]["expected_max"] is None
    row = next(row for row in document["tests"] if row["metric"] == "auroc")
    assert (row["p"], row["reason"]) == (None, "needs cells of both classes")
    assert row["n"] == 4
    assert "needs cells of both classes" in tables.comparison_text(document)


def test_equal_arms_have_no_p_value(sweep):
    shutil.copytree(sweep / "proposal", sweep / "copy")
    for seed in SEEDS:
        edit_record(sweep / "copy" / f"seed_{seed:03d}", id=f"copy-{seed}")
    document = comparison.compare([sweep / "proposal", sweep / "copy"])
    for row in document["tests"]:
        assert (row["p"], row["reason"]) == (None, "all differences are zero")
    assert "all differences are zero" in tables.comparison_text(document)


# --- which runs


def test_a_run_counts_once_however_it_is_named(sweep, monkeypatch):
    monkeypatch.chdir(sweep.parent)
    named = [Path(), Path("prellberg2019/norot"), sweep / "norot" / "seed_002", sweep]
    assert comparison.compare(named)["sources"] == comparison.compare([sweep])["sources"]
    document = comparison.compare([sweep / "norot" / "seed_002"])
    assert [arm["seeds"] for arm in document["arms"]] == [[2]]
    assert document["tests"] == []
    assert tables.NOISE not in tables.comparison_text(document)


def test_links_and_scorings_are_left_out_unless_they_are_named(sweep):
    for arm in ("phase=a,proposal", "link=b,proposal", "score=prelim,proposal"):
        shutil.copytree(sweep / "proposal", sweep / arm)
        for seed in SEEDS:
            edit_record(sweep / arm / f"seed_{seed:03d}", id=f"{arm}-{seed}")
    names = [arm["name"] for arm in comparison.compare([sweep])["arms"]]
    assert sorted(names) == sorted(["proposal", "norot", "nospeclr_1e-4", "proposal,optim.lr=1"])
    document = comparison.compare([sweep / "proposal", sweep / "phase=a,proposal"])
    assert [arm["name"] for arm in document["arms"]] == ["proposal", "phase=a,proposal"]
    one = sweep / "score=prelim,proposal" / "seed_001"
    assert comparison.compare([one])["arms"][0]["name"] == "score=prelim,proposal"
    for arm in ("proposal", "norot", "nospeclr_1e-4", "proposal,optim.lr=1"):
        shutil.rmtree(sweep / arm)
    assert "have to be named" in refused(sweep)


def test_experiments_can_be_compared_where_all_else_agrees(sweep):
    other = sweep.parent / "other"
    shutil.copytree(sweep / "nospeclr_1e-4", other / "proposal")
    document = comparison.compare([sweep / "proposal", other])
    assert [arm["name"] for arm in document["arms"]] == [
        "prellberg2019/proposal",
        "other/proposal",
    ]
    assert document["reference"] == "prellberg2019/proposal"
    assert document["arms"][1]["weighted_f1"]["paper"] is None


def test_one_seed_twice_is_refused(sweep, tmp_path):
    twin = tmp_path / "elsewhere" / "prellberg2019" / "proposal"
    shutil.copytree(sweep / "proposal", twin)
    message = refused(sweep, twin)
    assert "the same seed of the same arm twice" in message
    assert str(twin / "seed_000") in message


def test_places_without_runs_are_refused(tmp_path):
    assert "no run at or below it" in refused(tmp_path)
    assert "no run at or below it" in refused(tmp_path / "nowhere")
    write_run(tmp_path / "x" / "proposal" / "seed_000", selected_on_prelim(0, 1.0))
    (tmp_path / "x" / "proposal" / "seed_000").rename(tmp_path / "x" / "proposal" / "first")
    assert "not named seed_<nnn>" in refused(tmp_path)


@pytest.mark.parametrize(
    ("change", "condition"),
    [
        ({"data_digest": "d2"}, "data_digest d2: prellberg2019/norot/seed_001"),
        ({"split_scheme": "lofo"}, "split_scheme lofo: prellberg2019/norot/seed_001"),
        ({"selection": {"rule": "last", "set": "val", "epoch": 1}}, "selection set val: "),
        ({"selection": {"rule": "last", "set": "val", "epoch": 1}}, "scored set prelim (test): "),
    ],
)
def test_what_cannot_be_compared_is_not_mixed(sweep, change, condition):
    run = sweep / "norot" / "seed_001"
    edit_record(run, **change)
    if "selection" in change:
        frames = [frame_of("val", 0, 1, 1.0), *(frame_of(s, 1, 1, 1.0) for s in ("val", "prelim"))]
        write_run(run, pd.concat(frames), **change)
    message = refused(sweep)
    assert message.startswith("these runs cannot be compared")
    assert condition in message
    others = "prellberg2019/norot/seed_000, prellberg2019/norot/seed_002, "
    assert f": {others}" in message
    assert "(15 in all)\n" in message
    assert message.count("\n") < 8


def test_runs_that_scored_other_cells_are_not_mixed(sweep):
    frame = selected_on_prelim(1, 0.5)
    write_run(sweep / "nospeclr_1e-4" / "seed_001", frame[frame["cell"] != "prelim7.bmp"])
    message = refused(sweep)
    assert re.search(r"scored cells 59, \w{12}: prellberg2019/nospeclr_1e-4/seed_001 ", message)


def test_two_configurations_are_not_one_arm(sweep):
    identity = {"seed": 1, "rescore_from": None, "optim.lr": 0.1}
    edit_record(sweep / "proposal" / "seed_001", identity=identity)
    message = refused(sweep)
    assert "one arm, two configurations" in message
    assert "optim.lr (None and 0.1)" in message


# --- incomplete sweeps


@pytest.fixture
def broken(sweep):
    """Seed 1 failed, seed 2 was killed, seed 3 never began, and another arm misses one."""
    error = "RuntimeError: out of memory\nand a trace"
    edit_record(sweep / "nospeclr_1e-4" / "seed_001", status="failed", error=error)
    edit_record(sweep / "nospeclr_1e-4" / "seed_002", status="interrupted", error="interrupted")
    shutil.rmtree(sweep / "nospeclr_1e-4" / "seed_003")
    shutil.rmtree(sweep / "norot" / "seed_000")
    return sweep


def test_an_incomplete_sweep_is_refused_with_what_is_missing(broken):
    lines = refused(broken).split("\n")
    assert lines[0] == "the sweep is incomplete:"
    assert sorted(lines[1:5]) == [
        "  arm norot, seed 0: missing",
        "  arm nospeclr_1e-4, seed 1: failed (RuntimeError: out of memory)",
        "  arm nospeclr_1e-4, seed 2: interrupted (interrupted)",
        "  arm nospeclr_1e-4, seed 3: missing",
    ]
    assert "again" in lines[5]
    assert "--incomplete" in lines[5]
    assert len(lines) == 6


def test_an_incomplete_sweep_says_so_when_it_is_asked_for(broken):
    document = comparison.compare([broken], incomplete=True)
    arm = arm_of(document, "nospeclr_1e-4")
    assert (arm["n"], arm["planned"], arm["seeds"]) == (1, 4, [0])
    shown = tables.comparison_text(document)
    assert "nospeclr_1e-4   n = 1 of 4" in shown
    assert "proposal   n = 4\n" in shown
    row = next(r for r in document["tests"] if r["b"] == "nospeclr_1e-4")
    assert (row["p"], row["reason"]) == (None, "fewer than 2 runs in an arm")
    paired = next(r for r in document["tests"] if r["b"] == "norot")
    assert paired["n"] == 3
    # It is a member of the family all the same.
    family = [r for r in document["tests"] if r["p_holm"] is not None]
    assert min(r["p_holm"] for r in family) == pytest.approx(3 * min(r["p"] for r in family))


def test_seeds_can_be_planned(sweep, capsys):
    message = refused(sweep, "--seeds", "6")
    assert "arm proposal, seed 4, 5: missing" in message
    assert compare.main([str(sweep), "--seeds", "0-3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arms"][0]["planned"] == 4
    assert compare.main([str(sweep), "--seeds", "24", "--incomplete"]) == 0
    assert "proposal   n = 4 of 24" in capsys.readouterr().out
    message = refused(sweep, "--seeds", "2", "--incomplete")
    assert "seeds that are not planned" in message
    assert "norot: 2, 3" in message
    for wrong in ("0", "3-1", "many"):
        with pytest.raises(SystemExit) as stop:
            compare.main([str(sweep), "--seeds", wrong])
        assert stop.value.code == 2


def test_an_arm_of_which_nothing_is_done_is_told(sweep):
    for seed in SEEDS:
        edit_record(sweep / "norot" / f"seed_{seed:03d}", status="failed", error="x")
    document = comparison.compare([sweep], incomplete=True)
    arm = arm_of(document, "norot")
    assert (arm["n"], arm["weighted_f1"]["reason"]) == (0, "no finished run")
    assert "norot   n = 0 of 4" in tables.comparison_text(document)
    assert "none of these runs is done" in refused(sweep / "norot", "--incomplete")


def test_an_arm_of_which_nothing_is_done_is_no_reference(sweep):
    for seed in SEEDS:
        edit_record(sweep / "proposal" / f"seed_{seed:03d}", status="failed", error="x")
    document = comparison.compare([sweep], incomplete=True)
    assert document["reference"] == document["arms"][0]["name"] != "proposal"
    assert arm_of(document, "proposal")["n"] == 0
    assert {row["a"] for row in document["tests"]} == {document["reference"]}
    message = refused(sweep, "--incomplete", "--against", "proposal")
    assert "--against proposal" in message


# --- damage


def test_edited_predictions_are_refused_by_name(sweep):
    path = sweep / "norot" / "seed_001" / "predictions.parquet"
    frame = predictions.read(path)
    frame.loc[0, ["view_0", "logit"]] += 0.5
    frame["prob"] = metrics.sigmoid(frame["logit"])
    predictions.write(path, frame)
    other = sweep / "proposal" / "seed_003" / "predictions.parquet"
    other.write_bytes(other.read_bytes()[:-40])
    message = refused(sweep, fault=DataFault)
    assert str(path) in message
    assert "not the predictions the run wrote" in message
    assert f"{other}: " in message
    assert message.count("\n") == 1


def test_a_damaged_record_is_told(sweep):
    path = sweep / "norot" / "seed_001" / "run.json"
    path.write_text('{"status": "done"')
    assert f"{path}: damaged" in refused(sweep, fault=DataFault)


def test_an_edited_record_is_told(sweep):
    path = sweep / "norot" / "seed_001" / "run.json"
    path.write_text(path.read_text().replace('"set": "prelim"', '"set": "val"'))
    assert f"{path}: edited" in refused(sweep, fault=DataFault)
    # Signed anew, it names a set without predictions.
    edit_record(path.parent, selection={"rule": "last", "set": "val", "epoch": 1})
    assert f"{path}: its selection" in refused(sweep, fault=DataFault)


# --- the command


def test_the_command_ends_as_promised(sweep, command):
    good = command("compare", sweep, "--json")
    assert (good.wait(), good.err) == (0, "")
    assert "NaN" not in good.out
    assert len(json.loads(good.out)["arms"]) == 4
    bad = command("compare", "nowhere")
    assert (bad.wait(), bad.out) == (2, "")
    assert bad.err.startswith("error: nowhere: no run")
    (sweep / "norot" / "seed_001" / "run.json").write_text("")
    assert command("compare", sweep).wait() == 1
    assert command("compare").wait() == 2
