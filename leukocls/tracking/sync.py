"""Send finished runs to W&B from their own files, each exactly once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from leukocls.artifacts.record import RunState, read_record, run_directories, state_of
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.data.index import Index
from leukocls.data.store import data_digest, store_path
from leukocls.data.verify import checked_index
from leukocls.evaluation import scoring
from leukocls.evaluation.arm_runs import ASIDE
from leukocls.evaluation.comparison import scored_comparison
from leukocls.evaluation.history import Row
from leukocls.tracking import panels
from leukocls.tracking.panels import SHA256, Picture, TrackedRun

PROJECT = "leukocls"  # of runs that were not logged to W&B
ANSWER_S = 15  # seconds that a server may take for an answer,
UPLOAD_S = 900.0  # for one run's upload,
CONFIRM_S = 30.0  # and to confirm that it holds the run

# Makes a W&B run and returns the configuration of its logger; it can be pickled.
Make = Callable[[], tuple[TrackedRun, dict[str, Any]]]


class ServerFault(DataFault):
    """The server takes no run at all, so that sending the others would fail, too."""


def _login() -> tuple[Any, Any]:
    """W&B's API and the entity of the user who is logged in."""
    import wandb

    api = wandb.Api(timeout=ANSWER_S)
    return api, api.default_entity


class Server:
    """The W&B server that the user is logged in to; nothing about its content is stored here.

    Raises:
        ImportError: the package wandb is not installed.
        LeukoclsError: it does not answer, or refuses the login.
    """

    def __init__(self, project: str | None, entity: str | None) -> None:
        self.project, self.entity = project, entity
        try:
            self.api, self.default_entity = _login()
        except ImportError:
            raise
        except Exception as error:
            raise LeukoclsError(
                f"W&B: {str(error).strip() or type(error).__name__}. Nothing was sent. Log in with"
                " `wandb login` (or WANDB_API_KEY), and see whether WANDB_BASE_URL is the server"
                " you mean."
            ) from error

    def send(self, make: Make) -> str:
        """Upload a W&B run unless the server holds it; returns "sent" or "there already".

        W&B numbers rows and resumes a run after its last one: rows of an earlier attempt stay, and
        only missing ones are added.

        Raises:
            LeukoclsError: the upload failed, or the server holds another execution of this run.
            ServerFault: the server does not answer any more, or does not confirm the upload.
            Exception: as `make` raises.
        """
        tracked, logger = make()
        project = self.project or logger.get("project") or PROJECT
        entity = self.entity or logger.get("entity") or self.default_entity
        path = f"{entity}/{project}/{tracked.init['id']}"
        held = self._held(path)
        if held and held.summary.get(SHA256) not in (None, tracked.summary[SHA256]):
            raise LeukoclsError(
                f"{path}: W&B holds another execution of this run (its {SHA256} differs) and lets"
                " no id be used again; send this one to another --project"
            )
        if _complete(held, tracked):
            return "there already"
        if failure := self._upload(make, project, entity):
            raise LeukoclsError(f"{path}: W&B failed ({failure}); run the same command again")
        end = time.monotonic() + CONFIRM_S
        while not _complete(self._held(path), tracked):
            if time.monotonic() > end:
                raise ServerFault(
                    f"{path}: uploaded, but W&B does not confirm that it holds all of it; run the"
                    " same command again"
                )
            time.sleep(1)
        return "sent"

    def _upload(self, make: Make, project: str, entity: str | None) -> str:
        """Upload in another process; why that failed although the server answers, "" if not."""
        try:
            failure = _in_process(make, project, entity)
            if failure:
                _login()
        except Exception as error:
            raise ServerFault(f"W&B failed ({error}); run the same command again") from error
        return failure

    def _held(self, path: str) -> Any:
        """The server's copy of a run; None if it has none, or does not answer."""
        self.api.flush()
        try:
            return self.api.run(path)
        except Exception:  # of the same type whether there is no such run or no answer
            return None


def _complete(held: Any, tracked: TrackedRun) -> bool:
    # W&B calls a run finished once all of its files are there.
    return (
        held is not None
        and held.state == "finished"
        and held.summary.get(SHA256) == tracked.summary[SHA256]
        and held.historyLineCount >= tracked.rows
    )


