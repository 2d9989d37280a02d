"""What a run draws on a terminal of 80 columns, and what its log keeps of it."""

import re
import sys
from io import StringIO
from pathlib import Path

import pytest
from conftest import Train, only_run, small

WIDTH = 80


class Terminal(StringIO):
    """A terminal: `frames` are its lines each time that one was drawn anew, `lines` the last."""

    def __init__(self) -> None:
        super().__init__()
        self.lines, self.row, self.column = [""], 0, 0
        self.frames: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for part in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+", text):
            if part == "\x1b[A":
                self.row -= 1
            elif part == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif part == "\r":
                self.column = 0
            else:
                line = self.lines[self.row].ljust(self.column)
                end = self.column + len(part)
                self.lines[self.row] = line[: self.column] + part + line[end:]
                self.column = end
                self.frames.append(self.lines[self.row].rstrip())
        return len(text)


def test_a_run_on_a_terminal(
    small_tree: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("LINES", "24")
    words = [*small(small_tree, tmp_path / "outputs"), "split_scheme=honest", "views=1"]
    assert train(*words, "trainer.limit_train_batches=2").code == 0
    bars = [line for line in terminal.frames if "% |" in line]
    assert max(map(len, bars)) < WIDTH
    # The value of the loss is visible, and the bar counts the epochs as the line does.
    values = [line for line in bars if re.search(r"loss=\d+\.\d+", line)]
    assert {line.split()[1] for line in values} == {"1", "2"}
    epochs = [line for line in terminal.lines if line.startswith("epoch ")]
    assert [line.split()[1] for line in epochs][:3] == ["0", "1", "2"]
    # Nothing of a bar is left, and the log has no line for one.
    assert not any("% |" in line for line in terminal.lines)
    log = (only_run(tmp_path / "outputs") / "log.txt").read_text().splitlines()
    assert all(line.strip() for line in log)
    shown = [line.rstrip() for line in terminal.lines if line.strip()]
    assert [line.rstrip() for line in log[1:]] == shown
