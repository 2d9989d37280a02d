"""The verb `baseline`: its run directory is read by evaluate and runs like any network's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Outcome, only_run, record

from leukocls import baseline, runs
from leukocls.artifacts import predictions
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.data import features
from leukocls.data.names import FEATURE_KINDS
from leukocls.evaluation import metrics, scoring
from leukocls.evaluation.metrics import auroc
from leukocls.reporting import tables
from leukocls.synthetic.tree import SyntheticSpec, write_tree
from leukocls.training import baselines

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


def test_the_fit_is_the_penalised_optimum() -> None:
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.normal(3, [1, 5, 0.1], (200, 3)), columns=list("abc"))
    y = (x["a"] + rng.normal(size=200) > 3).to_numpy(int)
    model = baselines.fit(x, y)
    z = ((x - x.mean()) / x.std(ddof=0)).to_numpy()
    residual = y - 1 / (1 + np.exp(-model.decision_function(x)))
    # The gradient of Σ log-likelihood − ½ |w|², whose intercept is free.
    assert z.T @ residual == pytest.approx(model[-1].coef_[0], abs=1e-6)
    assert residual.sum() == pytest.approx(0, abs=1e-6)


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
    monkeypatch.setattr(baselines, "REGULARISATION", 2.0)
    with pytest.raises(LeukoclsError, match=r"model\.C \(1\.0 → 2\.0\)"):
        verb(small_tree, "--features", "size")
    assert verb(small_tree, "--features", "size", "--force").code == 0


def test_bad_input_is_refused(small_tree: Path, tmp_path: Path, verb: Verb) -> None:
    with pytest.raises(LeukoclsError, match="no such folder"):
        verb(tmp_path / "nowhere", "--features", "size")
    with pytest.raises(SystemExit) as usage:
        verb(small_tree, "--features", "shape")
    assert usage.value.code == 2
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
