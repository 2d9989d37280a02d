import csv
import json
import os
import zipfile

import numpy as np
import pandas as pd
import pytest
from conftest import edit_record
from sklearn import metrics as oracle

from leukocls import evaluate
from leukocls.artifacts import predictions
from leukocls.artifacts.record import write_record
from leukocls.common.errors import LeukoclsError
from leukocls.evaluation import metrics, prediction_files, scoring
from leukocls.evaluation.cell_metrics import cell_metrics

SUBJECTS = ["51", "57", "H3", "H25"]


def split_frame(split, epoch, n=40, labelled=True):
    rng = np.random.default_rng([epoch, len(split), 2])
    number = np.arange(1, n + 1)
    subject = np.array(SUBJECTS)[number % 4]
    label = (number % 4 < 2).astype(int)
    views = (rng.normal(size=(n, 4)) + 1.2 * (label[:, None] - 0.5)).astype(np.float32)
    logit = views.mean(axis=1)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "split": split,
            "cell": [f"{k}.bmp" for k in number],
            "subject": subject if labelled else "",
            "label": label if labelled else -1,
            **{f"view_{v}": views[:, v] for v in range(4)},
            "logit": logit,
            "prob": metrics.sigmoid(logit),
        }
    )


# Epoch 1 is the best on val, and scores what is only reported.
FRAME = pd.concat(
    split_frame(split, epoch, labelled=split != "final")
    for epoch, splits in enumerate((["val"], ["train", "val", "prelim", "final"], ["val"]))
    for split in splits
)


def write_run(directory, frame=FRAME, **changes):
    directory.mkdir(parents=True)
    predictions.write(directory / "predictions.parquet", frame)
    record = {
        "id": "x-proposal-s0-01234567",
        "status": "done",
        "selection": {"rule": "best_weighted_f1", "set": "val", "epoch": 1},
        "threshold": 0.4,
        "view_weights": None,
        "marks": ["SYNTHETIC"],
        "predictions_sha256": predictions.digest(frame),
    }
    write_record(directory, record | changes)
    return directory


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "outputs" / "x" / "proposal" / "seed_000")


