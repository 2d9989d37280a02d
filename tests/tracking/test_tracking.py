"""W&B: what it shows, that it harms no run, and that a server gets everything once."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pandas as pd
import pytest
from conftest import Train, edit_record, only_run, record, small, train_here

from leukocls import wandb_sync
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.evaluation.comparison import compare, scored_comparison
from leukocls.reporting.document import report_document
from leukocls.reporting.report_figures import figures
from leukocls.tracking import follow, panels
from leukocls.tracking import sync as tracking_sync

KEY = "k" * 40
HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"
SEEDS = (0, 1, 2)


class Server(ThreadingHTTPServer):
    """As much of a W&B server as its client asks for, in memory.

    `deaf`: what ends a run is received, and never answered well.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.deaf = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed closes its connections."""

    def history(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.runs[name]["streams"].get(HISTORY, [])]

    def summary(self, name: str) -> dict[str, Any]:
        return json.loads(self.runs[name]["streams"][SUMMARY][-1])

    def table(self, name: str, key: str) -> dict[str, Any]:
        """The table that a row of the history points to."""
        path = next(row[key]["path"] for row in self.history(name) if key in row)
        return json.loads(self.files[f"/upload/{name}/{path}"])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self, value: Any, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_PUT(self) -> None:
        self.server.files[self.path] = self.body()
        self.answer({})

    def do_POST(self) -> None:
        body = self.body()
        if self.path.endswith("file_stream"):
            self.stream(self.server.runs[self.path.split("/")[-2]], json.loads(body))
        elif self.path == "/graphql":
            asked = json.loads(body)
            named = re.search(r"(?:query|mutation) (\w+)", asked["query"])
            assert named
            self.server.asked.append(named[1])
            self.answer({"data": getattr(self, named[1])(asked.get("variables") or {})})
        else:
            self.answer({})

    def stream(self, run: dict[str, Any], sent: dict[str, Any]) -> None:
        for name, part in sent.get("files", {}).items():
            lines = run["streams"].setdefault(name, [])
            lines[part["offset"] : part["offset"] + len(part["content"])] = part["content"]
        if sent.get("complete") and self.server.deaf:
            return self.answer({}, 503)
        if sent.get("complete"):
            run["state"] = "failed" if sent["exitcode"] else "finished"
        self.answer({})

    def node(self, run: dict[str, Any]) -> dict[str, Any]:
        lines = run["streams"].get(HISTORY, [])
        internal = json.loads(run["config"])["_wandb"]["value"]
        return {
            **{key: None for key in ("description", "sweepName", "notes", "commit", "historyKeys")},
            **{key: run[key] for key in ("name", "displayName", "config", "state", "tags")},
            **{key: "2026-01-01T00:00:00" for key in ("createdAt", "heartbeatAt")},
            **{"group": run["groupName"], "jobType": run["jobType"], "readOnly": False},
            **{"historyLineCount": len(lines), "historyTail": json.dumps(lines[-1:])},
            **{"eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]"},
            **{"summaryMetrics": run["streams"].get(SUMMARY, ["{}"])[-1], "systemMetrics": "{}"},
            **{"user": {"name": "someone", "username": "someone"}, "projectId": "1"},
            **{"id": run["name"], "wandbConfig": json.dumps({"t": internal.get("t")})},
            "project": {"id": "1", "name": run["project"], "entity": self.entity()},
        }

    def entity(self) -> dict[str, str]:
        return {"id": "1", "name": "someone"}

    def known(self, name: str) -> dict[str, Any] | None:
        run = self.server.runs.get(name)
        return self.node(run) if run else None

    def Viewer(self, asked: dict[str, Any]) -> Any:
        who = {"id": "1", "entity": "someone", "username": "someone", "email": "", "flags": "{}"}
        return {"viewer": {**who, "teams": {"edges": []}}}

    GetDefaultEntity = Viewer

    def ServerFeaturesQuery(self, asked: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def RunResumeStatus(self, asked: dict[str, Any]) -> Any:
        bucket = self.known(asked["name"])
        project = {"id": "1", "name": asked["project"], "entity": self.entity()}
        return {"model": {**project, "bucket": bucket}}

    def UpsertBucket(self, asked: dict[str, Any]) -> Any:
        kept = ("displayName", "config", "groupName", "jobType", "tags", "project")
        new = asked["name"] not in self.server.runs
        empty = {"name": asked["name"], "state": "running", "streams": {}, **dict.fromkeys(kept)}
        run = self.server.runs.setdefault(asked["name"], empty)
        run |= {key: asked[key] for key in kept if asked.get(key) is not None}
        return {"upsertBucket": {"bucket": self.node(run), "inserted": new}}

    def CreateRunFiles(self, asked: dict[str, Any]) -> Any:
        at = f"{self.server.url}/upload/{asked['run']}"
        files = [{"name": name, "uploadUrl": f"{at}/{name}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}

    def ArtifactType(self, asked: dict[str, Any]) -> Any:
        return {"project": None}

    def CreateArtifact(self, asked: dict[str, Any]) -> Any:
        latest = {"latestArtifact": {"id": "1"}}
        artifact = {"id": "1", "state": "COMMITTED", "artifactSequence": latest}
        return {"createArtifact": {"artifact": artifact}}

    def Run(self, asked: dict[str, Any]) -> Any:
        return {"project": {"internalId": "1", "run": self.known(asked["name"])}}


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody's account, and a W&B that has read no settings yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    shut_down()
    yield
    shut_down()


def shut_down() -> None:
    """Let the next call of `wandb.Api` in this process read the environment anew."""
    import wandb

    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server
        shut_down()
        server.shutdown()


def command(root: Path, outputs: Path, seed: int = 0) -> list[str]:
    return [*small(root, outputs), "trainer.max_epochs=1", f"seed={seed}"]


@pytest.fixture(scope="module")
def plain(small_tree: Path, once: Callable[..., Path]) -> dict[str, Any]:
    """run.json of a run that W&B has nothing to do with."""

    def make(folder: Path) -> None:
        train_here(*command(small_tree, folder / "outputs"))

    return record(only_run(once("plain", make) / "outputs"))


@pytest.fixture(scope="module")
def offline(small_tree: Path, once: Callable[..., Path]) -> Path:
    """Three runs, logged offline."""

    def make(folder: Path) -> None:
        for seed in SEEDS:
            train_here(*command(small_tree, folder / "outputs", seed), "logger=wandb")

    return once("offline", make) / "outputs"


def run_of(outputs: Path, seed: int = 0) -> Path:
    (found,) = (path.parent for path in outputs.rglob(f"seed_{seed:03d}/run.json"))
    return found


# --- while a run trains


def test_three_runs_are_three_w_and_b_runs_of_one_group(offline: Path) -> None:
    ids = set()
    for seed in SEEDS:
        run = run_of(offline, seed)
        (log,) = (run / "wandb").glob("offline-run-*/*.wandb")
        said = panels.run_init(run, record(run))
        assert log.stem == f"run-{said['id']}"
        content = log.read_bytes()
        for word in ("/".join(run.parts[-3:-1]), "train", "SYNTHETIC"):
            assert word.encode() in content, word
        ids.add(log.stem)
    assert len(ids) == len(SEEDS)


def test_job_types_tell_trained_from_scored_and_derived_runs(tmp_path: Path) -> None:
    directory = tmp_path / "demo" / "norot" / "seed_003"
    directory.mkdir(parents=True)
    said = {"id": "demo-norot,lr=1-s3-0123", "marks": ["LEAKY"], "config_hash": "0", "versions": {}}
    said["selection"] = {"set": "prelim"}
    types = {}
    for line in ("seed: 3", "checkpoint: RUN", "rescore_from: proposal"):
        (directory / "config.yaml").write_text(line)
        told = panels.run_init(directory, said)
        types[line] = told["job_type"]
    assert list(types.values()) == ["train", "score", "rescore"]
    assert told["id"] == "demo-norot+lr=1-s3-0123"
    assert (told["name"], told["group"]) == ("demo/norot/seed_003", "demo/norot")
    assert told["tags"] == ["LEAKY"]


def services(of: int) -> list[int]:
    """Process ids of the W&B services that process `of` has started."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,comm"], capture_output=True, text=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, parent, name, *_ in rows if parent == str(of) and "wandb" in name]


