"""The fork server imports what it is told to, and every name it is told exists."""

import sys
from importlib.util import find_spec
from multiprocessing import forkserver

import pytest

from leukocls.common.processes import fork_server
from leukocls.training import PRELOADED


@pytest.mark.parametrize("module", PRELOADED)
def test_every_preloaded_module_exists(module: str) -> None:
    # multiprocessing passes over a missing name in silence: every job would then import torch anew.
    assert find_spec(module) is not None


def _report(pipe, names: list[str]) -> None:
    pipe.send([name for name in names if name in sys.modules])


@pytest.mark.slow
def test_a_child_finds_the_preloaded_modules_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    # The real one, in place of that which keeps every server of the tests warm (tests/warm.py).
    real = forkserver._forkserver.set_forkserver_preload
    monkeypatch.setattr(forkserver, "set_forkserver_preload", real)
    forkserver._forkserver._stop()  # another test's, which imported other modules
    context = fork_server(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_report, args=(theirs, list(PRELOADED)))
    child.start()
    assert ours.recv() == list(PRELOADED)
    child.join()
