"""Bundles: what a stranger opens, with leukocls or with timm alone, and what is refused."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import CANARY, TINY, Train, only_run, record, small
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config

import leukocls
from leukocls import bundle, evaluate
from leukocls.artifacts.record import DIGEST, record_digest
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.common.files import sha256_file
from leukocls.data.index import build_index
from leukocls.evaluation.conformal import conformal_table
from leukocls.inference.bundle import DOCUMENT, FORMAT, open_bundle

LEARNS = ["optim.lr=1e-2", "seed=2"]
OTHERS = {
    "attention": ["model=efficientnetlite0_multiattention", *TINY[1:], "model.weights=null"],
    "region": ["model=resnet18_region", *TINY[1:]],
}


@pytest.fixture(scope="module")
def run(trained_once: Callable[..., Path]) -> Path:
    """A run that learned enough for its probabilities to be calibrated."""
    found = trained_once(*LEARNS)
    assert record(found)["calibration"]["slope"] is not None
    return found


@pytest.fixture(scope="module")
def made(run: Path, once: Callable[..., Path]) -> Path:
    """The bundle of a run, which a test that changes it copies."""

    def make(folder: Path) -> None:
        assert bundle.main([str(run), "--out", str(folder / "bundle")]) == 0

    return once("bundle", make) / "bundle"


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def predictions_of(run: Path) -> pd.DataFrame:
    """A run's predictions at its selected epoch, by cell."""
    frame = pd.read_parquet(run / "predictions.parquet")
    selection = record(run)["selection"]
    chosen = frame[(frame["epoch"] == selection["epoch"]) & (frame["split"] == selection["set"])]
    return chosen.set_index("cell")


def files_of(tree: Path, cells: Any) -> list[Path]:
    """The images of cells of train and prelim."""
    index = build_index(tree)
    table = index.table[index.table["part"] != "final"].set_index("cell")
    return [index.root / file for file in table["file"][list(cells)]]


def signed(document: dict[str, Any]) -> str:
    return json.dumps(document | {DIGEST: record_digest(document)})


def calibrated(logit: Any, of: dict[str, Any]) -> Any:
    z = of["intercept"] + of["slope"] * (np.asarray(logit, float) - of["log_pos_weight"])
    return 1 / (1 + np.exp(-z))


def test_the_runs_logits_come_back(made: Path, run: Path, small_tree: Path) -> None:
    stored = predictions_of(run)
    found = leukocls.load_bundle(made, "cpu").predict(files_of(small_tree, stored.index))
    # Prelim's files have other names than its cells.
    assert found["logit"].to_numpy() == pytest.approx(stored["logit"].to_numpy(), abs=1e-5)
    views = stored[[name for name in stored if str(name).startswith("view_")]]
    assert found["view_sd"].to_numpy() == pytest.approx(views.std(axis=1, ddof=0), abs=1e-5)
    calibration = record(run)["calibration"]
    assert found["prob"].to_numpy() == pytest.approx(
        calibrated(stored["logit"], calibration), abs=1e-6
    )
    assert found["label"].tolist() == ["ALL" if z > 0 else "HEM" for z in stored["logit"]]
    assert (found["reason"] == "").all()
    assert found["use"].str.contains("not a diagnosis").all()


def test_timm_alone_gives_the_calibrated_probability_of_view_0(
    trained_once: Callable[..., Path], small_tree: Path, tmp_path: Path
) -> None:
    """timm's own transform cuts out the same pixels where nothing is resized."""
    run = trained_once(*LEARNS, "data.size=null", "data.crop=60")
    assert bundle.main([str(run), "--out", str(tmp_path / "bundle")]) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'bundle'}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    stored = predictions_of(run)
    images = [transform(Image.open(path)) for path in files_of(small_tree, stored.index)]
    with torch.inference_mode():
        prob = torch.stack([model(image[None]).softmax(1)[0, 1] for image in images]).numpy()
    calibration = record(run)["calibration"]
    assert calibration["slope"] is not None
    wanted = calibrated(stored["view_0"], calibration)
    assert prob == pytest.approx(wanted, abs=1e-6)
    assert model.pretrained_cfg["label_names"] == ["HEM", "ALL"]


@pytest.mark.parametrize("name", OTHERS)
def test_networks_that_timm_cannot_hold_are_whole(
    name: str, trained_once: Callable[..., Path], small_tree: Path, tmp_path: Path
) -> None:
    run = trained_once(*OTHERS[name], "trainer.max_epochs=1")
    assert bundle.main([str(run), "--out", str(tmp_path / "bundle")]) == 0
    assert not (tmp_path / "bundle/config.json").exists()
    stored = predictions_of(run)
    found = leukocls.load_bundle(tmp_path / "bundle").predict(files_of(small_tree, stored.index))
    assert found["logit"].to_numpy() == pytest.approx(stored["logit"].to_numpy(), abs=1e-5)