@pytest.fixture(params=["killed", "closed", "silent", "no room"])
def faulty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Ways in which W&B fails a run; gives the mode that the run is logged in."""
    if request.param == "killed":
        started = follow._start

        def then_killed(directory: Path, log: Path) -> Any:
            process = started(directory, log)

            def kill() -> None:
                while not (found := services(process.pid)):
                    time.sleep(0.05)
                for service in found:
                    os.kill(service, signal.SIGKILL)

            threading.Thread(target=kill, daemon=True).start()
            return process

        monkeypatch.setattr(follow, "_start", then_killed)
        yield "offline"
        return
    if request.param == "no room":
        full = MagicMock(side_effect=OSError(28, "No space left on device"))
        monkeypatch.setattr(follow, "_start", full)
        yield "offline"
        return
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        if request.param == "silent":
            port.listen(64)  # connections are made, and nobody reads from them
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port.getsockname()[1]}")
        yield "online"


def test_no_fault_of_w_and_b_reaches_the_run(
    faulty: str,
    plain: dict[str, Any],
    small_tree: Path,
    tmp_path: Path,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound, waited = 3.0, []
    end = follow._end

    def timed(process: Any, seconds: float, log: Path) -> str:
        start = time.monotonic()
        failure = end(process, seconds, log)
        waited.append((process, seconds, time.monotonic() - start))
        return failure

    monkeypatch.setattr(follow, "_end", timed)
    monkeypatch.setattr(follow, "LONGEST_WAIT", bound)
    outputs = tmp_path / "outputs"
    ended = train(*command(small_tree, outputs), "logger=wandb", f"logger.mode={faulty}")
    assert ended.code == 0
    assert "W&B failed (" in ended.out
    said = record(only_run(outputs))
    assert said["status"] == "done"
    for key in ("id", "predictions_sha256", "weights_sha256", "metrics"):
        assert said[key] == plain[key]
    for process, granted, took in waited:
        assert granted == bound
        assert took < bound + 5  # the slack is for a busy machine, not for W&B
        assert process.poll() is not None


def test_an_interrupted_run_waits_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(follow, "_start", lambda directory, log: object())
    monkeypatch.setattr(follow, "_end", lambda process, seconds, log: waited.append(seconds) or "")
    logger = SimpleNamespace(name="wandb", mode="offline")
    with pytest.raises(KeyboardInterrupt), follow.followed(tmp_path, logger):
        raise KeyboardInterrupt
    with follow.followed(tmp_path, logger):
        pass
    assert waited == [follow.INTERRUPTED_WAIT, follow.LONGEST_WAIT]


def test_the_follower_ends_when_the_run_is_killed(offline: Path, tmp_path: Path) -> None:
    run = tmp_path / "demo" / "proposal" / "seed_000"
    shutil.copytree(run_of(offline), run)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    edit_record(run, status="running", pid=dead.pid)
    assert wandb_sync.main(["--follow", str(run)]) == 0


def test_a_mode_or_package_that_is_missing_is_refused_before_a_run_exists(
    small_tree: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = tmp_path / "outputs"
    wrong = train(*command(small_tree, outputs), "logger=wandb", "logger.mode=live")
    assert (wrong.code, "logger.mode" in wrong.err) == (2, True)
    monkeypatch.setattr(follow.importlib.util, "find_spec", lambda name: None)
    missing = train(*command(small_tree, outputs), "logger=wandb")
    assert (missing.code, "leukocls[wandb]" in missing.err) == (2, True)
    assert not outputs.exists()


# --- from files


def sync(*arguments: object) -> int:
    return wandb_sync.main([str(argument) for argument in arguments])


def without_clock(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without times, and tables by what they hold and not by where they lie."""
    clock = ("_timestamp", "_runtime")
    return [
        {
            key: value["sha256"] if isinstance(value, dict) else value
            for key, value in row.items()
            if key not in clock
        }
        for row in rows
    ]


