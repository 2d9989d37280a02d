"""The verb `baseline`: its run directory is read by evaluate and runs like any network's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import Outcome, only_run, record
from PIL import Image
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from leukocls import baseline, runs
from leukocls.artifacts import lineage, predictions
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.common.files import sha256_file
from leukocls.data import features
from leukocls.data.names import FEATURE_KINDS
from leukocls.data.verify import checked_index
from leukocls.evaluation import metrics, scoring
from leukocls.evaluation.metrics import auroc
from leukocls.launch.settings import model_group
from leukocls.models.timm_network import TimmNetwork
from leukocls.models.weights import weights_file
from leukocls.reporting import tables
from leukocls.synthetic.tree import SyntheticSpec, write_tree
from leukocls.training import backbone_features, probes

Verb = Callable[..., Outcome]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all tests keep between runs."""
    return tmp_path_factory.mktemp("baseline") / "store"


@pytest.fixture
def verb(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verb:
    """`python -m leukocls.baseline …` in this process, writing below the test's folder."""

    def run(*arguments: object) -> Outcome:
        places = ["--outputs", tmp_path / "outputs", "--cache", cache]
        capsys.readouterr()
        code = baseline.main([str(argument) for argument in (*places, *arguments)])
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


def without_place(result: dict[str, Any]) -> dict[str, Any]:
    """The metrics in one result of evaluate, as run.json has them."""
    kept = {k: v for k, v in result.items() if k in ("missing", "notes", "subject") or k in METRICS}
    return kept | {"subject": {k: v for k, v in kept["subject"].items() if k != "per_subject"}}


METRICS = {
    *("n", "n_subjects", "prevalence", *metrics.COUNTS),
    *(*metrics.RATES, *metrics.GRADED),
}


def test_names_the_kinds_that_there_are() -> None:
    assert tuple(features.KINDS) == FEATURE_KINDS


def test_run_directory_is_read_like_any_other(small_tree: Path, tmp_path: Path, verb: Verb) -> None:
    done = verb(small_tree, "--features", "size")
    directory = tmp_path / "outputs" / "baseline" / "size" / "seed_000"
    assert done.code == 0
    assert done.out.splitlines()[-1] == str(directory)
    run = record(directory)
    assert (run["status"], run["split_scheme"], run["marks"]) == (
        "done",
        "challenge",
        ["SYNTHETIC"],
    )
    assert run["selection"] == {"rule": "last", "set": "prelim", "epoch": 1}
    assert (run["threshold"], run["view_weights"], run["weights_sha256"]) == (0.5, [1.0], None)
    assert {"scikit-learn", "scikit-image"} < run["versions"].keys()

    frame = predictions.read(directory / "predictions.parquet")
    assert predictions.digest(frame) == run["predictions_sha256"]
    assert set(frame["split"]) == {"prelim"}
    assert (frame["view_0"] == frame["logit"]).all()
    (part,) = scoring.scored_parts(directory, scoring.ScoringOptions())
    result = scoring.metrics_of(part)
    assert without_place(result) == run["metrics"]["prelim"]
    assert tables.result_text(result) in done.out
    shown = [line for line in tables.result_text(result).splitlines() if line.strip()]
    assert "\n".join(shown) in (directory / "log.txt").read_text()
    assert runs.run_row(directory)["headline"]["set"] == "prelim"


def test_coefficients_give_the_logits_again(small_tree: Path, tmp_path: Path, verb: Verb) -> None:
    verb(small_tree, "--features", "colour")
    directory = only_run(tmp_path / "outputs")
    frame = predictions.read(directory / "predictions.parquet")
    table = pd.read_csv(directory / "coefficients.csv").set_index("feature")
    folder = next(small_tree.rglob("C-NMC_test_prelim_phase_data"))
    values = features.extract([folder / cell for cell in frame["cell"]], "colour")
    values["intercept"] = 1.0
    scaled = (values[table.index] - table["mean"]) / table["sd"]
    assert scaled.to_numpy() @ table["coefficient"] == pytest.approx(frame["logit"], abs=1e-5)
    size = table["coefficient"].abs()[1:]
    assert size.is_monotonic_decreasing


@pytest.fixture(scope="module")
def measured() -> tuple[pd.DataFrame, np.ndarray, pd.Series]:
    """Features, labels and persons of 200 cells, of which persons explain a part."""
    rng = np.random.default_rng(0)
    person = pd.Series(rng.integers(0, 20, 200)).map("P{:02d}".format)
    label = (person.str[1:].astype(int) % 2).to_numpy()
    own = person.map(dict(zip(sorted(set(person)), rng.normal(size=20), strict=True)))
    values = rng.normal(3, [1, 5, 0.1], (200, 3)) + label[:, None] + own.to_numpy()[:, None]
    return pd.DataFrame(values, columns=list("abc")), label, person


def test_the_fit_is_the_penalised_optimum(
    measured: tuple[pd.DataFrame, np.ndarray, pd.Series],
) -> None:
    x, y, person = measured
    model = probes.fit(x, y, person, "logistic", seed=0)
    z = ((x - x.mean()) / x.std(ddof=0)).to_numpy()
    residual = y - 1 / (1 + np.exp(-model.logits(x)))
    # The gradient of Σ log-likelihood − ½ |w|² / C, whose intercept is free.
    weights = model.pipeline[-1].coef_[0]
    assert z.T @ residual == pytest.approx(weights / model.value, abs=1e-5)
    assert residual.sum() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", probes.GRIDS)
@pytest.mark.parametrize("by", ["person", "cell"])
def test_the_parameter_is_chosen_on_persons_that_are_held_out(
    measured: tuple[pd.DataFrame, np.ndarray, pd.Series], name: str, by: str
) -> None:
    """The oracle is scikit-learn's own cross-validation over the same folds."""
    x, y, person = measured
    known = person if by == "person" else pd.Series("", person.index)
    model = probes.fit(x, y, known, name, seed=3)
    folds = probes._folds(known, y, 3)
    assert folds is not None
    together = pd.Series(folds).groupby(person).nunique()
    assert bool(together.max() == 1) is (by == "person")
    expected = {}
    for value in probes.GRIDS[name]:
        classifier = (
            LogisticRegression(C=value, tol=1e-6, max_iter=1000)
            if name == "logistic"
            else KNeighborsClassifier(int(value), metric="cosine")
        )
        probability = cross_val_predict(
            make_pipeline(StandardScaler(), classifier), x, y, cv=PredefinedSplit(folds),
            method="predict_proba",
        )  # fmt: skip
        expected[f"{value:g}"] = roc_auc_score(y, probability[:, 1])
    assert model.auroc == pytest.approx(expected, abs=2e-3)
    assert model.auroc[f"{model.value:g}"] == max(model.auroc.values())
    assert np.isfinite(model.logits(x)).all()
    assert (model.coefficients() is None) is (name == "knn")


def test_with_one_person_of_a_class_the_default_is_used(
    measured: tuple[pd.DataFrame, np.ndarray, pd.Series],
) -> None:
    x, y, person = measured
    for name in probes.GRIDS:
        model = probes.fit(x, y, person.where(y == 1, "Q"), name, seed=0)
        assert (model.value, model.auroc) == (probes.DEFAULTS[name], {})


def test_folds_that_leave_one_class_to_train_on_are_not_used() -> None:
    """Persons of both classes, so unlike that one fold gets all HEM cells."""
    cells = [("1", 0)] * 100 + [("1", 1)] * 10 + [("2", 0)] + [("2", 1)] * 10 + [("3", 1)] * 20
    person, label = (pd.Series(column) for column in zip(*cells, strict=True))
    table = pd.DataFrame({"a": np.random.default_rng(0).normal(size=len(cells))})
    for name in probes.GRIDS:
        model = probes.fit(table, label, person, name, seed=0)
        assert np.isfinite(model.logits(table)).all()


@pytest.fixture(scope="module")
def lite0() -> Path:
    try:
        return weights_file("lite0")
    except LeukoclsError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("classifier", probes.GRIDS)
def test_a_networks_features_are_probed(
    classifier: str, lite0: Path, small_tree: Path, tmp_path: Path, verb: Verb
) -> None:
    words = ("--features", "efficientnetlite0", "--size", 64, "--classifier", classifier)
    assert verb(small_tree, *words).code == 0
    named = "" if classifier == "logistic" else "classifier=knn,"
    directory = tmp_path / f"outputs/baseline/efficientnetlite0,{named}size=64/seed_000"
    run = record(directory)
    assert run["inputs"]["weights"] == sha256_file(lite0)
    assert run["identity"]["pretraining"] == "imagenet"
    parameter = probes.PARAMETERS[classifier]
    assert run["chosen"][parameter] in probes.GRIDS[classifier]
    assert len(run["chosen"]["auroc"]) == len(probes.GRIDS[classifier])
    assert (directory / "coefficients.csv").is_file() is (classifier == "logistic")
    assert "done already" in verb(small_tree, *words).out


def test_the_features_are_those_of_the_published_network(
    lite0: Path, small_tree: Path, tmp_path: Path
) -> None:
    """The oracle reads, crops, resizes and normalises one image by itself."""
    index = checked_index(small_tree, cache=tmp_path).only(["prelim"])
    group = model_group("frozen_efficientnetlite0")
    assert group is not None
    settings = backbone_features.settings_of(group)
    table = backbone_features.backbone_table(index, "0" * 64, settings, 300, 64, tmp_path)
    image = Image.open(small_tree / index.table["file"].iloc[3]).crop((75, 75, 375, 375))
    small = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR), np.float32)
    pixels = torch.from_numpy((small - 127) / 128).permute(2, 0, 1)[None]
    network = TimmNetwork("tf_efficientnet_lite0", weights="lite0", outputs=1000).backbone.eval()
    with torch.no_grad():
        pooled = network.global_pool(network.forward_features(pixels))[0].numpy()
    assert table.iloc[3].to_numpy() == pytest.approx(pooled, abs=1e-4 * float(np.abs(pooled).max()))


