"""What tests share: genuine data where present, one synthetic tree, one trained run."""

from pathlib import Path

import pytest

from leukocls.data.synthetic import SyntheticSpec, write_tree

SHARED = Path(__file__).parents[2] / "shared" / "data"


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
def small_tree(tmp_path_factory: pytest.TempPathFactory, small_spec: SyntheticSpec) -> Path:
    """A small synthetic data root; tests that change it work on a copy."""
    return write_tree(tmp_path_factory.mktemp("data") / "tree", small_spec, progress=False)
