import hashlib
import os
import subprocess
import sys

import pytest

from leukocls.common import errors, files
from leukocls.common.processes import Interrupted
from leukocls.common.terminal import BROKEN_PIPE


def test_writes_whole_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    files.atomic_write(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    files.atomic_write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_leftovers_are_removed_and_what_is_being_written_stays(tmp_path):
    left = tmp_path / f".{'0' * 32}.tmp"
    left.write_bytes(b"half a file")
    with files.atomic_stream(tmp_path / "a.txt") as stream:
        stream.write(b"whole")
        files.remove_unfinished(tmp_path)
        assert not left.exists()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.txt", b"whole")]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_keeps_the_old_file_and_no_temporary(tmp_path, monkeypatch, failing, failure):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(type(failure)) as caught:
        files.atomic_write(path, "new")
    if isinstance(failure, OSError):
        assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_missing_directory_names_the_target(tmp_path):
    path = tmp_path / "nowhere" / "a.txt"
    with pytest.raises(FileNotFoundError, match=r"a\.txt"):
        files.atomic_write(path, "new")


def test_file_is_readable_by_others_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        files.atomic_write(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_sha256_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    expected = hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert files.sha256_file(tmp_path / "a") == expected


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (errors.LeukoclsError("a.csv: bad; fix it"), 2, "error: a.csv: bad; fix it\n"),
        (errors.DataFault("fold_1 is missing"), 1, "error: fold_1 is missing\n"),
        (Interrupted(130), 130, "error: interrupted (exit code 130)\n"),
        (PermissionError(13, "Permission denied", "x"), 2, None),
        (ZeroDivisionError("oops"), 1, None),
    ],
)
def test_run_verb_ends_with_one_message(capsys, monkeypatch, raised, code, message):
    monkeypatch.delenv("LEUKOCLS_TRACEBACK", raising=False)

    def main():
        raise raised

    with pytest.raises(SystemExit) as ended:
        errors.run_verb(main)
    printed = capsys.readouterr().err
    assert ended.value.code == code
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert message is None or printed == message


def test_run_verb_shows_a_traceback_on_demand(capsys, monkeypatch):
    monkeypatch.setenv("LEUKOCLS_TRACEBACK", "1")

    def main():
        raise errors.LeukoclsError("bad")

    with pytest.raises(SystemExit):
        errors.run_verb(main)
    assert "Traceback" in capsys.readouterr().err


def test_run_verb_passes_the_exit_code_on():
    with pytest.raises(SystemExit) as ended:
        errors.run_verb(lambda: 3)
    assert ended.value.code == 3


def test_a_closed_pipe_is_quiet():
    program = (
        "import sys; from leukocls.common.errors import run_verb\n"
        "run_verb(lambda: print('x' * 100, *range(200_000), sep='\\n') or 0)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == BROKEN_PIPE


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(28, "make room"), (13, "allow it for this user"), (2, "restore it"), (5, "another place")],
)
def test_an_error_of_the_system_has_its_own_remedy(number, remedy):
    found = errors.system_message(OSError(number, os.strerror(number), "/a/b.csv"))
    assert found.startswith(f"/a/b.csv: {os.strerror(number)}; ")
    assert remedy in found
    assert errors.system_message(OSError("no more is known")) == "no more is known"