def test_weights_that_have_seen_the_scored_persons_make_a_probe_leaky(
    lite0: Path, small_tree: Path, tmp_path: Path, verb: Verb
) -> None:
    network = TimmNetwork("tf_efficientnet_lite0", weights="lite0")
    prelim = pd.DataFrame(checked_index(small_tree, cache=tmp_path).only(["prelim"]).table)
    seen = lineage.lineage_of(prelim.assign(split="train"), "train", True, [])
    save_file(network.state_dict(), tmp_path / "w.safetensors", lineage.as_metadata(seen))
    words = ("--features", "efficientnetlite0", "--size", 32)
    verb(small_tree, *words, "--weights", tmp_path / "w.safetensors")
    run = record(only_run(tmp_path / "outputs"))
    assert run["marks"] == ["SYNTHETIC", "LEAKY"]
    assert "weights=" in only_run(tmp_path / "outputs").parent.name
    # What chose the epoch of the weights is no test, as for a network.
    chose = lineage.lineage_of(prelim.assign(split="val"), "val", True, [])
    save_file(network.state_dict(), tmp_path / "w.safetensors", lineage.as_metadata(chose))
    honest = ("--split-scheme", "honest", "--folds", 3)
    with pytest.raises(LeukoclsError, match="its epoch was chosen on cells that this split"):
        verb(small_tree, *words, "--weights", tmp_path / "w.safetensors", *honest)


