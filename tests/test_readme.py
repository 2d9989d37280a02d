"""Every command of the README runs, on a small tree and with fewer epochs."""

import csv
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Train, copied, record
from PIL import Image

from leukocls.data.index import build_index

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BASH = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = [shlex.split(line, comments=True) for line in BASH.splitlines() if line.strip()]
VERBS = [words[2:] for words in COMMANDS if words[:2] == ["python", "-m"]]
OWN_NETWORK = next(words for words in VERBS if "model=small" in words)
SCORING = [words for words in VERBS if any("score=final" in word for word in words)]
ALONE = [words for words in VERBS if words != OWN_NETWORK and words not in SCORING]
SMALL = ["data.size=32", "data.batch_size=8", "trainer.max_epochs=1", "views=1", "threads=2"]


def test_all_commands_are_known() -> None:
    others = [words for words in COMMANDS if words[:2] != ["python", "-m"]]
    assert [words[:2] for words in others] == [
        ["make", "demo"],
        ["make", "test"],
        ["export", "LEUKOCLS_DATA=/data/C-NMC_Leukemia"],
        ["make", "ablation"],
        ["make", "ablation"],
        ["make", "paper"],
        ["wandb", "login"],
        ["make", "wandb-sync"],
    ]
    assert len(VERBS) == 34


