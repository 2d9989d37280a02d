"""`python -m leukocls.wandb_sync`: every finished run on W&B, rebuilt from its own files."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from leukocls.artifacts.record import RunState, read_record, run_directories, state_of
from leukocls.common.errors import ITEMS_SKIPPED, DataFault, LeukoclsError, run_verb
from leukocls.evaluation.arm_runs import ASIDE
from leukocls.evaluation.history import read_history

if TYPE_CHECKING:
    from leukocls.dashboard import Picture, Shown
    from leukocls.data.index import Index

PROJECT = "leukocls"  # of runs that were not logged to W&B
ANSWER_S = 15  # seconds that a server may take for an answer,
UPLOAD_S = 900.0  # for one run's upload,
CONFIRM_S = 30.0  # and to say that it holds it


class Conflict(LeukoclsError):
    """The server holds something else under the same id."""


class Server:
    """The W&B server that is logged in to; it knows what it holds, and nothing is noted here.

    Raises:
        LeukoclsError: it does not answer, or does not know who asks.
    """

    def __init__(self, wandb: Any, folder: Path, project: str | None, entity: str | None) -> None:
        self.wandb, self.folder, self.project, self.entity = wandb, folder, project, entity
        try:
            self.api = wandb.Api(timeout=ANSWER_S)
            self.default_entity = self.api.default_entity
        except Exception as error:
            raise LeukoclsError(
                f"W&B: {str(error).strip() or type(error).__name__}. Nothing was sent. Log in with"
                " `wandb login` (or WANDB_API_KEY), and see whether WANDB_BASE_URL is the server"
                " you mean."
            ) from error

    def send(self, shown: Shown, logger: dict[str, Any]) -> str:
        """Bring the server to hold `shown`, and say what became of it: sent, or there already.

        W&B numbers rows, and takes up a run after its last: what an earlier attempt sent stays,
        only what is missing is added.

        Args:
            logger: the project and entity that the run was configured with.

        Raises:
            Conflict: the server holds another execution of this run.
            DataFault: the upload failed, or was not confirmed.
        """
        from leukocls.courier import Courier
        from leukocls.dashboard import SHA256

        project = self.project or logger.get("project") or PROJECT
        entity = self.entity or logger.get("entity") or self.default_entity
        path = f"{entity}/{project}/{shown.init['id']}"
        held = self._held(path)
        if held and held.summary.get(SHA256) not in (None, shown.summary[SHA256]):
            raise Conflict(
                f"{path}: W&B holds another execution of this run (its {SHA256} differs) and lets"
                " no id be used again; send this one to another --project"
            )
        if self._complete(held, shown):
            return "there already"
        courier = Courier()
        courier.send("uploading", self._upload, shown, project, entity)
        courier.close(UPLOAD_S)
        if courier.failed:
            raise DataFault(f"{path}: W&B failed ({courier.failed}); the same command goes on here")
        end = time.monotonic() + CONFIRM_S
        while not self._complete(self._held(path), shown):
            if time.monotonic() > end:
                raise DataFault(
                    f"{path}: uploaded, but W&B does not say that it holds all of it; the same"
                    " command looks again"
                )
            time.sleep(1)
        return "sent"

    def _held(self, path: str) -> Any:
        """What the server says of a run; None if it has none, or says nothing."""
        self.api.flush()
        try:
            return self.api.run(path)
        except Exception:  # of the same type whether there is no such run or no answer
            return None

    def _complete(self, held: Any, shown: Shown) -> bool:
        from leukocls.dashboard import SHA256

        # W&B calls a run finished once all of its files are there.
        return (
            held is not None
            and held.state == "finished"
            and held.summary.get(SHA256) == shown.summary[SHA256]
            and held.historyLineCount >= shown.rows
        )

    def _upload(self, shown: Shown, project: str, entity: str) -> None:
        from leukocls.dashboard import opened

        where = {"project": project, "entity": entity, "mode": "online", "dir": self.folder}
        run = opened(
            self.wandb, shown.init, {"x_disable_stats": True, "x_save_requirements": False}, **where
        )
        first = run.starting_step
        for row in shown.curves:
            if row["epoch"] >= first:
                run.log(row, step=row["epoch"])
        figures = shown.figures(self.wandb)
        run.log(figures, step=len(shown.curves))
        if first > len(shown.curves):
            # An upload broke off: the row is there and is not taken twice, but the tables that it
            # points to may not be. Panels look for them in the summary.
            run.summary.update({f"{k}_table": v.table for k, v in figures.items() if _chart(v)})
            run.summary.update({k: v for k, v in figures.items() if not _chart(v)})
        run.summary.update(shown.summary)
        run.finish(exit_code=0)


def _chart(figure: Any) -> bool:
    return hasattr(figure, "table")


def shown(directory: Path, record: dict[str, Any]) -> tuple[Shown, dict[str, Any]]:
    """What W&B is to show of a finished run, and its configuration.

    Raises:
        LeukoclsError: its predictions are not those that it wrote.
    """
    from leukocls import dashboard
    from leukocls.evaluation import scoring

    frame, _ = scoring.load_predictions(directory)
    init = dashboard.described(directory, record)
    # A test is scored once, by the selected epoch: that is no curve.
    epochs = frame.groupby("split")["epoch"].nunique()
    tests = set(epochs.index[epochs < epochs.max()])
    curves = [
        {
            name: value
            for name, value in dashboard.curve(row).items()
            if name.split("_")[0] not in tests
        }
        for row in read_history(directory)
    ]

    def picture() -> Picture | None:
        found = _picture(init["config"], record)
        if found is None:
            print(
                f"{directory}: no thumbnails, for its data or their store are not where they were"
            )
        return found

    return (
        dashboard.Shown(
            init,
            curves,
            lambda wandb: dashboard.figures(wandb, record, frame, picture()),
            dashboard.summary(record),
        ),
        init["config"],
    )


def _picture(config: dict[str, Any], record: dict[str, Any]) -> Picture | None:
    """The stored images of the run's cells, if data and store are still where they were."""
    import numpy as np

    from leukocls.dashboard import pictures
    from leukocls.data.store import data_digest, store_path

    data, part = config["data"], config["score"]
    index = _index(data["root"], data["layout"], data["partial"], data["cache"])
    if index is None:
        return None
    index = index.only((part,) if part else ("train", "prelim"))
    if data["drop_h3"]:
        index = index.without_h3()
    digest = record["data_digest"]
    store = store_path(digest, Path(data["cache"]), data["crop"], data["size"] or data["crop"])
    if data_digest(index) != digest or not store.is_file():
        return None
    return pictures(np.load(store, mmap_mode="r"), index.table)


