"""`make ablation` from a copy of the project to its comparison, with a recipe of seconds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, copied, record
from scipy import stats
from sklearn.metrics import f1_score, recall_score

from leukocls.evaluation import comparison
from leukocls.reporting import tables

VENV = Path(sys.prefix)
# One of each kind, of those that `make ablation` trains by itself.
ARMS = ["proposal", "norot", "nospeclr_1e-4"]
BY_DEFAULT = ["proposal", "norot", "nospeclr_1e-3", "nospeclr_1e-4", "nospeclr_1e-5"]
SEEDS = 2
TINY = """
# @package _global_
defaults:
  - demo
  - override /data: cnmc
  - override /model: timm
model:
  backbone: test_resnet
  pretrained: false
data: {size: 48, batch_size: 8, cache: store}
trainer: {max_epochs: 2}
threads: 1
"""


@pytest.fixture(scope="module")
def compared(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The experiment's outputs, and what make printed."""
    copy = copied(tmp_path_factory.mktemp("ablation"))
    shutil.copy(ROOT / "Makefile", copy)
    (copy / "conf/experiment/tiny.yaml").write_text(TINY.lstrip())
    made = subprocess.run(
        ["make", "ablation", "EXPERIMENT=tiny", f"SEEDS={SEEDS}", f"DATA={small_tree}",
         f"ARMS={' '.join(ARMS)}", f"VENV={VENV}", "-o", f"{VENV}/.done"],
        cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return copy / "outputs/tiny", made.stdout


def test_every_arm_is_trained_and_compared_by_default() -> None:
    asked = ["make", "-n", "-C", str(ROOT), "ablation", "EXPERIMENT=tiny", "DATA=/data"]
    printed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert f"'ablation={','.join(BY_DEFAULT)}'" in printed
    assert " ".join(f"outputs/tiny/{arm}" for arm in BY_DEFAULT) in printed


def stored(arm: Path) -> list[pd.DataFrame]:
    """By seed, what each run of an arm predicted for prelim in the epoch that it selected."""
    frames = []
    for seed in range(SEEDS):
        run = arm / f"seed_{seed:03d}"
        epoch = json.loads((run / "run.json").read_text())["selection"]["epoch"]
        frame = pd.read_parquet(run / "predictions.parquet")
        frames.append(frame[(frame["epoch"] == epoch) & (frame["split"] == "prelim")])
    return frames


def test_it_ends_in_a_comparison_of_what_is_stored(compared) -> None:
    outputs, printed = compared
    assert f"{len(ARMS) * SEEDS} of {len(ARMS) * SEEDS} runs done" in printed
    assert "SELECTION" in printed
    assert "SYNTHETIC" in printed
    document = comparison.compare([outputs / arm for arm in ARMS], seeds=range(SEEDS))
    assert tables.comparison_text(document) in printed
    reported = json.loads((outputs / "report.json").read_text(encoding="utf-8"))
    assert reported["comparison"] == json.loads(json.dumps(document))
    assert (outputs / "report.html").exists()
    measures = {
        "weighted_f1": lambda y, z: f1_score(y, z, average="weighted"),
        "sensitivity": recall_score,
        "specificity": lambda y, z: recall_score(y, z, pos_label=0),
    }
    values = {}
    for arm in document["arms"]:
        for name, measure in measures.items():
            expected = [measure(f["label"], f["prob"] > 0.5) for f in stored(outputs / arm["name"])]
            assert arm[name]["values"] == pytest.approx(expected, abs=1e-12)
            values[arm["name"], name] = arm[name]["values"]
        runs = [record(outputs / arm["name"] / f"seed_{seed:03d}") for seed in range(SEEDS)]
        of_record = [run["metrics"]["prelim"]["weighted_f1"] for run in runs]
        assert arm["weighted_f1"]["values"] == of_record
    family = [one for one in document["tests"] if one["metric"] == "weighted_f1"]
    assert [one["b"] for one in family] == ARMS[1:]
    for one in family:
        ours, theirs = values["proposal", "weighted_f1"], values[one["b"], "weighted_f1"]
        if one["b"] == "norot" and ours == theirs:
            assert one["p"] is None
            continue
        exact = {"alternative": "greater", "method": stats.PermutationMethod()}
        differ = [x - y for x, y in zip(ours, theirs, strict=True) if x != y]
        paired = one["b"] == "norot"
        oracle = (
            stats.wilcoxon(differ, **exact) if paired else stats.mannwhitneyu(ours, theirs, **exact)
        )
        assert one["test"] == {"norot": "Wilcoxon signed-rank"}.get(one["b"], "Mann-Whitney U")
        assert one["p"] == pytest.approx(oracle.pvalue)
        assert one["statistic"] == pytest.approx(oracle.statistic)


def test_norot_is_view_0_with_epochs_of_its_own(compared) -> None:
    outputs, _ = compared
    for seed in range(SEEDS):
        frames, epochs = [], []
        for arm in ("proposal", "norot"):
            run = outputs / arm / f"seed_{seed:03d}"
            frame = pd.read_parquet(run / "predictions.parquet")
            frames.append(frame.sort_values(["epoch", "split", "cell"])["view_0"].to_numpy())
            if arm == "norot":
                scores = [
                    f1_score(f["label"], f["logit"] > 0, average="weighted")
                    for _, f in frame[frame["split"] == "prelim"].groupby("epoch")
                ]
                epochs = [scores.index(max(scores))]
                said = json.loads((run / "run.json").read_text())["selection"]["epoch"]
        assert frames[0].tobytes() == frames[1].tobytes()
        assert epochs == [said]
