"""The page to try a bundle: what it answers, and that nothing of an upload is left."""

import importlib
import os
import re
import shutil
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from conftest import Command

import leukocls
from leukocls import serve
from leukocls.common.errors import LeukoclsError
from leukocls.inference.bundle import open_bundle
from leukocls.inference.images import Reading
from leukocls.inference.torch_predictor import TorchPredictor


@pytest.fixture(scope="module")
def web_page() -> ModuleType:
    """The page's module, imported for these tests alone: it brings Gradio, which takes seconds."""
    return importlib.import_module("leukocls.inference.web_page")


@pytest.fixture(scope="module")
def predictor(bundled: Path) -> TorchPredictor:
    return TorchPredictor(open_bundle(bundled / "bundle"), "cpu")


@pytest.fixture
def uploads(small_tree: Path, tmp_path: Path) -> list[Path]:
    """Copies of two cells that the network was trained on."""
    cells = sorted((small_tree / "C-NMC_Leukemia/training_data").rglob("*.bmp"))[:2]
    (tmp_path / "up").mkdir()
    return [Path(shutil.copy(cell, tmp_path / "up")) for cell in cells]


def test_the_answer_is_that_of_predict(
    web_page: ModuleType, predictor: TorchPredictor, uploads: list[Path], bundled: Path
) -> None:
    """With maps, and each cell as its own nearest training cell; then the files are gone."""
    expected = leukocls.load_bundle(bundled / "bundle", "cpu").predict([*map(str, uploads)])
    html = web_page.answer(predictor, [*map(str, uploads)], Reading(predictor.side))
    assert "RESEARCH USE ONLY" in html
    assert "SYNTHETIC" in html
    assert re.findall(r"<td>(\d\.\d\d)</td><td>(ALL|HEM)</td>", html) == [
        (f"{row.prob:.2f}", row.label) for row in expected.itertuples()
    ]
    nearest = re.findall(r"<td>(?:ALL|HEM), person \S+: (\S+) \(0\.00\)<br>", html)
    assert nearest == [path.name for path in uploads]
    assert html.count('alt="grad-cam over') == 2
    assert not any(path.exists() for path in uploads)


def test_bad_files_are_named_and_names_are_no_markup(
    web_page: ModuleType, predictor: TorchPredictor, uploads: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    bad = uploads[0].with_name("<b>bold.png")
    bad.write_bytes(b"no image")
    odd = uploads[0].rename(uploads[0].with_name("<i>odd.bmp"))
    html = web_page.answer(predictor, [str(bad), str(odd)], Reading(predictor.side))
    assert "<li>&lt;b&gt;bold.png: " in html
    assert "&lt;i&gt;odd.bmp" in html
    assert "<b>" not in html
    assert "<i>" not in html
    monkeypatch.setattr(web_page, "MOST", 1)
    read = uploads[1].read_bytes()
    uploads[0].write_bytes(read)
    html = web_page.answer(predictor, [*map(str, uploads)], Reading(predictor.side))
    assert "Of 2 images the first 1" in html
    monkeypatch.setattr(web_page, "MOST", 2)
    monkeypatch.setattr(web_page, "TOGETHER", 1)
    for upload in uploads:
        upload.write_bytes(read)
    html = web_page.answer(predictor, [*map(str, uploads)], Reading(predictor.side))
    assert f"{uploads[1].name}: too large beside the others" in html
    assert not list(bad.parent.iterdir())


def test_a_served_page_keeps_nothing(
    web_page: ModuleType, predictor: TorchPredictor, uploads: list[Path], tmp_path: Path, capsys
) -> None:
    from gradio_client import Client, handle_file

    folder = tmp_path / "served"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reading = Reading(predictor.side)
    page = web_page.serve(predictor, reading, "127.0.0.1", port, folder)
    try:
        address = f"http://127.0.0.1:{port}/"
        assert address in capsys.readouterr().out
        client = Client(address, verbose=False)
        sent = [handle_file(str(path)) for path in uploads]
        assert uploads[0].name in client.predict(sent, api_name="/predict")[1]
        assert not any(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        with pytest.raises(LeukoclsError, match=f"--port {port}"):
            web_page.serve(predictor, reading, "127.0.0.1", port, folder)
    finally:
        page.close(verbose=False)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 0)])
def test_a_signal_ends_the_page_and_removes_what_it_held(
    number: int, code: int, bundled: Path, tmp_path: Path, command: Callable[..., Command]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    held = tmp_path / "tmp"
    held.mkdir()
    serving = command("serve", bundled / "bundle", "--port", port,
                      env=os.environ | {"TMPDIR": str(held)})  # fmt: skip
    assert serving.until(lambda: "Ctrl-C ends it" in serving.out), serving.err
    assert list(held.glob("leukocls-serve-*"))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
        assert "leukocls" in page.read().decode()
    serving.send_signal(number)
    assert serving.wait() == code, serving.err
    assert not list(held.glob("leukocls-serve-*"))


def test_without_gradio_the_remedy_is_named(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "leukocls.inference.web_page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(LeukoclsError, match=r"leukocls\[serve\]"):
        serve.main([str(bundled / "bundle")])
