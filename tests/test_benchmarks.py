"""Every benchmark runs; what it measures is recorded by hand, never judged here."""

import importlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, TINY, only_run, record, train_here
from sklearn.metrics import f1_score
from warm import Command

from leukocls import baseline
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import sha256_file
from leukocls.evaluation.intervals import jackknife
from leukocls.evaluation.person_counts import Persons, icc
from leukocls.models.weights import weights_file
from leukocls.synthetic.tree import SyntheticSpec

# At the end: what they import of each other hides nothing.
sys.path.append(str(ROOT / "benchmarks"))


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_benchmark_times_its_four_pairs(
    small_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make bench` with smaller batches, less the result that it would replace."""
    written, module = tmp_path / "data.json", benchmark("data")
    monkeypatch.setattr(module, "BATCH", 8)
    monkeypatch.setattr(module.torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(sys, "argv", ["data.py", str(small_tree), "--json", str(written)])
    module.main()
    result = json.loads(written.read_text())
    assert len(result["pairs"]) == 4
    assert all(pair["ratio"] > 0 for pair in result["pairs"].values())
    assert result["versions"]["torch"]


def test_memory_is_that_of_the_command_and_not_of_this_process() -> None:
    held = bytearray(600 << 20)
    _, peak = benchmark("command").measured("this")
    assert 5 < peak < 300
    del held


def test_full_times_every_step(tmp_path: Path) -> None:
    """On sixty files instead of 15,114."""
    found = benchmark("full").steps(tmp_path, "tiny", ["--cells-per-subject", "1"])
    assert list(found) == ["synth", "index", "verify", "verify, again", "pack at 300 px"]
    assert all(one["seconds"] > 0 and one["peak_mib"] > 20 for one in found.values())


def test_likeness_compares_genuine_and_synthetic(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, module = tmp_path / "likeness.json", benchmark("likeness")
    monkeypatch.setattr(module.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(module, "SPEC", replace(module.SPEC, cells_per_subject=1))
    monkeypatch.setattr(module, "SEPARATED", 80)
    monkeypatch.setattr(module, "WHOLE", module.WHOLE[:1])
    monkeypatch.setattr(sys, "argv", ["likeness.py", str(sample_root), "--json", str(written)])
    module.main()
    measures = json.loads(written.read_text())["measures"]
    assert all({"genuine", "synthetic"} <= values.keys() for values in measures.values())
    shares = measures["zero background, ALL"]
    assert 0.7 < shares["genuine"] < 0.95
    assert abs(shares["genuine"] - shares["synthetic"]) < 0.05
    assert 0.6 < measures["AUROC by person, size"]["genuine"] < 0.95


def test_near_duplicates_counts_what_is_found_and_what_is_not_one(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On few cells, and on the sample, in which two pairs are known."""
    written, module = tmp_path / "near.json", benchmark("near_duplicates")
    monkeypatch.setattr(module, "WHOLE", replace(module.WHOLE, scale="demo", cells_per_subject=1))
    words = [str(sample_root), "--cells", "8", "--cache", str(tmp_path), "--json", str(written)]
    monkeypatch.setattr(sys, "argv", ["near_duplicates.py", *words])
    module.main()
    result = json.loads(written.read_text())
    assert result["SYNTHETIC: cells processed again"]["degree 0.25"]["recall"] == 1
    assert result["SYNTHETIC: cells processed again"]["resized by 1.05"]["recall"] == 0
    assert result["SYNTHETIC: all cells of scale=full"]["pairs"] == 0
    assert result["genuine"]["pairs"] == {"H2 = H6": 2}


def test_genuine_scores_each_row_in_each_column(
    sample_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    warm: object,
) -> None:
    """Folds 0 and 1 of the sample, with two folds, one baseline and one small network."""
    for fold in ("fold_0", "fold_1"):
        (folder,) = sample_root.rglob(f"training_data/{fold}")
        shutil.copytree(folder, tmp_path / "tree/C-NMC_Leukemia/training_data" / fold)
    module, outputs = benchmark("genuine"), tmp_path / "outputs"
    tiny = ("model=timm", "model.backbone=test_resnet", "model.pretrained=false", "views=1")
    monkeypatch.setattr(module, "ROWS", {"size": ("size",)})
    monkeypatch.setattr(module, "NETWORKS", {"tiny": (*tiny, "data.batch_size=8")})
    monkeypatch.setattr(module, "SHORTENED", (*module.SHORTENED, "data.size=32"))
    monkeypatch.setattr(module, "FOLDS", 2)
    monkeypatch.setattr(module, "subprocess", warm)
    places = ["--outputs", str(outputs), "--cache", str(tmp_path / "store")]
    words = [str(tmp_path / "tree"), *places, "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["genuine.py", *words])
    module.main()
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert set(rows) == {"majority class", "size", "tiny"}
    assert {*rows["size"]} == {*module.COLUMNS, "leak", "chosen"}
    assert {*rows["tiny"]} == {"half person", "half cell", "leak", "options"}
    most = rows["majority class"]["cell"]
    assert (most["sensitivity"], most["specificity"], most["auroc"]) == (1, 0, 0.5)
    assert most["interval"]["auroc"] == {"value": 0.5, "low": None, "high": None, "df": None}

    runs = [path.parent for path in outputs.rglob("run.json")]
    # With two folds, the halves are person and cell again.
    assert len(runs) == 3 * 2 + 2 * 2 + 2 * 2
    by_person = [
        run for run in runs if record(run)["split_scheme"] == "subject" and "baseline" in str(run)
    ]
    frame = pd.concat([pd.read_parquet(run / "predictions.parquet") for run in by_person])
    expected = f1_score(frame["label"], frame["prob"] > 0.5, average="weighted")
    assert rows["size"]["person"]["weighted_f1"] == pytest.approx(expected, abs=1e-4)
    assert rows["size"]["person"]["cells"] == len(frame) == 65
    one = Persons.of(frame["label"], frame["logit"] > 0, frame["person"], frame["logit"])
    found = jackknife([one], "auroc")
    limits = rows["size"]["person"]["interval"]["auroc"]
    assert (limits["low"], limits["high"]) == pytest.approx((found.low, found.high), abs=1e-4)
    worth = rows["size"]["leak"]["cell"]["auroc"]
    gained = rows["size"]["cell"]["auroc"] - rows["size"]["person"]["auroc"]
    assert worth["value"] == pytest.approx(gained, abs=2e-4)
    assert f"{limits['low']:.3f} to {limits['high']:.3f}" in printed
    assert f"{worth['value']:+.3f}" in printed

    # The command again fits nothing, and a tree with other parts is refused.
    before = {run: (run / "run.json").stat().st_mtime_ns for run in runs}
    module.main()
    assert {run: (run / "run.json").stat().st_mtime_ns for run in runs} == before
    monkeypatch.setattr(sys, "argv", ["genuine.py", str(sample_root), *places])
    with pytest.raises(SystemExit, match="genuine folds 0 and 1"):
        module.main()


@pytest.fixture
def warm(command: Callable[..., Command]) -> SimpleNamespace:
    """A `subprocess` whose commands of leukocls run in warm processes."""

    def run(words: list[str], **_: object) -> None:
        assert words[:3] == [sys.executable, "-m", "leukocls.train"]
        flags = [word for word in words if word == "-m"][1:]
        overrides = [word for word in words[3:] if word != "-m"]
        done = command("train", *overrides, "threads=1", *flags)
        assert done.wait() == 0, done.err

    return SimpleNamespace(run=run, DEVNULL=None)


def test_transfer_trains_the_same_cells_from_both_weights(
    small_spec: SyntheticSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: object
) -> None:
    """One seed and epoch of a tiny tree; the arms differ in nothing but their weights."""
    try:
        lite0 = sha256_file(weights_file("lite0"))
    except LeukoclsError as error:
        pytest.skip(str(error))
    tree = [f"data.synthetic.{name}={value}" for name, value in asdict(small_spec).items()]
    module = benchmark("transfer")
    monkeypatch.setattr(module, "subprocess", warm)
    result = module.measure(tmp_path, 1, ["trainer.max_epochs=1", "data.size=32", *tree])
    records = {arm: record(only_run(tmp_path / arm)) for arm in ("lite0", "random")}
    assert [records[arm]["inputs"]["weights"] for arm in records] == [lite0, None]
    assert records["lite0"]["identity"] == records["random"]["identity"]
    gain = result["gain"]["auroc"]
    ours, theirs = (result["arms"][arm]["mean"]["auroc"] for arm in records)
    assert gain["by_seed"] == [gain["mean"]] == [ours - theirs]
    assert "SYNTHETIC" in module.table(result)


def test_leakage_comes_from_what_tells_subjects_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, because two trees take less time than processes to share them."""
    file, module = tmp_path / "leakage.json", benchmark("leakage")
    monkeypatch.setattr(module.os, "cpu_count", lambda: 1)
    sizes = ["--trees", "2", "--subjects", "2", "--scales", "0", "2"]
    monkeypatch.setattr(sys, "argv", ["leakage.py", *sizes, "--json", str(file)])
    module.main()
    printed, document = capsys.readouterr().out, json.loads(file.read_text())
    assert document["models"].keys() >= {"logistic regression", "RBF SVM"}
    for name, by_scale in document["models"].items():
        assert name in printed
        assert abs(by_scale["0"]["leakage"]) < 0.06
        assert by_scale["2"]["leakage"] > 0.15


def test_genuine_leakage_gives_what_compare_gives(
    small_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """On synthetic cells; of one split seed, all split seeds as one result are that one."""
    file, module = tmp_path / "leakage.json", benchmark("genuine_leakage")
    monkeypatch.setattr(module, "ROWS", {"size": ("size",)})
    monkeypatch.setattr(module, "LEAKS", ("0", "1"))
    places = ["--outputs", str(tmp_path), "--cache", str(tmp_path), "--json", str(file)]
    words = [str(small_tree), "--split-seeds", "1", *places]
    monkeypatch.setattr(sys, "argv", ["genuine_leakage.py", *words])
    module.main()
    found = json.loads(file.read_text())["rows"]["size"]
    assert found["persons"] == {"ALL": 6, "HEM": 4}
    (compared,) = found["by_split_seed"]
    for metric, worth in found["worth"]["1"].items():
        gained = found["leak"]["1"][metric] - found["leak"]["0"][metric]
        assert worth["value"] == pytest.approx(gained, abs=2e-4)
        ours = [compared["1"][metric][name] for name in ("difference", "low", "high")]
        assert ours == pytest.approx([worth[n] for n in ("value", "low", "high")], abs=1e-4)
    assert f"{found['worth']['1']['auroc']['value']:+.3f}" in capsys.readouterr().out


def test_coverage_of_intervals_over_persons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the measured correlation; persons have the correlation that is asked for."""
    file, module = tmp_path / "coverage.json", benchmark("coverage")
    a, tau = module.effect(0.8, 0.148)
    rng = np.random.default_rng(0)
    right = a + tau * rng.normal(size=(20_000, 1)) + rng.normal(size=(20_000, 20)) > 0
    assert right.mean() == pytest.approx(0.8, abs=0.01)
    assert icc(np.full(20_000, 20), *2 * [right.sum(1)]) == pytest.approx(0.148, abs=0.01)

    monkeypatch.setattr(module.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(module, "SCHEMES", ("fixed",))
    monkeypatch.setattr(module, "ICCS", (module.MEASURED,))
    monkeypatch.setattr(sys, "argv", ["coverage.py", "--replicates", "60", "--json", str(file)])
    module.main()
    assert "SYNTHETIC" in capsys.readouterr().out
    (setting,) = json.loads(file.read_text())["settings"]
    for metric in module.METRICS:
        by_method = [setting["methods"][name][metric] for name in module.METHODS]
        assert by_method[-1]["coverage"] >= 88  # of 95, in 60 replicates
        assert by_method[0]["coverage"] < 65
        assert by_method[0]["width"] < by_method[1]["width"] < by_method[-1]["width"]


def test_abstention_covers_new_persons(
    small_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file, module = tmp_path / "conformal.json", benchmark("conformal")
    assert [len(cells) for cells in module.sizes()] == [39, 20]
    assert sum(map(sum, module.sizes())) == 10_661
    words = [str(small_tree), "--features", "size", "--split-scheme", "subject", "--folds", "2"]
    places = ["--cache", str(tmp_path / "store"), "--outputs", str(tmp_path)]
    for fold in "01":
        assert baseline.main([*words, *places, "--fold", fold]) == 0
    runs = [str(path.parent) for path in sorted(tmp_path.rglob("run.json"))]
    arguments = ["conformal.py", "--replicates", "20", "--json", str(file), "--runs", *runs]
    monkeypatch.setattr(sys, "argv", arguments)
    module.main()
    assert "SYNTHETIC" in capsys.readouterr().out
    found = json.loads(file.read_text())
    simulated = {(r["unit"], r["alpha"], r["class"]): r for r in found["synthetic"]}
    for name in ("ALL", "HEM"):
        assert simulated["person", 0.1, name]["coverage"] > 0.88
        few = [simulated[unit, 0.1, name]["below 0.8"] for unit in ("person", "cell")]
        assert few[0] < few[1]
    number = {row["class"]: row["persons"] for row in found["genuine"]}
    assert number == {"ALL": 6, "HEM": 5}


def test_genuine_cells_are_cut_out_of_drawn_smears(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, module = tmp_path / "segment.json", benchmark("segment")
    words = ["segment.py", str(sample_root), "--cells", "2", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", words)
    module.main()
    rows = json.loads(file.read_text())["rows"]
    assert [(row["class"], row["scene"]) for row in rows] == [
        (name, kind) for name in ("ALL", "HEM") for kind in module.SCENES
    ]
    assert all(row["median"] > 0.85 for row in rows)


def test_predict_is_timed_beside_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, seconds = benchmark("predict"), iter([0.0, 0.0, 1.0, 3.0])

    def measured(name: str, *words: object) -> tuple[float, float]:
        """The command in this process, and made-up seconds and MiB."""
        given = [str(word) for word in words]
        if name == "leukocls.train":
            train_here(*given, *TINY)
        else:
            assert importlib.import_module(name).main(given) == 0
        return next(seconds), 100.0

    monkeypatch.setattr(module.command, "measured", measured)
    monkeypatch.setattr(module, "RECIPE", [*module.RECIPE, "views=2", "threads=1"])
    monkeypatch.setattr(module, "ROUNDS", 1)
    found = module.measured(tmp_path, 30, module.SMALL)
    assert (found["images"], found["views"], found["predict images per s"]) == (30, 2, 13.5)
    rate, bare = found["in turns: predict, network alone"]
    assert found["ratio"] == pytest.approx(rate / bare, rel=0.01)
    assert found["quartiles of the ratio"] == [found["ratio"]] * 2


def test_soak_kills_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill, and the bits of the whole run."""
    module = benchmark("soak")
    monkeypatch.setattr(module, "KINDS", {"plain": module.KINDS["plain"]})
    found = module.soak(tmp_path, 1, seed=1)
    assert 1 <= found["kills"] <= module.MOST
    assert sum(found["by"].values()) == found["kills"]


def test_epochs_are_timed_by_their_number(
    tmp_path: Path, small_spec: SyntheticSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, less its memory."""
    module = benchmark("epochs")

    def trained(words: list[str], outputs: Path) -> dict[str, float]:
        train_here(*words, "model.backbone=test_resnet", "threads=1", f"outputs={outputs}")
        return {"seconds": record(only_run(outputs))["timing"]["run_s"], "peak MiB": 1}

    monkeypatch.setattr(module, "trained", trained)
    found = module.measured(tmp_path, small_spec, module.RECIPE, [1, 2])
    assert list(found) == [1, 2]
    assert found[2]["seconds an epoch"] == round(found[2]["seconds"] / 3, 4)


def test_recorded_results_name_what_they_were_measured_with() -> None:
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert len(results) >= 4
    for path in results:
        result = json.loads(path.read_text())
        assert result["command"].startswith("python benchmarks/")
        assert result["versions"]["leukocls"]
        assert "/work" not in path.read_text()


def test_sweep_tells_a_jobs_start_from_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: object
) -> None:
    """One repeat with two jobs, in processes that are warm."""
    module = benchmark("sweep")
    monkeypatch.setattr(module, "subprocess", warm)
    found = module.measure(tmp_path, 2, 1)
    assert list(found) == ["first job of a sweep", "each further", "alone"]
    assert len(list(tmp_path.glob("many0/**/run.json"))) == 2