def test_several_runs_are_their_mean(
    trained: Path, trained_once: Callable[..., Path], small_tree: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    runs = [trained, trained_once("seed=1")]
    out = tmp_path / "both"
    assert bundle.main([*map(str, runs), "--out", str(out)]) == 0
    stored = [predictions_of(run) for run in runs]
    predictor = leukocls.load_bundle(out)
    found = predictor.predict(files_of(small_tree, stored[0].index))
    mean = np.mean([one["logit"].to_numpy() for one in stored], axis=0)
    assert found["logit"].to_numpy() == pytest.approx(mean, abs=1e-5)
    capsys.readouterr()
    words = ["--ensemble", "mean-logit", "--split", "prelim", "--json"]
    assert evaluate.main([*map(str, runs), *words]) == 0
    ensemble = json.loads(capsys.readouterr().out)
    (measured,) = (one for one in predictor.bundle.document["metrics"] if one["split"] == "prelim")
    assert measured["weighted_f1"] == pytest.approx(ensemble["weighted_f1"])


def test_the_card_says_what_the_numbers_may_be_called(made: Path, run: Path) -> None:
    card = ModelCard.load(made / "README.md")
    results = {one.metric_name: one.metric_value for one in card.data.eval_results}
    values = record(run)["metrics"]["prelim"]
    assert results["weighted_f1 (selection, prelim)"] == pytest.approx(
        values["weighted_f1"], abs=1e-4
    )
    assert not any("test" in name for name in results)
    text = (made / "README.md").read_text(encoding="utf-8")
    assert "**SYNTHETIC**" in text
    assert "not a diagnosis" in text
    document = json.loads((made / DOCUMENT).read_text(encoding="utf-8"))
    assert document["marks"] == ["SYNTHETIC"]
    assert document["members"][0]["weights_sha256"] == record(run)["weights_sha256"]
    assert set(document["files"]) == {"README.md", "config.json", "model.safetensors"}


def test_threshold_and_calibration_do_not_look_at_test_labels(
    trained_once: Callable[..., Path], tmp_path: Path
) -> None:
    """Labels of the test set, exchanged in a run that is signed anew, change neither."""
    from leukocls.artifacts import predictions
    from leukocls.artifacts.record import write_record

    run = trained_once("split_scheme=honest", "folds=3", "trainer.max_epochs=1")
    changed = Path(shutil.copytree(run, tmp_path / "x/proposal/seed_000"))
    frame = predictions.read(changed / "predictions.parquet")
    test = frame["split"] == "prelim"
    frame.loc[test, "label"] = 1 - frame.loc[test, "label"]
    predictions.write(changed / "predictions.parquet", frame)
    write_record(changed, record(changed) | {"predictions_sha256": predictions.digest(frame)})
    documents = []
    for number, one in enumerate((run, changed)):
        assert bundle.main([str(one), "--out", str(tmp_path / f"bundle{number}")]) == 0
        documents.append(open_bundle(tmp_path / f"bundle{number}").document)
    first, second = documents
    assert first["threshold"] == second["threshold"]
    assert first["calibration"] == second["calibration"]
    assert first["conformal"] == second["conformal"]
    assert first["metrics"] != second["metrics"]


def test_it_abstains_at_a_level_that_its_persons_allow(
    made: Path, run: Path, small_tree: Path
) -> None:
    """Three persons of each class allow α ≥ 1/4."""
    stored = predictions_of(run)
    level = leukocls.load_bundle(made, alpha=0.3).level
    person = stored["person"].to_numpy(str)
    label, logit = stored["label"].to_numpy(), stored["logit"].to_numpy()
    table = conformal_table(label, logit, person)["levels"]
    assert level == pytest.approx(next(one for one in table if one["alpha"] == 0.3))
    found = leukocls.load_bundle(made, "cpu", 0.3).predict(files_of(small_tree, stored.index))
    wanted = np.where(logit > 0, logit <= level["hem_below"], logit >= level["all_above"])
    wanted |= np.where(logit > 0, logit < level["all_above"], logit > level["hem_below"])
    clear = np.abs(logit[:, None] - [level["hem_below"], level["all_above"]]).min(1) > 1e-5
    assert (found["abstain"].to_numpy() == np.where(wanted, "yes", "no"))[clear].all()
    assert clear.mean() > 0.8
    assert leukocls.load_bundle(made).level is None
    with pytest.raises(LeukoclsError, match="alpha"):
        leukocls.load_bundle(made, alpha=0.1)


def test_held_out_cells_of_all_folds_fit_calibration_and_abstention(
    trained_once: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*LEARNS, "split_scheme=subject", "folds=2"]
    folds = [str(trained_once(*words, f"fold={fold}")) for fold in (0, 1)]
    out = tmp_path / "bundle"
    assert bundle.main([folds[0], "--out-of-fold", *folds, "--out", str(out)]) == 0
    document = open_bundle(out).document
    assert document["conformal"]["persons"] == {"ALL": 6, "HEM": 5}
    cells = sum(len(predictions_of(Path(fold))) for fold in folds)
    capsys.readouterr()
    assert evaluate.main([*folds, "--pool", "--calibrate", "--json"]) == 0
    pooled = json.loads(capsys.readouterr().out)["calibration"]
    assert pooled["cells"] == cells
    for name in ("cells", "intercept", "slope"):
        assert document["calibration"][name] == pooled[name]
    new = ["--out", str(tmp_path / "other")]
    other = trained_once("split_scheme=subject", "folds=2", "fold=0", "views=2")
    with pytest.raises(LeukoclsError, match="another recipe"):
        bundle.main([folds[0], "--out-of-fold", str(other), folds[1], *new])
    with pytest.raises(LeukoclsError):
        bundle.main([folds[0], "--out-of-fold", folds[1], *new])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "config.json"])
