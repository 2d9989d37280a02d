"""Follow a run on W&B: a process of its own reads the run's files as they grow.

The run starts that process and waits for it at the end, for LONGEST_WAIT at most: whatever fails
there, the run and its result are the same.
"""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leukocls.artifacts.record import RunState, read_record, state_of
from leukocls.common.errors import LeukoclsError

# Seconds that W&B adds to a run at most, all of them where it ends; fewer if it is interrupted.
LONGEST_WAIT = 60.0
INTERRUPTED_WAIT = 10.0
POLL_S = 1.0
MODES = ("offline", "online", "disabled")


def check_logger(logger: Any) -> None:
    """Refuse a logger that cannot work, before anything is written.

    Args:
        logger: the configuration group `logger`.

    Raises:
        LeukoclsError: logger=wandb without its package; no such mode.
    """
    if logger.name != "wandb":
        return
    if logger.mode not in MODES:
        raise LeukoclsError(f"logger.mode={logger.mode}: choose one of {', '.join(MODES)}.")
    if importlib.util.find_spec("wandb") is None:
        raise LeukoclsError(
            "logger=wandb: the package wandb is not installed. pip install 'leukocls[wandb]', or"
            " leave logger=csv."
        )


@contextmanager
def followed(directory: Path, logger: Any) -> Iterator[None]:
    """Start a follower of the run in `directory` for the time of the body, if `logger` is W&B.

    The body ends with the run's final record written. A failure of W&B is one printed line.
    """
    if logger.name != "wandb":
        yield
        return
    log = directory / "wandb" / "follow.log"
    process, failure = None, ""
    try:
        process = _start(directory, log)
    except OSError as error:
        failure = str(error)
    wait = INTERRUPTED_WAIT
    try:
        yield
        wait = LONGEST_WAIT
    finally:
        failure = failure or (_end(process, wait, log) if process else "")
        if failure:
            print(
                f"W&B failed ({failure}); the run is not affected, and"
                " `python -m leukocls.wandb_sync` sends it from its files"
            )


def _start(directory: Path, log: Path) -> subprocess.Popen:
    log.parent.mkdir(exist_ok=True)
    # Files that wait for their upload stay beside the run, not in the home directory.
    environment = {"WANDB_DATA_DIR": str(log.parent.resolve()), **os.environ}
    environment.pop("WANDB_SERVICE", None)  # another process's, which would outlive this one
    command = [sys.executable, "-m", "leukocls.wandb_sync", "--follow", str(directory.resolve())]
    with open(log, "wb") as stream:
        # In a session of its own, so that Ctrl-C reaches the run alone.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,
        )  # fmt: skip


def _end(process: subprocess.Popen, seconds: float, log: Path) -> str:
    """Wait for the process, and kill it after `seconds`; why it failed, "" if it did not."""
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:g} s"
    finally:
        # Its W&B service notices within seconds that its parent is gone, and ends.
        process.kill()
        process.wait()
    if code == 0:
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), f"exit code {code}")


def follow(directory: Path) -> None:
    """Log a run to W&B until it ends: each row of metrics.csv, then tables and the summary.

    Args:
        directory: a run directory, whose config.yaml names project, entity and mode.

    Raises:
        LeukoclsError: the run directory is gone or damaged.
    """
    import wandb
    from omegaconf import OmegaConf

    from leukocls.tracking.panels import curves, open_run, run_init
    from leukocls.tracking.sync import tracked_run

    record = read_record(directory)
    logger: Any = OmegaConf.load(directory / "config.yaml").logger
    where = {"project": logger.project, "entity": logger.entity, "mode": logger.mode}
    run = open_run(wandb, run_init(directory, record), live=True, dir=directory, **where)
    step = run.starting_step  # of a run that W&B holds the beginning of
    state = RunState.RUNNING
    while state == RunState.RUNNING:
        time.sleep(POLL_S)
        # The state before the rows: it is written last.
        record = read_record(directory)
        state = state_of(record)
        for row in curves(directory, record):
            if row["epoch"] >= step:
                run.log(row, step=row["epoch"])
                step = row["epoch"] + 1
    if state == RunState.DONE:
        tracked = tracked_run(directory, record)
        run.log(tracked.figures(wandb), step=step)
        run.summary.update(tracked.summary)
    run.finish(exit_code=int(state != RunState.DONE))
