"""run.json: records of the version before are read as ours."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from leukocls.artifacts.record import DIGEST, RunState, read_record, state_of
from leukocls.artifacts.run_dir import RunDir
from leukocls.evaluation.scoring import ScoringOptions, scored_parts


def as_before(record: dict[str, Any]) -> dict[str, Any]:
    """The record as 0.1 wrote it: digests among the settings, chains, another name of rescoring."""
    old = {key: value for key, value in record.items() if key != DIGEST}
    settings, inputs = dict(old["identity"]), old.pop("inputs")
    settings |= {"chain": {}, "view_0_of": settings.pop("rescore_from")}
    settings |= {f"sha256 of {name}": digest for name, digest in inputs.items()}
    text = json.dumps(settings, sort_keys=True)
    old |= {"identity": settings, "config_hash": hashlib.sha256(text.encode()).hexdigest()}
    return old


def test_a_run_of_the_version_before_is_done_and_evaluated(trained: Path, tmp_path: Path) -> None:
    run = tmp_path.joinpath(*trained.parts[-3:])
    shutil.copytree(trained, run)
    now = read_record(trained)
    (run / "run.json").write_text(json.dumps(as_before(now)))
    assert read_record(run) | {DIGEST: now[DIGEST]} == now
    same = RunDir(run, OmegaConf.load(run / "config.yaml"), now["inputs"])
    assert same.state(force=False) == RunState.DONE
    other = RunDir(run, OmegaConf.load(run / "config.yaml"), now["inputs"] | {"data": "0"})
    assert list(other.differences(read_record(run))) == ["inputs.data"]
    assert scored_parts(run, ScoringOptions())


def test_the_state_of_a_record_without_a_known_status_is_damaged() -> None:
    assert state_of({"status": "finished"}) == state_of({}) == RunState.DAMAGED
    assert state_of({"status": "done"}) == RunState.DONE
