"""run.json: a run's record, its state, and where runs are found."""

import hashlib
import json
import os
import socket
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from leukocls.artifacts.identity import config_hash
from leukocls.artifacts.marks import Mark
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import atomic_write
from leukocls.common.secrets import without_secrets
from leukocls.data.names import PRELIM_OFFICIAL, PRELIM_TRAINED

DIGEST = "record_sha256"  # the record's digest of all its other entries; new in 0.2


class RunState(StrEnum):
    """Every state that a run is reported in; `run.json` itself holds the first four.

    DEAD: it says `running`, and its process is gone from this host. MISSING: there is no record.
    REFUSED: another configuration's run is in its directory. DAMAGED: its record does not read.
    """

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DONE = "done"
    DEAD = "dead"
    MISSING = "missing"
    REFUSED = "refused"
    DAMAGED = "damaged"


def now() -> str:
    """The time as records hold it: UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_record(directory: Path) -> dict[str, Any]:
    """The run.json of a run directory, in the present format whichever version wrote it.

    Raises:
        LeukoclsError: it is missing, damaged or edited.
    """
    path = directory / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LeukoclsError(
            f"{directory}: not a run directory (no run.json); name one, or a predictions file"
        ) from None
    except OSError as error:
        raise LeukoclsError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise LeukoclsError(f"{path}: damaged ({error}); train this run again") from error
    if not isinstance(record, dict):
        raise LeukoclsError(f"{path}: damaged (no JSON object); train this run again")
    if DIGEST in record and record[DIGEST] != record_digest(record):
        raise LeukoclsError(
            f"{path}: edited since leukocls wrote it (its entries do not have the digest {DIGEST});"
            " restore it, or train this run again"
        )
    return _upgraded(record)


def write_record(directory: Path, record: dict[str, Any]) -> None:
    """Replace run.json as a whole, with a digest of the record in it."""
    signed = record | {DIGEST: record_digest(record)}
    atomic_write(directory / "run.json", json.dumps(signed, indent=2))


def record_digest(record: dict[str, Any]) -> str:
    """sha256 of the sorted JSON of a record's entries, without its own digest."""
    entries = {key: value for key, value in record.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _upgraded(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a version before 0.2 in the present format.

    Those versions kept digests among the settings, and called phases and rescoring otherwise.
    """
    identity = record.get("identity")
    if "inputs" in record or not isinstance(identity, dict):
        return record
    prefix, renamed = "sha256 of ", {"view 0": "rescored", "view_0_of": "rescore_from"}
    settings: dict[str, Any] = {}
    inputs: dict[str, str | None] = {}
    for key, value in identity.items():
        name = key.removeprefix(prefix)
        if key.partition(".")[0] not in ("chain", "link"):
            (inputs if key.startswith(prefix) else settings)[renamed.get(name, name)] = value
    hashed = {"config_hash": config_hash(settings, inputs)}
    return record | {"identity": settings, "inputs": inputs} | hashed


def run_directories(root: Path) -> list[Path]:
    """Every directory at or below `root` that holds a run.json, sorted."""
    return sorted(Path(here) for here, _, files in os.walk(root) if "run.json" in files)


def state_of(record: dict[str, Any]) -> RunState:
    """The run's state; DEAD if it says `running` and its process is gone from this host.

    A run that another host is writing is taken at its word. A record without a known status is
    DAMAGED.
    """
    try:
        state = RunState(record.get("status", ""))
    except ValueError:
        return RunState.DAMAGED
    here = record.get("host") == socket.gethostname()
    if state == RunState.RUNNING and here and not _alive(record):
        return RunState.DEAD
    return state


def is_running_here(directory: Path) -> bool:
    """Whether the record says that a live process of this host is writing the run.

    The lock is not tried: holding it for a moment would make a starting run fail.
    """
    try:
        record = read_record(directory)
    except LeukoclsError:
        return False
    here = record.get("host") == socket.gethostname()
    return here and state_of(record) == RunState.RUNNING


def process_start(pid: int) -> str | None:
    """The boot and the clock tick in which a process started; None where Linux does not say.

    A number may be another process's after a while; with its start it is the same one.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Behind the command's name, which is in brackets and may hold any: proc(5), field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return f"{boot} {fields[19]}"


def _alive(record: dict[str, Any]) -> bool:
    pid = record.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    recorded, found = record.get("pid_start"), process_start(pid)
    if recorded is not None and found is not None and recorded != found:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def mark_ended(directory: Path, pid: int, state: RunState, error: str) -> None:
    """Write `state` into the record of a run whose process `pid` died without doing so."""
    try:
        record = read_record(directory)
    except LeukoclsError:  # it died before there was one
        return
    if record.get("status") == RunState.RUNNING and record.get("pid") == pid:
        told = without_secrets(error)
        write_record(directory, record | {"status": state, "finished": now(), "error": told})


def heading(record: dict[str, Any], split: str | None, as_selected: bool) -> str:
    """The heading of a split's numbers: `training`, `selection`, `test`, `leaky` or `unknown`.

    `test` requires that the run selected on another split, and that nothing was changed since: an
    epoch, threshold or set of views from the command line may have been chosen on this split.

    Args:
        record: the run's run.json; empty for files from elsewhere.
        as_selected: whether epoch, threshold and views are the run's own.
    """
    if not record or split is None:
        return "unknown"
    if split == "train":
        return "training"
    if split in (PRELIM_TRAINED, PRELIM_OFFICIAL):
        return "leaky"
    chosen_on = (record.get("selection") or {}).get("set")
    if split == chosen_on:
        return "selection"
    # A split that shares subjects with training or selection is no test, whatever its name.
    clean = chosen_on and as_selected and Mark.LEAKY not in (record.get("marks") or [])
    return "test" if clean else "unknown"


def headline(record: dict[str, Any]) -> dict[str, Any] | None:
    """The run's weighted F1 with its `heading` and `set`; None without one.

    That of its test if it has one, else that of the set that chose the epoch. A run that trained
    measured that set; only a scored checkpoint may lack it.
    """
    metrics, chosen_on = _object(record, "metrics"), _object(record, "selection").get("set")
    if chosen_on not in metrics and not _object(record, "identity").get("score"):
        return None
    headed = {heading(record, split, as_selected=True): split for split in metrics}
    split = headed.get("test") or chosen_on
    value = _object(metrics, str(split)).get("weighted_f1")
    if value is None:
        return None
    return {"heading": heading(record, split, True), "set": split, "weighted_f1": value}


def headline_text(headline: dict[str, Any] | None) -> str:
    """The result of `headline` for a table; a dash for None."""
    if not headline:
        return "–"
    return f"{headline['weighted_f1']:.4f} {headline['heading']} ({headline['set']})"


def _object(record: dict[str, Any], key: str) -> dict[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def scaling(calibration: dict[str, Any]) -> tuple[float, float]:
    """Intercept and slope from a logit as predicted to that of the calibrated probability.

    Args:
        calibration: the entry of that name, with a slope.
    """
    slope = float(calibration["slope"])
    return float(calibration["intercept"]) - slope * float(calibration["log_pos_weight"]), slope