def test_a_network_that_takes_another_size_is_told(
    small_tree: Path, tmp_path: Path, verb: Verb
) -> None:
    network = timm.create_model("test_vit", num_classes=0)
    folder = tmp_path / "net"
    folder.mkdir()
    config = {"architecture": "test_vit", "num_classes": 0, "model_args": {}}
    config["model_args"] = {"img_size": 160, "dynamic_img_size": False}
    config["pretrained_cfg"] = {"num_classes": 0, "mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(network.state_dict(), folder / "model.safetensors")
    words = (small_tree, "--features", f"local-dir:{folder}")
    with pytest.raises(LeukoclsError, match=r"does not take images of 32 px.*Choose --size"):
        verb(*words, "--size", 32)
    assert verb(*words, "--size", 160).code == 0
    (done,) = [path.parent for path in tmp_path.rglob("run.json") if record(path.parent)["chosen"]]
    # Where the folder lies is not part of the run's name or settings.
    assert str(tmp_path) not in (done / "config.yaml").read_text()
    assert done.parent.name.startswith("local-dir-net,size=160")


def test_the_same_command_again_does_nothing(small_tree: Path, tmp_path: Path, verb: Verb) -> None:
    first = verb(small_tree, "--features", "mask")
    directory = only_run(tmp_path / "outputs")
    before = record(directory)
    again = verb(small_tree, "--features", "mask")
    assert "done already" in again.out
    assert first.out in again.out
    assert record(directory) == before
    verb(small_tree, "--features", "mask", "--force")
    assert record(directory)["predictions_sha256"] == before["predictions_sha256"]


@pytest.mark.parametrize(
    ("arguments", "arm", "scored", "marks"),
    [
        ("--split-scheme honest --folds 3", "folds=3,split_scheme=honest", "val test", []),
        ("--split-scheme cell --fold 2", "fold=2,split_scheme=cell", "val", ["LEAKY"]),
    ],
)
def test_every_scheme_scores_all_but_train(
    arguments: str,
    arm: str,
    scored: str,
    marks: list[str],
    small_tree: Path,
    tmp_path: Path,
    verb: Verb,
) -> None:
    verb(small_tree, "--features", "size", *arguments.split())
    directory = tmp_path / "outputs" / "baseline" / f"size,{arm}" / "seed_000"
    run = record(directory)
    assert run["marks"] == ["SYNTHETIC", *marks]
    names = [name.replace("test", "prelim") for name in scored.split()]
    assert sorted(run["metrics"]) == sorted(names)
    found = scoring.scored_parts(directory, scoring.ScoringOptions())
    headings = {part.origin["split"]: part.origin["heading"] for part in found}
    assert headings == {"val": "selection"} | ({"prelim": "test"} if len(names) > 1 else {})

    split = pd.read_csv(directory / "split.csv", dtype=str)
    assert set(split["split"]) == {"train", *names}
    frame = predictions.read(directory / "predictions.parquet")
    assert set(frame["cell"]) == set(split["cell"][split["split"] != "train"])
    group = split.set_index("cell")["group"]
    assert frame["person"].to_list() == frame["cell"].map(group).to_list()
    persons = frame.groupby("split")["person"].nunique().to_dict()
    assert {name: run["metrics"][name]["n_subjects"] for name in names} == persons


def test_json_is_all_there_is_on_standard_output(small_tree: Path, verb: Verb) -> None:
    arguments = (small_tree, "--features", "size", "--json")
    document = json.loads(verb(*arguments).out)
    assert document["results"][0]["split"] == "prelim"
    assert document["id"].startswith("baseline-size-s0-")
    assert json.loads(verb(*arguments).out) == document


def test_features_are_measured_once(
    small_tree: Path, tmp_path: Path, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = (small_tree, "--features", "size", "--cache", tmp_path / "own")
    verb(*own)
    monkeypatch.setattr(features, "extract", lambda *_: pytest.fail("measured again"))
    verb(*own, "--split-scheme", "subject", "--folds", 2)
    assert len(list((tmp_path / "own").glob("features-size-*.parquet"))) == 1


def test_a_failure_is_recorded(
    small_tree: Path, tmp_path: Path, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(features, "extract", fail)
    own = (small_tree, "--features", "size", "--cache", tmp_path / "own")
    with pytest.raises(MemoryError):
        verb(*own)
    run = record(only_run(tmp_path / "outputs"))
    assert (run["status"], run["error"]) == ("failed", "MemoryError: no room")
    monkeypatch.undo()
    assert verb(*own).code == 0


def test_another_recipe_in_the_same_directory_is_refused(
    small_tree: Path, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb(small_tree, "--features", "size")
    monkeypatch.setitem(probes.GRIDS, "logistic", (2.0,))
    with pytest.raises(LeukoclsError, match=r"model\.C \(.* → .*2\.0"):
        verb(small_tree, "--features", "size")
    assert verb(small_tree, "--features", "size", "--force").code == 0


def test_bad_input_is_refused(small_tree: Path, tmp_path: Path, verb: Verb) -> None:
    with pytest.raises(LeukoclsError, match="no such folder"):
        verb(tmp_path / "nowhere", "--features", "size")
    with pytest.raises(LeukoclsError, match=r"--features shape: none of size, mask, colour"):
        verb(small_tree, "--features", "shape")
    with pytest.raises(LeukoclsError, match="--weights: only for the features of a network"):
        verb(small_tree, "--features", "size", "--weights", "lite0")
    assert not (tmp_path / "outputs").exists()
    with pytest.raises(LeukoclsError, match="split_scheme=random"):
        verb(small_tree, "--features", "size", "--split-scheme", "random")

    one_class = tmp_path / "one_class"
    shutil.copytree(small_tree, one_class)
    for folder in one_class.rglob("hem"):
        shutil.rmtree(folder)
    with pytest.raises(DataFault, match=r"images"):
        verb(one_class, "--features", "size")
    with pytest.raises(LeukoclsError, match="one class only"):
        verb(one_class, "--features", "size", "--partial")


def test_the_verb_prints_one_document(small_tree: Path, verb: Verb) -> None:
    done = verb(small_tree, "--features", "handcrafted", "--json")
    assert (done.code, done.err) == (0, "")
    assert (Path(json.loads(done.out)["run"]) / "run.json").is_file()


@pytest.mark.parametrize("kind", FEATURE_KINDS)
def test_genuine_sample(kind: str, sample_root: Path, tmp_path: Path, verb: Verb) -> None:
    verb(sample_root, "--features", kind, "--partial", "--split-scheme", "subject", "--folds", 2)
    run = record(only_run(tmp_path / "outputs"))
    assert run["marks"] == ["PARTIAL"]
    assert run["metrics"]["val"]["n"] > 20


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_colour_shows_a_shortcut_and_nothing_else(
    correlation: float, tmp_path: Path, verb: Verb
) -> None:
    spec = SyntheticSpec(
        train_subjects_all=20, train_subjects_hem=20, prelim_subjects_all=16,
        prelim_subjects_hem=16, cells_per_subject=2, final_cells=4, auroc_bayes=0.5,
        class_nuisance_correlation=correlation,
    )  # fmt: skip
    root = write_tree(tmp_path / "tree", spec, progress=False)
    verb(root, "--features", "colour")
    frame = predictions.read(only_run(tmp_path / "outputs") / "predictions.parquet")
    found = auroc(frame["label"], frame["logit"])
    assert found is not None
    if correlation:
        assert found > 0.8
    else:
        assert 0.3 < found < 0.7