@pytest.fixture
def js(capsys):
    def call(*argv):
        assert evaluate.main([*map(str, argv), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def cells_of(split, epoch):
    return FRAME[(FRAME["split"] == split) & (FRAME["epoch"] == epoch)]


def refused(*argv):
    with pytest.raises(LeukoclsError) as caught:
        evaluate.main([*map(str, argv)])
    assert caught.value.exit_code == 2
    return str(caught.value)


def write_csv(path, header, rows, end="\n"):
    with open(path, "w", newline="") as stream:
        csv.writer(stream, lineterminator=end).writerows([header, *rows])
    return path


# --- runs


def test_a_run_is_scored_as_it_was_selected(run, js):
    result = js(run, "--split", "prelim")
    cells = cells_of("prelim", 1)
    called = cells["logit"] > np.log(0.4 / 0.6)
    assert result["weighted_f1"] == pytest.approx(
        oracle.f1_score(cells["label"], called, average="weighted"), rel=1e-12
    )
    assert result["auroc"] == pytest.approx(oracle.roc_auc_score(cells["label"], cells["logit"]))
    assert (result["source"], result["split"], result["epoch"]) == (str(run), "prelim", 1)
    assert (result["threshold"], result["heading"]) == (0.4, "test")
    assert (result["marks"], result["run"]) == (["SYNTHETIC"], "x-proposal-s0-01234567")
    assert result["predictions_sha256"] == predictions.digest(FRAME)
    assert (result["n"], result["n_subjects"]) == (40, 4)


def test_every_split_is_one_result_with_its_own_heading(run, js):
    headings = {one["split"]: one["heading"] for one in js(run)}
    assert headings == {"train": "training", "val": "selection", "prelim": "test", "final": "test"}


@pytest.mark.parametrize(
    "override", [("--threshold", "0.3"), ("--views", "0"), ("--threshold", "0.6", "--views", "1")]
)
def test_what_the_command_line_chose_is_never_called_test(run, js, override):
    assert js(run, "--split", "prelim", *override)["heading"] == "unknown"
    assert js(run, "--split", "val", *override)["heading"] == "selection"


def test_the_selection_set_is_never_called_test(run, js):
    for epoch in ("selected", "last", "all"):
        found = js(run, "--split", "val", "--epoch", epoch)
        found = found if isinstance(found, list) else [found]
        assert {one["heading"] for one in found} == {"selection"}
    edit_record(run, selection={"rule": "last", "set": None, "epoch": 1})
    assert js(run, "--split", "prelim")["heading"] == "unknown"


def test_an_edited_record_is_refused(run):
    """The file's own digest, which a record of a version before 0.2 does not have."""
    path = run / "run.json"
    written = path.read_text()
    path.write_text(written.replace('"set": "val"', '"set": "prelim"'))
    for source in (run, run / "predictions.parquet"):
        message = refused(source, "--split", "prelim")
        assert str(path) in message
        assert "record_sha256" in message
    edited = json.loads(written)
    path.write_text(json.dumps(edited))  # other white space, the same entries
    assert evaluate.main([str(run), "--split", "val"]) == 0
    del edited["record_sha256"]
    path.write_text(json.dumps(edited))
    assert evaluate.main([str(run), "--split", "val"]) == 0


@pytest.mark.parametrize(
    ("splits", "selection"),
    [
        # Selected on prelim, and one word edited: prelim would be a test.
        (["prelim"], {"rule": "best_weighted_f1", "set": "val", "epoch": 1}),
        (["val", "prelim"], {"rule": "best_weighted_f1", "set": "val", "epoch": 2}),
        (["val", "prelim"], {"rule": "last", "set": "val", "epoch": 1}),
        (["val", "prelim"], {"rule": "mean", "set": "val", "epoch": 1}),
        # Val was looked at in every epoch.
        (["val", "prelim"], {"rule": "best_weighted_f1", "set": "prelim", "epoch": 1}),
    ],
)
def test_a_selection_that_the_predictions_do_not_give_is_refused(tmp_path, splits, selection):
    """Also if the record was signed anew."""
    frame = FRAME[FRAME["split"].isin(splits)]
    directory = write_run(tmp_path / "forged", frame, selection=selection)
    assert f"{directory / 'run.json'}: its selection" in refused(directory)


def test_a_scored_checkpoint_was_selected_elsewhere(tmp_path, js):
    frame = FRAME[FRAME["split"] == "prelim"]
    directory = write_run(tmp_path / "scored", frame, identity={"score": "prelim"})
    assert js(directory)["heading"] == "test"


def test_epochs(run, js):
    assert [one["epoch"] for one in js(run, "--split", "val", "--epoch", "all")] == [0, 1, 2]
    assert js(run, "--split", "val", "--epoch", "last")["epoch"] == 2
    assert js(run, "--split", "val", "--epoch", "0")["epoch"] == 0
    assert "no epoch 9" in refused(run, "--epoch", "9")


def test_views_are_rescored(run, js):
    cells = cells_of("prelim", 1)
    for views, columns in (("0", ["view_0"]), ("0,2", ["view_0", "view_2"])):
        mean = cells[columns].to_numpy(np.float64).mean(axis=1)
        result = js(run, "--split", "prelim", "--views", views, "--threshold", "0.5")
        assert result["tp"] == int(((mean > 0) & (cells["label"] == 1)).sum())
        assert result["brier"] == pytest.approx(
            oracle.brier_score_loss(cells["label"], metrics.sigmoid(mean))
        )
    assert js(run, "--split", "prelim", "--views", "all") == js(run, "--split", "prelim")
    assert "view_7" in refused(run, "--views", "7")


def test_edited_predictions_are_refused(run):
    path = run / "predictions.parquet"
    frame = predictions.read(path)
    frame.loc[frame.index[frame["label"] == 1][0], "label"] = 0
    predictions.write(path, frame)
    assert "edited" in refused(run)
    assert "edited" in refused(path)


def test_the_row_order_of_the_file_changes_nothing(run, js):
    before = js(run)
    FRAME.sample(frac=1, random_state=0).to_parquet(run / "predictions.parquet")
    assert js(run) == before


def test_a_run_without_a_digest_is_refused(run):
    edit_record(run, predictions_sha256=None, status="running")
    assert "running" in refused(run)


def test_a_predictions_file_away_from_its_run_is_of_unknown_origin(tmp_path, js):
    path = tmp_path / "copy.parquet"
    predictions.write(path, FRAME)
    assert "--epoch" in refused(path, "--split", "val")
    result = js(path, "--split", "prelim", "--epoch", "1")
    assert (result["heading"], result["threshold"], result["run"]) == ("unknown", 0.5, None)
    assert js(path, "--split", "train", "--epoch", "1")["heading"] == "unknown"


def test_unlabelled_cells_say_so(run, js, capsys):
    final = js(run)[0]
    assert final["split"] == "final"
    assert final["weighted_f1"] is None
    assert set(final["missing"].values()) == {"no labels"}
    assert "no labels" in refused(run, "--split", "final")
    assert evaluate.main([str(run)]) == 0
    assert "40 cells, no labels" in capsys.readouterr().out


def test_human_output(run, capsys):
    assert evaluate.main([str(run), "--split", "val", "--per-subject"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("SELECTION ")
    assert "*** SYNTHETIC ***" in out
    assert "threshold 0.4" in out
    f1 = scoring.metrics_of(scoring.scored_parts(run, scoring.ScoringOptions("val"))[0])[
        "weighted_f1"
    ]
    assert f"{f1:.4f}" in out
    assert all(f"\n{subject} " in out for subject in SUBJECTS)


# --- other people's files


def labels_and_probs(n=30):
    rng = np.random.default_rng(7)
    label = rng.integers(0, 2, n)
    return label, np.clip(0.5 + 0.3 * (label - 0.5) + rng.normal(size=n) / 5, 0.01, 0.99)


LABEL, PROB = labels_and_probs()
CELLS = [f"{k}.bmp" for k in range(1, 31)]
UIDS = [
    f"UID_{'' if y else 'h'}{k % 3 + 1}_{k}_1_{'all' if y else 'hem'}.bmp"
    for k, y in enumerate(LABEL)
]
EXPECTED = cell_metrics(LABEL, prob=PROB)["weighted_f1"]


@pytest.fixture
def truth(tmp_path):
    rows = zip(UIDS, CELLS, LABEL, strict=True)
    return write_csv(tmp_path / "official.csv", ["Patient_ID", "new_names", "labels"], rows, "\r\n")


@pytest.fixture
def probs(tmp_path):
    rows = list(zip(CELLS, PROB, strict=True))
    np.random.default_rng(0).shuffle(rows)
    return write_csv(tmp_path / "probs.csv", ["cell", "prob"], rows)


def test_official_truth_is_joined_by_name(probs, truth, js):
    result = js(probs, "--truth", truth)
    assert result["weighted_f1"] == pytest.approx(EXPECTED, rel=1e-12)
    assert result["heading"] == "unknown"
    assert result["split"] is None
    assert result["epoch"] is None
    subjects = {row["subject"] for row in result["subject"]["per_subject"]}
    # C-NMC's 1, H2 and H3 share cells with others, which its original names tell.
    assert subjects == {"1+15+16+17+20+21", "2", "3", "H1", "H2+H4+H5+H6+H7", "H3+H10"}


def test_the_row_order_of_other_peoples_files_changes_no_bit(tmp_path, probs, truth, js):
    rows = zip(CELLS, PROB, strict=True)
    ordered = write_csv(tmp_path / "ordered.csv", ["cell", "prob"], rows)
    assert js(ordered, "--truth", truth) | {"source": str(probs)} == js(probs, "--truth", truth)


@pytest.mark.parametrize("names", [UIDS, [name[:-4] for name in UIDS], [c[:-4] for c in CELLS]])
def test_cells_may_go_by_either_name_and_without_suffix(tmp_path, truth, js, names):
    path = write_csv(tmp_path / "p.csv", ["cell", "prob"], zip(names, PROB, strict=True))
    assert js(path, "--truth", truth)["weighted_f1"] == pytest.approx(EXPECTED, rel=1e-12)


def test_every_kind_of_column(tmp_path, truth, js):
    logit = np.log(PROB / (1 - PROB))
    hard = (PROB > 0.5).astype(int)
    for column, values in (("prob", PROB), ("logit", logit), ("label_pred", hard)):
        for name in ("cell", "new_names"):
            path = write_csv(tmp_path / "p.csv", [name, column], zip(CELLS, values, strict=True))
            result = js(path, "--truth", truth)
            assert result["weighted_f1"] == pytest.approx(EXPECTED, rel=1e-12)
            assert (result["threshold"] is None) == (column == "label_pred")
    assert result["auroc"] is None
    assert "hard labels" in result["missing"]["auroc"]
    path = tmp_path / "p.parquet"
    pd.DataFrame({"cell": range(1, 31), "prob": PROB, "label": LABEL}).to_parquet(path)
    assert js(path)["weighted_f1"] == pytest.approx(EXPECTED, rel=1e-12)


def test_a_lone_column_labels_is_a_prediction_beside_prob_it_is_the_truth(tmp_path, truth, js):
    hard = (PROB > 0.5).astype(int)
    path = write_csv(tmp_path / "a.csv", ["new_names", "labels"], zip(CELLS, hard, strict=True))
    assert js(path, "--truth", truth)["weighted_f1"] == pytest.approx(EXPECTED, rel=1e-12)
    assert "no labels" in refused(path)
    rows = zip(CELLS, LABEL, PROB, strict=True)
    path = write_csv(tmp_path / "b.csv", ["new_names", "labels", "prob"], rows)
    assert js(path)["weighted_f1"] == pytest.approx(EXPECTED, rel=1e-12)
    assert "truth itself" in refused(truth, "--truth", truth)


@pytest.mark.parametrize("zipped", [False, True])
def test_challenge_files(tmp_path, truth, js, zipped):
    text = "".join(f"{int(p > 0.5)}\r\n" for p in PROB)
    path = tmp_path / "isbi_valid.predict"
    path.write_text(text)
    if zipped:
        path = tmp_path / "submission.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("isbi_valid.predict", text)
    before = sorted(os.listdir(tmp_path))
    result = js(path, "--truth", truth, "--split", "prelim")
    assert result["weighted_f1"] == pytest.approx(EXPECTED, rel=1e-12)
    assert (result["split"], result["n_subjects"]) == ("prelim", 6)
    assert sorted(os.listdir(tmp_path)) == before


def test_several_inputs_are_a_list_in_order(run, probs, truth, js):
    found = js(run / "predictions.parquet", run, "--split", "val")
    assert [one["source"] for one in found] == [str(run / "predictions.parquet"), str(run)]
    assert [one["source"] for one in js(probs, probs, "--truth", truth)] == [str(probs)] * 2


def test_a_subject_column_counts(tmp_path, js):
    rows = [("a", 0.9, 1, "p"), ("b", 0.2, 1, "p"), ("c", 0.3, 0, "q")]
    path = write_csv(tmp_path / "p.csv", ["cell", "prob", "label", "subject"], rows)
    result = js(path)
    assert (result["n_subjects"], result["subject"]["undecided"]) == (2, 1)


PERSONS = {"51": "51", "57": "57", "H3": "H3+H25", "H25": "H3+H25"}


def test_metrics_by_subject_count_persons(tmp_path, js, capsys):
    """Subjects that share images are one person, whose cells vote together."""
    frame = FRAME.assign(person=FRAME["subject"].map(PERSONS).fillna(""))
    run = write_run(tmp_path / "merged", frame)
    result = js(run, "--split", "prelim")
    assert (result["n_subjects"], result["persons_from"]) == (3, "person")
    rows = {row["subject"]: row for row in result["subject"]["per_subject"]}
    cells = cells_of("prelim", 1)
    assert rows["H3+H25"]["n"] == cells["subject"].isin(["H3", "H25"]).sum()
    assert result["predictions_sha256"] == predictions.digest(FRAME)
    evaluate.main([str(run), "--split", "prelim"])
    assert "\n3 persons, 2 ALL and 1 HEM\n" in capsys.readouterr().out
    # A run of a version before 0.2: the column subject is all there is, and the table says so.
    before = write_run(tmp_path / "before")
    result = js(before, "--split", "prelim")
    assert (result["n_subjects"], result["persons_from"]) == (4, "subject")
    evaluate.main([str(before), "--split", "prelim"])
    assert "\n4 persons, 2 ALL and 2 HEM, by subject" in capsys.readouterr().out


def test_persons_of_foreign_files(tmp_path, js):
    """C-NMC's names tell who shares images; a column person has priority; one spelling of ids."""
    names = ["UID_20_1_1_all", "UID_21_1_1_all", "UID_H3_1_1_hem", "UID_h10_1_1_hem"]
    rows = [(name, 0.5, int(name.endswith("all"))) for name in names]
    path = write_csv(tmp_path / "p.csv", ["cell", "prob", "label"], rows)
    result = js(path)
    assert (result["n_subjects"], result["persons_from"]) == (2, "subject")
    rows = [(*row, person) for row, person in zip(rows, ["x", "", "z", "y"], strict=True)]
    result = js(write_csv(path, ["cell", "prob", "label", "person"], rows))
    assert (result["n_subjects"], result["persons_from"]) == (4, "person")
    for one, other in (("P07", "p7"), ("h101", "H101"), ("101", "101.0")):
        rows = [("a", 0.9, 1, one), ("b", 0.8, 1, other), ("c", 0.1, 0, "q")]
        assert js(write_csv(path, ["cell", "prob", "label", "subject"], rows))["n_subjects"] == 2


# --- refusals


def test_truth_for_one_split_needs_the_split(run, truth):
    assert "--split" in refused(run, "--truth", truth)


def test_missing_unknown_and_duplicate_cells_are_named(tmp_path, truth):
    def message(names):
        path = write_csv(tmp_path / "p.csv", ["cell", "prob"], [(name, 0.5) for name in names])
        return refused(path, "--truth", truth)

    assert "17.bmp (1 in all)" in message([c for c in CELLS if c != "17.bmp"])
    assert "99.bmp" in message([*CELLS, "99.bmp"])
    assert "8 (1 in all)" in message([*CELLS, "8"])
    assert UIDS[4] in message([*CELLS, UIDS[4]])
    long = message(CELLS[:5])
    assert "(25 in all)" in long
    assert "15.bmp" in long
    assert "16.bmp" not in long


def test_labels_that_contradict_are_named(tmp_path, truth):
    rows = [(c, 0.5, y if c != "6.bmp" else 1 - y) for c, y in zip(CELLS, LABEL, strict=True)]
    path = write_csv(tmp_path / "p.csv", ["cell", "prob", "label"], rows)
    assert "contradict" in (message := refused(path, "--truth", truth))
    assert "6.bmp" in message
    swapped = zip(UIDS, CELLS, 1 - LABEL, strict=True)
    flipped = write_csv(tmp_path / "t.csv", ["Patient_ID", "new_names", "labels"], swapped)
    assert "contradicts the name" in refused(path, "--truth", flipped)


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("cell,prob,label", "a,nan,1", "prob holds no finite number for a (1 in all)"),
        ("cell,prob,label", "a,,1", "prob holds no finite number for a (1 in all)"),
        ("cell,prob,label", "a,1.2,1", "not between 0 and 1 for a (1 in all)"),
        ("cell,logit,label", "a,inf,1", "logit holds no finite number for a (1 in all)"),
        ("cell,prob,label", "a,0.5,2", "label is neither 1 (ALL) nor 0 (HEM) for a (1 in all)"),
        ("cell,prob,label", "a,0.5,-1", "label is neither"),
        ("cell,prob,label", "a,0.5,", "label is neither"),
        ("cell,prob,label", "a,0.5,ALL", "label is neither"),
        ("cell,label_pred,label", "a,0.5,1", "label_pred is neither"),
        ("cell,prob,logit,label", "a,0.9,-3,1", "not the sigmoid of logit for a (1 in all)"),
        ("cell,prob,label", " ,0.5,1", "needs its name"),
        ("cell,prob,label", "a,0.5", "commas"),
        ("cell,prob,prob", "a,0.5,0.5", "duplicate column name"),
        ("cell;prob;label", "a;0,5;1", "prob holds no finite number for a (1 in all)"),
        ("cell;prob;label", "a,0.5,1", "semicolons"),
        ("name,prob,label", "a,0.5,1", "no column cell"),
        ("cell,score,label", "a,0.5,1", "no column prob"),
        ("cell,prob,label", None, "no rows"),
    ],
)
def test_bad_tables_are_refused_with_the_file_and_the_cause(tmp_path, header, row, said):
    path = tmp_path / "bad.csv"
    path.write_text(header + "\n" + ("" if row is None else row + "\n"))
    message = refused(path)
    assert message.startswith(str(path))
    assert said in message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "empty"),
        ("a.csv", b" \n\n", "empty"),
        ("a.csv", b"\xff\xfe\x00\x00", "neither CSV"),
        ("a.csv", b"<!DOCTYPE html><html>\n<p>x</p>", "no column cell"),
        ("a.parquet", b"PAR1 and nothing else", "damaged parquet"),
        ("a.zip", b"PK\x03\x04 and nothing else", "cannot be unzipped"),
        ("a.predict", b"1\n0\n0.5\n", "line 3: 0.5"),
        ("a.predict", b"1\n0\n2\n", "line 3: 2"),
    ],
)
def test_garbage_is_refused(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    for argv in ((path,), (path, "--truth", path)):
        assert str(path) in refused(*argv)
    assert said in refused(path)


def test_a_missing_path_is_refused(tmp_path, probs):
    assert "no such file" in refused(tmp_path / "nowhere.csv")
    assert "no such file" in refused(probs, "--truth", tmp_path / "nowhere.csv")
    assert "no run.json" in refused(tmp_path)


def test_an_archive_is_bounded_and_holds_one_file(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    monkeypatch.setattr(prediction_files, "LARGEST_MEMBER", 1000)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("isbi_valid.predict", "1\n" * 100_000)
    assert "refused" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.txt", "1\n")
    assert "exactly one" in refused(path)


def test_duplicates_in_the_file_itself(tmp_path):
    path = write_csv(
        tmp_path / "p.csv", ["cell", "prob", "label"], [("1", 0.5, 1), ("1.bmp", 1, 1)]
    )
    assert "1.bmp (1 in all)" in refused(path)
    rows = [("1", 0.5, 1, 0), ("1", 0.6, 1, 1)]
    path = write_csv(tmp_path / "p.csv", ["cell", "prob", "label", "epoch"], rows)
    assert "--epoch" in refused(path)


def test_a_subject_of_c_nmc_has_one_class(tmp_path):
    rows = [("UID_1_1_1_all", 0.9, 1, "1"), ("UID_1_1_2_all", 0.2, 0, "1")]
    path = write_csv(tmp_path / "p.csv", ["cell", "prob", "label", "subject"], rows)
    message = refused(path)
    assert message.startswith(str(path))
    assert "one class" in message


# --- the challenge's format


def test_submission_of_an_unlabelled_split(run, tmp_path, js):
    path = tmp_path / "s.zip"
    result = js(run, "--split", "final", "--submission", path)
    assert result["n"] == 40
    assert result["weighted_f1"] is None
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["isbi_valid.predict"]
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)
        lines = archive.read("isbi_valid.predict").decode().split("\n")
    called = (cells_of("final", 1)["logit"] > np.log(0.4 / 0.6)).astype(int)
    assert lines == [*map(str, called), ""]
    first = path.read_bytes()
    js(run, "--split", "final", "--submission", path)
    assert path.read_bytes() == first


def test_a_submission_scores_as_its_source(run, tmp_path, js):
    path = tmp_path / "s.zip"
    source = js(run, "--split", "prelim", "--submission", path)
    rows = cells_of("prelim", 1)[["cell", "label"]].to_numpy()
    truth = write_csv(tmp_path / "t.csv", ["cell", "label"], rows)
    back = js(path, "--truth", truth)
    assert [back[k] for k in metrics.COUNTS] == [source[k] for k in metrics.COUNTS]


def test_submissions_that_cannot_be(run, tmp_path, truth):
    out = tmp_path / "s.zip"
    assert "--split" in refused(run, "--submission", out)
    rows = [(c, 0.5) for c in CELLS if c not in ("4.bmp", "9.bmp")]
    path = write_csv(tmp_path / "p.csv", ["cell", "prob"], rows)
    assert "4.bmp, 9.bmp (2 in all)" in refused(path, "--submission", out)
    path = write_csv(tmp_path / "p.csv", ["cell", "prob"], [(name, 0.5) for name in UIDS])
    assert "uid_" in refused(path, "--submission", out)
    assert not out.exists()


# --- the genuine label file


def test_genuine_truth(sample_root, tmp_path, js):
    path = next(sample_root.rglob("*_labels.csv"))
    table = pd.read_csv(path)
    rows = [(name, y) for name, y in zip(table["new_names"], table["labels"], strict=True)]
    guess = write_csv(tmp_path / "p.csv", ["new_names", "label_pred"], rows[::-1])
    result = js(guess, "--truth", path)
    assert [result[key] for key in metrics.COUNTS] == [1219, 0, 648, 0]
    assert result["n_subjects"] == 28
    labels = [row["label"] for row in result["subject"]["per_subject"]]
    assert (sum(labels), len(labels)) == (13, 28)


# --- the real command


def test_real_commands(run, tmp_path, command):
    good = command("evaluate", run, "--json")
    assert good.wait() == 0
    assert len(json.loads(good.out)) == 4
    assert good.err == ""
    bad = command("evaluate", "nowhere.csv")
    assert bad.wait() == 2
    assert bad.out == ""
    assert bad.err.startswith("error: nowhere.csv")
    assert bad.err.count("\n") == 1
    assert command("evaluate").wait() == 2


@pytest.mark.parametrize(("labels", "threshold"), [
    ("HEM HEM ALL ALL", 0.5), ("HEM HEM HEM ALL", metrics.sigmoid(1.5)),
    ("HEM ALL ALL ALL", metrics.sigmoid(-0.5)),
    ("HEM HEM HEM HEM", metrics.sigmoid(3)), ("ALL ALL ALL ALL", metrics.sigmoid(-2)),
])  # fmt: skip
def test_calls_of_predict_are_taken_as_they_are(labels, threshold, tmp_path, capsys):
    """`predict` calls by the bundle's threshold, which need not be .5."""
    path, truth = tmp_path / "predictions.csv", tmp_path / "truth.csv"
    cells = [f"{number}.bmp" for number in range(4)]
    table = pd.DataFrame({"cell": cells, "logit": [-1.0, 0.0, 1.0, 2.0], "label": labels.split()})
    table.reindex(columns=prediction_files.PREDICT).to_csv(path, index=False)
    pd.DataFrame({"cell": cells, "label": [0, 1, 0, 1]}).to_csv(truth, index=False)
    words = [str(path), "--truth", str(truth), "--json"]
    assert evaluate.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threshold"] == pytest.approx(threshold)
    assert found["tp"] + found["fp"] == labels.count("ALL")
    assert evaluate.main([*words, "--threshold", "0.5"]) == 0
    assert json.loads(capsys.readouterr().out)["tp"] == 1


def test_calls_that_no_threshold_makes_are_refused(tmp_path):
    path = tmp_path / "predictions.csv"
    table = pd.DataFrame({"cell": ["1.bmp", "2.bmp"], "logit": [1.0, 2.0], "label": ["ALL", "HEM"]})
    table.reindex(columns=prediction_files.PREDICT).to_csv(path, index=False)
    truth = tmp_path / "truth.csv"
    pd.DataFrame({"cell": ["1.bmp", "2.bmp"], "label": [0, 1]}).to_csv(truth, index=False)
    with pytest.raises(LeukoclsError, match="of logit 2 is called HEM and one of 1 ALL"):
        evaluate.main([str(path), "--truth", str(truth)])
