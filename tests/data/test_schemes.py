"""Every split scheme through the real command line: what selects, what tests, what may be said."""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
from conftest import Outcome, Train, edit_record, only_run, record, small
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from leukocls import audit, evaluate, runs
from leukocls.artifacts import predictions
from leukocls.common.errors import LeukoclsError
from leukocls.data.datamodule import CellDataModule
from leukocls.data.index import build_index
from leukocls.evaluation import metrics
from leukocls.evaluation.cell_metrics import cell_metrics
from leukocls.launch import job
from leukocls.tracking.panels import run_init
from leukocls.training import fit, inputs, recorder

HONEST = ["split_scheme=honest", "folds=3"]
ONE = "trainer.max_epochs=1"
ARMS = {
    "challenge": ["split_scheme=challenge", ONE],
    "honest": [*HONEST, "trainer.max_epochs=2"],
    "subject": ["split_scheme=subject", "folds=3", "fold=1", ONE],
    "lofo": ["split_scheme=lofo", "fold=2", ONE],
    "cell": ["split_scheme=cell", "folds=3", ONE],
}
# What a run of each scheme may call the numbers of each split that it scores.
HEADINGS = {
    "challenge": {"prelim": "selection"},
    "honest": {"val": "selection", "prelim": "test"},
    "subject": {"val": "selection"},
    "lofo": {"val": "selection"},
    "cell": {"val": "selection"},
}
COUNTS = ("tp", "fp", "tn", "fn")


@dataclass
class Shared:
    """Where runs that several tests look at are written, and what they printed, by overrides."""

    outputs: Path
    done: dict[tuple[str, ...], tuple[Path, Outcome]] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.outputs.parent / "store"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    return Shared(tmp_path_factory.mktemp("schemes") / "outputs")


@pytest.fixture
def go(small_tree: Path, shared: Shared, train: Train):
    """Train with these overrides; the run directory and what was printed. Shared runs, which are
    those below no `outputs` of a test's own, are trained once."""

    def run(*overrides: str, outputs: Path | None = None, tree: Path = small_tree):
        if outputs is None and overrides in shared.done:
            return shared.done[overrides]
        command = [*small(tree, outputs or shared.outputs), f"data.cache={shared.cache}"]
        done = train(*command, "data.size=32", "views=2", *overrides)
        assert done.code == 0, done.err
        found = Path(done.out.splitlines()[-1]), done
        if outputs is None:
            shared.done[overrides] = found
        return found

    return run


@pytest.fixture
def score(small_tree: Path, shared: Shared, train: Train):
    """Score a run's checkpoint on a part of the data; its run directory."""

    def run(source: Path, part: str) -> Path:
        what = (f"checkpoint={source}", f"score={part}")
        if what not in shared.done:
            places = [f"outputs={shared.outputs}", f"data.cache={shared.cache}"]
            done = train(*what, f"data.root={small_tree}", *places)
            assert done.code == 0, done.err
            shared.done[what] = Path(done.out.splitlines()[-1]), done
        return shared.done[what][0]

    return run


