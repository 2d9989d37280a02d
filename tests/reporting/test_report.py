"""The report of made-up runs: its page, its numbers against scikit-learn, its files."""

import base64
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from conftest import edit_record
from made_up_runs import SEEDS, frame_of, write_honest, write_run, write_sweep
from PIL import Image
from sklearn.metrics import accuracy_score, auc, confusion_matrix, log_loss, recall_score

from leukocls import report
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.data.images import read_image
from leukocls.data.index import build_index
from leukocls.evaluation import comparison
from leukocls.inference.saliency import CAM
from leukocls.inference.sheet import map_pictures
from leukocls.reporting.figure_files import latex
from leukocls.reporting.pictures import OUTLINE, files_of, thumbnails
from leukocls.reporting.report_tables import result_tables

EVERY_FIGURE = {"courses", "losses", "intervals", "persons", "differences", "thresholds"}


class Page(HTMLParser):
    """The elements of a page: tags with attributes, ids, headings, and the text of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.captions: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag == "caption":
            self.captions.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "caption" in self.open:
            self.captions[-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def sweep(once: Callable[..., Path]) -> Path:
    """Four arms of four seeds, three epochs of proposal, and a metrics.csv of each of its runs."""

    def make(folder: Path) -> None:
        root = write_sweep(folder / "prellberg2019")
        for seed in SEEDS:
            where = root / "proposal" / f"seed_{seed:03d}"
            frame = pd.concat([frame_of("prelim", epoch, seed, 1.0) for epoch in range(4)])
            write_run(where, frame, selection={"rule": "last", "set": "prelim", "epoch": 3})
            rows = {
                "epoch": range(4), "train_loss": [None, 0.7, 0.6, 0.5],
                "prelim_loss": [0.7, 0.6, 0.5, 0.4], "prelim_weighted_f1": [0.4, 0.5, 0.6, 0.7],
            }  # fmt: skip
            pd.DataFrame(rows).to_csv(where / "metrics.csv", index=False)

    return once("reported", make) / "prellberg2019"


@pytest.fixture(scope="module")
def written(sweep: Path, once: Callable[..., Path]) -> Path:
    """The folder with the report of these runs, its page, JSON and figures."""

    def make(folder: Path) -> None:
        words = [str(sweep), "--out", str(folder / "page.html"), "--figures"]
        assert report.main([*words, str(folder / "figures"), "--seeds", "4"]) == 0

    return once("report", make)


@pytest.fixture(scope="module")
def document(written: Path) -> dict:
    return json.loads((written / "page.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page((written / "page.html").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_beside_it(written: Path, page: Page) -> None:
    text = (written / "page.html").read_text(encoding="utf-8")
    assert len(text) < 3_000_000
    assert not page.of("script")
    assert not page.of("link")
    assert all(one["src"].startswith("data:") for one in page.of("img"))
    assert not re.search(r"""url\((?!#)|@import|href=["'](?!#)""", text)


def test_the_page_can_be_heard_and_used_by_keyboard(page: Page) -> None:
    (root,) = page.of("html")
    assert root["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert max(np.diff(levels)) <= 1
    assert all(cell["scope"] in ("col", "row") for cell in page.of("th"))
    assert len(page.captions) == len(page.of("table"))
    scrolled = [one for one in page.of("div") if one.get("class") == "scroll"]
    pictures = [one["aria-label"] for one in scrolled if one["role"] == "img"]
    assert len(pictures) == len(EVERY_FIGURE)
    assert all(len(text) > 40 for text in pictures)
    assert scrolled
    assert all(one["tabindex"] == "0" and one["aria-label"] for one in scrolled)
    ids = Counter(one["id"] for _, one in page.tags if "id" in one)
    assert max(ids.values()) == 1
    assert {one["href"][1:] for one in page.of("a")} <= ids.keys()
    assert {f"figure-{name}" for name in EVERY_FIGURE} <= ids.keys()


def test_marks_stand_at_the_head_of_every_table_and_figure(written: Path, page: Page) -> None:
    assert all("SYNTHETIC" in caption for caption in page.captions)
    text = (written / "page.html").read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL)
    assert len(captions) == len(EVERY_FIGURE)
    assert all("SYNTHETIC" in caption for caption in captions)
    tables = list((written / "figures").glob("*.tex"))
    assert tables
    assert all("SYNTHETIC" in table.read_text(encoding="utf-8") for table in tables)


def test_selection_is_never_called_a_test(written: Path, document: dict) -> None:
    text = (written / "page.html").read_text(encoding="utf-8")
    assert "SELECTION" in text
    assert not re.search(r"\bTEST\b", text)
    states = {check["name"]: check["state"] for check in document["checks"]}
    assert states["A test chose nothing"] == "fail"
    assert states["All planned seeds are here"] == "pass"
    assert states["At least 10 persons of each class"] == "fail"


def test_a_test_is_called_one(tmp_path: Path) -> None:
    root, out = write_honest(tmp_path / "x"), tmp_path / "report.html"
    assert report.main([str(root), "--out", str(out)]) == 0
    assert re.search(r"\bTEST\b", out.read_text(encoding="utf-8"))
    written = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    states = {check["name"]: check["state"] for check in written["checks"]}
    assert states["A test chose nothing"] == "pass"
    assert states["All planned seeds are here"] == "not applicable"
    assert "losses" not in Page(out.read_text(encoding="utf-8")).open


def test_numbers_are_those_of_compare_and_scikit_learn(sweep: Path, document: dict) -> None:
    assert document["comparison"] == json.loads(
        json.dumps(comparison.compare([sweep], seeds=range(4)))
    )
    frames = {
        seed: pd.read_parquet(sweep / "proposal" / f"seed_{seed:03d}" / "predictions.parquet")
        for seed in SEEDS
    }
    chosen = {seed: frame[frame["epoch"] == 3] for seed, frame in frames.items()}

    course = document["courses"]["proposal"]
    assert (course["epochs"], course["n"]) == ([0, 1, 2, 3], 4)
    values = [
        [recall_score(own["label"], own["logit"] > 0) for _, own in frame.groupby("epoch")]
        for frame in frames.values()
    ]
    found = course["metrics"]["sensitivity"]
    assert found["mean"] == pytest.approx(np.mean(values, 0), abs=1e-6)
    assert found["sd"] == pytest.approx(np.std(values, 0), abs=1e-6)

    median = document["median"]
    own = chosen[median["seed"]]
    tn, fp, fn, tp = confusion_matrix(own["label"], own["logit"] > 0).ravel()
    assert median["counts"] == {"tp": tp, "fp": fp, "tn": tn, "fn": fn}
    roc = median["curves"]["roc"]
    assert auc(roc["fpr"], roc["tpr"]) == pytest.approx(median["auroc"], abs=1e-5)
    bins = median["curves"]["reliability"]
    weights = [one["cells"] for one in bins]
    gaps = [abs(one["prob"] - one["all"]) for one in bins]
    assert np.average(gaps, weights=weights) == pytest.approx(median["ece"])
    assert sum(weights) == len(own)

    assert len(document["persons"]) == own["subject"].nunique()
    for person in document["persons"]:
        shares = [
            accuracy_score(cells["label"], cells["logit"] > 0)
            for frame in chosen.values()
            for cells in [frame[frame["subject"] == person["person"]]]
        ]
        assert person["runs"] == pytest.approx(shares)
        assert person["accuracy"] == pytest.approx(np.mean(shares))
    labels = [person["label"] for person in document["persons"]]
    assert labels == sorted(labels, reverse=True)

    losses = {
        cell: np.mean([
            log_loss([int(label)], [prob], labels=[0, 1])
            for frame in chosen.values()
            for label, prob in frame.loc[frame["cell"] == cell, ["label", "prob"]].to_numpy()
        ])
        for cell in own["cell"]
    }  # fmt: skip
    hardest = sorted(losses, key=lambda cell: -losses[cell])[: len(document["cells"])]
    assert [cell["cell"] for cell in document["cells"]] == hardest
    assert document["cells"][0]["loss"] == pytest.approx(losses[hardest[0]])


def test_every_number_of_the_page_has_its_run(document: dict, page: Page, written: Path) -> None:
    text = (written / "page.html").read_text(encoding="utf-8")
    for run, digest in document["comparison"]["sources"].items():
        assert run in text
        assert digest in text
    assert {run["id"] for run in document["runs"]} == document["comparison"]["sources"].keys()


def test_figures_are_written_as_files(written: Path) -> None:
    folder = written / "figures"
    for name in EVERY_FIGURE:
        ElementTree.parse(folder / f"{name}.svg")
        assert "currentColor" not in (folder / f"{name}.svg").read_text(encoding="utf-8")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert len(pd.read_csv(folder / f"{name}.csv"))


def test_tables_for_latex_have_as_many_cells_as_columns(document: dict, written: Path) -> None:
    name, rows = result_tables(document)[0]
    text = latex(rows, f"50 % of {name}_1")
    assert r"50 \% of" in text
    assert "_1" not in text.replace(r"\_1", "")
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert [len(re.split(r"(?<!\\)&", line)) for line in lines] == [len(row) for row in rows]


def test_latex_has_minus_signs_where_numbers_have_them() -> None:
    text = latex([["arm", "points"], ["nospeclr_1e-4", "-0.33 to +1.67"]], "")
    assert r"nospeclr\_1e-4 & $-$0.33 to +1.67 \\" in text


def test_the_same_runs_give_the_same_page(sweep: Path, written: Path, tmp_path: Path) -> None:
    again = tmp_path / "page.html"
    assert report.main([str(sweep), "--out", str(again), "--seeds", "4"]) == 0
    assert again.read_bytes() == (written / "page.html").read_bytes()
    assert again.with_suffix(".json").read_bytes() == (written / "page.json").read_bytes()


def test_pictures_are_of_the_cells_that_were_scored(small_tree: Path) -> None:
    """Cells of final have the names of prelim's, and are others."""
    index = build_index(small_tree)
    prelim, final = (index.only((part,)).table for part in ("prelim", "final"))
    name = next(name for name in prelim["cell"] if name in set(final["cell"]))
    found = thumbnails(files_of({"cells": [{"cell": name}]}, index))
    jpeg = base64.b64decode(found[name][OUTLINE])
    drawn = np.asarray(Image.open(io.BytesIO(jpeg)), float)

    def distance(table: pd.DataFrame) -> float:
        image = read_image(index.root / table["file"][table["cell"] == name].iloc[0])
        rows, columns = np.nonzero(image.any(2))
        tight = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        return float(np.abs(tight[tight.any(2)].mean(0) - drawn[drawn.sum(2) > 30].mean(0)).max())

    assert distance(prelim) < 3
    assert distance(prelim) < distance(final)
    with pytest.raises(LeukoclsError, match=r"nobody\.bmp"):
        files_of({"cells": [{"cell": "nobody.bmp"}]}, index)


def test_sizes_of_the_training_set_are_a_curve(tmp_path: Path) -> None:
    root = tmp_path / "x"
    for size, strength in ((4, 0.6), (8, 1.0)):
        for seed in range(2):
            run = root / f"proposal,data.n_subjects={size}" / f"seed_{seed:03d}"
            identity = {"seed": seed, "rescore_from": None, "data.n_subjects": size}
            frame = pd.concat([frame_of("prelim", epoch, seed, strength) for epoch in (0, 1)])
            write_run(run, frame, identity=identity)
            train = pd.DataFrame({"cell": [f"{n}.bmp" for n in range(3 * size)], "split": "train"})
            persons = [f"t{n % size}" for n in range(3 * size)]
            train = train.assign(subject=persons, group=persons, label=1, pixels="")
            train.to_csv(run / "split.csv", index=False)
    out = tmp_path / "report.html"
    assert report.main([str(root), "--out", str(out), "--figures", str(tmp_path / "figures")]) == 0
    points = json.loads(out.with_suffix(".json").read_text())["learning_curve"]["points"]
    assert [(one["persons"], one["cells"], one["n"]) for one in points] == [(4, 12, 2), (8, 24, 2)]
    assert 'id="figure-learning_curve"' in out.read_text(encoding="utf-8")
    table = pd.read_csv(tmp_path / "figures" / "learning_curve.csv")
    assert table["mean"].tolist() == pytest.approx([one["mean"] for one in points])


def test_simple_features_stand_beside_networks(tmp_path: Path) -> None:
    for seed in (1, 2):
        run = tmp_path / "x/proposal" / f"seed_{seed:03d}"
        identity = {"seed": seed, "model.backbone": "resnet18"}
        write_run(run, frame_of("prelim", 1, seed, 1.0), identity=identity)
    for features, strength in (("size", 0.2), ("colour", 0.4)):
        frame = frame_of("prelim", 1, 0, strength)
        run = tmp_path / "baseline" / features / "seed_000"
        write_run(run, frame, identity={"seed": 0, "features": features})
    out, figures = tmp_path / "report.html", tmp_path / "figures"
    words = [str(tmp_path), "--out", str(out), "--figures", str(figures), "--seeds", "1-2"]
    assert report.main(words) == 0
    found = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["comparison"]
    assert found["reference"] == "x/proposal"
    assert {arm["name"]: arm["planned"] for arm in found["arms"]} == {
        "x/proposal": 2, "baseline/colour": 1, "baseline/size": 1
    }  # fmt: skip
    assert not found["tests"]
    page = out.read_text(encoding="utf-8")
    assert 'id="shortcuts"' in page
    assert 'id="figure-shortcuts"' in page
    drawn = pd.read_csv(figures / "shortcuts.csv").set_index("arm")
    assert list(drawn.index) == ["x", "baseline/colour", "baseline/size"]
    drawn = drawn.rename(index={"x": "x/proposal"})  # a page has short names, report.json has not
    whole = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert whole["courses"].keys() == {"x/proposal"}
    assert whole["settings"]["baseline/size"] == {"features": "size"}
    differences = {row["b"]: row for row in found["differences"] if row["metric"] == "auroc"}
    for arm in found["arms"]:
        assert drawn.loc[arm["name"], "mean"] == pytest.approx(arm["auroc"]["mean"])
        assert drawn.loc[arm["name"], "low"] == pytest.approx(arm["auroc"]["interval"]["low"])
        if arm["experiment"] == "baseline":
            less = drawn.loc["x/proposal", "mean"] - arm["auroc"]["mean"]
            assert differences[arm["name"]]["difference"] == pytest.approx(less)


@pytest.mark.parametrize("edited", ["prediction", "record"])
def test_an_edited_run_is_named_and_nothing_is_written(
    edited: str, sweep: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(sweep, tmp_path / "prellberg2019"))
    run, out = root / "norot" / "seed_002", tmp_path / "out" / "report.html"
    if edited == "prediction":
        frame = pd.read_parquet(run / "predictions.parquet")
        frame.loc[0, "subject"] = "somebody else"
        frame.to_parquet(run / "predictions.parquet")
    else:
        text = (run / "run.json").read_text(encoding="utf-8")
        (run / "run.json").write_text(text.replace('"challenge"', '"honest"'), encoding="utf-8")
    with pytest.raises(DataFault) as caught:
        report.main([str(root), "--out", str(out)])
    assert caught.value.exit_code == 1
    assert str(run) in str(caught.value)
    assert not out.parent.exists()


def test_a_missing_seed_is_refused_unless_asked_for_and_then_shown(
    sweep: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(sweep, tmp_path / "prellberg2019"))
    edit_record(root / "norot" / "seed_003", status="failed", error="out of memory")
    out = tmp_path / "report.html"
    with pytest.raises(LeukoclsError):
        report.main([str(root), "--out", str(out)])
    assert report.main([str(root), "--out", str(out), "--incomplete"]) == 0
    written = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    (check,) = (one for one in written["checks"] if one["name"] == "All planned seeds are here")
    assert check["state"] == "fail"
    assert "norot" in check["detail"]


def test_a_folder_is_no_page(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(LeukoclsError, match=re.escape(str(tmp_path))):
        report.main([str(sweep), "--out", str(tmp_path)])


@pytest.fixture(scope="module")
def mapped(trained: Path, small_tree: Path, once: Callable[..., Path]) -> Page:
    """The page of a run with a network, with pictures and maps of the hardest cells."""

    def make(folder: Path) -> None:
        words = [str(trained), "--data", str(small_tree), "--maps"]
        assert report.main([*words, "--out", str(folder / "page.html")]) == 0

    return Page((once("mapped", make) / "page.html").read_text(encoding="utf-8"))


def test_maps_stand_beside_the_pictures_of_hardest_cells(mapped: Page) -> None:
    shown = [str(one["title"]) for one in mapped.of("img")]
    assert set(shown) == {OUTLINE, CAM}
    assert shown.count(OUTLINE) == shown.count(CAM) > 3
    pictures = [base64.b64decode(str(one["src"]).partition(",")[2]) for one in mapped.of("img")]
    sides = {Image.open(io.BytesIO(jpeg)).size for jpeg in pictures}
    assert sides == {(96, 96)}
    # Black stays black without a map over it; inferno begins with black, and ends in yellow.
    over = np.asarray(Image.open(io.BytesIO(pictures[shown.index(CAM)])), int)
    assert over[..., 0].max() > over[..., 2].max()


def test_maps_need_images_and_a_network(sweep: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "page.html")]
    with pytest.raises(LeukoclsError, match="--data"):
        report.main([str(sweep), "--maps", *out])
    with pytest.raises(LeukoclsError, match=r"proposal/seed_000"):
        map_pictures(sweep / "proposal" / "seed_000", {})
    assert not list(tmp_path.iterdir())
