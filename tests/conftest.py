"""What tests share: genuine data where present, one synthetic tree, one run, warm processes."""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Read when torch is loaded. Tests run side by side, a process for each core: a second thread for
# each operation would only wait for the first one's.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from warm import Command

import leukocls.train  # noqa: F401  (before torch: it says how OpenMP threads wait)
from leukocls.synthetic.tree import SyntheticSpec, write_tree

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
CANARY = "canary-0123456789abcdef"


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


Train = Callable[..., Outcome]


def made_once(base: Path, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills once, for all of the processes that run tests (pytest-xdist).

    The first one to ask makes it while the others wait. Tests that change what is in it work on a
    copy.

    Args:
        base: the process's own base directory for temporary files.
    """
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder, done = shared / name, shared / f"{name}.done"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`shared(name, make)`: a folder that is made once, whatever the number of processes."""
    return lambda name, make: made_once(tmp_path_factory.getbasetemp(), name, make)


@pytest.fixture(scope="session")
def sample_root() -> Path:
    """110 genuine images in the Kaggle layout, which are not part of the project."""
    root = SHARED / "cnmc_sample" / "C-NMC_Leukemia"
    if not root.is_dir():
        pytest.skip(f"genuine C-NMC sample not present at {root}")
    return root


@pytest.fixture(scope="session")
def small_spec() -> SyntheticSpec:
    """About eighty embedded cells."""
    return SyntheticSpec(
        train_subjects_all=6, train_subjects_hem=5, prelim_subjects_all=3, prelim_subjects_hem=3,
        cells_per_subject=5, final_cells=5,
    )  # fmt: skip


@pytest.fixture(scope="session")
def small_tree(shared: Callable[..., Path], small_spec: SyntheticSpec) -> Path:
    """A small synthetic data root; tests that change it work on a copy."""
    return shared("data", lambda at: write_tree(at / "tree", small_spec, progress=False)) / "tree"


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Train:
    """`python -m leukocls.train …` in this process, which has paid for its imports."""
    from leukocls.train import main

    monkeypatch.delenv("LEUKOCLS_DATA", raising=False)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["leukocls.train", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """`command(verb, *arguments, cwd=, env=)`: `python -m leukocls.VERB …` as a process of its own.

    It is forked from a server that has imported what it needs, and can be waited for, read from and
    sent signals. The test's end kills what still runs.
    """
    started: list[Command] = []

    def run(verb: str, *arguments: object, **places: Any) -> Command:
        folder = tmp_path_factory.mktemp("command")
        started.append(Command(f"leukocls.{verb}", [*map(str, arguments)], folder, **places))
        return started[-1]

    yield run
    for one in started:
        one.kill()


def copied(folder: Path) -> Path:
    """`folder` with a copy of the package, for tests that add files to it: PYTHONPATH=folder."""
    for name in ("leukocls", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


TINY = ["model=timm", "model.backbone=test_resnet", "model.pretrained=false"]


def small(root: Path, outputs: Path) -> list[str]:
    """Overrides that make the demo's recipe a matter of seconds on the tree at `root`."""
    return [
        *TINY, "experiment=demo", "data=cnmc", f"data.root={root}", f"outputs={outputs}",
        f"data.cache={outputs.parent / 'store'}", "data.size=48", "data.batch_size=8",
        "trainer.max_epochs=2", "views=4", "threads=1",
    ]  # fmt: skip


def only_run(outputs: Path) -> Path:
    """The one run directory below `outputs`."""
    (found,) = outputs.rglob("run.json")
    return found.parent


def record(directory: Path) -> dict[str, Any]:
    """A run's run.json."""
    return json.loads((directory / "run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def trained(small_tree: Path, shared: Callable[..., Path]) -> Path:
    """A finished run directory, logged to W&B offline, with a secret on its command line."""
    from leukocls.train import main

    def make(folder: Path) -> None:
        command = [*small(small_tree, folder / "outputs"), "logger=wandb"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WANDB_API_KEY", CANARY)
            patch.setattr(sys, "argv", ["leukocls.train", *command, f"+logger.api_key={CANARY}"])
            with pytest.raises(SystemExit) as stop:
                main()
        assert not stop.value.code

    return only_run(shared("trained", make) / "outputs")
