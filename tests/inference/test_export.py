"""ONNX files: the same predictions as the bundle's, without PyTorch, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from conftest import TINY

import leukocls
from leukocls import bundle, export, predict
from leukocls.artifacts.record import DIGEST
from leukocls.common.errors import DataFault, LeukoclsError
from leukocls.inference import onnx_export
from leukocls.inference.bundle import FORMAT, open_bundle
from leukocls.inference.images import Reading, find_images, read_cell, seen
from leukocls.inference.onnx_predictor import ABOUT, OWN, PLAIN, OnnxPredictor, signed
from leukocls.inference.torch_predictor import TorchPredictor

# Each kind of network, with each kind of views: warped rotations, corners, exact rotations.
SYSTEMS = {
    "attention": ["model=efficientnetlite0_multiattention", *TINY[1:], "model.weights=null",
                  "views=3", "data.crop=60", "data.size=null"],
    "region": ["model=resnet18_region", *TINY[1:], "views=corners", "data.crop=box"],
    "frozen": ["model=frozen_efficientnetb0", *TINY[1:]],
}  # fmt: skip
NOT_NEEDED = ("torch", "torchvision", "timm", "kornia", "hydra", "pytorch_lightning", "scipy",
              "skimage", "sklearn", "matplotlib", "safetensors", "onnx")  # fmt: skip
# A process of its own: this one has imported them all.
PROGRAM = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from leukocls import predict
sys.exit(predict.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def images(small_tree: Path) -> list[str]:
    """Nine cells: no multiple of what the graph was traced with."""
    return [str(path) for path in sorted(small_tree.rglob("UID_*.bmp"))[:9]]


def stored_pixels(images: list[str], crop: Any, size: int) -> np.ndarray:
    cells = [read_cell(one.path, Reading(None)).pixels for one in find_images(images)]
    return np.stack([seen(cell, crop, size) for cell in cells])


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_predicts_the_same(
    name: str, trained_once: Callable[..., Path], images: list[str], small_tree: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = trained_once(*SYSTEMS[name], "trainer.max_epochs=1")
    folder, file = tmp_path / "bundle", tmp_path / "network.onnx"
    assert bundle.main([str(run), "--out", str(folder), "--data", str(small_tree)]) == 0
    assert export.main([str(folder), "--out", str(file), "--compare-on", *images]) == 0
    assert "9 images" in capsys.readouterr().out
    wanted = leukocls.load_bundle(folder, "cpu").predict(images)
    found = leukocls.load_bundle(file).predict(images)
    numbers = ["logit", "prob", "view_sd", "distance"]
    np.testing.assert_allclose(found[numbers], wanted[numbers], rtol=0, atol=1e-5)
    pd.testing.assert_frame_equal(found.drop(columns=numbers), wanted.drop(columns=numbers))


def test_it_predicts_where_nothing_of_pytorch_is(
    bundled: Path, images: list[str], tmp_path: Path
) -> None:
    words = [*images, str(tmp_path / "damaged.bmp")]
    (tmp_path / "damaged.bmp").write_bytes(b"BM")
    out, wanted = tmp_path / "onnx.csv", tmp_path / "torch.csv"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(NOT_NEEDED), str(bundled / "network.onnx"), *words,
         "--out", str(out)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (3, False), done.stderr
    assert predict.main([str(bundled / "bundle"), *words, "--out", str(wanted)]) == 3
    found, other = (pd.read_csv(path) for path in (out, wanted))
    pd.testing.assert_frame_equal(found, other, rtol=0, atol=1e-5)


def test_the_graph_alone_says_what_predict_says(bundled: Path, images: list[str]) -> None:
    """For those who have ONNX Runtime and not leukocls."""
    session = onnxruntime.InferenceSession(bundled / "network.onnx")
    opened = open_bundle(bundled / "bundle")
    (member,) = opened.members
    pixels = stored_pixels(images, member.crop, member.size)
    outputs = [one.name for one in session.get_outputs()]
    found = dict(zip(outputs, session.run(None, {"images": pixels}), strict=True))
    wanted = leukocls.load_bundle(bundled / "bundle", "cpu").predict(images)
    for name in ("logit", "prob", "view_sd", "distance"):
        assert found[name] == pytest.approx(wanted[name].to_numpy(), abs=1e-5)
    assert [("HEM", "ALL")[called] for called in found["label"]] == wanted["label"].tolist()
    between = np.array(np.median(found["logit"]) + 1e-9)
    (label,) = session.run(["label"], {"images": pixels, "threshold": between})
    assert label.tolist() == (found["logit"] > between).tolist()
    assert 0 < label.sum() < len(label)
    metadata = session.get_modelmeta().custom_metadata_map
    about, later = json.loads(metadata[ABOUT]), {"files", "onnx", DIGEST}
    assert {k: v for k, v in about.items() if k not in later} == {
        k: v for k, v in opened.document.items() if k not in later
    }
    parity = json.loads(metadata["parity"])
    assert (parity["number"], parity["images"]) == (onnx_export.DRAWN, "SYNTHETIC cells")
    assert 0 <= parity["difference"] <= onnx_export.TOLERANCE
    assert 0 < parity["rounding"] <= onnx_export.TOLERANCE
    assert 0 <= parity["error"] <= parity["difference"] + parity["rounding"]
    assert "diagnosis" in metadata["use"]
    # The bundle was made with it, and says so.
    assert opened.document["onnx"] == {"file": "network.onnx", **parity}
    assert "network.onnx" in opened.document["files"]
    assert "`network.onnx`" in (bundled / "bundle/README.md").read_text()


def changes(content: bytes) -> Iterator[bytes]:
    """The content with one byte of the weights, of the metadata, and at the end changed; halved."""
    for at in (len(content) // 2, content.index(b'"threshold"') + 2, len(content) - 1):
        yield content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    yield content[: len(content) // 2]
    yield content + b"\0"


def test_a_file_that_was_changed_is_refused(bundled: Path, tmp_path: Path) -> None:
    file = tmp_path / "network.onnx"
    for content in changes((bundled / "network.onnx").read_bytes()):
        file.write_bytes(content)
        with pytest.raises((DataFault, LeukoclsError), match=r"network\.onnx"):
            OnnxPredictor(file)


def test_what_is_no_file_of_ours_is_refused(bundled: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.onnx"
    with pytest.raises(LeukoclsError, match="No such file"):
        leukocls.load_bundle(file)
    model = onnx.load(bundled / "network.onnx")
    kept = {one.key: one.value for one in model.metadata_props}
    del model.metadata_props[:]
    onnx.save(model, file)
    with pytest.raises(LeukoclsError, match=r"leukocls\.export"):
        leukocls.load_bundle(file)
    # Signed, and yet of a version to come.
    kept[ABOUT] = json.dumps(json.loads(kept[ABOUT]) | {"format": FORMAT + 1})
    kept[OWN] = PLAIN.decode()
    for key, value in kept.items():
        model.metadata_props.add(key=key, value=value)
    file.write_bytes(signed(model.SerializeToString()))
    with pytest.raises(LeukoclsError, match=f"format {FORMAT + 1}"):
        leukocls.load_bundle(file)
    with pytest.raises(LeukoclsError, match="--device tpu"):
        leukocls.load_bundle(bundled / "network.onnx", "tpu")


def test_what_computes_something_else_is_not_written(
    bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = onnx.load(bundled / "network.onnx")
    for one in other.graph.initializer:
        if one.data_type == onnx.TensorProto.FLOAT:
            one.raw_data = bytes(len(one.raw_data))
    monkeypatch.setattr(onnx_export, "_exported", lambda *_: other)
    words = [str(bundled / "bundle"), "--out", str(tmp_path / "new" / "network.onnx")]
    with pytest.raises(LeukoclsError, match="nothing was written"):
        export.main(words)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("rounding", "written"), [(0.0, False), (2e-4, True)])
def test_a_network_that_rounds_coarsely_may_differ_more(
    rounding: float, written: bool, bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, model = np.zeros(16), onnx.load(bundled / "network.onnx")
    del model.metadata_props[:]
    logits = exact + 5e-4, exact + rounding, exact
    monkeypatch.setattr(onnx_export, "_exported", lambda *_: model)
    monkeypatch.setattr(onnx_export, "_logits", lambda *_: logits)
    words = [str(bundled / "bundle"), "--out", str(tmp_path / "network.onnx")]
    if written:
        assert export.main(words) == 0
    else:
        with pytest.raises(LeukoclsError, match=r"explains no more than 0\.0001"):
            export.main(words)


def test_a_folder_that_would_fill_the_memory_is_not_compared_on(
    bundled: Path, small_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "TOGETHER", 3)
    words = [str(bundled / "bundle"), "--out", str(tmp_path / "a.onnx")]
    with pytest.raises(LeukoclsError, match=r"--compare-on: \d+ images.*at most 3"):
        export.main([*words, "--compare-on", str(small_tree)])
    assert not list(tmp_path.iterdir())


def test_what_has_no_single_input_is_refused(bundled: Path, tmp_path: Path) -> None:
    predictor = TorchPredictor(open_bundle(bundled / "bundle"), "cpu")
    (member,) = predictor.members
    predictor.members = [member, type(member)(**(vars(member) | {"size": member.size + 1}))]
    with pytest.raises(LeukoclsError, match="one input"):
        onnx_export.write_onnx(predictor, tmp_path / "network.onnx")
    with pytest.raises(LeukoclsError, match=r"\.onnx"):
        export.main([str(bundled / "bundle"), "--out", str(tmp_path / "network.pt")])
    with pytest.raises(LeukoclsError, match="no bundle"):
        export.main([str(tmp_path), "--out", str(tmp_path / "network.onnx")])
    assert not list(tmp_path.iterdir())