def test_a_flipped_byte_is_named(name: str, copy: Path) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(DataFault, match=name):
        open_bundle(copy)


def test_a_lost_or_truncated_file_is_named(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DataFault, match=r"model\.safetensors"):
        open_bundle(copy)
    weights.unlink()
    with pytest.raises(DataFault, match=r"model\.safetensors"):
        open_bundle(copy)
    (copy / DOCUMENT).write_text((copy / DOCUMENT).read_text()[:-100])
    with pytest.raises(DataFault, match=DOCUMENT):
        open_bundle(copy)


def test_an_edited_document_is_refused(copy: Path) -> None:
    text = (copy / DOCUMENT).read_text(encoding="utf-8")
    (copy / DOCUMENT).write_text(text.replace('"heading": "selection"', '"heading": "test"'))
    with pytest.raises(DataFault, match=DIGEST):
        open_bundle(copy)


@pytest.mark.parametrize("entry", [
    "threshold", "members", "files", "format", "threshold.logit", "calibration",
    "calibration.slope", "conformal.levels", "conformal.levels.0.alpha", "members.0.crop",
    "members.0.side", "members.0.view_weights",
])  # fmt: skip
def test_a_missing_entry_is_named(entry: str, copy: Path) -> None:
    document = json.loads((copy / DOCUMENT).read_text(encoding="utf-8"))
    *above, last = entry.split(".")
    held = document
    for part in above:
        held = held[int(part) if part.isdigit() else part]
    value = held.pop(last)
    name = entry.replace(".0", "").replace(".", r"\.")
    (copy / DOCUMENT).write_text(signed(document))
    with pytest.raises(DataFault, match=f"the entry {name} is missing"):
        open_bundle(copy)
    held[last] = {} if isinstance(value, list) else [value]
    (copy / DOCUMENT).write_text(signed(document))
    with pytest.raises(DataFault, match=f"the entry {name} holds another kind of value"):
        open_bundle(copy)


@pytest.mark.parametrize("entry", ["crop", "size", "side", "views"])
@pytest.mark.parametrize("value", [0, 10**9])
def test_a_number_that_would_fill_the_memory_is_refused(entry: str, value: int, copy: Path) -> None:
    document = json.loads((copy / DOCUMENT).read_text(encoding="utf-8"))
    document["members"][0][entry] = value
    (copy / DOCUMENT).write_text(signed(document))
    with pytest.raises(DataFault, match=f"members.{entry} is {value}, and not from 1"):
        open_bundle(copy)


@pytest.mark.parametrize(("change", "said"), [
    (lambda document: document["members"][0].update(crop="middle"), "members.crop is middle"),
    (lambda document: document["members"][0].update(views="all"), "members.views is all"),
    (lambda document: document["members"][0].update(view_weights=[]), "view_weights is empty"),
    (lambda document: document["threshold"].update(logit=float("nan")), "NaN is no number"),
    (lambda document: document.update(distance={"scale": 1}), "distance.file is missing"),
    (lambda document: document.update(marks=["NEW"]), "unknown mark, NEW; install a newer"),
])  # fmt: skip
def test_an_entry_without_a_meaning_is_refused(
    change: Callable[[dict[str, Any]], None], said: str, copy: Path
) -> None:
    document = json.loads((copy / DOCUMENT).read_text(encoding="utf-8"))
    change(document)
    (copy / DOCUMENT).write_text(signed(document))
    with pytest.raises(LeukoclsError, match=said):
        open_bundle(copy)


