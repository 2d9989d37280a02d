"""Prelim's 55 is train's 51: what every verb makes of a person in both parts of C-NMC."""

import csv
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest
from conftest import Train, record, small
from sklearn.metrics import f1_score

from leukocls import audit, compare, evaluate, split, verify
from leukocls.artifacts import predictions
from leukocls.data import verify as data_verify
from leukocls.data.names import PRELIM_OFFICIAL, PRELIM_TRAINED
from leukocls.data.published import LABELS_DIGEST, TRAIN_IN_PRELIM, published_subjects

UID = re.compile(r"UID_(H?\d+)_(\d+)_(\d+)_(all|hem)\.bmp")
ONE_LINE = "55 of prelim is 51 of train: "


@pytest.fixture(scope="module")
def cnmc(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the small tree under genuine names, 51 of fold_1 and 55 of prelim among them.

    One image of 51 is in prelim again, as six are in C-NMC.
    """
    root = tmp_path_factory.mktemp("cnmc") / "tree"
    base = root / "C-NMC_Leukemia"
    shutil.copytree(small_tree / "C-NMC_Leukemia", base)
    free = {part: dict(counts) for part, counts in published_subjects().items()}
    genuine: dict[tuple[str, str], str] = {}

    def name_of(part: str, name: str) -> str:
        match = UID.fullmatch(name)
        assert match
        subject, image, number, kind = match.groups()
        if (part, subject) not in genuine:
            first = {("fold_1", "all"): "51", ("prelim", "all"): "55"}.get((part, kind), "")
            same = [s for s, n in free[part].items() if s.startswith("H") == (kind == "hem")]
            chosen = first if first in same else max(same, key=free[part].__getitem__)
            del free[part][chosen]
            genuine[part, subject] = chosen
        return f"UID_{genuine[part, subject]}_{image}_{number}_{kind}.bmp"

    for path in sorted(base.glob("training_data/fold_*/*/*.bmp")):
        path.rename(path.with_name(name_of(path.parts[-3], path.name)))
    (labels,) = base.rglob("*_labels.csv")
    with open(labels, newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["Patient_ID"] = name_of("prelim", row["Patient_ID"])
    first = min(base.glob("training_data/fold_1/all/UID_51_*.bmp"))
    first = first.rename(first.with_name(TRAIN_IN_PRELIM["59.bmp"]))
    shutil.copy(first, labels.with_name("C-NMC_test_prelim_phase_data") / "59.bmp")
    rows.append({"Patient_ID": "UID_55_900_1_all.bmp", "new_names": "59.bmp", "labels": "1"})
    with open(labels, "w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture(scope="module", autouse=True)
def labels_as_published():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_verify, "labels_digest", lambda lines: LABELS_DIGEST)
        yield


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared-persons") / "outputs"


@pytest.fixture
def trained_on(cnmc: Path, outputs: Path, train: Train):
    """The run of a scheme, trained once, and what the command printed."""

    def run(scheme: str) -> tuple[Path, str]:
        words = [f"split_scheme={scheme}", "folds=3", "data.partial=true", "trainer.max_epochs=1"]
        done = train(*small(cnmc, outputs), *words)
        assert done.code == 0, done.err
        return Path(done.out.splitlines()[-1]), done.out

    return run


def printed(verb, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    capsys.readouterr()
    code = verb.main([*map(str, words)])
    return code, capsys.readouterr().out


def test_honest_reports_nobody_of_train(trained_on, capsys: pytest.CaptureFixture[str]) -> None:
    directory, out = trained_on("honest")
    frame = predictions.read(directory / "predictions.parquet")
    sides = pd.read_csv(directory / "split.csv").groupby("split")["subject"].agg(set)
    assert sides[PRELIM_TRAINED] == {"55"}
    assert "55" not in sides["prelim"]
    assert record(directory)["marks"] == ["PARTIAL"]
    assert f"{ONE_LINE}its " in out

    _, document = printed(evaluate, capsys, directory, "--json")
    found = {result["split"]: result for result in json.loads(document)}
    assert {name: one["heading"] for name, one in found.items()} == {
        "val": "selection", "prelim": "test", PRELIM_OFFICIAL: "leaky",
    }  # fmt: skip
    chosen = frame[frame["epoch"] == record(directory)["selection"]["epoch"]]
    for name, parts in {
        "prelim": ["prelim"], PRELIM_OFFICIAL: ["prelim", PRELIM_TRAINED],
    }.items():  # fmt: skip
        cells = chosen[chosen["split"].isin(parts)]
        assert found[name]["n"] == len(cells)
        f1 = f1_score(cells["label"], cells["logit"] > 0, average="weighted")
        assert found[name]["weighted_f1"] == pytest.approx(f1, abs=1e-12)
    assert found[PRELIM_OFFICIAL]["n"] > found["prelim"]["n"]
    code, text = printed(evaluate, capsys, directory, "--split", PRELIM_OFFICIAL)
    assert (code, text.startswith("LEAKY ")) == (0, True)
    code, text = printed(audit, capsys, directory)
    assert (code, "HONEST." in text) == (0, True)


def test_challenge_says_who_is_in_both_parts(
    trained_on, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, out = trained_on("challenge")
    assert record(directory)["marks"] == ["PARTIAL", "LEAKY"]
    (sentence,) = record(directory)["shared_persons"]
    assert sentence.startswith(ONE_LINE)
    assert sentence in out
    for verb, words in ((evaluate, ["--json"]), (compare, []), (compare, ["--json"])):
        code, text = printed(verb, capsys, directory, *words)
        assert (code, sentence in text, "LEAKY" in text) == (0, True, True), verb.__name__
    code, text = printed(audit, capsys, directory)
    assert (code, "51 = 55" in text) == (1, True)


def test_an_honest_runs_split_is_a_split_file(
    trained_on, cnmc: Path, outputs: Path, tmp_path: Path, train: Train
) -> None:
    directory, _ = trained_on("honest")
    file = shutil.copy(directory / "split.csv", tmp_path / "honest.csv")
    words = [f"split_scheme={file}", "data.partial=true", "trainer.max_epochs=1"]
    done = train(*small(cnmc, outputs), *words)
    assert done.code == 0, done.err
    again = Path(done.out.splitlines()[-1])
    assert (again / "split.csv").read_bytes() == (directory / "split.csv").read_bytes()
    assert record(again)["marks"] == ["PARTIAL"]
    assert record(again)["predictions_sha256"] == record(directory)["predictions_sha256"]


def test_verify_and_split_name_the_person(
    cnmc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache", tmp_path / "store"]
    code, text = printed(verify, capsys, cnmc, "--partial", *cache)
    assert (code, "No fault found" in text) == (0, True), text
    assert re.search(r"  51, 55 +1 +– +–  ", text), text
    for scheme, number in (("honest", "left out of the test"), ("challenge", "trained person")):
        words = ["--split-scheme", scheme, "--folds", 3, "--out", tmp_path / f"{scheme}.csv"]
        code, text = printed(split, capsys, cnmc, "--partial", *cache, *words)
        assert (code, ONE_LINE in text, number in text) == (0, True, True)


def test_the_official_split_is_leaky_by_names_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """47 cells of prelim, without an image."""
    cells: dict[str, list[str]] = defaultdict(list)
    for part, counts in published_subjects().items():
        side = "prelim" if part == "prelim" else "train"
        for subject, number in counts.items():
            kind = "hem" if subject.upper().startswith("H") else "all"
            cells[side] += [f"UID_{subject}_{k}_1_{kind}.bmp" for k in range(number)]
    rows = [(name, side) for side, names in cells.items() for name in names]
    official = pd.DataFrame(rows, columns=["cell", "split"])
    official.to_csv(tmp_path / "split.csv", index=False)
    scored = official[official["split"] == "prelim"][["cell"]].assign(prob=0.7)
    scored["label"] = scored["cell"].str.endswith("_all.bmp").astype(int)
    scored.to_csv(tmp_path / "theirs.csv", index=False)
    words = [tmp_path / "theirs.csv", "--split", tmp_path / "split.csv"]
    code, text = printed(audit, capsys, *words)
    assert code == 1
    assert "47 of 1,867 scored cells" in text
    assert "1 of 28 persons, 51 = 55 = 75 = 78" in text
    assert "LEAKY." in text
