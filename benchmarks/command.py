"""Time and peak memory of a command of leukocls, for the benchmarks beside this file."""

import os
import subprocess
import sys
import time

# Of a child, Linux counts what its parent held when it was started: a process that holds nothing
# starts the command and reports.
REPORTER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
sys.exit(code)
"""


def measured(module: str, *words: object, **environment: str) -> tuple[float, float]:
    """Run `python -m MODULE WORDS…`; its wall seconds, and its peak resident memory in MiB.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-m", module, *map(str, words)]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", REPORTER, *command],
        env=os.environ | environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {done.returncode}")
    return time.perf_counter() - start, float(done.stdout)
