"""The real command line, end to end, on synthetic and on genuine cells."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CANARY, ROOT, Train, edit_record, hydra_of, only_run, record, small
from hydra import compose, initialize_config_dir
from sklearn import metrics as oracle

from leukocls import evaluate
from leukocls.artifacts import predictions
from leukocls.data.index import build_index
from leukocls.launch.job import composed
from leukocls.train import quoted_path

FILES = ("run.json", "config.yaml", "metrics.csv", "predictions.parquet", "log.txt")
RECORD_KEYS = {
    "id", "status", "pid", "host", "started", "finished", "error", "config_hash", "git", "versions",
    "device", "threads", "data_digest", "split_scheme", "selection", "threshold", "view_weights",
    "marks", "metrics", "predictions_sha256", "weights_sha256", "timing",
}  # fmt: skip
METRICS_COLUMNS = [
    "epoch", "train_loss", "lr_early", "lr_late", "lr_head", "grad_norm", "images_per_s",
    "prelim_loss", "prelim_tp", "prelim_fp", "prelim_tn", "prelim_fn", "prelim_weighted_f1",
    "prelim_accuracy", "prelim_sensitivity", "prelim_specificity", "prelim_weighted_precision",
    "prelim_weighted_recall", "prelim_auroc",
]  # fmt: skip


def oracle_metrics(cells: pd.DataFrame) -> dict[str, float]:
    label, called = cells["label"], (cells["logit"] > 0).astype(int)
    return {
        "weighted_f1": oracle.f1_score(label, called, average="weighted"),
        "accuracy": oracle.accuracy_score(label, called),
        "sensitivity": oracle.recall_score(label, called),
        "specificity": oracle.recall_score(label, called, pos_label=0),
        "weighted_precision": oracle.precision_score(
            label, called, average="weighted", zero_division=0
        ),
        "weighted_recall": oracle.recall_score(label, called, average="weighted"),
        "auroc": oracle.roc_auc_score(label, cells["logit"]),
    }


def assert_scored_once_and_honestly(run: Path, root: Path, epochs: int) -> None:
    """Every labelled prelim cell once an epoch, and every metric scikit-learn's."""
    table = build_index(root).table
    expected = sorted(table.loc[table["part"] == "prelim", "cell"])
    frame = predictions.read(run / "predictions.parquet")
    rows = pd.read_csv(run / "metrics.csv")
    assert rows["epoch"].tolist() == list(range(epochs + 1))
    for epoch, cells in frame.groupby("epoch"):
        assert sorted(cells["cell"]) == expected
        row = rows.loc[rows["epoch"] == epoch].iloc[0]
        for name, value in oracle_metrics(cells).items():
            assert row[f"prelim_{name}"] == pytest.approx(value, abs=1e-12), (epoch, name)
    f1 = rows["prelim_weighted_f1"]
    said = record(run)
    assert said["selection"] == {
        "rule": "best_weighted_f1",
        "set": "prelim",
        "epoch": int(np.argmax(f1)),
    }
    selected = frame[frame["epoch"] == said["selection"]["epoch"]]
    for name, value in oracle_metrics(selected).items():
        assert said["metrics"]["prelim"][name] == pytest.approx(value, abs=1e-12), name


