"""Progress of a sweep on the terminal, and the table it ends with."""

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tqdm import tqdm

from leukocls.artifacts.record import RunState
from leukocls.common.tables import aligned, terminal_width
from leukocls.common.terminal import printable
from leukocls.launch.worker import SweepJob, Worker


class Progress:
    """On a terminal a bar and one line for each running job; elsewhere a line as each job ends."""

    def __init__(self, total: int, slots: int) -> None:
        self.count, self.causes = 0, set[str]()
        self.bar = tqdm(total=total, desc="sweep", unit="run", position=slots, disable=None)
        self.lines = [tqdm(bar_format="{desc}", position=i, disable=None) for i in range(slots)]

    def show(self, workers: Sequence[Worker]) -> None:
        """Show the last line that each running job has printed."""
        if self.bar.disable:
            return
        by_slot = {worker.slot: worker for worker in workers}
        width = shutil.get_terminal_size().columns
        for slot, line in enumerate(self.lines):
            text = ""
            if slot in by_slot:
                worker = by_slot[slot]
                text = shortened(label(worker.job), width // 2)
                for last in worker.lines()[-1:]:
                    text += " " + shortened(printable(last), width - len(text) - 2)
            line.set_description_str(text)
        self.bar.refresh()

    def started(self, job: SweepJob) -> None:
        """Print that a job starts, where it has no line of its own."""
        if self.bar.disable:
            print(f"starting {job.directory}", flush=True)

    def ended(self, worker: Worker) -> None:
        """Print how a job ended."""
        self.bar.update()
        self.count += 1
        job, count = worker.job, f"[{self.count}/{self.bar.total}]"
        path, (state, number, error) = job.directory, job.row()
        if state != RunState.DONE:
            cause = job.error or error
            again = cause in self.causes and "\n" in cause
            self.causes.add(cause)
            shown = f"{error} … (as above)" if again else cause
            message = printable(f"{count} error: {path}: {state}: {shown}")
            tqdm.write(message, file=sys.stderr)
        elif any("done already" in line for line in worker.lines()):
            tqdm.write(f"{count} {label(job)}: done already, nothing to do, {number}")
        else:
            minutes = (time.monotonic() - worker.started) / 60
            tqdm.write(f"{count} {label(job)}: done in {minutes:.1f} min, {number}")

    def close(self) -> None:
        """Remove the bar and the lines."""
        for line in (*self.lines, self.bar):
            line.leave = False
            line.close()


def label(job: SweepJob) -> str:
    """The job's values of the keys that the sweep varies."""
    return " ".join(f"{key}={value}" for key, value in job.settings.items())


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` characters: its beginning and, more of it, its end."""
    if len(text) <= width:
        return text
    head = width // 3
    return f"{text[:head]}…{text[len(text) - (width - head - 1) :]}"


def table(jobs: Sequence[SweepJob], seconds: float) -> str:
    """The state of every job as a table, and how many jobs are in each state."""
    rows = [job.row() for job in jobs]
    counts = Counter(row[0] for row in rows)
    parts = [f"{counts.pop(RunState.DONE, 0)} of {len(rows)} runs done"]
    parts += [f"{count} {state}" for state, count in counts.items()]
    table = by_settings(jobs, ["status", "weighted F1", "first error"], rows)
    return f"\n{table}\n\n{', '.join(parts)}, {seconds / 60:.1f} min"


def by_settings(jobs: Sequence[SweepJob], header: list[str], rows: list[list[str]]) -> str:
    """A row for each job below the directory of all, with a column for each key that differs."""
    place = os.path.commonpath([job.directory.absolute() for job in jobs])
    if not jobs[0].directory.is_absolute():
        place = os.path.relpath(place)
    settings = [job.settings for job in jobs]
    table = [
        [*settings[0], *header],
        *([*of_job.values(), *row] for of_job, row in zip(settings, rows, strict=True)),
    ]
    lines = aligned(table, terminal_width())
    return f"{place}\n{lines}" if len(jobs) > 1 else lines
