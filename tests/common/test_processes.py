"""The fork server imports what it is told to, and every name it is told exists."""

import sys
from importlib.util import find_spec
from multiprocessing import forkserver

import pytest
import warm

from leukocls.common.processes import fork_server
from leukocls.training import PRELOADED


@pytest.mark.parametrize("module", PRELOADED)
def test_every_preloaded_module_exists(module: str) -> None:
    # multiprocessing passes over a missing name in silence: every job would then import torch anew.
    assert find_spec(module) is not None


def _report(pipe, names: list[str]) -> None:
    pipe.send([name for name in names if name in sys.modules])


def test_a_child_finds_the_preloaded_modules_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """With modules that take no time to import, and that nothing else imports."""
    server = forkserver.ForkServer()  # beside the one of other tests, which is warm
    for name in ("set_forkserver_preload", "ensure_running", "connect_to_new_process"):
        monkeypatch.setattr(forkserver, name, getattr(server, name))
    names = ["colorsys", "leukocls.common.secrets"]
    context = fork_server(names)
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_report, args=(theirs, [*names, "netrc"]))
    child.start()
    assert ours.recv() == names
    child.join()
    server._stop()


@pytest.mark.slow
def test_all_that_a_run_needs_can_be_preloaded() -> None:
    """In the server that the tests share: one that fails to import is passed over in silence."""
    names = [*PRELOADED, "extra_networks", "preloaded"]
    context = warm.server()
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_report, args=(theirs, names))
    child.start()
    assert ours.recv() == names
    child.join()
