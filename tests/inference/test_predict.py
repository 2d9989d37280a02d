"""Prediction of files: which are read, what is said of the others, and the file that is written."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Command
from faults.fault_points import VARIABLE
from PIL import Image

import leukocls
from leukocls import evaluate, predict
from leukocls.common.errors import LeukoclsError
from leukocls.common.files import lock
from leukocls.data import images
from leukocls.data.contact_sheet import TOP
from leukocls.data.images import around_cell, read_image
from leukocls.evaluation.prediction_files import PREDICT
from leukocls.inference import prediction_sheet
from leukocls.inference.groups import groups_of
from leukocls.inference.images import (
    Found,
    Reading,
    ahead,
    find_images,
    memory,
    read_cell,
    seen,
)
from leukocls.inference.predictor import Predictor

SIDE = 450


@pytest.fixture(scope="module")
def made(bundled: Path) -> Path:
    """The bundle of a run."""
    return bundled / "bundle"


@pytest.fixture(scope="module")
def predictor(made: Path) -> Predictor:
    return leukocls.load_bundle(made, "cpu")


def cells_of(tree: Path, number: int) -> list[Path]:
    return sorted(tree.rglob("UID_*.bmp"))[:number]


def spoilt(folder: Path, cell: Path) -> dict[str, str]:
    """Twelve files below `folder` that cannot be predicted, each with a word of its reason."""
    data, image = cell.read_bytes(), Image.open(cell)
    huge = bytearray(data)
    for at in (18, 22):  # width and height in a BMP's header
        huge[at : at + 4] = (10_000).to_bytes(4, "little")
    (folder / "truncated.bmp").write_bytes(data[:-1000])
    (folder / "page.png").write_bytes(b"<html><body>404</body></html>")
    (folder / "huge.bmp").write_bytes(huge)
    Image.fromarray(np.full((SIDE, SIDE), 40_000, np.uint16)).save(folder / "deep.tif")
    image.convert("L").save(folder / "grey.png")
    image.convert("RGBA").save(folder / "alpha.png")
    (folder / "empty.jpg").touch()
    (folder / "folder.bmp").mkdir()
    (folder / "loop.bmp").symlink_to("loop.bmp")
    os.mkfifo(folder / "pipe.bmp")
    image.resize((300, 300)).save(folder / "small.png")
    (folder / "noise.tiff").write_bytes(np.random.default_rng(0).bytes(5000))
    return {
        "truncated.bmp": "bytes", "page.png": "decode", "huge.bmp": "10000", "deep.tif": "16-bit",
        "grey.png": "grey", "alpha.png": "alpha", "empty.jpg": "decode", "folder.bmp": "no file",
        "loop.bmp": "cannot be read", "pipe.bmp": "no file", "small.png": "300×300",
        "noise.tiff": "decode",
    }  # fmt: skip


def test_bad_files_are_named_and_the_others_predicted(
    made: Path, small_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    good = cells_of(small_tree, 55)
    for path in good:
        (folder / path.name).symlink_to(path)
    (folder / "notes.txt").write_text("not an image")
    bad = spoilt(folder, good[0])
    out = tmp_path / "predictions.csv"
    assert predict.main([str(made), str(folder), "--out", str(out), "--batch-size", "16"]) == 3
    table = pd.read_csv(out, keep_default_na=False, na_values={"logit": [""]}).set_index("cell")
    assert list(table.reset_index().columns) == list(PREDICT)
    skipped = table["reason"][table["reason"] != ""]
    assert set(skipped.index) == set(bad)
    for name, word in bad.items():
        assert word in skipped[name], name
        assert name in skipped[name]
    assert table["logit"].notna().sum() == len(good)
    assert set(table["label"][table["reason"] == ""]) <= {"ALL", "HEM"}
    printed = capsys.readouterr()
    assert "NOT A DIAGNOSIS" in printed.out
    assert printed.err.count("skipped: ") == len(bad)
    assert not list(tmp_path.glob("*.partial"))


def test_parquet_holds_the_same(
    made: Path, predictor: Predictor, small_tree: Path, tmp_path: Path
) -> None:
    paths = cells_of(small_tree, 5)
    out = tmp_path / "new/predictions.parquet"
    assert predict.main([str(made), *map(str, paths), "--out", str(out)]) == 0
    table = pd.read_parquet(out)
    pd.testing.assert_frame_equal(table, predictor.predict(paths), check_dtype=False)


def test_pixels_are_predicted_as_files(predictor: Predictor, small_tree: Path) -> None:
    paths = cells_of(small_tree, 3)
    arrays = [read_image(path) for path in paths]
    of_files, of_arrays = predictor.predict(paths), predictor.predict(arrays)
    of_pictures = predictor.predict([Image.open(path) for path in paths])
    assert of_arrays["logit"].tolist() == of_files["logit"].tolist()
    assert of_pictures["logit"].tolist() == of_files["logit"].tolist()
    assert of_arrays["cell"].tolist() == ["0", "1", "2"]
    assert "100×100" in predictor.predict(arrays[0][:100, :100])["reason"][0]
    with pytest.raises(LeukoclsError, match="float"):
        predictor.predict(arrays[0].astype(float))


def test_evaluate_reads_what_predict_writes(
    made: Path, trained: Path, small_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calls in `label` are no truth, and the metrics are those of the run."""
    folder = next(small_tree.rglob("*_labels.csv")).parent
    images = [path for path in folder.rglob("*.bmp")]
    out = tmp_path / "predictions.csv"
    assert predict.main([str(made), *map(str, images), "--out", str(out)]) == 0
    capsys.readouterr()
    with pytest.raises(LeukoclsError, match="no labels"):
        evaluate.main([str(out), "--json"])
    truth = ["--truth", str(next(small_tree.rglob("*_labels.csv")))]
    assert evaluate.main([str(out), *truth, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    values = json.loads((trained / "run.json").read_text())["metrics"]["prelim"]
    for name in ("n", "tp", "fp", "tn", "fn", "weighted_f1"):
        assert found[name] == pytest.approx(values[name])


def test_a_stopped_command_resumes(
    made: Path, small_tree: Path, tmp_path: Path, command: Callable[..., Command],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "images"
    folder.mkdir()
    for path in cells_of(small_tree, 40):
        shutil.copy(path, folder)
    changed, other = sorted(folder.iterdir())[:2]
    Image.open(other).save(folder / "0.jpg", quality=95)
    restored = folder / "1.bmp"
    restored.write_bytes(bytes(other.stat().st_size))
    before = restored.stat().st_mtime_ns
    out, kept = tmp_path / "out.csv", tmp_path / "out.csv.partial"
    words = [str(made), str(folder), "--out", str(out), "--batch-size", "1"]
    killed = command("predict", *words, env=os.environ | {VARIABLE: "predicting:10:SIGKILL"})
    assert killed.wait() == -signal.SIGKILL, killed.err
    assert not out.exists()
    with open(kept, "a") as stream:
        stream.write("UID_half_a_ro")
    os.utime(changed, (1, 1))
    shutil.copy(other, restored)
    os.utime(restored, ns=(before, before))
    assert predict.main(words) == 0
    printed = capsys.readouterr()
    # Ten images were done: one of them changed since, and one could not be read.
    assert "8 of them an earlier command had predicted" in printed.out
    assert "warning: 1 images are JPEGs" in printed.err
    again = tmp_path / "again.csv"
    assert predict.main([*words[:3], str(again), *words[4:]]) == 0
    assert out.read_bytes() == again.read_bytes()
    assert not kept.exists()


def test_a_signal_keeps_what_is_done(
    made: Path, small_tree: Path, tmp_path: Path, command: Callable[..., Command],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = [str(made), *map(str, cells_of(small_tree, 6)), "--batch-size", "1"]
    out = ["--out", str(tmp_path / "out.csv")]
    stopped = command("predict", *words, *out, env=os.environ | {VARIABLE: "predicting:3:SIGTERM"})
    assert (stopped.wait(), "interrupted" in stopped.err) == (143, True), stopped.err
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv.partial"]
    assert predict.main([*words, *out]) == 0
    assert "2 of them an earlier command had predicted" in capsys.readouterr().out


def test_rows_of_another_folder_are_not_taken(
    made: Path, small_tree: Path, tmp_path: Path, command: Callable[..., Command]
) -> None:
    """Two folders from an archive: their images have the same names, sizes and times."""
    first, second = cells_of(small_tree, 2)
    for folder, cell in (("a", first), ("b", second)):
        (tmp_path / folder).mkdir()
        for name in ("1.bmp", "2.bmp"):
            shutil.copy(cell, tmp_path / folder / name)
            os.utime(tmp_path / folder / name, (1, 1))
    out, another = tmp_path / "out.csv", tmp_path / "another.csv"
    words = [str(made), str(tmp_path / "a"), "--out", str(out), "--batch-size", "1"]
    killed = command("predict", *words, env=os.environ | {VARIABLE: "predicting:2:SIGKILL"})
    assert killed.wait() == -signal.SIGKILL, killed.err
    for path in (out, another):
        assert predict.main([str(made), str(tmp_path / "b"), "--out", str(path)]) == 0
    assert out.read_bytes() == another.read_bytes()


def test_two_commands_do_not_write_one_file(made: Path, small_tree: Path, tmp_path: Path) -> None:
    words = [str(made), *map(str, cells_of(small_tree, 1)), "--out", str(tmp_path / "out.csv")]
    with open(tmp_path / "out.csv.partial", "a") as stream:
        lock(stream, tmp_path)
        with pytest.raises(LeukoclsError, match=r"out\.csv: another command is writing it"):
            predict.main(words)
    assert predict.main(words) == 0


def test_a_device_that_is_not_there_is_named(made: Path) -> None:
    for device in ("gpu", "cuda:99"):
        with pytest.raises(LeukoclsError, match=f"--device {device}: PyTorch computes on cpu"):
            leukocls.load_bundle(made, device)


def test_a_name_that_is_no_text_is_spelled_out(
    made: Path, small_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    shutil.copy(cells_of(small_tree, 1)[0], os.fsdecode(folder + b"/\xe9.bmp"))
    Path(os.fsdecode(folder + b"/\xff.bmp")).touch()
    out = tmp_path / "out.csv"
    words = [str(made), str(tmp_path), "--out", str(out), "--group-by", "folder"]
    assert predict.main(words) == 3
    assert pd.read_csv(out)["cell"].tolist() == [r"\xe9.bmp", r"\xff.bmp"]
    assert r"caf\xe9/\xff.bmp" in capsys.readouterr().err
    assert pd.read_csv(tmp_path / "out.groups.csv")["cells"].tolist() == [1]


def test_a_folder_that_cannot_be_read_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1.bmp", "b/2.bmp"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    scan = os.scandir

    def refused(path: str) -> Any:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(LeukoclsError, match=r"/b: cannot be read \(Permission denied\)"):
        find_images([tmp_path])


def test_other_options_do_not_resume(
    made: Path, small_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.csv.partial").write_text('["another bundle"]\ncell\nx\n')
    (path,) = cells_of(small_tree, 1)
    assert predict.main([str(made), str(path), "--out", str(tmp_path / "out.csv")]) == 0
    assert "earlier" not in capsys.readouterr().out


def test_other_sizes(small_tree: Path, tmp_path: Path) -> None:
    (path,) = cells_of(small_tree, 1)
    pixels = read_image(path)
    wide = np.zeros((600, 600, 3), np.uint8)
    wide[75:525, 75:525] = pixels
    Image.fromarray(wide).save(tmp_path / "wide.png")
    for resize in (False, True):
        found = read_cell(tmp_path / "wide.png", Reading(SIDE, resize))
        assert (found.pixels == pixels).all()
    Image.fromarray(pixels[:400, :300]).save(tmp_path / "cut.png")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(images, "_decoded", None)  # the header tells it
        with pytest.raises(LeukoclsError, match="300×400"):
            read_cell(tmp_path / "cut.png", Reading(SIDE))
    assert read_cell(tmp_path / "cut.png", Reading(SIDE, resize=True)).pixels.shape == (
        SIDE,
        SIDE,
        3,
    )
    assert read_cell(tmp_path / "cut.png", Reading(None)).pixels.shape == (400, 300, 3)


def test_own_data_are_converted_as_for_training(
    predictor: Predictor, small_tree: Path, tmp_path: Path
) -> None:
    """A grey image, for a bundle that takes images of any size; a warning counts it."""
    (path,) = cells_of(small_tree, 1)
    Image.open(path).convert("L").save(tmp_path / "grey.png")
    found = read_cell(tmp_path / "grey.png", Reading(None))
    assert (found.pixels == read_image(tmp_path / "grey.png")).all()
    (table,) = predictor.batches(find_images([tmp_path]), Reading(None))
    assert table["converted"].tolist() == [True]


def test_a_background_and_a_jpeg_are_noticed(
    made: Path, small_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = cells_of(small_tree, 1)
    pixels = read_image(path)
    Image.fromarray(np.where(pixels.any(2, keepdims=True), pixels, 200).astype(np.uint8)).save(
        tmp_path / "on_grey.png"
    )
    Image.open(path).save(tmp_path / "lossy.jpg", quality=95)
    out = ["--out", str(tmp_path / "out.csv")]
    assert predict.main([str(made), str(tmp_path / "*.png"), str(tmp_path / "*.jpg"), *out]) == 0
    assert "warning: 1 images show more than a cell" in (printed := capsys.readouterr()).err
    assert "warning: 1 images are JPEGs" in printed.err


def on_ground(pixels: np.ndarray, seed: int = 0) -> np.ndarray:
    """The cell on a bright uneven ground with two paler discs, as in a smear."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(pixels.shape[:2])
    drawn = np.array([226, 218, 226]) + (rows / 40)[..., None] + rng.normal(0, 4, pixels.shape)
    for centre in ((40, 60), (400, 390)):
        disc = np.hypot(rows - centre[0], columns - centre[1]) < 50
        drawn[disc] = [222, 168, 172]
    cell = pixels.any(2, keepdims=True)
    return np.where(cell, pixels, drawn.clip(0, 255)).astype(np.uint8)


def test_cells_are_cut_out_of_their_background(
    made: Path, predictor: Predictor, small_tree: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    images = [read_image(path) for path in cells_of(small_tree, 4)]
    for number, pixels in enumerate(images):
        Image.fromarray(on_ground(pixels, number)).save(tmp_path / f"{number}.png")
        found = read_cell(tmp_path / f"{number}.png", Reading(SIDE, segment=True))
        assert found.segmented
        assert not found.background
        mask, wanted = found.pixels.any(2), pixels.any(2)
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.9
        assert (found.pixels[mask & wanted] == pixels[mask & wanted]).all()
    Image.fromarray(on_ground(np.zeros_like(images[0]))).save(tmp_path / "none.png")
    noise = np.random.default_rng(0).normal(220, 8, images[0].shape).clip(0, 255)
    Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "nothing.png")
    out = tmp_path / "out.csv"
    words = [str(made), str(tmp_path / "*.png"), "--segment", "--out", str(out)]
    assert predict.main(words) == 3
    printed = capsys.readouterr()
    assert "4 of them were cut out" in printed.out
    assert "none.png: cannot be segmented" in printed.err
    assert "nothing.png: cannot be segmented" in printed.err
    assert pd.read_csv(out)["segmented"].tolist()[:4] == ["yes"] * 4
    assert predictor.predict(images, segment=True)["segmented"].tolist() == ["no"] * 4


def test_what_a_network_sees_is_what_training_packs(small_tree: Path, tmp_path: Path) -> None:
    from leukocls.data.store import data_digest, open_store
    from leukocls.data.verify import checked_index

    index = checked_index(small_tree, cache=tmp_path / "cache")
    for crop, size in ((300, 64), ("box", 40), (300, 300)):
        store = open_store(index, data_digest(index), tmp_path / "store", crop, size)
        for row in (0, len(store) - 1):
            pixels = read_image(index.root / index.table["file"].iloc[row])
            assert (seen(pixels, crop, size) == store[row]).all()


def test_names_of_cells(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/b/2.png", "a/b/readme.md", "a/._1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [found.cell for found in find_images([tmp_path])] == ["1.png", "2.png"]
    (tmp_path / "a/b/1.png").touch()
    names = [found.cell for found in find_images([tmp_path])]
    assert names == ["a/1.png", "a/b/1.png", "a/b/2.png"]
    assert len(find_images([tmp_path, tmp_path / "a" / "1.png"])) == 3
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(find_images([tmp_path])) == 3
    for nothing in (tmp_path / "none", f"{tmp_path}/*.bmp"):
        with pytest.raises(LeukoclsError, match="no image"):
            find_images([nothing])


def test_the_output_names_its_format(made: Path, small_tree: Path, tmp_path: Path) -> None:
    (path,) = cells_of(small_tree, 1)
    for out in (tmp_path / "out.txt", tmp_path):
        with pytest.raises(LeukoclsError, match="--out"):
            predict.main([str(made), str(path), "--out", str(out)])


def test_files_are_read_ahead_in_order_and_no_further() -> None:
    started: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        return number

    results: Any = ahead(work, iter(range(100)), 3)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(started) <= 9
    assert list(results) == list(range(5, 100))
    started.clear()
    # One that weighs more than all that may be ahead waits until it is alone.
    results = ahead(work, iter(range(100)), 3, lambda number: 9.0 if number == 4 else 1.0)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    assert len(started) <= 5
    assert list(results) == list(range(4, 100))


def test_large_images_are_read_in_small_batches(
    predictor: Predictor, small_tree: Path, tmp_path: Path
) -> None:
    """A memory of some hundred MB is enough for images of 200 MB each."""
    (path,) = cells_of(small_tree, 1)
    wide = Image.new("RGB", (1200, 1200))
    wide.paste(Image.open(path), (375, 375))
    for number in range(5):
        wide.save(tmp_path / f"{number}.png")
    assert memory(tmp_path / "0.png", Reading(None)) == 4
    assert memory(tmp_path / "0.png", Reading(SIDE, resize=True)) == 4
    os.mkfifo(tmp_path / "pipe.bmp")  # which would wait for somebody to write
    assert memory(tmp_path / "pipe.bmp", Reading(None)) == 1
    (tmp_path / "pipe.bmp").unlink()
    assert memory(tmp_path / "0.png", Reading(SIDE)) == 1
    assert memory(tmp_path / "none.png", Reading(None)) == 1
    tables = list(predictor.batches(find_images([tmp_path]), Reading(None), batch=6))
    assert [len(table) for table in tables] == [2, 2, 1]


def test_cells_are_summed_up_by_person_and_by_folder(
    made: Path, small_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = cells_of(small_tree, 30)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/UID_900_1_1_all.bmp").write_bytes(b"BM")
    images = [*map(str, cells), str(tmp_path / "broken")]
    out = tmp_path / "out.csv"
    assert predict.main([str(made), *images, "--out", str(out), "--group-by", "subject"]) == 3
    table = pd.read_csv(out, keep_default_na=False)
    found = pd.read_csv(tmp_path / "out.groups.csv", dtype={"group": str}).set_index("group")
    subject = table["cell"].str.split("_").str[1]
    assert found.index.tolist() == sorted(set(subject))
    for name, part in table[table["reason"] == ""].groupby(subject):
        row, called = found.loc[name], part["label"] == "ALL"
        assert (row["cells"], row["skipped"], row["called_all"]) == (len(part), 0, called.sum())
        assert row["share_all"] == pytest.approx(called.mean())
        assert row["mean_logit"] == pytest.approx(part["logit"].astype(float).mean())
    assert (found.loc["900", "cells"], found.loc["900", "skipped"]) == (0, 1)
    assert np.isnan(found.loc["900", "mean_logit"])
    assert "no diagnosis of a person" in capsys.readouterr().out
    parquet = tmp_path / "out.parquet"
    assert predict.main([str(made), *images, "--out", str(parquet), "--group-by", "folder"]) == 3
    folders = pd.read_parquet(tmp_path / "out.groups.parquet").set_index("group")
    assert folders["cells"].to_dict() == {
        str(folder): sum(cell.parent == folder for cell in cells)
        for folder in [tmp_path / "broken", *{cell.parent for cell in cells}]
    }


@pytest.mark.parametrize("most", [240, 3])
def test_the_sheet_shows_the_images_by_probability(
    most: int, made: Path, small_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image but the skipped one, or the first, the middle and the last of them."""
    monkeypatch.setattr(prediction_sheet, "MOST", most)
    (tmp_path / "bad.png").write_bytes(b"no image")
    cells = {path.name: path for path in cells_of(small_tree, 5)}
    images = [*map(str, cells.values()), str(tmp_path / "bad.png")]
    out, sheet = tmp_path / "out.csv", tmp_path / "new/sheet.png"
    assert predict.main([str(made), *images, "--out", str(out), "--sheet", str(sheet)]) == 3
    table = pd.read_csv(out).dropna(subset="prob").sort_values("prob", ascending=False)
    shown = table["cell"].tolist()[:: 2 if most == 3 else 1]
    with Image.open(sheet) as drawn:
        pixels = np.asarray(drawn)
    assert pixels.shape[0] < TOP + 2 * 128
    for place, name in enumerate(shown):
        cell = Image.fromarray(around_cell(read_image(cells[name])))
        cell.thumbnail((128, 128), Image.Resampling.BOX)
        left = 12 + place * 140
        here = pixels[TOP : TOP + cell.height, left : left + cell.width]
        np.testing.assert_array_equal(here, np.asarray(cell))
    assert (pixels[TOP : TOP + 128, 12 + len(shown) * 140 :] == 255).all()


def test_names_without_a_subject_are_refused_before_the_work(
    made: Path, small_tree: Path, tmp_path: Path
) -> None:
    image = shutil.copy(cells_of(small_tree, 1)[0], tmp_path / "mine.bmp")
    words = [str(made), str(image), "--out", str(tmp_path / "out.csv"), "--group-by", "subject"]
    with pytest.raises(LeukoclsError, match=r"mine\.bmp.*--group-by folder"):
        predict.main(words)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.bmp"]


def test_families_of_cnmc_are_one_person() -> None:
    names = ["UID_1_1_1_all.bmp", "UID_15_2_1_all.bmp", "UID_H3_1_1_hem.bmp"]
    first, second, other = groups_of([Found(name, Path(name)) for name in names], "subject")
    assert first == second != other
