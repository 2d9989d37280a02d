import json
import os
import socket
import subprocess

import pytest

from leukocls import runs
from leukocls.artifacts.record import write_record
from leukocls.common.errors import LeukoclsError


def make(root, experiment="prellberg2019", arm="proposal", seed=3, **changes):
    directory = root / experiment / arm / f"seed_{seed:03d}"
    directory.mkdir(parents=True)
    record = {
        "id": f"{experiment}-{arm}-s{seed}-0123abcd",
        "status": "done",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "selection": {"rule": "best_weighted_f1", "set": "val", "epoch": 4},
        "metrics": {"val": {"weighted_f1": 0.8981}, "prelim": {"weighted_f1": 0.7}},
        "marks": ["SYNTHETIC"],
    } | changes
    (directory / "run.json").write_text(json.dumps(record))
    return directory


def listed(capsys, *argv):
    code = runs.main([*map(str, argv), "--json"])
    return code, json.loads(capsys.readouterr().out)


def gone_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_run_is_one_row(tmp_path, capsys):
    directory = make(tmp_path)
    assert listed(capsys, tmp_path) == (
        0,
        [
            {
                "path": str(directory),
                "id": "prellberg2019-proposal-s3-0123abcd",
                "experiment": "prellberg2019",
                "arm": "proposal",
                "seed": 3,
                "status": "done",
                "epoch": 4,
                "headline": {"heading": "test", "set": "prelim", "weighted_f1": 0.7},
                "marks": ["SYNTHETIC"],
            }
        ],
    )


def shown(capsys, *argv):
    assert runs.main([*map(str, argv)]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_table_says_what_it_shows(tmp_path, capsys):
    make(tmp_path)
    make(tmp_path, arm="norot", seed=12, metrics={}, marks=[], status="running")
    place, header, norot, proposal = shown(capsys, tmp_path)
    assert place == str(tmp_path / "prellberg2019")
    assert header.split()[:3] == ["arm", "seed", "status"]
    assert norot.split() == ["norot", "12", "running", "–", "–"]
    assert "0.7000 test (prelim)" in proposal
    assert "SYNTHETIC" in proposal
    assert proposal.index("done") == norot.index("running") == header.index("status")


LONG = "proposal,data.n_cells=500,model.options.drop_path_rate=0.1,optim.lr="
MARKS = ["SYNTHETIC", "PARTIAL", "LIMITED", "LEAKY", "RECONSTRUCTION", "TRANSDUCTIVE"]


def test_a_column_for_each_key_that_differs_in_100_columns(tmp_path, capsys):
    for lr in ("0.001", "0.0001"):
        make(tmp_path, arm=f"{LONG}{lr}", marks=MARKS)
    place, *lines = shown(capsys, tmp_path)
    assert max(map(len, lines)) <= 100
    assert "optim.lr" in lines[1].split()
    assert [lr for line in lines for lr in line.split() if lr.startswith("0.0")] == [
        "0.0001",
        "0.001",
    ]
    # What is equal stands once, above.
    assert (place + "".join(lines)).count("drop_path_rate=0.1") == 1
    assert set(MARKS) <= {word for line in lines for word in line.split()}


def scored(value, **others):
    metrics = {"val": value, **others}
    return {
        "metrics": {split: {"weighted_f1": f1} for split, f1 in metrics.items()},
        "selection": {"set": "val", "epoch": 1},
    }


def test_sorted_and_of_one_experiment(tmp_path, capsys):
    for seed, value in enumerate((0.5, 0.9, 0.7)):
        make(tmp_path, seed=seed, **scored(value))
    make(tmp_path, seed=3, **scored(0.2, prelim=0.1))  # a test is no selection
    make(tmp_path, seed=4, metrics={})
    make(tmp_path, "other")
    argv = [tmp_path, "--experiment", "prellberg2019"]
    rows = listed(capsys, *argv, "--sort", "f1")[1]
    assert [row["seed"] for row in rows] == [3, 1, 2, 0, 4]
    lines = shown(capsys, *argv, "--sort", "f1")[2:]
    assert [line.split()[1] for line in lines] == ["3", "1", "2", "0", "4"]
    assert [row["seed"] for row in listed(capsys, *argv)[1]] == [0, 1, 2, 3, 4]
    with pytest.raises(LeukoclsError, match="other, prellberg2019"):
        runs.main([str(tmp_path), "--experiment", "prelberg"])


def test_the_best_run_of_each_arm_says_of_how_many(tmp_path, capsys):
    for seed, value in enumerate((0.5, 0.9, 0.7)):
        make(tmp_path, seed=seed, **scored(value))
        make(tmp_path, arm="norot", seed=seed, **scored(value / 2), status="failed")
    make(tmp_path, arm="noaugment", seed=0, **scored(0.3))
    rows = listed(capsys, tmp_path, "--best")[1]
    assert [(row["arm"], row["seed"], row["of"]) for row in rows] == [
        ("noaugment", 0, 1),
        ("proposal", 1, 3),
    ]
    text = "\n".join(shown(capsys, tmp_path, "--best"))
    assert "best of 3" in text
    assert str(tmp_path / "prellberg2019/proposal/seed_001") in text
    assert "compare" in text


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"status": "running"}, "running"),
        ({"status": "running", "pid": gone_pid()}, "dead"),
        ({"status": "running", "pid": None}, "dead"),
        ({"status": "running", "pid": 1, "pid_start": "another boot 1"}, "dead"),
        ({"status": "running", "pid": -1}, "dead"),
        ({"status": "running", "pid": gone_pid(), "host": "elsewhere"}, "running"),
        ({"status": "done", "pid": gone_pid()}, "done"),
    ],
)
def test_a_running_run_without_its_process_is_dead(tmp_path, capsys, changes, status):
    make(tmp_path, **changes)
    assert listed(capsys, tmp_path)[1][0]["status"] == status


