"""run.json: records of the version before are read as ours."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from conftest import edit_record
from omegaconf import OmegaConf

from leukocls.artifacts.record import DIGEST, RunState, read_record, state_of
from leukocls.artifacts.run_dir import RunDir
from leukocls.common.files import sha256_file
from leukocls.data.splits import read_split
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


def test_a_split_is_the_same_while_its_cells_stay_on_their_sides(
    trained: Path, tmp_path: Path
) -> None:
    run = tmp_path.joinpath(*trained.parts[-3:])
    shutil.copytree(trained, run)
    cells, inputs = read_split(run / "split.csv"), read_record(trained)["inputs"]

    def differing(table: pd.DataFrame) -> list[str]:
        table.to_csv(run / "split.csv", index=False)
        before = {"split": sha256_file(run / "split.csv")}
        edit_record(run, inputs=inputs | before)
        here = RunDir(run, OmegaConf.load(run / "config.yaml"), inputs, cells)
        return list(here.differences(read_record(run)))

    assert differing(cells.assign(group="1+2", pixels="0")) == []
    for column, value in (("split", "val"), ("label", "0"), ("cell", "x"), ("subject", "x")):
        moved = cells.copy()
        moved.loc[moved[column] != value, column] = value
        assert differing(moved) == ["inputs.split"]
    assert differing(cells.iloc[1:]) == ["inputs.split"]
    assert differing(cells.drop(columns="label")) == ["inputs.split"]
    unlike = RunDir(run, OmegaConf.load(run / "config.yaml"), inputs, cells)
    (run / "split.csv").write_text("edited")
    assert list(unlike.differences(read_record(run))) == ["inputs.split"]


def test_the_state_of_a_record_without_a_known_status_is_damaged() -> None:
    assert state_of({"status": "finished"}) == state_of({}) == RunState.DAMAGED
    assert state_of({"status": "done"}) == RunState.DONE
