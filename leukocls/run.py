"""What a run is: its directory, identity, lock and record. The done status is written last."""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig, OmegaConf

from leukocls import __version__, predictions
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import atomic_write, sha256_file
from leukocls.runs import read_record

# What changes where things lie, who watches or how fast it goes, and never the result.
NEUTRAL = {
    "outputs", "logger", "launcher", "jobs", "jobs_per_gpu", "time_limit", "plan", "force",
    "resume", "checkpoint",
    "data.root", "data.layout", "data.cache", "data.partial", "data.workers", "data.residence",
    "save_every", "trainer.enable_progress_bar",
}  # fmt: skip
# Weights to start from: their digest is in the identity, and in the path instead of their place.
BY_CONTENT = {"continue_from", "model.weights"}
# Already in the path.
IN_PATH = {"ablation", "seed", "experiment", "score", "link"}
SECRET = re.compile(r"(^|[._-])(api[_-]?key|token|secret|password|passwd)$", re.IGNORECASE)
PACKAGES = (
    "torch", "torchvision", "pytorch-lightning", "timm", "torchmetrics", "kornia", "hydra-core",
    "numpy",
)  # fmt: skip
STORED = {
    "predictions_sha256": "predictions.parquet",
    "weights_sha256": "checkpoints/best.safetensors",
    "last_sha256": "checkpoints/last.safetensors",
}


def arm_name(ablation: str, overrides: list[str]) -> str:
    """Directory name of an arm: the ablation, then every override that changes the result.

    Overrides take Hydra's `override_dirname` form. Two different lists never give one name: what
    is replaced or cut is told apart by a hash.
    """
    kept = [o for o in overrides if not is_neutral(key_of(o))]
    full = ",".join([ablation, *sorted(kept)])
    safe = re.sub(r"[^A-Za-z0-9._=,+-]", "-", full)
    if safe == full and len(safe) <= 80:
        return safe
    return f"{safe[:70]}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def key_of(override: str) -> str:
    """The key that a Hydra override sets, adds or deletes."""
    return override.split("=")[0].lstrip("+~")


def is_neutral(key: str) -> bool:
    """Whether a configuration key has no place in the arm's name."""
    # A secret opens doors and changes no result; it has no place in a name.
    return (
        key in IN_PATH
        or SECRET.search(key) is not None
        or any(key == k or key.startswith(f"{k}.") for k in NEUTRAL)
    )


def identity(config: DictConfig, inputs: dict[str, str | None]) -> dict[str, Any]:
    """What decides a result, flat by dotted key: the configuration, and digests of the inputs."""
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(value, f"{prefix}.{key}" if prefix else str(key))
        elif prefix in IN_PATH or not (is_neutral(prefix) or prefix in BY_CONTENT):
            flat[prefix] = node

    walk(OmegaConf.to_container(config, resolve=True), "")
    return flat | {f"sha256 of {name}": digest for name, digest in inputs.items()}


def config_hash(what: dict[str, Any]) -> str:
    """sha256 of the sorted JSON of `identity`."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def redacted(config: DictConfig) -> str:
    """The resolved configuration as YAML, with the values of secret keys starred out."""
    starred = _starred(OmegaConf.to_container(config, resolve=True))
    return OmegaConf.to_yaml(OmegaConf.create(starred))


def _starred(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: "***" if value and SECRET.search(str(key)) else _starred(value)
            for key, value in node.items()
        }
    return [_starred(v) for v in node] if isinstance(node, list) else node


def weights_of(run: str, key: str = "checkpoint", which: str = "best") -> Path:
    """The weights file that `key`=`run` means: `which` of a run directory, or one file of a run.

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
    if record.get("status") != "done":
        raise LeukoclsError(f"{key}={run}: its run is {record.get('status')}, not done; finish it.")
    hashes = {"best": "weights_sha256", "last": "last_sha256"}
    recorded = hashes.get(weights.stem)
    if recorded and sha256_file(weights) != record.get(recorded):
        raise LeukoclsError(
            f"{weights}: changed since the run ended ({recorded} differs); restore it."
        )
    return weights


class Busy(LeukoclsError):
    """Another process is writing the run."""


