"""Kill runs at random moments and points, resume them, and compare the bits with a whole run's.

python benchmarks/soak.py [--kills N] [--seed S] [--json FILE]

Each round is a run with dropout, mixup, an average of the weights, steps of two batches and a save
at every step; in a quarter of the rounds each two workers read the batches, the run has two phases,
or a test set. It is killed (SIGKILL) one to four times: every other time after random seconds, else
when it comes to a random point for a random time (a step, scoring, a save, the writing or renaming
of a file). After each kill every file under its final name has to read. Then the run is resumed to
its end: weights, predictions and metrics.csv (without times) have to be those of a run that was
never killed, and no temporary file may be left. Ends with 1 where one of this does not hold. The
data are SYNTHETIC. The temporary folder of the runs' processes is on another file system if there
is one.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "faults")]

from conftest import SMALL_SPEC  # noqa: E402
from fault_bench import (  # noqa: E402
    ELSEWHERE,
    KINDS,
    assert_nothing_is_left_over,
    assert_nothing_is_torn,
    result,
    run_with,
    words_of,
)
from warm import Command, share  # noqa: E402

from leukocls.artifacts.environment import versions  # noqa: E402
from leukocls.common.files import atomic_write  # noqa: E402
from leukocls.synthetic.tree import write_tree  # noqa: E402

# Times that a run comes to each point, about.
POINTS = {
    "step": 14, "after step": 14, "scoring": 3, "testing": 2, "save": 8, "file": 40, "rename": 20,
}  # fmt: skip
MOST = 4  # kills of one run


class Bench:
    """Runs on one synthetic tree, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tree, self.started = folder, folder / "tree", 0
        write_tree(self.tree, SMALL_SPEC, progress=False)

    def start(self, verb: str, *words: object, **places: Any) -> Command:
        """As the tests' fixture `command`."""
        self.started += 1
        folder = self.folder / f"printed-{self.started}"
        folder.mkdir()
        return Command(f"leukocls.{verb}", [*map(str, words)], folder, **places)

    def whole(self, kind: str) -> tuple[dict[str, Any], float]:
        """Result of an uninterrupted run, and its seconds."""
        outputs, start = self.folder / f"whole-{kind}", time.monotonic()
        words = [*words_of(kind, self.tree, outputs), "save_minutes=null"]
        ended = run_with(self.start, words)
        assert ended.wait() == 0, ended.err
        return result(outputs), time.monotonic() - start

    def killed(self, words: list[str], fault: str | float) -> bool:
        """Kill a run at a point, or after seconds; False if it ended before that."""
        if isinstance(fault, str):
            process = run_with(self.start, words, fault, **ELSEWHERE)
        else:
            process = self.start("train", *words, env=os.environ | ELSEWHERE)
            process.until(lambda: False, fault)
            process.kill()
        code = process.wait()
        assert code in (0, -signal.SIGKILL), process.err
        return code != 0


def faults(random: np.random.Generator, seconds: float) -> Iterator[str | float]:
    """Kills of one run."""
    for _ in range(random.integers(1, MOST + 1)):
        if random.random() < 0.5:
            yield float(random.uniform(0, seconds))
        else:
            point = str(random.choice(list(POINTS)))
            yield f"{point}:{random.integers(1, POINTS[point] + 1)}:SIGKILL"


def soak(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Rounds until there were so many kills. Raises AssertionError: something differs."""
    bench, random = Bench(folder), np.random.default_rng(seed)
    whole = {kind: bench.whole(kind) for kind in KINDS}
    count: Counter[str] = Counter()
    rounds = 0
    while sum(count.values()) < kills:
        kind = list(KINDS)[rounds % len(KINDS)]
        outputs, rounds = folder / f"round-{rounds}", rounds + 1
        words, (wanted, seconds) = words_of(kind, bench.tree, outputs), whole[kind]
        for fault in faults(random, seconds):
            if bench.killed(words, fault):
                count["random time" if isinstance(fault, float) else fault.split(":")[0]] += 1
            assert_nothing_is_torn(outputs)
            print(f"round {rounds}, {kind}, {fault}: {sum(count.values())}", file=sys.stderr)
        ended = run_with(bench.start, words, **ELSEWHERE)
        assert ended.wait() == 0, f"round {rounds}: {ended.err}"
        assert result(outputs) == wanted, f"round {rounds}, {kind}: other bits"
        assert_nothing_is_left_over(outputs)
    return {"kills": sum(count.values()), "rounds": rounds, "by": dict(sorted(count.items()))}


def commit() -> str:
    """The commit of this checkout, and whether it was changed."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main() -> None:
    if not __debug__:
        sys.exit("benchmarks/soak.py checks by assertions: start it without -O.")
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    share()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), arguments.kills, arguments.seed)
    command = f"python benchmarks/soak.py --kills {arguments.kills} --seed {arguments.seed}"
    document = {
        "command": command,
        "data": "SYNTHETIC",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "versions": versions(),
        **found,
    }
    text = json.dumps(document, indent=2)
    print(text)
    if arguments.json:
        atomic_write(arguments.json, text + "\n")


if __name__ == "__main__":
    main()
