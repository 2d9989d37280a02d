"""`python -m leukocls.robustness`: a tiny trained network, scored again under corruptions."""

import csv
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from conftest import edit_record, record
from omegaconf import OmegaConf
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

from leukocls import report
from leukocls.artifacts import predictions
from leukocls.artifacts.predictions import sigmoid
from leukocls.common.errors import LeukoclsError
from leukocls.data.index import build_index
from leukocls.evaluation.intervals import jackknife, paired_difference
from leukocls.evaluation.person_counts import METRICS, Persons
from leukocls.evaluation.robustness import measured
from leukocls.robustness import main


@pytest.fixture
def run(trained: Path) -> Path:
    return trained


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_clean_images_give_what_the_run_stored(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the bit, on the machine that trained it; and every file holds the same numbers."""
    out = tmp_path / "new" / "results"
    words = [run, "--corruptions", "scale,blur", "--out", out]
    document, of_run = printed(capsys, *words), record(run)
    assert document["clean_difference"] == 0
    for key in ("predictions_sha256", "weights_sha256", "marks"):
        assert document[key] == of_run[key]
    assert (document["run"], document["heading"], document["split"]) == (
        *(of_run["id"], "selection", "prelim"),
    )
    stored = of_run["metrics"]["prelim"]
    for metric in METRICS:
        assert document["clean"][metric]["value"] == pytest.approx(stored[metric], abs=1e-12)
    assert [one["name"] for one in document["corruptions"]] == ["blur", "scale"]
    rows = document["rows"]
    assert [(r["corruption"], r["severity"]) for r in rows] == [
        (name, severity) for name in ("blur", "scale") for severity in (1, 2, 3, 4, 5)
    ]
    for row in rows:
        for metric, found in row["metrics"].items():
            clean = document["clean"][metric]["value"]
            assert found["drop"] == pytest.approx(clean - found["value"], abs=1e-12)
    # The network sees other images: some metric moves.
    assert any(found["drop"] for row in rows for found in row["metrics"].values())

    assert json.loads((out / "robustness.json").read_text()) == document
    with open(out / "robustness.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == (1 + len(rows)) * len(METRICS)
    assert {(line["marks"], line["heading"]) for line in table} == {("SYNTHETIC", "selection")}
    last = rows[-1]["metrics"]["auroc"]
    assert float(table[-1]["value"]) == last["value"]
    assert float(table[-1]["drop"]) == last["drop"]
    figure = ElementTree.parse(out / "robustness.svg")
    told = " ".join(figure.getroot().itertext())
    assert all(word in told for word in (document["run"], "SYNTHETIC", "blur", "AUROC"))

    words = [run, "--out", tmp_path / "report.html", "--robustness", out / "robustness.json"]
    assert report.main([*map(str, words)]) == 0
    assert 'id="figure-robustness"' in (tmp_path / "report.html").read_text(encoding="utf-8")
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document | {"predictions_sha256": "0" * 64}), encoding="utf-8")
    with pytest.raises(LeukoclsError, match=re.escape(str(other))):
        report.main([*map(str, [*words[:-1], other])])


def test_fewer_cells_and_one_view(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [run, "--corruptions", "jpeg", "--cells", 12, "--views", 1]
    document = printed(capsys, *words)
    assert document["cells"] == 12
    assert document["cells_of_split"] == 30
    assert document["marks"] == ["SYNTHETIC", "LIMITED"]
    frame = predictions.read(run / "predictions.parquet")
    frame = frame[frame["epoch"] == record(run)["selection"]["epoch"]]
    order = in_order(run, frame)
    chosen = frame.set_index("cell").loc[order[np.linspace(0, 29, 12).round().astype(int)]]
    # Compared with the stored view 0, in batches of another size.
    assert document["clean_difference"] < 1e-4
    expected = roc_auc_score(chosen["label"], chosen["view_0"])
    assert document["clean"]["auroc"]["value"] == pytest.approx(expected)
    assert main([*map(str, words)]) == 0
    assert "12 of 30 cells" in capsys.readouterr().out


def in_order(run: Path, frame: pd.DataFrame) -> np.ndarray:
    """The cells of the frame in the order of the run's data."""
    table = build_index(OmegaConf.load(run / "config.yaml").data.root).table
    table = table[(table["part"] == "prelim") & table["cell"].isin(frame["cell"])]
    return table["cell"].to_numpy()


def test_metrics_and_drops_are_those_of_scikit_learn_and_the_intervals() -> None:
    random = np.random.default_rng(3)
    label = np.repeat([0, 1], [40, 60])
    person = [f"p{number}" for number in np.repeat(np.arange(10), 10)]
    frame = pd.DataFrame({"cell": [f"{n}.png" for n in range(100)], "subject": person})
    frame = frame.assign(person=person, label=label)
    clean = 2 * label - 1 + random.normal(0, 1, 100)
    worse = [clean + random.normal(0, noise, 100) for noise in (0.5, 2)]
    found = measured(frame, 0.4, clean, {"fog": worse}, {"fog": (1, 2)})
    assert found["persons"] == {"ALL": 6, "HEM": 4}
    counted = [Persons.of(label, sigmoid(z) > 0.4, person, z) for z in (clean, *worse)]
    scores = {
        "weighted_f1": lambda z: f1_score(label, sigmoid(z) > 0.4, average="weighted"),
        "accuracy": lambda z: accuracy_score(label, sigmoid(z) > 0.4),
        "sensitivity": lambda z: recall_score(label, sigmoid(z) > 0.4),
        "specificity": lambda z: recall_score(label, sigmoid(z) > 0.4, pos_label=0),
        "auroc": lambda z: roc_auc_score(label, z),
    }
    assert [(row["severity"], row["amount"]) for row in found["rows"]] == [(1, 1), (2, 2)]
    for row, z, persons in zip(found["rows"], worse, counted[1:], strict=True):
        for metric, score in scores.items():
            one = row["metrics"][metric]
            assert one["value"] == pytest.approx(score(z))
            assert one["drop"] == pytest.approx(score(clean) - score(z))
            assert one["interval"] == jackknife([persons], metric).limits
            paired = paired_difference([persons], [counted[0]], metric)
            assert one["drop_interval"] == paired.limits
            assert paired.low < one["drop"] < paired.high
    # Unknown persons: the same values, and no interval.
    unknown = measured(
        frame.assign(person="", subject=""), 0.4, clean, {"fog": worse}, {"fog": (1, 2)}
    )
    assert unknown["persons"] is None
    for one, other in zip(unknown["rows"], found["rows"], strict=True):
        for metric in METRICS:
            assert one["metrics"][metric]["drop"] == other["metrics"][metric]["drop"]
            assert one["metrics"][metric]["interval"] is None
            assert one["metrics"][metric]["drop_interval"] is None


def refused(*words: object) -> str:
    with pytest.raises(LeukoclsError) as told:
        main([*map(str, words)])
    assert told.value.exit_code == 2
    return str(told.value)


def test_refusals(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "demo" / "proposal" / "seed_000"))
    weights = copy / "checkpoints" / "best.safetensors"
    assert "fog" in refused(copy, "--corruptions", "fog")
    assert "views=0" in refused(copy, "--views", 0)
    assert "--split" in refused(copy, "--split", "val")
    assert "--data" in refused(copy, "--data", tmp_path / "nowhere")
    edit_record(copy, data_digest="0" * 64)
    assert "not the data" in refused(copy)
    edit_record(copy, data_digest=record(run)["data_digest"])
    # Its logits no longer follow from its weights.
    frame = predictions.read(copy / "predictions.parquet")
    moved = frame.assign(logit=frame["logit"] + 1, prob=sigmoid(frame["logit"] + 1))
    predictions.write(copy / "predictions.parquet", moved)
    digest = predictions.digest(predictions.read(copy / "predictions.parquet"))
    edit_record(copy, predictions_sha256=digest)
    assert "differs by 1" in refused(copy, "--corruptions", "blur")
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("sampler:", "unknown:"))
    assert "config.yaml" in refused(copy)
    weights.write_bytes(weights.read_bytes() + b" ")
    assert "weights_sha256" in refused(copy)
    weights.unlink()
    assert str(weights) in refused(copy)
    edit_record(copy, weights_sha256=None)
    assert "no network" in refused(copy)
    edit_record(copy, status="running")
    assert "not done" in refused(copy)
    assert "run.json" in refused(tmp_path)