@pytest.fixture
def user(
    trained: Path,
    small_tree: Path,
    tmp_path: Path,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder in which somebody has run the demo and keeps files of other people's."""
    # After `train`, which forgets where the data is.
    demo = tmp_path / "outputs/demo/proposal/seed_000"
    shutil.copytree(trained, demo)
    labels = next(small_tree.rglob("*_labels.csv"))
    shutil.copy(labels, tmp_path)
    rows = labels.read_text().splitlines()[1:]
    (tmp_path / "isbi_valid.predict").write_text("1\n" * len(rows))
    others_files(small_tree, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEUKOCLS_DATA", str(small_tree))
    return tmp_path


def others_files(tree: Path, folder: Path) -> None:
    """`my_cells.csv` with its images, and predictions with the split that they come from."""
    index = build_index(tree)
    cells = index.table[index.table["part"] == "train"]
    own = [["cell", "subject", "label", "path"]]
    split, predicted = [["cell", "split", "subject"]], [["cell", "prob"]]
    last = sorted(set(cells["subject"]))[-2:]
    (folder / "images").mkdir()
    for cell in cells.itertuples():
        path = f"images/{Path(cell.cell).stem}.png"
        Image.open(index.root / cell.file).save(folder / path, compress_level=1)
        own.append([cell.cell, cell.subject, str(cell.label), path])
        split.append([cell.cell, "test" if cell.subject in last else "train", cell.subject])
        predicted += [[cell.cell, "0.5"]] if cell.subject in last else []
    files = {"my_cells": own, "their_split": split, "their_predictions": predicted}
    for name, rows in files.items():
        with open(folder / f"{name}.csv", "w", newline="") as stream:
            csv.writer(stream).writerows(rows)


@pytest.mark.parametrize("words", ALONE, ids=" ".join)
def test_command(words: list[str], user: Path, small_tree: Path, train: Train) -> None:
    verb, *arguments = (word.replace("$LEUKOCLS_DATA", str(small_tree)) for word in words)
    if verb == "leukocls.train":
        done = train(*smaller(arguments, small_tree))
        assert done.code == 0, done.err
        return
    if verb == "leukocls.synth":
        arguments += ["--cells-per-subject", "2", "--final-cells", "4"]
    if verb == "leukocls.compare":
        arguments = [a.replace("demo_ablation", "demo") for a in arguments]
    # The demo's run selects on what it reports, which `audit` finds.
    found = verb == "leukocls.audit" and "outputs" in arguments[0]
    assert importlib.import_module(verb).main(arguments) == int(found)


def smaller(arguments: list[str], tree: Path) -> list[str]:
    """The same command with a small network, fewer epochs and seeds, on the small tree."""
    replaced = dict.fromkeys(["model.backbone=resnet18", "model=efficientnetlite0"], "model=timm")
    if any(a.startswith("data.synthetic.") for a in arguments):
        arguments = [*arguments, "data.synthetic.cells_per_subject=2"]
    else:
        replaced["data=synthetic"] = f"data.root={tree}"
    # Planned, it is composed and timed; submitted it is by tests/test_cluster.py.
    arguments = [a.replace("launcher=submitit", "plan=true") for a in arguments]
    fewer = {"range(24)": "range(2)", "range(5)": "range(2)", "n_subjects=20": "n_subjects=4"}
    arguments = [replaced.get(a, a) for a in arguments]
    for many, few in fewer.items():
        arguments = [a.replace(many, few) for a in arguments]
    network = ["model=timm", "model.backbone=test_resnet", "model.pretrained=false"]
    return [*(a for a in network if a not in arguments), *SMALL, *arguments]


def test_scoring_and_its_submission(user: Path, small_tree: Path, train: Train) -> None:
    score, submit = SCORING
    # The demo's cells would be drawn here; the small tree stands in for them.
    (user / "outputs" / "synthetic").symlink_to(small_tree)
    spec = json.loads((small_tree / "synthetic.json").read_text())["spec"]
    done = train(*score[1:], *(f"++data.synthetic.{key}={value}" for key, value in spec.items()))
    assert done.code == 0, done.err
    (run,) = (user / "outputs/demo").glob("score=final,*/seed_000")
    written = [str(run.relative_to(user)) if "score=final" in word else word for word in submit[1:]]
    assert importlib.import_module(submit[0]).main(written) == 0
    assert (user / "final.zip").is_file()


def test_demo_learns(tmp_path: Path, train: Train) -> None:
    """`make demo` as it is: AUROC on subjects that it has not seen."""
    make = subprocess.run(
        ["make", "-n", "-C", str(ROOT), "demo"], capture_output=True, text=True, check=True
    )
    (command,) = (line for line in make.stdout.splitlines() if "leukocls.train" in line)
    _, _, _, *arguments = shlex.split(command)
    done = train(*arguments, f"outputs={tmp_path / 'outputs'}")
    assert done.code == 0, done.err
    (run,) = (tmp_path / "outputs/demo").rglob("run.json")
    said = record(run.parent)
    assert said["marks"] == ["SYNTHETIC"]
    assert said["metrics"]["prelim"]["auroc"] >= 0.85
    assert "*** SYNTHETIC ***" in done.out
    assert str(run.parent) in done.out


def test_make_verify_takes_the_data_from_its_line() -> None:
    make = ["make", "-n", "-C", str(ROOT), "verify", "DATA=/data/C-NMC"]
    printed = subprocess.run(make, capture_output=True, text=True, check=True).stdout
    assert '-m leukocls.verify "/data/C-NMC"' in printed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ablation EXPERIMENT=saeed2022_b3 DATA=/data SEEDS=5",
         ["experiment=saeed2022_b3 'ablation=proposal,noattention'", "'seed=range(5)'",
          'data.root="/data"', "--seeds 5 outputs/saeed2022_b3/proposal"]),
        ("paper DATA=/data",
         ["experiment=prellberg2019 'ablation=proposal,norot,nospeclr_1e-3,", "'seed=range(24)'",
          'data.root="/data"', "--seeds 24 outputs/prellberg2019/proposal"]),
        ("wandb-sync", ["-m leukocls.wandb_sync"]),
    ],
)  # fmt: skip
def test_make_targets_say_what_the_readme_says(words: str, expected: list[str]) -> None:
    """What they call is run by tests/test_ablation.py and tests/test_tracking.py."""
    make = ["make", "-n", "-C", str(ROOT), *words.split()]
    printed = subprocess.run(make, capture_output=True, text=True, check=True).stdout
    for part in expected:
        assert part in printed


def test_own_network(small_tree: Path, tmp_path: Path) -> None:
    """The README's file and configuration, added to an installed package, train."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (config,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    copied(tmp_path)
    (tmp_path / "leukocls/models/small.py").write_text(code)
    (tmp_path / "conf/model/small.yaml").write_text(config)

    def train(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "leukocls.train", *words, f"data.root={small_tree}"],
            cwd=tmp_path, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    words = [w for w in OWN_NETWORK[1:] if w != "data=synthetic"] + SMALL
    train(*words)
    (run,) = (tmp_path / "outputs").rglob("run.json")
    assert record(run.parent)["identity"]["model._target_"] == "leukocls.models.small.Small"
    # Nor does what comes after need more of it than that file.
    train(*words, f'continue_from="{run.parent}"')
    train(f'checkpoint="{run.parent}"', "score=prelim")