@pytest.mark.parametrize("backbone", ["hf-hub:somebody/network", "local-dir:/somewhere"])
def test_a_bundle_fetches_no_network(backbone: str, copy: Path) -> None:
    document = json.loads((copy / DOCUMENT).read_text(encoding="utf-8"))
    document["members"][0]["network"]["backbone"] = backbone
    (copy / DOCUMENT).write_text(signed(document))
    with pytest.raises(LeukoclsError, match=f"{backbone} is described elsewhere"):
        leukocls.load_bundle(copy)


def test_a_leaky_run_makes_a_leaky_bundle(
    trained_once: Callable[..., Path], tmp_path: Path
) -> None:
    run = trained_once("split_scheme=cell", "folds=2", "fold=0", "trainer.max_epochs=1")
    assert bundle.main([str(run), "--out", str(tmp_path / "bundle")]) == 0
    assert "LEAKY" in json.loads((tmp_path / "bundle" / DOCUMENT).read_text())["marks"]
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert re.search(r"\*\*[A-Z ]*LEAKY\*\*: .*scored persons or images were also trained on", card)


def test_an_edited_split_is_not_bundled(run: Path, tmp_path: Path) -> None:
    edited = Path(shutil.copytree(run, tmp_path / run.name))
    text = (edited / "split.csv").read_text()
    (edited / "split.csv").write_text(text.replace(",train", ",prelim", 1))
    with pytest.raises(DataFault, match=r"split\.csv: edited since the run wrote it"):
        bundle.main([str(edited), "--out", str(tmp_path / "bundle")])
    assert not (tmp_path / "bundle").exists()