def assert_holds_everything_once(server: Server, outputs: Path) -> None:
    runs = [run_of(outputs, seed) for seed in SEEDS]
    records = {record(run)["id"].replace(",", "+"): run for run in runs}
    (comparing,) = server.runs.keys() - records.keys()
    for name, run in records.items():
        held, said = server.runs[name], record(run)
        assert held["state"] == "finished"
        assert held["groupName"] == "/".join(run.parts[-3:-1])
        assert (held["jobType"], held["tags"]) == ("train", ["SYNTHETIC"])
        config = json.loads(held["config"])
        assert config["seed"]["value"] == int(run.name[-3:])
        assert config["config_hash"]["value"] == said["config_hash"]
        metrics = pd.read_csv(run / "metrics.csv")
        rows = server.history(name)
        assert [row["_step"] for row in rows] == [0, 1, 2]
        assert [row["epoch"] for row in rows[:2]] == [0, 1]
        for column in metrics:
            curve = [row.get(column) for row in rows[:2]]
            for value, wanted in zip(curve, metrics[column], strict=True):
                missing = value is None and pd.isna(wanted)
                assert missing or value == pytest.approx(wanted, rel=1e-12)
        last = {key for key in rows[2] if not key.startswith("_") and key != "epoch"}
        assert last == {"prelim/cells", "prelim/confusion_table", "prelim/subjects_table"}
        summary = server.summary(name)
        assert summary["predictions_sha256"] == said["predictions_sha256"]
        assert summary["selected/epoch"] == said["selection"]["epoch"]
        assert summary["selected/prelim/heading"] == "selection"
        for metric in ("weighted_f1", "auroc", "tp", "brier"):
            value = said["metrics"]["prelim"][metric]
            assert summary[f"selected/prelim/{metric}"] == pytest.approx(value, rel=1e-12)
        cells = server.table(name, "prelim/cells")
        assert cells["columns"] == ["image", "cell", "subject", "label", "prob"]
        assert len(cells["data"]) == said["metrics"]["prelim"]["n"]
        bars = server.table(name, "prelim/subjects_table")
        assert len(bars["data"]) == said["metrics"]["prelim"]["n_subjects"]

    held = server.runs[comparing]
    assert (held["jobType"], held["groupName"], held["state"]) == ("compare", "demo", "finished")
    (row,) = server.history(comparing)
    document = compare(runs)
    drawn = figures(report_document(scored_comparison(runs)))
    assert drawn
    for figure in drawn:
        image = row[f"compare/{figure.name}"]
        assert (image["_type"], image["caption"]) == ("image-file", figure.caption)
        assert image["width"] == pytest.approx(144 * figure.size[0], abs=1)
    values = server.table(comparing, "compare/values")
    at = {name: i for i, name in enumerate(values["columns"])}
    seen = {
        row[at["seed"]]: row[at["value"]]
        for row in values["data"]
        if row[at["metric"]] == "weighted_f1"
    }
    (arm,) = document["arms"]
    assert seen == dict(zip(SEEDS, arm["weighted_f1"]["values"], strict=True))
    (mean,) = server.table(comparing, "compare/weighted_f1_table")["data"]
    assert mean == [arm["name"], pytest.approx(arm["weighted_f1"]["mean"])]
    lines = server.table(comparing, "compare/epochs_table")["data"]
    each = [pd.read_csv(run / "metrics.csv")["prelim_weighted_f1"] for run in runs]
    assert [line[2] for line in lines] == pytest.approx(list(sum(each) / len(each)))