def test_run_directory(trained: Path, small_tree: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names >= set(FILES)
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {
        "best.safetensors",
        "last.safetensors",
        "resume-epoch0001.ckpt",
        "resume-epoch0002.ckpt",
    }
    said = record(trained)
    assert said["status"] == "done"
    assert said["marks"] == ["SYNTHETIC"]
    assert said.keys() >= RECORD_KEYS
    assert pd.read_csv(trained / "metrics.csv").columns.tolist() == METRICS_COLUMNS
    assert said["id"] == f"demo-{trained.parent.name}-s0-{said['config_hash'][:8]}"
    frame = predictions.read(trained / "predictions.parquet")
    assert said["predictions_sha256"] == predictions.digest(frame)
    split = pd.read_csv(trained / "split.csv", dtype=str)
    group = split.set_index("cell")["group"]
    assert frame["person"].to_list() == frame["cell"].map(group).to_list()
    assert said["metrics"]["prelim"]["n_subjects"] == frame["person"].nunique()
    assert [c for c in frame if c.startswith("view_")] == [f"view_{v}" for v in range(4)]
    views = frame[[f"view_{v}" for v in range(4)]].to_numpy()
    np.testing.assert_allclose(frame["logit"], views.mean(1), rtol=1e-5, atol=1e-6)
    assert_scored_once_and_honestly(trained, small_tree, epochs=2)


def test_evaluate_recomputes_the_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(trained), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["heading"] == "selection"
    assert result["marks"] == ["SYNTHETIC"]
    stored = record(trained)["metrics"]["prelim"]
    assert {k: result[k] for k in stored if k not in ("subject", "missing")} == {
        k: v for k, v in stored.items() if k not in ("subject", "missing")
    }


def test_no_secret_is_written(trained: Path) -> None:
    for path in trained.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path


def test_wandb_run_is_offline_and_holds_the_run(trained: Path) -> None:
    (folder,) = (trained / "wandb").glob("offline-run-*")
    (log,) = folder.glob("*.wandb")
    said = record(trained)
    assert log.stem == f"run-{said['id'].replace(',', '+')}"
    content = log.read_bytes()
    for word in (b"prelim_weighted_f1", b"selected/prelim/weighted_f1", b"SYNTHETIC", b"grad_norm"):
        assert word in content, word
    tables = {path.name.split("_")[0]: path for path in folder.rglob("*.table.json")}
    assert tables.keys() == {"confusion", "subjects", "cells"}
    cells = json.loads(tables["cells"].read_text())
    assert cells["columns"] == ["image", "cell", "subject", "label", "prob"]
    assert len(cells["data"]) == said["metrics"]["prelim"]["n"]
    staged = (trained / "wandb" / "artifacts" / "staging").iterdir()
    thumbnails = [path for path in staged if path.read_bytes().startswith(b"\x89PNG")]
    assert len(thumbnails) == len(cells["data"])


def test_done_run_is_left_alone(trained: Path, small_tree: Path, train: Train) -> None:
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}
    again = train(*small(small_tree, trained.parents[2]))
    assert again.code == 0
    assert "done already" in again.out
    del before[trained / ".lock"]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def test_changed_artefact_or_configuration_is_refused(
    trained: Path, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    outputs = tmp_path / "outputs"
    shutil.copytree(trained.parents[2], outputs)
    run = only_run(outputs)
    command = small(small_tree, outputs)
    frame = predictions.read(run / "predictions.parquet")
    edited = frame.assign(logit=frame["logit"] + 1).drop(columns="prob")
    edited["prob"] = 1 / (1 + np.exp(-edited["logit"].astype("float64")))
    predictions.write(run / "predictions.parquet", edited)
    refused = train(*command)
    assert (refused.code, "predictions.parquet: changed" in refused.err) == (2, True)

    other = record(run)["identity"] | {"optim.weight_decay": 0.5}
    edit_record(run, config_hash="0" * 64, identity=other)
    said = record(run)
    refused = train(*command)
    assert refused.code == 2
    assert "optim.weight_decay (0.5 → 0.0)" in refused.err
    assert record(run) == said

    path = run / "run.json"
    path.write_text(path.read_text().replace('"set": "prelim"', '"set": "val"'))
    refused = train(*command)
    assert refused.code == 2
    assert f"{path}: edited" in refused.err
    assert "record_sha256" in refused.err


def test_same_seed_same_predictions(trained: Path, small_tree: Path, tmp_path: Path, train: Train):
    """Residence and workers are no part of the result, nor is where the run is written."""
    outputs = tmp_path / "outputs"
    again = train(*small(small_tree, outputs), "data.residence=ram", "data.workers=1")
    assert again.code == 0
    first, second = record(trained), record(only_run(outputs))
    assert second["predictions_sha256"] == first["predictions_sha256"]
    assert second["weights_sha256"] == first["weights_sha256"]
    assert second["config_hash"] == first["config_hash"]
    assert second["id"] == first["id"]


def test_multirun_leaves_whole_runs_that_nobody_overwrites(
    small_tree: Path, tmp_path: Path, train: Train
) -> None:
    outputs = tmp_path / "outputs"
    command = [*small(small_tree, outputs), "trainer.max_epochs=1", "seed=range(3)", "-m"]
    assert train(*command).code == 0
    runs = sorted(outputs.rglob("run.json"))
    assert [path.parent.name for path in runs] == ["seed_000", "seed_001", "seed_002"]
    records = [record(path.parent) for path in runs]
    assert {one["status"] for one in records} == {"done"}
    assert len({one["predictions_sha256"] for one in records}) == 3
    again = train(*command)
    assert (again.code, again.out.count("done already")) == (0, 3)
    assert [record(path.parent) for path in runs] == records
    assert not list(outputs.rglob("multirun.yaml"))
    assert not list(outputs.rglob(".hydra"))


def test_one_failed_job_leaves_the_others(small_tree: Path, tmp_path: Path, train: Train) -> None:
    outputs = tmp_path / "outputs"
    command = [*small(small_tree, outputs), "trainer.max_epochs=1", "data.batch_size=0,8", "-m"]
    swept = train(*command)
    assert swept.code == 1
    assert "data.batch_size=0: choose at least 1" in swept.err
    assert "1 of 2 runs done" in swept.out
    assert record(only_run(outputs))["status"] == "done"


def test_locked_directory_is_refused(small_tree: Path, tmp_path: Path, train: Train) -> None:
    import fcntl

    directory = tmp_path / "outputs/default/proposal/seed_000"
    directory.mkdir(parents=True)
    with open(directory / ".lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        refused = train(f"data.root={small_tree}", f"outputs={tmp_path / 'outputs'}")
    assert (refused.code, "another process is writing" in refused.err) == (2, True)
    assert [path.name for path in directory.iterdir()] == [".lock"]


def test_the_directory_of_a_score_names_its_data(trained: Path, tmp_path: Path) -> None:
    found = []
    for folder in ("berlin", "delhi"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cells.csv").touch()
        root = f"data.root={tmp_path / folder / 'cells.csv'}"
        words = [quoted_path(f"checkpoint={trained}"), "score=final", root]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("train", words, return_hydra_config=True)
        (job,) = composed(config, hydra_of(config), "")
        found.append(job.directory.parent.name)
    assert [name.split(",")[:2] for name in found] == [
        ["score=final", "berlin-cells"],
        ["score=final", "delhi-cells"],
    ]


def test_checkpoint_is_scored_on_another_part(
    trained: Path, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    data = [f"data.root={small_tree}", f"data.cache={small_tree.parent / 'store'}"]
    outputs = tmp_path / "outputs"
    for part in ("prelim", "final"):
        command = [f"checkpoint={trained}", f"score={part}", f"outputs={outputs}", *data]
        scored = train(*command)
        assert scored.code == 0, scored.err
    (prelim,) = outputs.glob(f"demo/score=prelim,{small_tree.name},*/seed_000")
    (final,) = outputs.glob(f"demo/score=final,{small_tree.name},*/seed_000")
    before = predictions.read(trained / "predictions.parquet")
    before = before[before["epoch"] == record(trained)["selection"]["epoch"]]
    after = predictions.read(prelim / "predictions.parquet")
    columns = ["cell", "label", "view_0", "logit"]
    pd.testing.assert_frame_equal(
        before[columns].reset_index(drop=True), after[columns].reset_index(drop=True)
    )
    assert record(final)["selection"]["set"] == "prelim"
    assert record(final)["metrics"] == {}
    submission = tmp_path / "submission.zip"
    assert evaluate.main([str(final), "--submission", str(submission)]) == 0
    assert submission.is_file()


BAD = {
    "no such folder": (["data.root=/nowhere"], 2),
    "no C-NMC 2019 data here": (["data.root={empty}"], 2),
    "neither data.root nor LEUKOCLS_DATA": ([], 2),
    "Available options in 'model'": (["model=resnet_of_my_dreams"], 2),
    "Did you mean": (["data.root={tree}", "model=timm", "model.backbone=resnet81"], 2),
    "data.batch_size=0: choose at least 1": (["data.root={tree}", "data.batch_size=0"], 2),
    "data.residence=disk": (["data.root={tree}", "data.residence=disk"], 2),
    "split_scheme=random": (["data.root={tree}", "split_scheme=random"], 2),
    "selection=lucky": (["data.root={tree}", "selection=lucky", "model.pretrained=false"], 2),
    "trainer.max_epochs=many": (
        ["data.root={tree}", "trainer.max_epochs=many", "model.pretrained=false"],
        2,
    ),
    "model.weights=gone.pt: no such file": (["data.root={tree}", "model.weights=gone.pt"], 2),
    "checkpoint= and score= go together": (["data.root={tree}", "score=final"], 2),
    "one byte short": (["data.root={short}"], 1),
    "labels disagree": (["data.root={swapped}"], 1),
    "images: subject": (["data.root={missing}"], 1),
    "Did you mean seed?": (["sede=1"], 2),
    "Quote a value": (["optim.lr=a=b"], 2),
    "augment.rotation=999": (["data.root={tree}", "augment.rotation=999"], 2),
    "data.crop=0: choose a side": (["data.root={tree}", "data.crop=0"], 2),
    "data.batch_size=x: choose": (["data.root={tree}", "data.batch_size=x"], 2),
    "optim.lr=fast: choose a number": (
        [
            "data.root={tree}",
            "optim.lr=fast",
            "model=timm",
            "model.backbone=test_resnet",
            "model.pretrained=false",
            "views=1",
        ],
        2,
    ),
    "views=0: choose a whole number": (["data.root={tree}", "views=0"], 2),
    "seed=-1: choose": (["data.root={tree}", "seed=-1"], 2),
    "not-a-folder": (["data.root={tree}", "data.cache=/proc/not-a-folder"], 1),
}


@pytest.fixture(scope="module")
def trees(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tree, and copies of it with one fault each."""
    places = {"tree": small_tree, "empty": tmp_path_factory.mktemp("empty")}
    for name in ("short", "swapped", "missing"):
        places[name] = tmp_path_factory.mktemp(name) / "tree"
        shutil.copytree(small_tree, places[name])
    first = {n: sorted(p.rglob("UID_*_all.bmp"))[0] for n, p in places.items() if n != "empty"}
    with open(first["short"], "r+b") as stream:
        stream.truncate(first["short"].stat().st_size - 1)
    swapped = first["swapped"]
    swapped.rename(swapped.with_name(swapped.name.replace("_all", "_hem")))
    first["missing"].unlink()
    return places


@pytest.mark.parametrize("cause", BAD)
def test_bad_input_gets_one_clear_message(
    cause: str, trees: dict[str, Path], tmp_path: Path, train: Train
) -> None:
    arguments, code = BAD[cause]
    told = train(*(a.format(**trees) for a in arguments), f"outputs={tmp_path / 'outputs'}")
    assert told.code == code, told.err
    words = {"one byte short": "its pixels need"}.get(cause, cause)
    assert told.err.startswith("error: ")
    assert words in told.err
    assert "Traceback" not in told.err
    assert cause == "not-a-folder" or not list(tmp_path.rglob("run.json"))


def test_no_network_for_weights_gives_three_ways(
    small_tree: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    create = timm.create_model

    def unreachable(*names: str, pretrained: bool, **options: object) -> object:
        if pretrained:
            raise OSError("Name or service not known")
        return create(*names, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", unreachable)
    told = train(f"data.root={small_tree}", f"outputs={tmp_path / 'outputs'}")
    assert told.code == 2
    for way in ("connect this machine", "model.weights=FILE", "model.pretrained=false"):
        assert way in told.err
    assert record(only_run(tmp_path))["status"] == "failed"


def test_genuine_cells_through_the_papers_network(
    sample_root: Path, tmp_path: Path, train: Train
) -> None:
    """SE-ResNeXt50 on the recipe's crop, a fifth as large, limited by the command line."""
    outputs = tmp_path / "outputs"
    done = train(
        "experiment=prellberg2019", f"data.root={sample_root}", "data.partial=true",
        "model.pretrained=false", "trainer.max_epochs=1", "trainer.limit_train_batches=1",
        f"outputs={outputs}", f"data.cache={tmp_path / 'store'}", "data.size=64",
        "data.batch_size=4", "threads=1",
    )  # fmt: skip
    assert done.code == 0, done.err
    run = only_run(outputs)
    assert record(run)["marks"] == ["PARTIAL", "LIMITED"]
    assert "*** PARTIAL LIMITED ***" in done.out
    assert_scored_once_and_honestly(run, sample_root, epochs=1)
    assert len(predictions.view_columns(predictions.read(run / "predictions.parquet"))) == 8


def test_path_overrides_are_quoted_for_hydra(tmp_path: Path) -> None:
    odd = tmp_path / "proposal,optim.lr=1e-3"
    odd.mkdir()
    assert quoted_path(f"checkpoint={odd}") == f'checkpoint="{odd}"'
    assert quoted_path("seed=1,2") == "seed=1,2"
    assert quoted_path(f"outputs={tmp_path}") == f"outputs={tmp_path}"


def test_wheel_carries_the_configuration(tmp_path: Path) -> None:
    """`pip install .` works as an editable install does: conf/ is inside the package."""
    build = "import hatchling.build as b, sys; print(b.build_wheel(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    shutil.unpack_archive(wheel, installed, "zip")
    # -P keeps the checkout itself off the path.
    composed = subprocess.run(
        [sys.executable, "-P", "-m", "leukocls.train", "--cfg", "job"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(installed)},
    )  # fmt: skip
    assert "legacy_seresnext50_32x4d" in composed.stdout


def test_score_of_a_checkpoint_is_its_recipes(
    trained: Path, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    """Its configuration is the checkpoint's, which must be whole, and nobody overrides it."""
    data = [f"data.root={small_tree}", f"data.cache={small_tree.parent / 'store'}"]
    source = tmp_path / "demo/proposal/seed_000"
    shutil.copytree(trained, source)
    command = [f"checkpoint={source}", "score=prelim", f"outputs={tmp_path / 'outputs'}", *data]
    refused = train(*command, "views=1")
    assert (refused.code, "views=1: a checkpoint is scored" in refused.err) == (2, True)
    assert train(*command).code == 0
    said = (only_run(tmp_path / "outputs") / "config.yaml").read_text()
    assert "backbone: test_resnet" in said
    with open(source / "checkpoints/best.safetensors", "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x7f")
    refused = train(*command, "force=true")
    assert (refused.code, "changed since the run ended" in refused.err) == (2, True)


@pytest.mark.parametrize("override", ["+trainer.max_steps=1", "+trainer.check_val_every_n_epoch=2"])
def test_trainer_keys_that_cut_a_run_short_are_refused(
    override: str, small_tree: Path, tmp_path: Path, train: Train
) -> None:
    refused = train(*small(small_tree, tmp_path / "outputs"), override)
    assert (refused.code, "trainer." in refused.err) == (2, True)
