"""Repeat a run: `python -m leukocls.repeat RUN` trains it again and says whether the bits agree."""

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukocls.common.arguments import whole_number
from leukocls.common.errors import LeukoclsError, run_verb
from leukocls.common.tables import aligned

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Read when torch is loaded; why: leukocls/train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.repeat",
        description="Train a finished run again, by its config.yaml and in a folder of its own, and"
        " compare predictions and weights bit for bit. Exits 0 if they agree, else 1.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the directory of a finished run")
    add("--data", type=Path, metavar="ROOT", help="where its images are now")
    add("--threads", type=whole_number, metavar="N", help="CPU threads (default: the run's)")
    add("--keep", type=Path, metavar="DIR", help="a new folder that keeps the repeated run")
    add("--json", action="store_true", help="print one JSON document instead of text")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train the run again and compare.

    Raises:
        LeukoclsError: a run that is not done or was not trained, other data, or a folder that
            exists.
        DataFault: a damaged run, or a failure of the training.
    """
    arguments = _parser().parse_args(argv)
    if arguments.keep and arguments.keep.exists():
        raise LeukoclsError(f"--keep {arguments.keep}: exists already; name a new folder.")
    from leukocls.artifacts.record import read_record
    from leukocls.artifacts.run_dir import STORED, finished_weights

    run = arguments.run.resolve()
    record = read_record(run)
    if not re.fullmatch(r"seed_\d+", run.name):
        raise LeukoclsError(
            f"{run}: was renamed or copied; its path has to end in EXPERIMENT/ARM/seed_NNN again."
        )
    finished_weights(run, record)
    config = _config(run, record, arguments)
    with tempfile.TemporaryDirectory(prefix="leukocls-repeat-") as folder:
        again = _trained_again(run, record, config, arguments.keep or Path(folder))
    differ = [name for key, name in STORED.items() if record.get(key) != again.get(key)]
    facts = _differing_facts(record, again)
    if arguments.json:
        print(json.dumps({"same": not differ, "differ": differ, "facts": facts}, indent=2))
    else:
        print(_text(differ, facts))
    return 1 if differ else 0


def _config(run: Path, record: dict[str, Any], arguments: argparse.Namespace) -> "DictConfig":
    """The run's configuration, in which nothing is logged elsewhere."""
    from omegaconf import OmegaConf

    from leukocls.launch.settings import check_settings

    if record["identity"].get("score") or record["identity"].get("rescore_from"):
        raise LeukoclsError(
            f"{run}: scores what another run has trained; repeat the run that trained it."
        )
    config: Any = OmegaConf.load(run / "config.yaml")
    config.logger, config.save_minutes = {"name": "csv"}, None
    if arguments.data:
        config.data.root = str(arguments.data)
    if arguments.threads:
        config.threads = arguments.threads
    try:
        check_settings(config)
    except LeukoclsError as error:
        raise LeukoclsError(
            f"{run / 'config.yaml'}: this version reads other settings than leukocls"
            f" {record['versions']['leukocls']}, which wrote it ({error}); repeat it with that one."
        ) from error
    return config


def _trained_again(
    run: Path, record: dict[str, Any], config: "DictConfig", outputs: Path
) -> dict[str, Any]:
    """The record of the repeated run, which lies below `outputs`; stdout is left to the verdict."""
    from leukocls.artifacts.record import now, read_record
    from leukocls.launch.job import Job, run_job
    from leukocls.training.inputs import inputs_of

    found = inputs_of(config).digests["data"]
    if found != record["inputs"]["data"]:
        raise LeukoclsError(
            f"{config.data.root}: other images or labels than the run was trained on; name with"
            " --data the folder or the CSV of those."
        )
    directory = outputs.joinpath(*run.parts[-3:])
    with contextlib.redirect_stdout(sys.stderr):
        run_job(Job(config, directory, [], now()))
    return read_record(directory)


def _differing_facts(record: dict[str, Any], again: dict[str, Any]) -> dict[str, list[Any]]:
    """Recorded facts that differ: the run's value, and the repeated one's."""
    from leukocls.artifacts.identity import differences

    facts = {key: list(pair) for key, pair in differences(record, again).items()}
    before, now = (
        {
            **{name: one.get(name) for name in ("threads", "device", "host")},
            **{f"version of {name}": number for name, number in one["versions"].items()},
            **{f"git {name}": value for name, value in (one.get("git") or {}).items()},
        }
        for one in (record, again)
    )
    names = [name for name in before | now if before.get(name) != now.get(name)]
    return facts | {name: [before.get(name), now.get(name)] for name in names}


def _text(differ: list[str], facts: dict[str, list[Any]]) -> str:
    lines = ["same bits" if not differ else f"other bits: {', '.join(differ)}"]
    if facts:
        rows = [[name, *map(str, pair)] for name, pair in facts.items()]
        lines += ["Recorded facts that differ:", aligned([["fact", "run", "repeated"], *rows])]
    elif differ:
        lines.append("No recorded fact differs: something that is not recorded decided.")
    return "\n".join(lines)


if __name__ == "__main__":
    run_verb(main)