class Impatient:
    """A context of multiprocessing whose pipe gives up once the server has all rows of a run."""

    def __init__(self, server: Server, kind: str) -> None:
        self.server, context = server, get_context(kind)
        self.Process = context.Process
        self.ends = context.Pipe(duplex=False)

    def Pipe(self, duplex: bool) -> tuple[SimpleNamespace, Any]:
        ours, theirs = self.ends
        return SimpleNamespace(poll=self.poll, recv=ours.recv), theirs

    def poll(self, _: float) -> bool:
        end = time.monotonic() + 120
        while not self.complete() and time.monotonic() < end:
            time.sleep(0.1)
        return self.ends[0].poll(2)  # the run is about to end, and hears nothing

    def complete(self) -> bool:
        return any(
            "prelim/cells" in row for name in self.server.runs for row in self.server.history(name)
        )


def test_a_server_gets_everything_once(
    server: Server, offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    # The worst moment: it has all rows of the first run, and the sender never hears of it.
    server.deaf = True
    with monkeypatch.context() as patch:
        patch.setattr(tracking_sync, "get_context", lambda kind: Impatient(server, kind))
        with pytest.raises(DataFault, match="run the same command again"):
            sync(offline)
    ((name, broken),) = server.runs.items()
    assert broken["state"] == "running"
    rows = server.history(name)
    server.files.clear()  # nor were its files there yet

    server.deaf = False
    assert sync(offline) == 0
    assert capsys.readouterr().out.count("sent: ") == len(SEEDS) + 1
    assert server.history(name) == rows
    table = server.summary(name)["prelim/cells"]["path"]
    assert f"/upload/{name}/{table}" in server.files
    # Its row points to the files of the upload that broke off, which W&B keeps by content.
    for row in rows:
        for value in (v for v in row.values() if isinstance(v, dict)):
            same = next(path for path in server.files if value["sha256"][:20] in path)
            server.files.setdefault(f"/upload/{name}/{value['path']}", server.files[same])
    assert_holds_everything_once(server, offline)

    before = json.dumps(server.runs, sort_keys=True)
    server.asked.clear()
    assert sync(offline) == 0
    assert capsys.readouterr().out.count("there already: ") == len(SEEDS) + 1
    assert json.dumps(server.runs, sort_keys=True) == before
    assert not {"UpsertBucket", "CreateRunFiles", "CreateArtifact"} & set(server.asked)


def test_a_live_run_and_its_files_give_the_same(
    server: Server, small_tree: Path, tmp_path: Path, train: Train, capsys: Any
) -> None:
    outputs = tmp_path / "outputs"
    arguments = [*command(small_tree, outputs), "split_scheme=honest"]
    online = train(*arguments, "logger=wandb", "logger.mode=online")
    assert (online.code, "W&B failed" in online.out) == (0, False)
    assert sync(outputs) == 0
    assert "there already: " in capsys.readouterr().out
    ((name, live),) = server.runs.items()
    rows, summary = server.history(name), server.summary(name)
    assert summary["selected/prelim/heading"] == "test"

    server.runs.clear()
    assert sync(outputs) == 0
    assert "sent: " in capsys.readouterr().out
    ((again, rebuilt),) = server.runs.items()
    assert again == name
    assert without_clock(server.history(name)) == without_clock(rows)
    assert not any("prelim_loss" in row for row in rows)  # its one score is no curve
    own = {key for key in summary if key.startswith(("selected/", "predictions"))}
    assert own
    assert {key: server.summary(name)[key] for key in own} == {key: summary[key] for key in own}
    for key in ("groupName", "jobType", "tags", "displayName"):
        assert rebuilt[key] == live[key]


def test_a_resumed_run_is_the_same_w_and_b_run(
    server: Server, offline: Path, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    outputs = tmp_path / "outputs"
    shutil.copytree(run_of(offline), outputs / run_of(offline).relative_to(offline))
    run = only_run(outputs)
    edit_record(run, status="interrupted")
    assert sync(outputs) == 3
    assert server.runs == {}
    again = train(*command(small_tree, outputs), "logger=wandb")
    assert (again.code, "resumed after epoch 1" in again.out) == (0, True)
    logs = [path.stem for path in (run / "wandb").glob("offline-run-*/*.wandb")]
    assert logs == [f"run-{record(run)['id'].replace(',', '+')}"] * 2
    assert sync(outputs) == 0
    assert [f"run-{name}" for name in server.runs] == logs[:1]
    assert [row["_step"] for row in server.history(logs[0][4:])] == [0, 1, 2]


def test_what_cannot_be_sent_is_named_and_left_out(
    server: Server, offline: Path, small_tree: Path, tmp_path: Path, capfd: Any
) -> None:
    outputs = tmp_path / "outputs"
    shutil.copytree(offline, outputs)
    done, failed, damaged = (run_of(outputs, seed) for seed in SEEDS)
    edit_record(failed, status="failed")
    (damaged / "run.json").write_text("{")
    shutil.rmtree(damaged.parent.parent / "moved", ignore_errors=True)
    config = done / "config.yaml"
    store = str(small_tree.parent / "store")
    assert store in config.read_text()
    config.write_text(config.read_text().replace(store, str(tmp_path)))
    assert sync(outputs, "--project", "other") == 3
    said = capfd.readouterr().out
    assert f"left out: {failed}: failed, not done" in said
    assert f"left out: {damaged / 'run.json'}: damaged" in said
    ((name, held),) = server.runs.items()
    assert held["project"] == "other"
    assert f"{done}: no thumbnails" in said
    assert server.table(name, "prelim/cells")["columns"] == ["cell", "subject", "label", "prob"]

    # The same run executed again elsewhere, with another result.
    held["streams"][SUMMARY] = [json.dumps(server.summary(name) | {"predictions_sha256": "0"})]
    assert sync(done) == 3
    assert "W&B holds another execution of this run" in capfd.readouterr().out

    edited = pd.read_parquet(done / "predictions.parquet")
    edited.assign(view_0=edited["view_0"] + 1).to_parquet(done / "predictions.parquet")
    assert sync(done) == 3
    assert "these are not the predictions the run wrote" in capfd.readouterr().out


def test_nobody_there_and_nobody_logged_in_are_one_message(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LeukoclsError, match="no run here") as empty:
        sync(tmp_path)
    monkeypatch.setattr(tracking_sync, "ANSWER_S", 1)
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port.getsockname()[1]}")
        with pytest.raises(LeukoclsError, match=r"Nothing was sent\. Log in") as closed:
            sync(offline)
        monkeypatch.delenv("WANDB_API_KEY")
        with pytest.raises(LeukoclsError, match=r"Nothing was sent\. Log in") as stranger:
            sync(offline)
    assert [error.value.exit_code for error in (empty, closed, stranger)] == [2, 2, 2]


def test_help_needs_neither_torch_nor_wandb() -> None:
    code = (
        "import sys, leukocls.wandb_sync as sync\n"
        "try: sync.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'wandb', 'pandas'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
