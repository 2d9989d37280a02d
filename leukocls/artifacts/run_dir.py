"""A run directory: its lock, its record and its log. The status `done` is written last."""

import errno
import os
import shutil
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from leukocls.artifacts import predictions
from leukocls.artifacts.environment import git_state, versions
from leukocls.artifacts.identity import config_hash, differences, settings_of
from leukocls.artifacts.record import RunState, now, process_start, read_record, write_record
from leukocls.common.errors import DataFault, LeukoclsError, own_text
from leukocls.common.files import atomic_write, lock, remove_unfinished, sha256_file
from leukocls.common.processes import Interrupted
from leukocls.common.secrets import starred, without_secrets
from leukocls.common.terminal import printable
from leukocls.data.splits import read_split

MISSING = "missing"  # in place of a digest
# Space that a run gives back to write its last record on a disk that is full.
RESERVE, RESERVED = ".reserve", 1 << 17
FULL = (errno.ENOSPC, errno.EDQUOT)
# The files whose digests a finished run records.
STORED = {
    "predictions_sha256": "predictions.parquet",
    "weights_sha256": "checkpoints/best.safetensors",
    "last_sha256": "checkpoints/last.safetensors",
}
# What a trained run has written beside them.
BESIDE = ("config.yaml", "split.csv", "metrics.csv", "log.txt")


class RunLocked(LeukoclsError):
    """Another process is writing the run."""