@pytest.fixture
def js(capsys: pytest.CaptureFixture[str]):
    """`python -m leukocls.evaluate … --json`, by split."""

    def call(*arguments: object) -> dict[str, dict]:
        capsys.readouterr()
        assert evaluate.main([*map(str, arguments), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        return {one["split"]: one for one in (found if isinstance(found, list) else [found])}

    return call


def frame_of(run: Path) -> pd.DataFrame:
    return predictions.read(run / "predictions.parquet")


def split_of(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "split.csv", dtype=str, keep_default_na=False)


# --- every scheme


@pytest.mark.parametrize("scheme", ARMS)
def test_a_scheme_trains_on_its_split_and_scores_the_rest_once(scheme, go, small_tree):
    run, done = go(*ARMS[scheme])
    said, frame, rows = record(run), frame_of(run), pd.read_csv(run / "metrics.csv")
    assert said["status"] == "done"
    assert said["split_scheme"] == scheme
    table = split_of(run)
    cells = {name: set(of["cell"]) for name, of in table.groupby("split")}
    parts = build_index(small_tree).table.groupby("part")["cell"].agg(set)
    assert cells["train"] <= parts["train"]
    assert cells.get("prelim", parts["prelim"]) == parts["prelim"]
    assert cells.keys() == {"train", *HEADINGS[scheme]}
    # The epoch is the first best one of the selection set.
    chosen_on = said["selection"]["set"]
    assert HEADINGS[scheme][chosen_on] == "selection"
    assert said["selection"]["epoch"] == int(np.argmax(rows[f"{chosen_on}_weighted_f1"]))
    # What is scored: the selection set at all epochs, a test at the chosen one, train at none.
    scored = {key: set(of["cell"]) for key, of in frame.groupby(["split", "epoch"])}
    epochs = range(int(ARMS[scheme][-1].split("=")[1]) + 1)
    expected = {(chosen_on, epoch): cells[chosen_on] for epoch in epochs}
    if scheme == "honest":
        expected["prelim", said["selection"]["epoch"]] = cells["prelim"]
    assert scored == expected
    assert not frame.duplicated(["split", "epoch", "cell"]).any()
    assert said["metrics"].keys() == HEADINGS[scheme].keys()
    assert ("*** SYNTHETIC LEAKY ***" in done.out) == (scheme == "cell")


def test_prelim_has_values_in_the_row_of_the_chosen_epoch_only(go):
    run, _ = go(*ARMS["honest"])
    rows = pd.read_csv(run / "metrics.csv").set_index("epoch")
    of_prelim = [name for name in rows if name.startswith("prelim_")]
    assert {name.removeprefix("prelim_") for name in of_prelim} == {
        name.removeprefix("val_") for name in rows if name.startswith("val_")
    }
    chosen = record(run)["selection"]["epoch"]
    assert rows.loc[chosen, of_prelim].notna().all()
    assert rows.loc[rows.index != chosen, of_prelim].isna().all(axis=None)
    assert rows[[name for name in rows if name.startswith("val_")]].notna().all(axis=None)
    cells = frame_of(run).query("split == 'prelim'")
    called = cells["logit"] > 0
    assert rows.loc[chosen, "prelim_tp"] == (called & (cells["label"] == 1)).sum()


def test_a_file_is_a_scheme(go, tmp_path):
    """The honest run's own split.csv, given back, is that run again."""
    run, _ = go(*ARMS["honest"])
    path = tmp_path / "mine.csv"
    shutil.copy(run / "split.csv", path)
    again, _ = go(f"split_scheme={path}", "trainer.max_epochs=2")
    assert again != run
    said, before = record(again), record(run)
    assert said["split_scheme"] == "mine.csv"
    for key in ("predictions_sha256", "weights_sha256", "metrics", "marks", "selection"):
        assert said[key] == before[key], key
    assert (again / "split.csv").read_bytes() == (run / "split.csv").read_bytes()


# --- what numbers may be called (S3)


@pytest.mark.parametrize("scheme", ARMS)
def test_evaluate_heads_each_split_as_its_scheme_allows(scheme, go, js, capsys):
    run, done = go(*ARMS[scheme])
    assert {name: one["heading"] for name, one in js(run).items()} == HEADINGS[scheme]
    shown = {line.split()[0] for line in done.out.splitlines() if " · split " in line}
    assert shown == {heading.upper() for heading in HEADINGS[scheme].values()}
    (listed,) = [row for row in listing(run, capsys) if row["path"] == str(run)]
    chosen_on = record(run)["selection"]["set"]
    headed = ("test", "prelim") if scheme == "honest" else ("selection", chosen_on)
    assert (listed["headline"]["heading"], listed["headline"]["set"]) == headed


def listing(outputs: Path, capsys: pytest.CaptureFixture[str]) -> list[dict]:
    capsys.readouterr()
    assert runs.main([str(outputs), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_under_challenge_there_is_no_test_anywhere(go, score, js, capsys):
    run, done = go(*ARMS["challenge"])
    scored = score(run, "prelim")
    for source in (run, scored):
        assert js(source)["prelim"]["heading"] == "selection"
        for more in (["--epoch", "all"], ["--threshold", ".4"], ["--views", "0"]):
            assert evaluate.main([str(source), *more]) == 0
        for path in source.rglob("*"):
            if path.suffix in (".txt", ".json", ".csv"):
                assert '"test"' not in path.read_text()
                assert "TEST " not in path.read_text()
    shown = capsys.readouterr().out + done.out
    assert "SELECTION" in shown
    assert "TEST " not in shown


def test_what_chose_the_epoch_is_no_test_under_another_name(go, score, js, tmp_path):
    """A file may call cells of prelim its val: scored again as prelim, they have chosen all the
    same; and cells of prelim that trained are no test either."""
    run, _ = go(*ARMS["challenge"])
    table = split_of(run)
    for name, words in (("val", {"prelim": "val"}), ("train", {"prelim": "train", "train": "val"})):
        path = tmp_path / f"prelim-as-{name}.csv"
        table.assign(split=table["split"].replace(words)).to_csv(path, index=False)
        own, _ = go(f"split_scheme={path}", ONE)
        assert js(own)["val"]["heading"] == "selection"
        told = js(score(own, "prelim"))["prelim"]
        assert told["heading"] == "selection", name
        assert ("LEAKY" in told["marks"]) == (name == "train")


def test_prelim_that_a_subject_run_left_alone_is_a_test_once_scored(go, score, js):
    run, _ = go(*ARMS["subject"])
    assert js(score(run, "prelim"))["prelim"]["heading"] == "test"


# --- LEAKY (S1)


def test_leaky_reaches_everything_that_the_numbers_reach(go, score, js, capsys):
    run, done = go(*ARMS["cell"])
    assert "LEAKY" in done.out
    assert "LEAKY" in (run / "log.txt").read_text()
    scored = score(run, "prelim")
    for source in (run, scored):
        assert record(source)["marks"] == ["SYNTHETIC", "LEAKY"]
        assert all(one["marks"] == ["SYNTHETIC", "LEAKY"] for one in js(source).values())
        assert evaluate.main([str(source)]) == 0
        assert "*** SYNTHETIC LEAKY ***" in capsys.readouterr().out
        (row,) = listing(source, capsys)
        assert row["marks"] == ["SYNTHETIC", "LEAKY"]
        runs.main([str(source)])
        assert "LEAKY" in capsys.readouterr().out


def test_leaky_is_a_tag_on_w_and_b(go):
    """Whoever sees the run there sees the mark."""
    run, _ = go(*ARMS["cell"])
    init = run_init(run, record(run))
    assert init["tags"] == record(run)["marks"] == ["SYNTHETIC", "LEAKY"]
    assert init["config"]["marks"] == ["SYNTHETIC", "LEAKY"]


def test_a_file_that_shares_a_subject_is_leaky_and_still_says_which_set_selected(go, js, tmp_path):
    table = split_of(go(*ARMS["honest"])[0])
    moved = table.index[(table["split"] == "val") & (table["label"] == "1")][0]
    table.loc[moved, "split"] = "train"
    table.to_csv(tmp_path / "shared.csv", index=False)
    run, done = go(f"split_scheme={tmp_path / 'shared.csv'}", ONE)
    assert record(run)["marks"] == ["SYNTHETIC", "LEAKY"]
    assert "*** SYNTHETIC LEAKY ***" in done.out
    assert all("LEAKY" in one["marks"] for one in js(run).values())


def test_no_other_scheme_is_marked(go):
    for scheme in ("challenge", "honest", "subject", "lofo"):
        assert record(go(*ARMS[scheme])[0])["marks"] == ["SYNTHETIC"]


# --- what audit says of a run of ours


VERDICTS = {
    "challenge": "selection",
    "honest": "honest",
    "subject": "selection",
    "lofo": "selection",
    "cell": "leaky",
}


@pytest.mark.parametrize("scheme", VERDICTS)
def test_audit_knows_the_schemes(scheme, go, small_tree, shared, capsys):
    run, _ = go(*ARMS[scheme])
    for more in ([], ["--data", str(small_tree), "--cache", str(shared.cache)]):
        capsys.readouterr()
        code = audit.main([str(run), "--json", *more])
        found = json.loads(capsys.readouterr().out)
        assert found["verdict"] == VERDICTS[scheme], found["findings"]
        assert code == int(scheme != "honest")
        assert ("LEAKY" in found["marks"]) == (scheme == "cell")


def test_audit_of_a_scored_run_sends_to_the_run_that_was_trained(middle, score):
    """Its own split.csv holds the scored part only."""
    with pytest.raises(LeukoclsError, match="scores what another run trained; audit that run"):
        audit.main([str(score(middle(), "prelim"))])


# --- the test belongs to the chosen epoch


@pytest.fixture
def middle(go, monkeypatch):
    """An honest run whose chosen epoch is neither the first nor the last."""

    def run(**places: Path) -> Path:
        monkeypatch.setitem(recorder.RULES, "middle", lambda history: min(len(history) - 1, 1))
        words = ("trainer.max_epochs=2", "selection=middle", "threshold=best_weighted_f1")
        found, _ = go(*HONEST, *words, **places)
        assert record(found)["selection"] == {"rule": "middle", "set": "val", "epoch": 1}
        return found

    return run


def test_the_chosen_weights_score_prelim_as_checkpoint_and_score_do(middle, score, small_tree):
    run = middle()
    tested = frame_of(run).query("split == 'prelim'")
    assert set(tested["epoch"]) == {1}
    columns = ["cell", "subject", "label", "view_0", "view_1", "logit", "prob"]

    def of(directory: Path) -> pd.DataFrame:
        return frame_of(directory)[columns].reset_index(drop=True)

    again = score(run, "prelim")
    pd.testing.assert_frame_equal(
        tested[columns].reset_index(drop=True), of(again), check_exact=True
    )
    assert record(again)["threshold"] == record(run)["threshold"]
    of_run, of_score = (record(one)["metrics"]["prelim"] for one in (run, again))
    assert of_run == of_score
    # The last epoch's weights are others, and so are what they say.
    last = of(score(run / "checkpoints" / "last.safetensors", "prelim"))
    assert last["cell"].equals(of(again)["cell"])
    assert (last["logit"] != of(again)["logit"]).all()


def stopped_before(middle, outputs, monkeypatch):
    """Training is over, nothing of the test is."""
    with monkeypatch.context() as patch:
        broken = MagicMock(side_effect=RuntimeError("pulled the plug"))
        patch.setattr(CellDataModule, "test_dataloader", broken)
        with pytest.raises(AssertionError, match="pulled the plug"):
            middle(outputs=outputs)
    run = only_run(outputs)
    assert record(run)["status"] == "failed"
    parts = map(predictions.read, (run / predictions.PARTS).iterdir())
    assert set(pd.concat(parts)["split"]) == {"val"}


def killed(middle, outputs, monkeypatch):
    """What a SIGKILL leaves when the test is written and `done` is not."""
    source = middle()
    run = outputs.joinpath(*source.parts[-3:])
    shutil.copytree(source, run)
    unset = {"status": "running", "pid": -1, "metrics": {}, "threshold": None}
    unset |= {"predictions_sha256": None, "weights_sha256": None}
    edit_record(run, **unset)


def killed_between(middle, outputs, monkeypatch):
    """The same, after predictions.parquet and before metrics.csv."""
    killed(middle, outputs, monkeypatch)
    path = only_run(outputs) / "metrics.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table[[name for name in table if not name.startswith("prelim_")]].to_csv(path, index=False)


@pytest.mark.parametrize("stop", [stopped_before, killed_between, killed])
def test_a_run_stopped_around_its_test_resumes_to_the_same(stop, middle, tmp_path, monkeypatch):
    stop(middle, tmp_path / "outputs", monkeypatch)
    run = middle(outputs=tmp_path / "outputs")
    assert "resumed after epoch 2" in (run / "log.txt").read_text()
    assert run == only_run(tmp_path / "outputs")
    said, expected = record(run), record(middle())
    for key in ("status", "predictions_sha256", "weights_sha256", "threshold", "metrics"):
        assert said[key] == expected[key], key
    rows, before = (pd.read_csv(one / "metrics.csv") for one in (run, middle()))
    timing = ["images_per_s"]
    pd.testing.assert_frame_equal(rows.drop(columns=timing), before.drop(columns=timing))


# --- the threshold (S8)


def brute_force(label, prob):
    """Highest weighted F1 of any way to call ALL above some probability: scikit-learn's, one by
    one. And the F1 of every threshold halfway between neighbours, and of .5."""

    def f1(threshold):
        return f1_score(label, prob > threshold, average="weighted", zero_division=0)

    distinct = np.unique(prob)
    halfway = [*((distinct[1:] + distinct[:-1]) / 2), 0.5]
    highest = max(f1(threshold) for threshold in (distinct[0] / 2, *distinct))
    return highest, {threshold: f1(threshold) for threshold in halfway}


@st.composite
def scored_cells(draw):
    n = draw(st.integers(2, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label = rng.permutation(np.arange(n) < draw(st.integers(1, n - 1))).astype(int)
    logit = rng.normal(size=n) * draw(st.sampled_from([0.05, 1, 5])) + (label - 0.5)
    logit = logit.round(draw(st.sampled_from([1, 6]))).astype(np.float32)
    return label, logit


@settings(deadline=None, max_examples=25)
@given(scored_cells())
def test_best_threshold_is_the_best_of_those_between_cells_and_the_nearest_to_a_half(cells):
    label, logit = cells
    prob = metrics.sigmoid(logit)
    threshold = metrics.best_threshold(label, prob)
    highest, halfway = brute_force(label, prob)
    reached = f1_score(label, prob > threshold, average="weighted", zero_division=0)
    assert reached >= max(halfway.values()) - 1e-12
    if max(halfway.values()) > highest - 1e-12:
        equals = [t for t, value in halfway.items() if value > highest - 1e-12]
        assert abs(threshold - 0.5) <= min(abs(t - 0.5) for t in equals) + 1e-12
    # Logits decide as the probabilities do, and the value is what `evaluate` will say.
    assert cell_metrics(label, logit=logit, threshold=threshold)["weighted_f1"] == pytest.approx(
        reached, abs=1e-12
    )
    order = np.random.default_rng(0).permutation(len(label))
    assert metrics.best_threshold(label[order], prob[order]) == threshold


@settings(deadline=None, max_examples=25)
@given(scored_cells())
def test_best_threshold_reaches_the_highest_weighted_f1_there_is(cells):
    """Calling every cell ALL, or none, is a threshold too: of a weak network it is the best one."""
    label, logit = cells
    prob = metrics.sigmoid(logit)
    reached = f1_score(
        label, prob > metrics.best_threshold(label, prob), average="weighted", zero_division=0
    )
    assert reached == pytest.approx(brute_force(label, prob)[0], abs=1e-12)


def test_the_stored_threshold_is_that_of_val_and_evaluate_uses_it(middle, js):
    run = middle()
    frame = frame_of(run)
    of_val = frame[(frame["split"] == "val") & (frame["epoch"] == 1)]
    stored = record(run)["threshold"]
    assert stored == metrics.best_threshold(of_val["label"], of_val["prob"])
    _, halfway = brute_force(of_val["label"].to_numpy(), of_val["prob"].to_numpy())
    reached = f1_score(of_val["label"], of_val["prob"] > stored, average="weighted")
    assert reached >= max(halfway.values()) - 1e-12
    found = js(run)
    for name, one in found.items():
        cells = frame[(frame["split"] == name) & (frame["epoch"] == 1)]
        called, is_all = cells["prob"] > stored, cells["label"] == 1
        counts = (called & is_all, called & ~is_all, ~called & ~is_all, ~called & is_all)
        assert [one[key] for key in COUNTS] == [int(count.sum()) for count in counts]
        assert one["threshold"] == stored
        assert record(run)["metrics"][name]["weighted_f1"] == one["weighted_f1"]
    assert (found["val"]["heading"], found["prelim"]["heading"]) == ("selection", "test")


def test_a_threshold_that_somebody_names_is_stored_and_used(go, js):
    run, _ = go(*ARMS["subject"], "threshold=0.3", ONE)
    assert record(run)["threshold"] == js(run)["val"]["threshold"] == 0.3


def test_the_labels_of_the_test_move_nothing_that_was_chosen(middle, tmp_path, monkeypatch):
    """S8: train again with every label of prelim the other way round."""
    run, load = middle(), inputs.load_index

    def other_way_round(config):
        index = load(config)
        of_prelim = index.table["part"] == "prelim"
        index.table.loc[of_prelim, "label"] = 1 - index.table.loc[of_prelim, "label"]
        return index

    monkeypatch.setattr(inputs, "load_index", other_way_round)
    swapped = middle(outputs=tmp_path / "outputs")
    before, after = record(run), record(swapped)
    for key in ("threshold", "selection", "weights_sha256", "pos_weight"):
        assert after[key] == before[key], key
    assert after["metrics"]["val"] == before["metrics"]["val"]
    # The labels were indeed others: what was right is wrong.
    for right, wrong in (("tp", "fp"), ("tn", "fn")):
        assert after["metrics"]["prelim"][right] == before["metrics"]["prelim"][wrong]
    columns = ["epoch", "split", "cell", "logit"]
    pd.testing.assert_frame_equal(frame_of(swapped)[columns], frame_of(run)[columns])


# --- directories and seeds


@pytest.fixture
def planned(go, monkeypatch, tmp_path):
    """What a command decides before it trains: its directory, with run.json and split.csv."""

    def no_fit(inputs, run, resume):
        (run.directory / "split.csv").write_text(inputs.split_csv)

    def run(*overrides: str) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(fit, "fit", no_fit)
            patch.setattr(job, "print_result", print)
            return go(*overrides, outputs=tmp_path / "outputs")[0]

    return run


@pytest.mark.parametrize("scheme", ["honest", "cell"])
def test_the_seed_of_a_run_leaves_its_split_alone(scheme, planned):
    words = [f"split_scheme={scheme}", "folds=3", "data.n_cells=24"]
    first, second = (planned(*words, f"seed={seed}") for seed in (0, 1))
    assert (first.parent, first.name) == (second.parent, "seed_000")
    assert (first / "split.csv").read_bytes() == (second / "split.csv").read_bytes()
    other = planned(*words, "split_seed=1")
    assert (first / "split.csv").read_bytes() != (other / "split.csv").read_bytes()


def test_no_two_splits_share_a_directory(planned):
    variants = [
        [], ["fold=1"], ["folds=4"], ["split_seed=1"], ["data.n_cells=24"], ["data.n_subjects=5"],
        ["data.n_subjects=5", "data.n_cells=10"], ["split_scheme=subject"],
    ]  # fmt: skip
    found = [planned(*HONEST, "data.batch_size=8", *words) for words in variants]
    assert len(set(found)) == len(variants)
    assert len({(run / "split.csv").read_bytes() for run in found}) == len(variants)
    assert len({record(run)["config_hash"] for run in found}) == len(variants)
    trained = [split_of(run).query("split == 'train'") for run in found]
    assert len(trained[4]) == 24
    assert trained[5]["group"].nunique() == 5
    assert set(trained[6]["cell"]) < set(trained[5]["cell"])


def test_a_file_that_was_changed_since_is_another_configuration(go, tmp_path):
    path = tmp_path / "mine.csv"
    table = split_of(go(*ARMS["honest"])[0])

    def again():
        return go(f"split_scheme={path}", ONE, outputs=tmp_path / "outputs")

    table.to_csv(path, index=False)
    run, _ = again()
    table[table["split"] != "prelim"].to_csv(path, index=False)
    before = (run / "run.json").read_bytes()
    with pytest.raises(AssertionError, match=r"another configuration.*inputs.split"):
        again()
    assert (run / "run.json").read_bytes() == before
    # Rows in another order are the same split.
    table[::-1].to_csv(path, index=False)
    assert "done already" in again()[1].out


def test_a_run_stays_done_when_final_is_added_later(go, tmp_path, small_tree):
    tree, outputs = tmp_path / "tree", tmp_path / "outputs"
    shutil.copytree(small_tree, tree, copy_function=os.link)
    (final,) = tree.rglob("C-NMC_test_final_phase_data")
    shutil.move(final, tmp_path / "later")
    words = [*HONEST, ONE, "views=1"]
    run, done = go(*words, outputs=outputs, tree=tree)
    assert "done already" not in done.out
    shutil.copytree(tmp_path / "later", final)
    assert (build_index(tree).table["part"] == "final").any()
    again, done = go(*words, outputs=outputs, tree=tree)
    assert again == run
    assert "done already" in done.out


def test_commands_that_cannot_be_get_one_message(train: Train, small_tree: Path, tmp_path: Path):
    def refused(*words: str) -> Outcome:
        return train(*small(small_tree, tmp_path / "outputs"), *words)

    for words, told in (
        ([*HONEST, "fold=3"], "fold=3: subject has the folds 0 to 2"),
        (["split_scheme=lofo", "fold=5"], "lofo has the folds 0 to 2"),
        ([*HONEST, "data.n_cells=999"], "data.n_cells=999: the training set has"),
        ([*HONEST, "threshold=best"], "threshold=best: "),
        (["split_scheme=gone.csv"], "gone.csv: no such file"),
        ([*HONEST, "folds=null"], "folds=None: choose a whole number"),
        (["split_scheme=null"], "split_scheme="),
    ):
        outcome = refused(*words)
        assert (outcome.code, told in outcome.err) == (2, True), (words, outcome)
    assert not list(tmp_path.rglob("run.json"))
