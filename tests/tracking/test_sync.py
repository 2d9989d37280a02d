"""One run that cannot be sent to W&B keeps no other run from being sent."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from conftest import record

from leukocls import baseline, wandb_sync
from leukocls.common.errors import DataFault
from leukocls.tracking import sync as tracking_sync


@pytest.fixture(scope="module")
def baselines(small_tree: Path, once: Callable[..., Path]) -> Path:
    """Two baselines of one data set, which have no epochs and no configuration of a network."""

    def make(folder: Path) -> None:
        places = ["--outputs", str(folder / "outputs"), "--cache", str(small_tree.parent / "store")]
        for kind in ("size", "colour"):
            assert baseline.main([str(small_tree), "--features", kind, *places]) == 0

    return once("baselines", make) / "outputs"


class Api:
    """A W&B server that holds what was uploaded to it."""

    def __init__(self) -> None:
        self.runs: dict[str, Any] = {}

    def flush(self) -> None: ...

    def run(self, path: str) -> Any:
        return self.runs[path]


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """W&B runs that were uploaded, by id. Uploads of arms that hold `refused` fail."""
    api = Api()

    def upload(make: Any, project: str, entity: str) -> str:
        tracked, _ = make()
        if "refused" in tracked.init["name"]:
            return "CommError: this id was deleted"
        tracked.figures(MagicMock())
        held = MagicMock(state="finished", summary=tracked.summary, historyLineCount=tracked.rows)
        api.runs[f"{entity}/{project}/{tracked.init['id']}"] = held
        held.init = tracked.init
        return ""

    monkeypatch.setattr(tracking_sync, "_login", lambda: (api, "me"))
    monkeypatch.setattr(tracking_sync, "_in_process", upload)
    return api.runs


def test_a_bad_run_blocks_none_after_it(
    baselines: Path, tmp_path: Path, uploads: dict[str, Any], capsys: Any
) -> None:
    outputs = tmp_path / "outputs"
    shutil.copytree(baselines, outputs)
    size = outputs / "baseline/size/seed_000"
    for bad in ("a_config", "b_record", "c_predictions", "d_refused"):
        shutil.copytree(size, outputs / "baseline" / bad / "seed_000")
    (outputs / "baseline/a_config/seed_000/config.yaml").unlink()
    (outputs / "baseline/b_record/seed_000/run.json").write_text('{"status": "done"}')
    (outputs / "baseline/c_predictions/seed_000/predictions.parquet").write_bytes(b"PAR1")
    assert wandb_sync.main([str(outputs)]) == 3
    sent = {run.init["name"]: run.init["job_type"] for run in uploads.values()}
    assert sent == {
        "baseline/size/seed_000": "baseline",
        "baseline/colour/seed_000": "baseline",
        "baseline/compare": "compare",
    }
    named = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    for bad, line in zip(("a_config", "b_record", "c_pred", "d_refused"), named, strict=True):
        assert bad in line
    (comparison,) = (run for run in uploads.values() if run.init["job_type"] == "compare")
    ids = {record(path.parent)["id"] for path in baselines.rglob("run.json")}
    assert comparison.init["config"]["sources"].keys() == ids


def test_a_server_that_takes_nothing_is_not_asked_for_every_run(
    baselines: Path, uploads: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def silent(make: Any, project: str, entity: str) -> str:
        calls.append(entity)
        raise TimeoutError

    monkeypatch.setattr(tracking_sync, "_in_process", silent)
    with pytest.raises(DataFault):
        wandb_sync.main([str(baselines)])
    assert len(calls) == 1