class RunDir:
    """One run directory and its `run.json`.

    Args:
        directory: `outputs/<experiment>/<arm>/seed_<nnn>`.
        config: the run's configuration.
        inputs: sha256 of each thing that the run reads, by name; None where it reads none.
        cells: the rows of its split.csv; None in a run that nothing resumes.
    """

    def __init__(
        self,
        directory: Path,
        config: DictConfig,
        inputs: dict[str, str | None],
        cells: pd.DataFrame | None = None,
    ) -> None:
        self.directory, self.config, self.inputs, self.cells = directory, config, inputs, cells
        self.settings = settings_of(config)
        self.hash = config_hash(self.settings, inputs)
        experiment, arm, seed = directory.parts[-3:]
        number = int(seed.removeprefix("seed_"))
        self.id = f"{experiment}-{arm}-s{number}-{self.hash[:8]}"
        self.record: dict[str, Any] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory against every other process.

        Raises:
            RunLocked: another process holds it.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / ".lock", "w") as stream:
            try:
                lock(stream, self.directory)
            except BlockingIOError as error:
                raise RunLocked(
                    f"{self.directory}: another process is writing this run. Wait for it, or"
                    " choose another seed."
                ) from error
            yield

    def differences(
        self, record: dict[str, Any], directory: Path | None = None
    ) -> dict[str, tuple[Any, Any]]:
        """Settings and inputs in which `record` differs from this run: key to both values.

        Args:
            directory: of the record's run; None for this one.
        """
        found = differences(record, {"identity": self.settings, "inputs": self.inputs})
        recorded = record["inputs"].get("split")
        if "inputs.split" in found and self._same_sides(directory or self.directory, recorded):
            del found["inputs.split"]
        return found

    def _same_sides(self, directory: Path, recorded: str | None) -> bool:
        """True if a split.csv, of digest `recorded`, has the same cells on the same sides.

        Versions before 0.2 wrote other groups and digests of pixels for the same split.
        """
        path = directory / "split.csv"
        if self.cells is None or not path.is_file() or sha256_file(path) != recorded:
            return False
        columns = ["cell", "subject", "label", "split"]
        before, now = read_split(path), self.cells.astype(str)
        if not set(columns) <= set(before):
            return False
        return np.array_equal(before[columns].to_numpy(), now[columns].to_numpy())

    def state(self, force: bool, since: str = "") -> RunState:
        """State of the directory: MISSING (start), DONE (complete) or INTERRUPTED (resumable).

        Args:
            force: ignore runs that were started before `since` (UTC, ISO 8601), or any without it.

        Raises:
            LeukoclsError: the directory belongs to another configuration or its files were
                changed, and `force` is false.
        """
        path = self.directory / "run.json"
        if not path.is_file() or (force and not since):
            return RunState.MISSING
        try:
            record = read_record(self.directory)
            status, started = record["status"], record["started"]
            differ = self.differences(record)
        except LeukoclsError as error:
            raise LeukoclsError(f"{error} (force=true or --force)") from error
        except (KeyError, TypeError) as error:
            raise LeukoclsError(
                f"{path}: does not read ({error}); force=true (--force) starts the run again."
            ) from error
        if force and started < since:
            return RunState.MISSING
        # A run that failed before it wrote anything holds nothing to keep.
        if status == RunState.FAILED and not (self.directory / "checkpoints").is_dir():
            return RunState.MISSING
        if differ:
            keys = [f"{key} ({before} → {now})" for key, (before, now) in differ.items()]
            raise LeukoclsError(
                f"{self.directory}: holds a run of another configuration; these differ:"
                f" {', '.join(keys)}. Choose another experiment or outputs=, or force=true"
                " (--force) to replace it."
            )
        self.id = record["id"]  # a resumed run keeps its name, whichever version gave it
        if status != RunState.DONE:
            return RunState.INTERRUPTED
        for key, name in STORED.items():
            if record.get(key) is not None and self._sha256(name) != record[key]:
                raise LeukoclsError(
                    f"{self.directory / name}: changed since the run ended ({key} differs);"
                    " restore it, or force=true (--force) to run again."
                )
        self.record = record
        return RunState.DONE

    def start(self, **facts: Any) -> None:
        """Empty the directory; write the configuration and a record with status `running`."""
        for name in ("run.json", "predictions.parquet", "metrics.csv", "log.txt"):
            (self.directory / name).unlink(missing_ok=True)
        for name in ("checkpoints", "wandb", predictions.PARTS):
            shutil.rmtree(self.directory / name, ignore_errors=True)
        resolved = OmegaConf.to_container(self.config, resolve=True)
        atomic_write(self.directory / "config.yaml", OmegaConf.to_yaml(starred(resolved)))
        self.resume(**facts)

    def resume(self, **facts: Any) -> None:
        """Write a record with status `running`; every other file stays, if it is whole."""
        self.tidy()
        atomic_write(self.directory / RESERVE, os.urandom(RESERVED))
        self.record = {
            "id": self.id,
            "status": RunState.RUNNING,
            "pid": os.getpid(),
            "pid_start": process_start(os.getpid()),
            "host": socket.gethostname(),
            "started": now(),
            "finished": None,
            "error": None,
            "traceback": None,
            "config_hash": self.hash,
            "identity": starred(self.settings),
            "inputs": self.inputs,
            "git": git_state(),
            "versions": versions(),
            **facts,
        }
        write_record(self.directory, self.record)

    def end(self, state: RunState, error: str | None = None, **facts: Any) -> None:
        """Write the last record, with status `done`, `failed` or `interrupted`."""
        told = without_secrets(error) if error else None
        record = self.record | {"status": state, "finished": now(), "error": told, **facts}
        try:
            write_record(self.directory, record)
        except OSError as full:
            if full.errno not in FULL:
                raise
            self.tidy()
            write_record(self.directory, record)
        self.record = record
        self.tidy()

    def tidy(self) -> None:
        """Remove the reserve of disk space, and the temporary files of killed processes."""
        (self.directory / RESERVE).unlink(missing_ok=True)
        for name in ("", "checkpoints", predictions.PARTS):
            remove_unfinished(self.directory / name)

    @contextmanager
    def ended_by_errors(self) -> Iterator[None]:
        """Record what ends the body early, unless the run has ended already."""
        try:
            yield
        except (Interrupted, SystemExit) as stop:  # the latter when a cluster takes the job back
            if self.record["status"] == RunState.RUNNING:
                self.end(RunState.INTERRUPTED, str(stop))
            raise
        except Exception as error:
            if self.record["status"] == RunState.RUNNING:
                self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        """Write the last record of a run that an error ended, with its traceback."""
        lines = traceback.format_exception(error)
        cause = f"{type(error).__name__}: {own_text(error)}"
        self.end(RunState.FAILED, cause, traceback=without_secrets("".join(lines)))

    def stored_hashes(self, network: bool) -> dict[str, str]:
        """sha256 of the predictions' values and of the weights files.

        Args:
            network: whether the run was trained and keeps both weights files; without, absent
                ones are "missing".

        Raises:
            DataFault: a file that the run wrote is gone.
        """
        found = {key: self._sha256(name) for key, name in STORED.items()}
        wanted = [*STORED.values(), *BESIDE] if network else [STORED["predictions_sha256"]]
        if gone := [name for name in wanted if not (self.directory / name).is_file()]:
            raise DataFault(
                f"{self.directory}: {', '.join(gone)}: missing, though the run wrote them;"
                " force=true runs it again"
            )
        return found

    def _sha256(self, name: str) -> str:
        path = self.directory / name
        if not path.is_file():
            return MISSING
        if path.suffix == ".parquet":
            return predictions.digest_of_canonical(predictions.read(path))
        return sha256_file(path)