@cache
def _index(root: str | None, layout: str, partial: bool, cache: str) -> Index | None:
    from leukocls.data.verify import checked_index

    try:
        return checked_index(root, layout, partial, Path(cache)) if root else None
    except LeukoclsError:
        return None


def comparable(runs: Iterable[tuple[Path, dict[str, Any]]]) -> list[list[Path]]:
    """Two runs and more of one experiment, on the same data, split and selection set."""
    found: dict[tuple[Any, ...], list[Path]] = {}
    for directory, record in runs:
        resolved = directory.resolve()
        if not resolved.parts[-2].startswith(ASIDE):
            alike = (record["data_digest"], record["split_scheme"], record["selection"]["set"])
            found.setdefault((resolved.parents[1], *alike), []).append(directory)
    return [alike for alike in found.values() if len(alike) > 1]


def compared(runs: list[Path]) -> tuple[Shown, dict[str, Any]]:
    """What W&B is to show of the arms of one experiment, and the configuration of the first run.

    Raises:
        LeukoclsError: they cannot be compared.
    """
    from leukocls.dashboard import comparison, described
    from leukocls.evaluation.comparison import compare

    document = compare(runs, incomplete=True)
    curves: dict[str, list[dict[str, Any]]] = {}
    for directory in runs:
        curves.setdefault(directory.resolve().parts[-2], []).extend(read_history(directory))
    experiment = runs[0].resolve().parts[-3]
    config = described(runs[0], read_record(runs[0]))["config"]
    return comparison(experiment, document, curves), config


def main(argv: Sequence[str] | None = None) -> int:
    """Send the runs; 3 if some were left out. Raises LeukoclsError, DataFault as `Server` does."""
    parser = argparse.ArgumentParser(
        prog="python -m leukocls.wandb_sync",
        description="Sends every finished run, and a comparison of each experiment's, to W&B."
        " What W&B holds already is left alone, so that the same command can be run again.",
    )
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("outputs")], metavar="RUNS")
    parser.add_argument("--project", help=f"instead of each run's own (or {PROJECT})")
    parser.add_argument("--entity", help="instead of each run's own (or who is logged in)")
    arguments = parser.parse_args(argv)
    done, left_out = _finished(arguments.runs)
    if done:
        left_out += _send(done, arguments.project, arguments.entity)
    for line in left_out:
        print(f"left out: {line}")
    return ITEMS_SKIPPED if left_out else 0


def _finished(roots: list[Path]) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
    """Finished runs at or below `roots`, and what is to be said of the others."""
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


def _send(
    done: list[tuple[Path, dict[str, Any]]], project: str | None, entity: str | None
) -> list[str]:
    """Send the runs and their comparisons; returns what was left out and why."""
    from leukocls.courier import shut_down, staged_in

    try:
        import wandb
    except ImportError as error:
        raise LeukoclsError(
            "the package wandb is not installed. pip install 'leukocls[wandb]'"
        ) from error
    left_out: list[str] = []
    made = [(str(directory), partial(shown, directory, record)) for directory, record in done]
    for runs in comparable(done):
        experiment = runs[0].resolve().parents[1].name
        made.append((f"{experiment}: {len(runs)} runs compared", partial(compared, runs)))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)))
        stack.enter_context(staged_in(folder))
        # Or Python would wait for its service, and that for the server.
        stack.push(lambda *failed: shut_down() if failed[0] else None)
        server = Server(wandb, folder, project, entity)
        for name, make in made:
            try:
                what, config = make()
            except LeukoclsError as error:
                left_out.append(f"{name}: {error}")
                continue
            try:
                print(f"{server.send(what, config['logger'])}: {name}", flush=True)
            except Conflict as error:
                left_out.append(str(error))
    return left_out


if __name__ == "__main__":
    run_verb(main)