def test_own_data_make_a_bundle_for_images_of_any_size(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    """Whatever their table is called. timm, which enlarges images before it crops, is left out."""
    index = build_index(small_tree)
    rows = index.table[index.table["part"] == "train"]
    (tmp_path / "lab").mkdir()
    lines = ["cell\tsubject\tlabel\tpath"]
    for row in rows.itertuples():
        name = f"{row.Index}.png"
        with Image.open(index.root / row.file) as image:
            image.crop((100, 100, 350, 340)).save(tmp_path / "lab" / name)
        lines.append(f"{name}\tP{row.subject}\t{'ALL' if row.label else 'HEM'}\t{name}")
    table = tmp_path / "lab" / "cells.tsv"
    table.write_text("\n".join(lines) + "\n")
    words = [
        *small(table, tmp_path / "outputs"),
        "split_scheme=subject",
        "folds=2",
        "fold=0",
        "data.crop=200",
    ]
    done = train(*words, "trainer.max_epochs=1")
    assert done.code == 0, done.err
    run = only_run(tmp_path / "outputs")
    assert bundle.main([str(run), "--out", str(tmp_path / "bundle")]) == 0
    assert not (tmp_path / "bundle/config.json").exists()
    card = (tmp_path / "bundle/README.md").read_text()
    assert "Cells of a data set described by a CSV" in card
    assert "create_model" not in card
    predictor = leukocls.load_bundle(tmp_path / "bundle", "cpu")
    assert predictor.side is None
    scored = predictions_of(run)
    scored = scored[scored["split"] == "val"]
    found = predictor.predict([tmp_path / "lab" / cell for cell in scored.index])
    assert found["logit"].to_numpy() == pytest.approx(scored["logit"].to_numpy(), abs=1e-5)


def test_an_edited_configuration_is_not_bundled(run: Path, tmp_path: Path) -> None:
    edited = Path(shutil.copytree(run, tmp_path / run.name))
    text = (edited / "config.yaml").read_text()
    (edited / "config.yaml").write_text(re.sub("^views: .*", "views: 3", text, flags=re.M))
    with pytest.raises(DataFault, match=r"config\.yaml: edited .*: views .*restore it"):
        bundle.main([str(edited), "--out", str(tmp_path / "bundle")])
    assert not (tmp_path / "bundle").exists()


def test_a_newer_format_is_refused(copy: Path) -> None:
    document = json.loads((copy / DOCUMENT).read_text(encoding="utf-8"))
    (copy / DOCUMENT).write_text(signed(document | {"format": FORMAT + 1}))
    with pytest.raises(LeukoclsError, match=str(FORMAT + 1)):
        open_bundle(copy)


@pytest.mark.parametrize("target", [
    "os.system", "torch.hub.load", "leukocls.models.weights.torch.hub.load",
    "leukocls.models.nothing.Network", "torch.optim.Adam",
])  # fmt: skip
def test_a_hostile_network_is_not_built(target: str, copy: Path) -> None:
    document = json.loads((copy / DOCUMENT).read_text(encoding="utf-8"))
    document["members"][0]["network"]["_target_"] = target
    (copy / DOCUMENT).write_text(signed(document))
    with pytest.raises(LeukoclsError, match=target.replace(".", r"\.")):
        leukocls.load_bundle(copy)


def test_text_in_a_bundle_that_becomes_an_object_is_not_built(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "attack.pickle").write_bytes(pickle.dumps(Payload()))
    call = f"_target_:pandas.read_pickle,_args_:['{tmp_path}/attack.pickle']"
    document = json.loads((copy / DOCUMENT).read_text(encoding="utf-8"))
    document["members"][0]["network"]["options"] = f"${{oc.create:{{{call}}}}}"
    (copy / DOCUMENT).write_text(signed(document))
    with pytest.raises(LeukoclsError, match=r"oc\.create.*not allowed"):
        leukocls.load_bundle(copy)
    assert not Path("executed").exists()


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd"])
def test_files_lie_inside(name: str, copy: Path) -> None:
    document = json.loads((copy / DOCUMENT).read_text(encoding="utf-8"))
    document["files"][name] = "0" * 64
    (copy / DOCUMENT).write_text(signed(document))
    with pytest.raises(DataFault, match="outside"):
        open_bundle(copy)


class Payload:
    def __reduce__(self) -> Any:
        return (Path("executed").touch, ())


def test_a_renamed_pickle_is_not_loaded(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if its author has signed it."""
    monkeypatch.chdir(tmp_path)
    weights = copy / "model.safetensors"
    weights.write_bytes(pickle.dumps(Payload()))
    document = json.loads((copy / DOCUMENT).read_text(encoding="utf-8"))
    document["files"]["model.safetensors"] = sha256_file(weights)
    (copy / DOCUMENT).write_text(signed(document))
    with pytest.raises(DataFault, match=r"model\.safetensors"):
        leukocls.load_bundle(copy)
    assert not Path("executed").exists()


def test_weights_of_another_network_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    state = load_file(weights)
    del state[next(name for name in state if name.endswith(".weight"))]
    save_file(state, weights)
    document = json.loads((copy / DOCUMENT).read_text(encoding="utf-8"))
    document["files"]["model.safetensors"] = sha256_file(weights)
    (copy / DOCUMENT).write_text(signed(document))
    with pytest.raises(DataFault, match=r"model\.safetensors"):
        leukocls.load_bundle(copy)


def test_what_cannot_be_bundled_writes_nothing(made: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(LeukoclsError, match="exists"):
        bundle.main([str(trained), "--out", str(made)])
    with pytest.raises(LeukoclsError, match="twice"):
        bundle.main([str(trained), str(trained), "--out", str(tmp_path / "new")])
    with pytest.raises(LeukoclsError, match=r"run\.json"):
        bundle.main([str(tmp_path), "--out", str(tmp_path / "new")])
    changed = Path(shutil.copytree(trained, tmp_path / "x/proposal/seed_000"))
    (changed / "checkpoints/best.safetensors").write_bytes(b"no weights")
    with pytest.raises(LeukoclsError, match="best"):
        bundle.main([str(changed), "--out", str(tmp_path / "new")])
    with pytest.raises(LeukoclsError, match="no bundle"):
        open_bundle(tmp_path)
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".bundle-*"))


def test_no_secret_of_the_environment_is_in_a_bundle(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was logged with this key in its environment."""
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    assert bundle.main([str(trained), "--out", str(tmp_path / "bundle")]) == 0
    for path in (tmp_path / "bundle").rglob("*"):
        assert CANARY.encode() not in path.read_bytes()


def test_a_run_is_read_for_programs(trained: Path) -> None:
    run = leukocls.load_run(trained)
    assert run.record["id"] == record(trained)["id"]
    assert set(run.metrics) == set(run.predictions["split"])
    values = run.metrics["prelim"]
    assert values["weighted_f1"] == pytest.approx(
        record(trained)["metrics"]["prelim"]["weighted_f1"]
    )
    assert values["heading"] == "selection"
    with pytest.raises(AttributeError):
        leukocls.load_nothing  # noqa: B018
