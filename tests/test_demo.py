"""`make demo` as it is: it trains, and what it learns holds for subjects that it has not seen."""

import shlex
import subprocess
from pathlib import Path

from conftest import ROOT, Train, record


def test_demo_learns(tmp_path: Path, train: Train, demo_cells: list[str]) -> None:
    make = subprocess.run(
        ["make", "-n", "-C", str(ROOT), "demo"], capture_output=True, text=True, check=True
    )
    (command,) = (line for line in make.stdout.splitlines() if "-m leukocls.train" in line)
    _, _, _, *arguments = shlex.split(command)
    done = train(*arguments, f"outputs={tmp_path / 'outputs'}", *demo_cells)
    assert done.code == 0, done.err
    (run,) = (tmp_path / "outputs/demo").rglob("run.json")
    recorded = record(run.parent)
    assert recorded["marks"] == ["SYNTHETIC"]
    assert recorded["metrics"]["prelim"]["auroc"] >= 0.85
    assert recorded["metrics"]["prelim"]["auroc"] < recorded["best_auroc"] == 0.94
    assert "*** SYNTHETIC ***" in done.out
    assert "Best possible AUROC from single cells like these, on average: 0.94" in done.out
    assert str(run.parent) in done.out
    (made,) = (line for line in make.stdout.splitlines() if "leukocls.report" in line)
    _, _, _, reported, *_ = shlex.split(made)
    assert Path(reported) == Path("outputs") / run.parent.relative_to(tmp_path / "outputs")
