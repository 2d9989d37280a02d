"""A finished run that is trained again: the same bits, or what differs."""

import json
import shutil
from pathlib import Path

import pytest

from leukocls import repeat
from leukocls.artifacts.record import read_record
from leukocls.common.errors import LeukoclsError


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]):
    def run(*words: object) -> tuple[int, dict]:
        capsys.readouterr()
        code = repeat.main([*map(str, words), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_an_unchanged_checkout_gives_the_same_bits(
    trained: Path, tmp_path: Path, said, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    assert said(trained, "--keep", kept) == (0, {"same": True, "differ": [], "facts": {}})
    (again,) = kept.rglob("run.json")
    assert again.parent.parts[-3:] == trained.parts[-3:]
    with pytest.raises(LeukoclsError, match="--keep"):
        repeat.main([str(trained), "--keep", str(kept)])
    assert repeat.main([str(trained)]) == 0
    assert "same bits" in capsys.readouterr().out


def test_what_differs_is_named(trained: Path, tmp_path: Path, said) -> None:
    """Another number of threads; and a configuration that was edited, which gives other bits."""
    code, found = said(trained, "--threads", 2)
    assert (code, found["same"]) in ((0, True), (1, False))
    assert found["facts"] == {"threads": [1, 2]}
    run = tmp_path.joinpath(*trained.parts[-3:])
    shutil.copytree(trained, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("vertical_flip: 0.5", "vertical_flip: 0.0"))
    code, found = said(run)
    assert (code, "predictions.parquet" in found["differ"]) == (1, True)
    assert found["facts"] == {"augment.vertical_flip": [0.5, 0.0]}


def test_what_cannot_be_repeated_is_refused(
    trained: Path, tmp_path: Path, small_tree: Path
) -> None:
    words = [str(trained), "--data", str(tmp_path / "nowhere")]
    with pytest.raises(LeukoclsError, match="nowhere"):
        repeat.main(words)
    other = tmp_path / "tree"
    shutil.copytree(small_tree, other)
    image = next(other.rglob("UID_*.bmp"))
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    image.write_bytes(data)
    with pytest.raises(LeukoclsError, match="other images"):
        repeat.main([str(trained), "--data", str(other)])
    assert read_record(trained)["status"] == "done"