def test_any_depth_and_a_run_itself(tmp_path, capsys):
    directory = make(tmp_path / "old" / "older")
    assert [row["path"] for row in listed(capsys, tmp_path)[1]] == [str(directory)]
    row = listed(capsys, directory)[1][0]
    assert (row["experiment"], row["arm"], row["seed"]) == ("prellberg2019", "proposal", 3)


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_damaged_record_is_one_line_and_hides_no_other(tmp_path, capsys, content):
    make(tmp_path)
    broken = make(tmp_path, seed=4)
    (broken / "run.json").write_text(content)
    assert runs.main([str(tmp_path)]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[3].startswith("damaged")
    assert str(broken / "run.json") in lines[3]
    code, rows = listed(capsys, tmp_path)
    assert code == 3
    assert [row["status"] for row in rows] == ["done", "damaged"]


def test_an_edited_record_is_named_and_hides_no_other(tmp_path, capsys):
    make(tmp_path)
    edited = make(tmp_path, seed=4)
    path = edited / "run.json"
    write_record(edited, json.loads(path.read_text()))
    path.write_text(path.read_text().replace('"set": "val"', '"set": "prelim"'))
    code, rows = listed(capsys, tmp_path)
    assert code == 3
    assert [(row["status"], row["path"]) for row in rows[1:]] == [("damaged", str(edited))]
    assert str(path) in rows[1]["error"]
    assert "record_sha256" in rows[1]["error"]
    assert rows[0]["headline"]["heading"] == "test"


def test_a_run_that_did_not_score_its_selection_set_has_no_headline(tmp_path, capsys):
    """Selected on prelim, and edited: prelim would be a test."""
    make(tmp_path, metrics={"prelim": {"weighted_f1": 0.7}})
    assert listed(capsys, tmp_path)[1][0]["headline"] is None


def test_an_unfinished_record_has_no_headline(tmp_path, capsys):
    make(tmp_path, status="failed", selection=None, metrics=None, marks=None)
    row = listed(capsys, tmp_path)[1][0]
    assert row["headline"] is None
    assert row["epoch"] is None
    assert row["marks"] == []
    assert runs.main([str(tmp_path)]) == 0


def test_empty_and_missing_outputs(tmp_path, capsys):
    assert runs.main([str(tmp_path)]) == 0
    assert "no runs" in capsys.readouterr().out
    assert listed(capsys, tmp_path) == (0, [])
    with pytest.raises(LeukoclsError, match="nowhere"):
        runs.main([str(tmp_path / "nowhere")])


def test_the_real_command(tmp_path, command):
    make(tmp_path)
    done = command("runs", tmp_path)
    assert (done.wait(), done.err) == (0, "")
    assert "proposal" in done.out
    refused = command("runs", tmp_path / "nowhere")
    assert refused.wait() == 2
    assert refused.err.startswith(f"error: {tmp_path / 'nowhere'}")
