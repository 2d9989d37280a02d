"""README.md and docs/: commands can be run, links resolve, and the example network trains."""

import argparse
import contextlib
import csv
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, Train, copied, record
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from leukocls import bundle as bundle_verb
from leukocls import split as split_verb
from leukocls.data.index import build_index

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
ROOT_PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
# What a shell command may be besides a verb and make: none of these is ours.
OTHERS = {"export", "git", "wandb"}
# Commands whose work needs a server, has no end, or was done for the desk: only their arguments
# are parsed.
PARSED = {"wandb_sync", "export", "serve"}
SMALL = ["data.size=32", "data.batch_size=8", "trainer.max_epochs=1", "views=1", "threads=2"]


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.M)


def commands(pages: list[Path]) -> list[list[str]]:
    """Every shell command of the pages once, as words."""
    found: dict[tuple[str, ...], None] = {}
    for block in (block for page in pages for block in blocks(page, "bash")):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                if words := shlex.split(part, comments=True):
                    found[tuple(words)] = None
    return [list(words) for words in found]


def verb_of(words: list[str]) -> tuple[str, list[str]] | None:
    """Verb and arguments of `python -m leukocls.VERB …` or `leukocls VERB …`; None for others."""
    if words[:2] == ["python", "-m"] and words[2].startswith("leukocls."):
        return words[2].removeprefix("leukocls."), words[3:]
    if words[0] == "leukocls":
        return words[1], words[2:]
    return None


COMMANDS = commands([*PAGES, *ROOT_PAGES])
VERBS = [found for words in COMMANDS if (found := verb_of(words))]
TRAIN = [arguments for verb, arguments in VERBS if verb == "train"]
OWN_NETWORK = next(arguments for arguments in TRAIN if "model=small" in arguments)
SCORING = [arguments for arguments in TRAIN if any(a.startswith("checkpoint=") for a in arguments)]
COMPOSED = [arguments for arguments in TRAIN if arguments != OWN_NETWORK]
PLANNED = [arguments for arguments in COMPOSED if arguments not in SCORING]
OTHER_VERBS = [found for found in VERBS if found[0] != "train"]
MAKE = [words for words in COMMANDS if words[0] == "make"]


def test_every_command_is_checked_somehow() -> None:
    known = [words for words in COMMANDS if words[0] in OTHERS or words[0] == "cd"]
    left = [words for words in COMMANDS if not verb_of(words) and words not in [*MAKE, *known]]
    assert left == []
    assert {"demo", "test"} <= {words[1] for words in MAKE}
    assert COMPOSED
    assert OTHER_VERBS


def test_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 150


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return kept.strip().replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES], ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in LINK.findall(re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.M)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, fragment = target.partition("#")
        path = page.parent / name if name else page
        assert path.is_relative_to(ROOT)
        assert path.is_file(), f"{page.name}: {target}"
        if fragment:
            headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M)
            assert fragment in map(anchor, headings), f"{page.name}: {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {
        (ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(README.read_text())
    }
    assert {page.resolve() for page in PAGES if page != README} <= linked


@pytest.mark.parametrize("words", MAKE, ids=" ".join)
def test_make_target_exists(words: list[str]) -> None:
    make = ["make", "-n", "-C", str(ROOT), *words[1:]]
    done = subprocess.run(make, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("verify DATA=/data/C-NMC", ['-m leukocls.verify "/data/C-NMC"']),
        ("ablation EXPERIMENT=saeed2022_b3 DATA=/data SEEDS=5",
         ["experiment=saeed2022_b3 'ablation=proposal,noattention'", "'seed=range(5)'",
          'data.root="/data"', "--seeds 5 outputs/saeed2022_b3/proposal"]),
        ("paper DATA=/data",
         ["experiment=prellberg2019 'ablation=proposal,norot,nospeclr_1e-3,", "'seed=range(24)'",
          'data.root="/data"', "--seeds 24 outputs/prellberg2019/proposal"]),
        ("wandb-sync", ["-m leukocls.wandb_sync"]),
    ],
)  # fmt: skip
def test_make_targets_do_what_the_pages_say(words: str, expected: list[str]) -> None:
    """The commands that they call are run by tests/test_ablation.py and tests/test_tracking.py."""
    make = ["make", "-n", "-C", str(ROOT), *words.split()]
    printed = subprocess.run(make, capture_output=True, text=True, check=True).stdout
    for part in expected:
        assert part in printed