def run_weights(run: str, key: str = "checkpoint", which: str = "best") -> Path:
    """The weights file that `key=run` names: `which` of a run directory, or one file of a run.

    Raises:
        LeukoclsError: it is neither, its run is not done, or the file was changed.
    """
    path = Path(run)
    weights = path / "checkpoints" / f"{which}.safetensors" if path.is_dir() else path
    if not weights.is_file() or not (weights.parent.parent / "run.json").is_file():
        raise LeukoclsError(
            f"{key}={run}: neither a run directory nor a .safetensors file in one's"
            " checkpoints/. For other weights use model.weights=FILE."
        )
    record = read_record(weights.parent.parent)
    if record.get("status") != RunState.DONE:
        raise LeukoclsError(f"{key}={run}: its run is {record.get('status')}, not done; finish it.")
    hashes = {"best": "weights_sha256", "last": "last_sha256"}
    recorded = hashes.get(weights.stem)
    if recorded and sha256_file(weights) != record.get(recorded):
        raise LeukoclsError(
            f"{weights}: changed since the run ended ({recorded} differs); restore it."
        )
    return weights


def finished_weights(directory: Path, record: dict[str, Any]) -> Path:
    """The checked weights of a finished run's selected epoch.

    Raises:
        LeukoclsError: the run is not done, has no network, or its weights are missing or changed.
    """
    status = record.get("status")
    if status != RunState.DONE:
        raise LeukoclsError(f"{directory}: its run is {status}, not done; finish it.")
    if record.get("weights_sha256") in (None, MISSING):
        raise LeukoclsError(
            f"{directory}: this run keeps no network (a baseline, or one that rescores another"
            " run's view 0); name the run that was trained."
        )
    if not (path := directory / "checkpoints" / "best.safetensors").is_file():
        raise LeukoclsError(f"{path}: missing; copy it back, or train the run again.")
    return run_weights(str(directory), "RUN")


class _Tee:
    """A stream without secrets, that also writes a log without empty lines and progress bars.

    The stream may be a file as well, as that of a job on a cluster.
    """

    def __init__(self, stream: TextIO, log: FileIO) -> None:
        self.stream, self.log, self.in_line = stream, log, False

    def write(self, text: str) -> int:
        if not text.startswith("\r"):
            text = without_secrets(text)
            for line in printable(text).splitlines(keepends=True):
                if line.strip() or self.in_line:
                    # What does not fit on a full disk is on the stream all the same.
                    with suppress(OSError):
                        self.log.write(line.encode())
                self.in_line = not line.endswith("\n")
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Append everything that is printed, but empty lines, to the file `path` as well."""
    stdout, stderr = sys.stdout, sys.stderr
    with open(path, "ab", buffering=0) as log:
        log.write(f"# {now()}\n".encode())
        sys.stdout, sys.stderr = _Tee(stdout, log), _Tee(stderr, log)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = stdout, stderr
