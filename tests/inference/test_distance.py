"""The distance to the training cells: against scikit-learn, and what it says of odd images."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import record
from sklearn.neighbors import NearestNeighbors

import leukocls
from leukocls import bundle, predict
from leukocls.artifacts.record import DIGEST, record_digest
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.data.index import build_index
from leukocls.data.warp import to_images
from leukocls.inference.bundle import DOCUMENT, open_bundle
from leukocls.inference.distance import USUAL, K, _evenly
from leukocls.inference.images import Reading, read_cell, seen
from leukocls.inference.torch_predictor import TorchPredictor


def files_by_cell(tree: Path) -> dict[str, Path]:
    index = build_index(tree)
    table = index.table[index.table["part"] != "final"]
    return {
        cell: index.root / file for cell, file in zip(table["cell"], table["file"], strict=True)
    }


def test_it_is_that_to_the_tenth_nearest_training_cell(
    bundled: Path, trained: Path, small_tree: Path
) -> None:
    predictor = TorchPredictor(open_bundle(bundled / "bundle"), "cpu")
    (member,), (network,) = predictor.members, predictor.networks
    files = files_by_cell(small_tree)

    def features(cells: list[str]) -> np.ndarray:
        images = [seen(read_cell(files[cell], Reading(None)).pixels, member.crop, member.size)
                  for cell in cells]  # fmt: skip
        with torch.inference_mode():
            normal = (to_images(torch.from_numpy(np.stack(images))) - network.mean) / network.std
            found = network.backbone.forward_features(normal).mean((2, 3)).numpy()
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    split = pd.read_csv(trained / "split.csv", dtype=str)
    chose = split["cell"][split["split"] == record(trained)["selection"]["set"]].tolist()
    fitted = NearestNeighbors(n_neighbors=K).fit(
        features(split["cell"][split["split"] == "train"].tolist())
    )
    raw = fitted.kneighbors(features(chose))[0][:, -1]
    scale = np.quantile(raw, USUAL)
    found = predictor.predict([files[cell] for cell in chose])["distance"].to_numpy()
    assert found == pytest.approx(raw / scale, rel=1e-3)
    assert (found > 1).sum() == pytest.approx((1 - USUAL) * len(chose), abs=1)
    entry = predictor.bundle.document["distance"]
    assert entry["scale"] == pytest.approx(scale, rel=1e-3)
    assert entry["references"] == (split["split"] == "train").sum()


def test_what_is_no_cell_lies_far_away(bundled: Path, small_tree: Path) -> None:
    predictor = leukocls.load_bundle(bundled / "bundle", "cpu")
    cells = predictor.predict([str(path) for path in sorted(small_tree.rglob("UID_*.bmp"))[:20]])
    noise = np.random.default_rng(0).integers(0, 256, (450, 450, 3), dtype=np.uint8)
    assert predictor.predict([noise])["distance"][0] > cells["distance"].max()


def test_the_command_counts_those_that_lie_far_away(
    bundled: Path, small_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [str(path) for path in sorted(small_tree.rglob("UID_*.bmp"))[:12]]
    words = [str(bundled / "bundle"), *cells, "--out", str(tmp_path / "out.csv")]
    assert predict.main(words) == 0
    far = (pd.read_csv(tmp_path / "out.csv")["distance"] > 1).sum()
    assert f"{far} of them are farther" in capsys.readouterr().out


def test_without_the_images_there_is_none(
    trained: Path, small_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bundle.main([str(trained), "--out", str(tmp_path / "bundle")]) == 0
    image = str(next(small_tree.rglob("UID_*.bmp")))
    found = leukocls.load_bundle(tmp_path / "bundle", "cpu").predict(image)
    assert found["distance"].isna().all()
    assert predict.main([str(tmp_path / "bundle"), image, "--out", str(tmp_path / "o.csv")]) == 0
    assert "farther" not in capsys.readouterr().out


def test_data_that_lacks_the_cells_is_refused(
    trained: Path, sample_root: Path, tmp_path: Path
) -> None:
    words = [str(trained), "--out", str(tmp_path / "bundle"), "--data", str(sample_root)]
    with pytest.raises(LeukoclsError, match="lacks"):
        bundle.main(words)
    assert not list(tmp_path.iterdir())


def test_references_that_were_changed_are_refused(bundled: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundled / "bundle", tmp_path / "bundle"))
    document = json.loads((copy / DOCUMENT).read_text(encoding="utf-8"))
    document["distance"]["file"] = "../elsewhere.safetensors"
    (copy / DOCUMENT).write_text(json.dumps(document | {DIGEST: record_digest(document)}))
    with pytest.raises(DataFault, match="elsewhere"):
        leukocls.load_bundle(copy)
    shutil.copy(bundled / "bundle" / DOCUMENT, copy)
    (copy / "references.safetensors").write_bytes(b"")
    with pytest.raises(DataFault, match="references"):
        leukocls.load_bundle(copy)


@pytest.mark.parametrize("most", [3, 5, 100])
def test_references_are_of_all_persons(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leukocls.inference.distance.MOST", most)
    cells = [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("c2", "c")]
    table = pd.DataFrame(cells, columns=["cell", "group"]).assign(label=["1"] * 5 + ["0"])
    found = _evenly(table)
    assert [cell for cell, _, _ in found] == ["a1", "b1", "c1", "a2", "c2", "a3"][:most]
    labels = {"c2": "HEM"}
    assert all((who, label) == (cell[0], labels.get(cell, "ALL")) for cell, who, label in found)


def test_a_run_that_held_no_cells_out_has_no_scale(
    trained_once: Callable[..., Path], small_tree: Path, tmp_path: Path
) -> None:
    run = trained_once("split_scheme=all", "selection=last")
    words = [str(run), "--out", str(tmp_path / "bundle")]
    with pytest.raises(LeukoclsError, match=r"--data .* held no cells out"):
        bundle.main([*words, "--data", str(small_tree)])
    assert bundle.main(words) == 0