def run_train(*words: str) -> int:
    """`python -m leukocls.train …` in this process; its exit code."""
    from leukocls.train import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["leukocls.train", *words])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def desk(
    trained: Path,
    bundled: Path,
    small_tree: Path,
    once: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder in which somebody has run the demo and scored it on the final part of its data, and
    keeps files of their own and of others."""
    made = once("desk", lambda folder: lay_out(folder, trained, bundled, small_tree))
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("desk") / "desk", symlinks=True))


def lay_out(folder: Path, trained: Path, bundled: Path, small_tree: Path) -> None:
    """Fill the desk's folder."""
    shutil.copytree(trained, folder / "outputs/demo/proposal/seed_000")
    shutil.copytree(bundled / "bundle", folder / "bundle")
    shutil.copy(bundled / "network.onnx", folder)
    labels = next(small_tree.rglob("*_labels.csv"))
    shutil.copy(labels, folder)
    cells = labels.read_text().splitlines()[1:]
    (folder / "isbi_valid.predict").write_text("1\n" * len(cells))
    others_files(small_tree, folder)
    shutil.copy(next(small_tree.rglob("UID_*.bmp")), folder / "cell.bmp")
    # The demo's cells would be drawn here; the small tree stands in for them.
    (folder / "outputs/synthetic").symlink_to(small_tree)
    spec = json.loads((small_tree / "synthetic.json").read_text())["spec"]
    drawn = [f"++data.synthetic.{key}={value}" for key, value in spec.items()]
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        # Pages that plan with the split may be tried before the one that writes it.
        words = "my_cells.csv --split-scheme subject --fold 0 --out my_split.csv"
        assert split_verb.main(words.split()) == 0
    with contextlib.chdir(folder):
        for arguments in SCORING:
            synthetic = "data=synthetic" in arguments
            assert run_train(*arguments, *(drawn if synthetic else [])) == 0
            if synthetic:  # what was said beyond the page is in the name
                (found,) = folder.glob("outputs/demo/score=final,*synthetic.auroc*/seed_000")
                found.parent.rename(found.parents[1] / "score=final,synthetic,proposal")


def others_files(tree: Path, folder: Path) -> None:
    """`my_cells.csv` with its images, class folders, features, predictions and their split."""
    index = build_index(tree)
    cells = index.table[index.table["part"].isin(["train", "final"])]
    # What `baseline --features-out` writes, for pages that may be tried before the one with it.
    table = index.only(("train", "prelim")).table[["cell"]]
    table.assign(size=range(len(table))).to_parquet(folder / "handcrafted.parquet", index=False)
    own = [["cell", "subject", "label", "path", "split"]]
    split, predicted = [["cell", "split", "subject"]], [["cell", "prob"]]
    last = sorted(set(cells["subject"]))[-2:]  # "" is the subject of final
    (folder / "images").mkdir()
    for cell in cells.itertuples():
        path = f"images/{Path(cell.cell).stem}.png"
        Image.open(index.root / cell.file).save(folder / path, compress_level=1)
        label = str(cell.label) if cell.label >= 0 else ""
        own.append([cell.cell, cell.subject, label, path, cell.part])
        if cell.part == "train":
            side = "test" if cell.subject in last else "train"
            split.append([cell.cell, side, cell.subject])
            predicted += [[cell.cell, "0.5"]] if side == "test" else []
    for place in ("my_images/all", "my_images/hem", "my_slides/blasts", "my_slides/normal"):
        (folder / place).mkdir(parents=True)
        (folder / place / "a.png").hardlink_to(folder / path)
    files = {"my_cells": own, "their_split": split, "their_predictions": predicted}
    for name, rows in files.items():
        with open(folder / f"{name}.csv", "w", newline="") as stream:
            csv.writer(stream).writerows(rows)


class Parsed(Exception):
    """Raised once a verb's own parser has accepted its arguments."""


@pytest.mark.parametrize(("verb", "arguments"), OTHER_VERBS, ids=lambda part: str(part)[:60])
def test_verb(
    verb: str, arguments: list[str], desk: Path, small_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other verb runs, on a small tree; those in PARSED are parsed."""
    monkeypatch.chdir(desk)
    main = importlib.import_module(f"leukocls.{verb}").main
    arguments = [argument.replace("$LEUKOCLS_DATA", str(small_tree)) for argument in arguments]
    if verb in PARSED:
        parse = argparse.ArgumentParser.parse_args

        def parse_only(*given: object, **named: object) -> None:
            parse(*given, **named)  # type: ignore[call-overload]
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        with pytest.raises(Parsed):
            main(arguments)
        return
    if verb == "bundle":  # the desk has that one
        arguments[-1] += "-new"
    if "--out-of-fold" in arguments:  # tests/inference/test_bundle.py runs it
        assert bundle_verb._parser().parse_args(arguments).out_of_fold
        return
    if verb == "synth":
        arguments += ["--cells-per-subject", "1", "--final-cells", "4"]
    if verb == "compare":  # one arm with one seed is there
        done = "outputs/demo/proposal"
        fewer = {"outputs/demo_ablation": done, "outputs/leakage": done, "0-2": "0-0"}
        arguments = [fewer.get(argument, argument) for argument in arguments]
    # The demo's run selects on the cells that it reports, which `audit` finds.
    expected = verb == "audit" and "outputs" in arguments[0]
    assert main(arguments) == int(expected)


@pytest.mark.parametrize("page", ["predict", "python-api"])
def test_examples_in_python_run(page: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    text = (ROOT / f"docs/{page}.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.M)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


@pytest.mark.parametrize("arguments", COMPOSED, ids=" ".join)
def test_train_composes(arguments: list[str]) -> None:
    """Hydra composes the command, of a sweep its first job: each group, file and key is there."""
    words = [word for word in arguments if not word.startswith("-")]
    overrides = []
    for word, override in zip(words, OverridesParser.create().parse_overrides(words), strict=True):
        if override.is_sweep_override():
            assert "-m" in arguments
            word = f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        overrides.append(word)
    OmegaConf.register_new_resolver("private_directory", lambda: "", replace=True)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        OmegaConf.to_container(compose("train", overrides), resolve=True)


@pytest.mark.parametrize("arguments", PLANNED, ids=" ".join)
def test_train_is_planned(
    arguments: list[str], desk: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan=true` takes the whole command, with a small network: every job and phase is there."""
    monkeypatch.chdir(desk)
    ours = {"model", "model.backbone", "model.pretrained", "plan"}
    words = [word for word in arguments if word.partition("=")[0] not in ours]
    words = [re.sub(r"range\(\d+\)", "range(2)", word) for word in words]
    done = train(*TINY, *SMALL, "plan=true", *words)
    assert done.code == 0, done.err


# Several commands in one process, which has to pay for its imports only once. FIRST is the run that
# the first of them left.
IN_ONE_PROCESS = """
import json, sys
from pathlib import Path
from leukocls.train import main

for words in json.loads(sys.argv[1]):
    first = next(Path("first").rglob("run.json"), Path()).parent
    sys.argv = ["leukocls.train", *(word.replace("FIRST", str(first)) for word in words)]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, words
"""


def test_own_network_recipe_and_ablation(small_tree: Path, tmp_path: Path) -> None:
    """The files of docs/extending.md, added to a copy of the repository, train as it says."""
    copied(tmp_path)
    text = (ROOT / "docs/extending.md").read_text("utf-8")
    files = re.findall(r"`([\w./]+)`:\n\n```(?:python|yaml)\n(.*?)^```", text, re.DOTALL | re.M)
    assert len(files) == text.count("```python") + text.count("```yaml")
    for name, content in files:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(content)

    words = [word for word in OWN_NETWORK if word != "data=synthetic"]
    data = ["data=cnmc", f"data.root={small_tree}", *SMALL]
    jobs = [
        [*words, *data, "outputs=first"],
        # What comes after needs no more of the network than that file.
        [*words, *data, 'continue_from="FIRST"'],
        ['checkpoint="FIRST"', "score=prelim", f"data.root={small_tree}"],
        ["experiment=mine", *data, "folds=2"],
        ["experiment=mine", "ablation=nobalance", *data, "folds=2"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS, json.dumps(jobs)],
        cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (first,) = (tmp_path / "first").rglob("run.json")
    assert record(first.parent)["identity"]["model._target_"] == "leukocls.models.small.Small"
    assert len(list((tmp_path / "outputs/mine").rglob("run.json"))) == 2


def test_genuine_figures_are_those_that_were_measured() -> None:
    """Each row of the tables, on their page and in README, is that of the recorded result."""
    found = json.loads((ROOT / "benchmarks/results/genuine-cpu.json").read_text())["rows"]
    page, readme = (ROOT / "docs/splits-and-leakage.md").read_text(), README.read_text()

    def shown(value: float) -> str:
        return ("−" if value < 0 else "") + f"{abs(value):.3f}".removeprefix("0")

    def pair(one: dict[str, Any]) -> str:
        return f"{shown(one['auroc'])} / {shown(one['weighted_f1'])}"

    def limits(one: dict[str, float | None]) -> str:
        return f" ({shown(one['low'])}, {shown(one['high'])})" if one["low"] is not None else ""

    def auroc(of: dict[str, Any], column: str) -> str:
        return shown(of[column]["auroc"]) + limits(of[column]["interval"]["auroc"])

    def worth(of: dict[str, Any], column: str) -> str:
        return shown(of["leak"][column]["auroc"]["value"]) + limits(of["leak"][column]["auroc"])

    in_readme, columns = 0, ("person", "subject id", "cell", "lofo", "lofo id")
    for name, of in found.items():
        halves = [pair(of[column]) for column in ("half person", "half cell")]
        assert f"| {' | '.join([name, *halves, worth(of, 'half cell')])} |" in page
        if "person" not in of:  # a network
            continue
        assert f"| {' | '.join([name, *(pair(of[column]) for column in columns)])} |" in page
        gains = [worth(of, column) for column in ("subject id", "cell", "lofo id")]
        assert f"| {' | '.join([name, auroc(of, 'person'), *gains])} |" in page
        row = [name, auroc(of, "person"), shown(of["cell"]["auroc"]), worth(of, "cell")]
        in_readme += f"| {' | '.join(row)} |" in readme
    assert in_readme == 5


def test_figures_of_abstention_are_those_that_were_measured() -> None:
    found = json.loads((ROOT / "benchmarks/results/conformal-cpu.json").read_text())
    page = (ROOT / "docs/predict.md").read_text()
    for kind, name in (("synthetic", "simulated"), ("genuine", "genuine")):
        for unit in ("person", "cell"):
            shown = {
                row["class"]: f"{100 * row['coverage']:.1f} ({100 * row['below 0.8']:.1f} %)"
                for row in found[kind]
                if (row["unit"], row["alpha"]) == (unit, 0.1)
            }
            assert f"| {name}, {unit}s as units | {shown['ALL']} | {shown['HEM']} |" in page


def test_figures_of_segmentation_are_those_that_were_measured() -> None:
    rows = json.loads((ROOT / "benchmarks/results/segment-cpu.json").read_text())["rows"]
    median, low = ([row[name] for row in rows] for name in ("median", "5th percentile"))
    below = sum(row["below 0.8"] * row["cells"] for row in rows) / sum(row["cells"] for row in rows)
    shown = (
        f"intersection over union {min(median):.2f} to {max(median):.2f} in the median,"
        f" {min(low):.2f}"
        f" or more in 95 % of the cells of each kind, below .8 in {100 * below:.1f} %"
    )
    assert shown in (ROOT / "docs/predict.md").read_text()


def test_figures_of_the_leakage_lab_are_those_that_were_measured() -> None:
    """Each row of its two tables, of genuine and of synthetic cells."""
    results, page = ROOT / "benchmarks/results", (ROOT / "docs/splits-and-leakage.md").read_text()
    genuine = json.loads((results / "genuine-leakage-cpu.json").read_text())["rows"]
    synthetic = json.loads((results / "leakage-cpu.json").read_text())["models"]

    def shown(value: float) -> str:
        return ("−" if value < 0 else "") + f"{abs(value):.3f}".removeprefix("0")

    def gained(value: float, low: float, high: float) -> str:
        return f"{shown(value)} ({shown(low)}, {shown(high)})"

    for name, of in genuine.items():
        metrics = [f"{shown(m['auroc'])} / {shown(m['weighted_f1'])}" for m in of["leak"].values()]
        worth = [of["worth"]["1"][metric] for metric in ("auroc", "weighted_f1")]
        gains = [gained(one["value"], one["low"], one["high"]) for one in worth]
        assert f"| {' | '.join([name, *metrics, *gains])} |" in page
    for by_nuisance in synthetic.values():
        gains = [gained(one["leakage"], *one["interval_90"]) for one in by_nuisance.values()]
        assert f" | {' | '.join(gains)} |" in page
        assert [one["equivalent_to_none"] for one in by_nuisance.values()] == [True] + 3 * [False]
        assert all(one["interval_90"][0] > 0 for one in list(by_nuisance.values())[1:])
