"""Shared by all tests: genuine data if present, a synthetic tree, one run, warm processes."""

import atexit
import fcntl
import gc
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.hydra import Hydra
from joblib import parallel_config
from omegaconf import DictConfig, open_dict

# Read when torch is loaded. Tests run side by side, a process for each core: a second thread for
# each operation would only wait for the first one's.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import warm
from warm import Command

# What runs in the background of a shell ignores Ctrl-C, and tests send it to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import leukocls.train  # noqa: F401  (before torch: it says how OpenMP threads wait)
from leukocls.artifacts.record import write_record
from leukocls.synthetic.tree import SyntheticSpec, write_tree

# Hydra reads a dozen files for each command: by libyaml in a tenth of the time.
yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc]

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
SAMPLE = SHARED / "cnmc_sample" / "C-NMC_Leukemia"
CANARY = "canary-0123456789abcdef"
# Fixtures and files whose tests train networks or start processes.
SLOW = {"train", "trained", "trained_once", "command", "chained", "compared", "faulty", "hanging"}
SLOW |= {"offline", "test_baseline", "test_benchmarks", "test_cluster", "test_compare", "test_docs"}
SLOW |= {"test_ranks"}
LONGEST = {"test_demo", "test_cluster", "test_ablation", "test_benchmarks"}


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


Train = Callable[..., Outcome]


def compose_once(patch: pytest.MonkeyPatch) -> None:
    """Without -m Hydra composes everything twice, to look for a `hydra.mode` that nothing sets."""
    patch.setattr(Hydra, "get_mode", lambda *_, **__: None)


def train_here(*words: str, **environment: str) -> str:
    """`python -m leukocls.train …` in this process, for a run that several tests look at.

    It has to succeed; what it printed is returned.
    """
    from leukocls.train import main

    printed = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.delenv("LEUKOCLS_DATA", raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        compose_once(patch)
        patch.setattr(sys, "argv", ["leukocls.train", *words])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code, printed.getvalue()
    return printed.getvalue()


@pytest.fixture(scope="session")
def trained_once(small_tree: Path, once: Callable[..., Path]) -> Callable[..., Path]:
    """`trained_once(*overrides)`: the directory of a finished run of the demo's recipe.

    Each is trained once, whatever the number of processes and tests that look at it.
    """

    def run(*overrides: str) -> Path:
        def make(folder: Path) -> None:
            train_here(*small(small_tree, folder / "outputs"), *overrides)

        name = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:16]
        return only_run(once(f"trained-{name}", make) / "outputs")

    return run


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
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`once(name, make)`: a folder that is made once, whatever the number of processes."""
    return lambda name, make: made_once(tmp_path_factory.getbasetemp(), name, make)


@pytest.fixture(scope="session")
def sample_root() -> Path:
    """110 genuine images in the Kaggle layout, which are not part of the project."""
    if not SAMPLE.is_dir():
        pytest.skip(f"genuine C-NMC sample not present at {SAMPLE}")
    return SAMPLE


@pytest.fixture(scope="session")
def small_spec() -> SyntheticSpec:
    """About eighty synthetic cells."""
    return SMALL_SPEC


@pytest.fixture(scope="session")
def small_tree(once: Callable[..., Path], small_spec: SyntheticSpec) -> Path:
    """A small synthetic data root; tests that change it work on a copy."""
    return once("data", lambda at: write_tree(at / "tree", small_spec, progress=False)) / "tree"


@pytest.fixture(scope="session")
def demo_cells(once: Callable[..., Path]) -> list[str]:
    """Overrides for the demo's cells, which are drawn and decoded once."""

    def make(folder: Path) -> None:
        config = yaml.safe_load((ROOT / "conf/data/synthetic.yaml").read_text())
        write_tree(folder / "tree", SyntheticSpec(**config["synthetic"]), progress=False)

    folder = once("demo", make)
    return [f"data.root={folder / 'tree'}", f"data.cache={folder / 'store'}"]


def pytest_configure(config: pytest.Config) -> None:
    """Start one server of warm processes for all that run tests, while they collect them.

    Collecting them makes no garbage: looking for it took a fifth of the time.
    """
    gc.disable()
    # Each process would start others that measure the features of a few cells; test_features.py
    # has them measured as anybody does.
    parallel_config(backend="threading")
    if config.getoption("numprocesses", None):
        warm.share()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what trains or starts processes as slow: `make test-fast` leaves it out.

    Slow tests come first, so that at the end no process is left alone with a long one.
    """
    for item in items:
        if SLOW & {item.path.stem, *getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: (item.path.stem not in LONGEST, "slow" not in item.keywords))
    # What is imported by now stays: the collector need not look at it again and again. At the end
    # Triton would print that it was never freed.
    gc.freeze()
    atexit.register(gc.unfreeze)
    gc.enable()


@pytest.fixture(scope="session")
def bundled(trained: Path, small_tree: Path, once: Callable[..., Path]) -> Path:
    """A folder with the bundle of a run, `bundle`, and its ONNX file, `network.onnx`."""

    def make(folder: Path) -> None:
        from leukocls import bundle

        words = [str(trained), "--out", str(folder / "bundle"), "--data", str(small_tree), "--onnx"]
        assert bundle.main(words) == 0
        shutil.copy(folder / "bundle/network.onnx", folder)

    return once("bundled", make)


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Train:
    """`python -m leukocls.train …` in this process, which has paid for its imports."""
    from leukocls.train import main

    monkeypatch.delenv("LEUKOCLS_DATA", raising=False)
    compose_once(monkeypatch)

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


SMALL_SPEC = SyntheticSpec(
    train_subjects_all=6, train_subjects_hem=5, prelim_subjects_all=3, prelim_subjects_hem=3,
    cells_per_subject=5, final_cells=5,
)  # fmt: skip
TINY = ["model=timm", "model.backbone=test_resnet", "model.pretrained=false"]


def small(root: Path, outputs: Path) -> list[str]:
    """Overrides that make the demo's recipe a matter of a second on the tree at `root`.

    Runs on one tree share its decoded images, which lie beside it.
    """
    return [
        *TINY, "experiment=demo", "data=cnmc", f"data.root={root}", f"outputs={outputs}",
        f"data.cache={root.parent / 'store'}", "data.size=32", "data.batch_size=16",
        "trainer.max_epochs=2", "views=4", "threads=1",
    ]  # fmt: skip


def only_run(outputs: Path) -> Path:
    """The one run directory below `outputs`."""
    (found,) = outputs.rglob("run.json")
    return found.parent


def hydra_of(config: DictConfig) -> DictConfig:
    """Take the node `hydra` out of a composed configuration, as Hydra does."""
    node = config.hydra
    with open_dict(config):
        del config.hydra
    return node


def record(directory: Path) -> dict[str, Any]:
    """A run's run.json."""
    return json.loads((directory / "run.json").read_text(encoding="utf-8"))


def edit_record(directory: Path, **changes: Any) -> None:
    """Change entries of a run's run.json and sign it anew, as the run itself would."""
    write_record(directory, record(directory) | changes)


@pytest.fixture(scope="session")
def trained(small_tree: Path, once: Callable[..., Path]) -> Path:
    """A finished run directory, logged to W&B offline, with a secret in its environment."""

    def make(folder: Path) -> None:
        words = [*small(small_tree, folder / "outputs"), "logger=wandb"]
        train_here(*words, WANDB_API_KEY=CANARY)

    return only_run(once("trained", make) / "outputs")
