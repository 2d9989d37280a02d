"""What a command prints when its output is closed, when it is stopped, and of odd names."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from leukocls.common.terminal import printable

# A module that the verbs import, which sends the signal while it is imported.
STOPPED = "import os, time\nos.kill(os.getpid(), {number})\ntime.sleep(60)\n"


def run(tmp_path: Path, *words: str, **options: object) -> subprocess.Popen[str]:
    options = {"stderr": subprocess.PIPE, "text": True, "cwd": tmp_path, **options}
    return subprocess.Popen([sys.executable, "-m", *words], **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("verb", ["leukocls.train", "leukocls.runs", "leukocls"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_imports_ends_without_a_traceback(
    verb: str, number: signal.Signals, tmp_path: Path
) -> None:
    module = "hydra" if verb == "leukocls.train" else "omegaconf"
    (tmp_path / module).mkdir()
    (tmp_path / module / "__init__.py").write_text(STOPPED.format(number=int(number)))
    words = ["runs"] if verb == "leukocls" else []
    # In the background of a shell, Ctrl-C is ignored.
    default = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = run(tmp_path, verb, *words, stdout=subprocess.DEVNULL)
    finally:
        signal.signal(signal.SIGINT, default)
    _, printed = process.communicate(timeout=60)
    assert (process.returncode, printed) == (128 + number, "error: interrupted\n")


@pytest.mark.parametrize(
    "words",
    [["leukocls.runs", "."], ["leukocls.runs", "-h"], ["leukocls"], ["leukocls.train", "-h"]],
)
def test_output_that_nobody_reads_ends_the_command_quietly(
    words: list[str], tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    process = run(tmp_path, *words, stdout=writing)
    os.close(reading)
    os.close(writing)
    _, printed = process.communicate(timeout=60)
    assert (process.returncode, printed) == (141, "")


def test_control_characters_are_spelled_out() -> None:
    assert printable("a\tb\n\x1b[31m\r\x9b2J\x7f é") == "a\tb\n\\x1b[31m\\x0d\\x9b2J\\x7f é"


def test_names_in_files_reach_no_terminal_raw(tmp_path: Path) -> None:
    names = [f"\x1b]0;owned\x07cell{k}" for k in range(4)]
    rows = "".join(f"{name},\x1b[2Js{k},{k % 2},0.{k + 1}\n" for k, name in enumerate(names))
    (tmp_path / "good.csv").write_text("cell,subject,label,prob\n" + rows)
    (tmp_path / "bad.csv").write_text("cell,subject,label,prob\n" + rows.replace(",0.", ",9."))
    for name, code in (("good.csv", 0), ("bad.csv", 2)):
        words = ["leukocls.evaluate", name, "--per-subject"]
        process = run(tmp_path, *words, stdout=subprocess.PIPE)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert not any(ord(c) < 32 and c not in "\t\n" for c in out + err)
        assert ("\\x1b[2J" in out) if code == 0 else ("\\x1b]0;owned\\x07" in err)
