"""What tests share: genuine data where present, one synthetic tree, one warm process, one run."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture(scope="session")
def sample_root() -> Path:
    """110 genuine images in the Kaggle layout, which are not part of the project."""
    root = SHARED / "cnmc_sample" / "C-NMC_Leukemia"
    if not root.is_dir():
        pytest.skip(f"genuine C-NMC sample not present at {root}")
    return root


@pytest.fixture(scope="session")
def small_spec() -> SyntheticSpec:
    """About eighty synthetic cells."""
    return SyntheticSpec(
        train_subjects_all=6, train_subjects_hem=5, prelim_subjects_all=3, prelim_subjects_hem=3,
        cells_per_subject=5, final_cells=5,
    )  # fmt: skip


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory: pytest.TempPathFactory, small_spec: SyntheticSpec) -> Path:
    """A small synthetic data root; tests that change it work on a copy."""
    return write_tree(tmp_path_factory.mktemp("data") / "tree", small_spec, progress=False)


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
        "trainer.max_epochs=2", "views=4",
    ]  # fmt: skip


def only_run(outputs: Path) -> Path:
    """The one run directory below `outputs`."""
    (found,) = outputs.rglob("run.json")
    return found.parent


def record(directory: Path) -> dict[str, Any]:
    """A run's run.json."""
    return json.loads((directory / "run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def trained(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run directory, logged to W&B offline, with a secret on its command line."""
    from leukocls.train import main

    outputs = tmp_path_factory.mktemp("trained") / "outputs"
    command = [*small(small_tree, outputs), "logger=wandb", f"+logger.api_key={CANARY}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", CANARY)
        patch.setattr(sys, "argv", ["leukocls.train", *command])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return only_run(outputs)
