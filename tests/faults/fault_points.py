"""Faults inside a run that the tests start: LEUKOCLS_TESTS_FAULT=POINT:NUMBER:FAULT.

The process meets FAULT when it comes to POINT for the NUMBER-th time: the name of a signal, which
it sends to itself, or a key of FAULTS.
"""

import multiprocessing
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

VARIABLE = "LEUKOCLS_TESTS_FAULT"
FILLER = "filler"
# Module, owner within it ("" for the module itself) and name of what is called at each point.
POINTS = {
    "planning": ("leukocls.launch.plan", "", "planned"),
    "packing": ("os", "", "posix_fallocate"),
    "step": ("leukocls.training.classifier", "CellClassifier", "training_step"),
    "after step": ("leukocls.training.recorder", "Recorder", "on_train_batch_end"),
    "scoring": ("leukocls.training.classifier", "CellClassifier", "validation_step"),
    "testing": ("leukocls.training.classifier", "CellClassifier", "test_step"),
    "save": ("leukocls.training.recorder", "Recorder", "save"),
    "joining": ("leukocls.training.prediction_parts", "PredictionParts", "join"),
    "predicting": ("leukocls.inference.torch_predictor", "TorchPredictor", "scores"),
    # Twice for each file: its content is there under a temporary name, or the file was renamed.
    "file": ("os", "", "fsync"),
    "rename": ("os", "", "replace"),
}
Fault = Callable[[Any], Any]


def _out_of_memory(_: Any) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _infinite(arguments: Any) -> None:
    """An image of the batch, so that the loss is not finite."""
    arguments[1]["image"][0] = float("inf")


def _sigterm_twice(_: Any) -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)


def _kill_a_worker(_: Any) -> None:
    multiprocessing.active_children()[0].kill()


def _die_and_name_the_workers(_: Any) -> None:
    workers = [str(worker.pid) for worker in multiprocessing.active_children()]
    print(f"workers: {' '.join(workers)}", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def _limit_the_size_of_files(_: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))


def _fill_the_disk(arguments: Any) -> None:
    """To the last byte, in the folder that holds outputs/."""
    filler = arguments[0].directory.parents[3] / FILLER
    with open(filler, "wb", buffering=0) as stream, suppress(OSError):
        while stream.write(bytes(4096)):
            pass


def _remove_the_run(arguments: Any) -> None:
    shutil.rmtree(arguments[0].directory)


FAULTS: dict[str, Fault] = {
    "out of memory": _out_of_memory,
    "infinite": _infinite,
    "SIGTERM twice": _sigterm_twice,
    "kill a worker": _kill_a_worker,
    "die and name the workers": _die_and_name_the_workers,
    "limit the size of files": _limit_the_size_of_files,
    "fill the disk": _fill_the_disk,
    "remove the run": _remove_the_run,
}


def arm() -> None:
    """Prepare this process for the fault that the environment names, if it names one."""
    if not (wanted := os.environ.get(VARIABLE)):
        return
    point, number, name = wanted.split(":")
    module, owner, attribute = POINTS[point]
    holder: Any = import_module(module)
    holder = getattr(holder, owner) if owner else holder
    before, calls = getattr(holder, attribute), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(number):
            print(f"fault: {wanted}", file=sys.stderr)
            if name in FAULTS:
                FAULTS[name](arguments)
            else:
                os.kill(os.getpid(), getattr(signal, name))
        return before(*arguments, **options)

    setattr(holder, attribute, counted)