class Run:
    """One run directory and its `run.json`.

    Args:
        directory: `outputs/<experiment>/<arm>/seed_<nnn>`.
        what: `identity` of the run.
    """

    def __init__(self, directory: Path, what: dict[str, Any]) -> None:
        self.directory, self.what = directory, what
        self.hash = config_hash(what)
        experiment, arm, seed = directory.parts[-3:]
        number = int(seed.removeprefix("seed_"))
        self.id = f"{experiment}-{arm}-s{number}-{self.hash[:8]}"
        self.record: dict[str, Any] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory against every other process.

        Raises:
            Busy: another process holds it.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / ".lock", "w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(
                    f"{self.directory}: another process is writing this run. Wait for it, or"
                    " choose another seed."
                ) from error
            yield

    def earlier(self, force: bool, since: str = "") -> str:
        """What is already there: "nothing", "done" (and whole) or "stopped" (may be resumed).

        Args:
            force: nothing counts that was started before `since` (UTC, ISO).

        Raises:
            LeukoclsError: the directory belongs to another configuration or its files were
                changed, and `force` is false.
        """
        path = self.directory / "run.json"
        if not path.is_file() or (force and not since):
            return "nothing"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            before, status, started = record["identity"], record["status"], record["started"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LeukoclsError(
                f"{path}: does not read ({error}); force=true (--force) starts the run again."
            ) from error
        if force and started < since:
            return "nothing"
        # A run that failed before it wrote anything holds nothing to keep.
        if status == "failed" and not (self.directory / "predictions.parquet").is_file():
            return "nothing"
        if record.get("config_hash") != self.hash:
            keys = [
                f"{key} ({before.get(key)} → {self.what.get(key)})"
                for key in sorted(before.keys() | self.what.keys())
                if before.get(key) != self.what.get(key)
            ]
            raise LeukoclsError(
                f"{self.directory}: holds a run of another configuration; these differ:"
                f" {', '.join(keys)}. Choose another experiment or outputs=, or force=true"
                " (--force) to replace it."
            )
        if status != "done":
            return "stopped"
        for key, name in STORED.items():
            if record.get(key) is not None and self._sha256(name) != record[key]:
                raise LeukoclsError(
                    f"{self.directory / name}: changed since the run ended ({key} differs);"
                    " restore it, or force=true (--force) to run again."
                )
        self.record = record
        return "done"

    def start(self, config: DictConfig, **facts: Any) -> None:
        """Write the configuration and a record with status `running`."""
        for name in ("run.json", "predictions.parquet", "metrics.csv", "log.txt"):
            (self.directory / name).unlink(missing_ok=True)
        for name in ("checkpoints", "wandb"):
            shutil.rmtree(self.directory / name, ignore_errors=True)
        atomic_write(self.directory / "config.yaml", redacted(config))
        self.resume(**facts)

    def resume(self, **facts: Any) -> None:
        """Write a record with status `running`, keeping what the directory holds."""
        self.record = {
            "id": self.id,
            "status": "running",
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": now(),
            "finished": None,
            "error": None,
            "config_hash": self.hash,
            "identity": _starred(self.what),
            "git": git_state(),
            "versions": versions(),
            **facts,
        }
        self._write()

    def end(self, status: str, error: str | None = None, **facts: Any) -> None:
        """Write the last record: `done`, `failed` or `interrupted`."""
        self.record |= {"status": status, "finished": now(), "error": error, **facts}
        self._write()

    def stored_hashes(self) -> dict[str, str]:
        """sha256 of the predictions' values and of the selected weights."""
        return {key: self._sha256(name) for key, name in STORED.items()}

    def _sha256(self, name: str) -> str:
        path = self.directory / name
        if not path.is_file():
            return "missing"
        if path.suffix == ".parquet":
            return predictions.digest(predictions.read(path))
        return sha256_file(path)

    def _write(self) -> None:
        atomic_write(self.directory / "run.json", json.dumps(self.record, indent=2))


def is_locked(directory: Path) -> bool:
    """Whether a process is writing the run in `directory`, on whatever host."""
    try:
        with open(directory / ".lock") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def mark_dead(directory: Path, pid: int, status: str, error: str) -> None:
    """Let the record of a run whose process ended without a word say so."""
    try:
        record = read_record(directory)
    except LeukoclsError:  # it died before there was one
        return
    if record.get("status") == "running" and record.get("pid") == pid:
        record |= {"status": status, "finished": now(), "error": error}
        atomic_write(directory / "run.json", json.dumps(record, indent=2))


def now() -> str:
    """The time as records have it: UTC, ISO, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def versions() -> dict[str, str]:
    """Versions of Python, leukocls and what it computes with."""
    found = {"python": platform.python_version(), "leukocls": __version__}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


def git_state() -> dict[str, Any] | None:
    """Commit of the source and whether it was changed since; None outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


class _Tee:
    """A text stream that also writes a log, less what a progress bar draws."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self.stream, self.log = stream, log

    def write(self, text: str) -> int:
        if "\r" not in text and "\x1b" not in text:
            self.log.write(text)
            self.log.flush()
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Copy what is printed to `path` as well."""
    stdout, stderr = sys.stdout, sys.stderr
    with open(path, "a", encoding="utf-8") as log:
        log.write(f"# {now()}\n")
        sys.stdout, sys.stderr = _Tee(stdout, log), _Tee(stderr, log)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = stdout, stderr