def _in_process(make: Make, project: str, entity: str | None) -> str:
    """Upload in a process of its own; returns why it failed, "" if not.

    Raises:
        TimeoutError: it was killed after UPLOAD_S.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_upload, args=(theirs, make, project, entity), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(UPLOAD_S):
            raise TimeoutError(f"no answer within {UPLOAD_S:g} s")
        return ours.recv()
    except EOFError:
        return "its process died"
    finally:
        process.kill()
        process.join()


def _upload(pipe: Connection, make: Make, project: str, entity: str | None) -> None:
    try:
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            _upload_from(folder, make()[0], project, entity)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
    else:
        pipe.send("")


def _upload_from(folder: str, tracked: TrackedRun, project: str, entity: str | None) -> None:
    # A service of this process alone, which ends with it; the parent's would outlive a kill.
    os.environ.pop("WANDB_SERVICE", None)
    # Files that wait for their upload stay out of the home directory.
    os.environ.setdefault("WANDB_DATA_DIR", folder)
    import wandb

    where = {"project": project, "entity": entity, "mode": "online", "dir": folder}
    run = panels.open_run(wandb, tracked.init, live=False, **where)
    first = run.starting_step
    for row in tracked.curves:
        if row["epoch"] >= first:
            run.log(row, step=row["epoch"])
    last = tracked.figures(wandb)
    run.log(last, step=len(tracked.curves))
    if first > len(tracked.curves):
        # An upload broke off: the row is there and is not taken twice, but the tables that it
        # points to may not be. Panels look for them in the summary.
        run.summary.update({f"{k}_table": v.table for k, v in last.items() if _is_chart(v)})
        run.summary.update({k: v for k, v in last.items() if not _is_chart(v)})
    run.summary.update(tracked.summary)
    run.finish(exit_code=0)


def _is_chart(figure: Any) -> bool:
    return hasattr(figure, "table")


def tracked_run(directory: Path, record: dict[str, Any]) -> TrackedRun:
    """The W&B content of a finished run.

    Raises:
        LeukoclsError: its predictions are not those that it wrote.
    """
    frame, _ = scoring.load_predictions(directory)
    init = panels.run_init(directory, record)

    def picture() -> Picture | None:
        if "data" not in init["config"]:  # a baseline's
            return None
        images = _picture(init["config"], record)
        if images is None:
            message = "no thumbnails: its data or their store is not at its place"
            print(f"{directory}: {message}", flush=True)
        return images

    return TrackedRun(
        init,
        panels.curves(directory, record),
        lambda wandb: panels.figures(wandb, record, frame, picture()),
        panels.summary(record),
    )


def _picture(config: dict[str, Any], record: dict[str, Any]) -> Picture | None:
    """The stored images of the run's cells; None if data and store are not at their place."""
    data, part = config["data"], config["score"]
    outside = data.get("outside", False)  # runs of 0.1.0 lack it
    index = _index(data["root"], data["layout"], data["partial"], data["cache"], outside)
    if index is None:
        return None
    index = index.only((part,) if part else ("train", "prelim"))
    if data["drop_h3"]:
        index = index.without_h3()
    digest = record["data_digest"]
    store = store_path(digest, Path(data["cache"]), data["crop"], data["size"] or data["crop"])
    if data_digest(index) != digest or not store.is_file():
        return None
    return panels.pictures(np.load(store, mmap_mode="r"), index.table)


@cache
def _index(root: str | None, layout: str, partial: bool, cache: str, outside: bool) -> Index | None:
    try:
        return checked_index(root, layout, partial, Path(cache), outside) if root else None
    except LeukoclsError:
        return None


def comparable(runs: Iterable[tuple[Path, dict[str, Any]]]) -> list[list[Path]]:
    """Groups of two and more runs of one experiment on the same data, split and selection set."""
    groups: dict[tuple[Any, ...], list[Path]] = {}
    for directory, record in runs:
        resolved = directory.resolve()
        if not resolved.parts[-2].startswith(ASIDE):
            alike = (record["data_digest"], record["split_scheme"], record["selection"]["set"])
            groups.setdefault((resolved.parents[1], *alike), []).append(directory)
    return [group for group in groups.values() if len(group) > 1]


def _make_run(directory: Path, record: dict[str, Any]) -> tuple[TrackedRun, dict[str, Any]]:
    tracked = tracked_run(directory, record)
    return tracked, tracked.init["config"].get("logger", {})


def _make_comparison(runs: list[Path]) -> tuple[TrackedRun, dict[str, Any]]:
    # Here, because each run is sent by a process of its own, which has no need of matplotlib.
    from leukocls.reporting.document import report_document
    from leukocls.reporting.report_figures import figures

    document = report_document(scored_comparison(runs, incomplete=True))
    rows: dict[str, list[Row]] = {}
    for directory in runs:
        of_run = panels.curves(directory, read_record(directory))
        rows.setdefault(directory.resolve().parts[-2], []).extend(of_run)
    experiment = runs[0].resolve().parts[-3]
    config = panels.run_init(runs[0], read_record(runs[0]))["config"]
    tracked = panels.comparison(experiment, document["comparison"], rows, figures(document))
    return tracked, config.get("logger", {})


def sync(roots: list[Path], project: str | None, entity: str | None) -> list[str]:
    """Send every finished run at or below `roots`, and a comparison of each experiment's runs.

    Returns:
        What was left out and why, one line each: runs that are not done or damaged, uploads that
        failed. They are left out of the comparisons, too.

    Raises:
        LeukoclsError: no run there; wandb is not installed; the server does not answer.
        ServerFault: the server has stopped answering.
    """
    done, left_out = finished_runs(roots)
    if not done:
        return left_out
    try:
        server = Server(project, entity)
    except ImportError as error:
        raise LeukoclsError(
            "the package wandb is not installed. pip install 'leukocls[wandb]'"
        ) from error

    def sent(name: str, make: Make) -> bool:
        try:
            print(f"{server.send(make)}: {name}", flush=True)
        except ServerFault:
            raise
        except Exception as error:
            kind = "" if isinstance(error, LeukoclsError) else f"{type(error).__name__}: "
            left_out.append(f"{name}: {kind}{error}")
            return False
        return True

    held = [run for run in done if sent(str(run[0]), partial(_make_run, *run))]
    for runs in comparable(held):
        experiment = runs[0].resolve().parents[1].name
        sent(f"{experiment}: {len(runs)} runs compared", partial(_make_comparison, runs))
    return left_out


def finished_runs(roots: list[Path]) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
    """Finished runs at or below `roots` with their records, and a line for each other run.

    Raises:
        LeukoclsError: there is no run at all.
    """
    done, left_out = [], []
    directories = list(dict.fromkeys(path for root in roots for path in run_directories(root)))
    if not directories:
        raise LeukoclsError(f"{', '.join(map(str, roots))}: no run here; train one, or name others")
    for directory in directories:
        try:
            record = read_record(directory)
        except LeukoclsError as error:
            left_out.append(str(error))
            continue
        if state_of(record) == RunState.DONE:
            done.append((directory, record))
        else:
            left_out.append(f"{directory}: {state_of(record)}, not done")
    return done, left_out
