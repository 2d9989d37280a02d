"""Signals end a run at its next step, saved; a second one ends it at once, and nothing is torn."""

import os
import pty
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import only_run, record, small
from fault_bench import (
    DIGESTS,
    EVERYTHING,
    Start,
    assert_nothing_is_left_over,
    assert_nothing_is_torn,
    result,
    run_with,
    whole,
)

from leukocls.common.processes import Interrupted, hold_signals, interruptible
from leukocls.training.mid_epoch import MidEpochSaves

# Saved at signals alone.
WORDS = [*EVERYTHING, "save_every=5", "save_minutes=null"]


@pytest.mark.parametrize(
    ("fault", "resumes"),
    [
        # In the second batch of a step of two; in the last one of an epoch, which is scored first.
        ("step:4:SIGTERM", "resumed after epoch 0 and 4 batches of the next from"),
        ("step:7:SIGINT", "resumed after epoch 1 from"),
        ("scoring:2:SIGUSR1", "resumed after epoch 1 from"),
        ("save:1:SIGHUP", "resumed after epoch 2 from"),  # the run's only one
        ("joining:1:SIGTERM", "resumed after epoch 2 from"),
    ],
)
def test_a_signalled_run_is_saved_and_resumes_to_the_same_bits(
    fault: str, resumes: str, once: Callable[..., Path], small_tree: Path, tmp_path: Path,
    command: Start,
) -> None:  # fmt: skip
    outputs, number = tmp_path / "outputs", getattr(signal, fault.rpartition(":")[2])
    words = [*small(small_tree, outputs), *WORDS]
    stopped = run_with(command, words, fault)
    assert stopped.wait() == 128 + number, stopped.err
    assert record(only_run(outputs))["status"] == "interrupted"
    assert not list(outputs.rglob(".*.tmp"))
    assert_nothing_is_torn(outputs)
    # What a killed process would have left.
    (only_run(outputs) / f".{uuid.uuid4().hex}.tmp").write_bytes(b"half a file")
    (only_run(outputs) / "checkpoints" / f".{uuid.uuid4().hex}.tmp").write_bytes(b"half a file")
    ended = run_with(command, words)
    assert ended.wait() == 0, ended.err
    assert resumes in ended.out
    assert result(outputs) == whole("plain", small_tree, once)
    assert_nothing_is_left_over(outputs)


@pytest.mark.parametrize(
    ("fault", "more"),
    [
        ("planning:1:SIGTERM", ["plan=true"]),
        ("planning:1:SIGINT", ["plan=true", "seed=0,1", "-m"]),
        ("packing:1:SIGTERM", []),
        ("packing:1:SIGUSR1", ["data.size=16"]),
        ("scoring:1:SIGHUP", []),
    ],
)
def test_before_training_a_signal_ends_a_command_at_once(
    fault: str, more: list[str], small_tree: Path, tmp_path: Path, command: Start
) -> None:
    outputs, number = tmp_path / "outputs", getattr(signal, fault.rpartition(":")[2])
    stores = tmp_path / "stores"
    words = [*small(small_tree, outputs), f"data.cache={stores}", *WORDS, *more]
    stopped = run_with(command, words, fault)
    assert stopped.wait() == 128 + number, stopped.err
    assert "ends after this step" not in stopped.err
    assert f"interrupted (exit code {128 + number})" in stopped.err
    states = [record(path.parent)["status"] for path in outputs.rglob("run.json")]
    assert states == ([] if "planning" in fault else ["interrupted"])
    assert not [*outputs.rglob(".*.tmp"), *stores.rglob(".*.tmp")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signalled_sweep_saves_its_jobs_and_resumes_them(
    number: int, trained_once: Callable[..., Path], small_tree: Path, tmp_path: Path, command: Start
) -> None:
    # Neither may be over before both have saved; those that are not resumed may take for ever.
    epochs = 12 if number == signal.SIGTERM else 1000
    outputs, longer = tmp_path / "outputs", f"trainer.max_epochs={epochs}"
    words = [*small(small_tree, outputs), longer, "seed=0,1", "jobs=2", "-m"]
    sweep = command("train", *words)
    saved = lambda: {path.parent for path in outputs.rglob("resume-*.ckpt")}  # noqa: E731
    assert sweep.until(lambda: len(saved()) == 2), sweep.err
    sweep.send_signal(number)
    assert sweep.wait() == 128 + number, sweep.err
    assert f"error: interrupted (exit code {128 + number})" in sweep.err
    runs = sorted(path.parent for path in outputs.rglob("run.json"))
    assert [record(run)["status"] for run in runs] == ["interrupted"] * 2
    assert not list(outputs.rglob(".*.tmp"))
    for run in runs:
        with pytest.raises(ProcessLookupError):
            os.kill(record(run)["pid"], 0)
    if number != signal.SIGTERM:  # what they left is alike
        return
    again, alone = command("train", *words), trained_once(longer)
    assert again.wait() == 0, again.err
    for key in DIGESTS:
        assert record(runs[0])[key] == record(alone)[key]
    assert all("resumed after epoch" in (run / "log.txt").read_text() for run in runs)


@pytest.mark.parametrize("point", ["file:40", "rename:20", "step:9"])
def test_a_second_signal_leaves_nothing_torn(
    point: str, once: Callable[..., Path], small_tree: Path, tmp_path: Path, command: Start
) -> None:
    outputs = tmp_path / "outputs"
    words = [*small(small_tree, outputs), *WORDS, "save_minutes=1e-9"]
    stopped = run_with(command, words, f"{point}:SIGTERM twice")
    assert stopped.wait() == 143, stopped.err
    assert record(only_run(outputs))["status"] == "interrupted"
    assert_nothing_is_torn(outputs)
    ended = run_with(command, words)
    assert ended.wait() == 0, ended.err
    assert result(outputs) == whole("plain", small_tree, once)


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_acts_at_once(again: int) -> None:
    def send() -> None:
        with interruptible(signal.SIGTERM, signal.SIGINT), hold_signals() as held:
            os.kill(os.getpid(), signal.SIGTERM)
            assert held.number == signal.SIGTERM
            os.kill(os.getpid(), again)
            pytest.fail("it waited")

    with pytest.raises(Interrupted) as stop:
        send()
    assert stop.value.code == 128 + again


def test_a_held_signal_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leukocls.common.processes.HOLD_S", 0.1)

    def send() -> None:
        with interruptible(signal.SIGTERM), hold_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
            pytest.fail("it waited")

    with pytest.raises(Interrupted) as stop:
        send()
    assert stop.value.code == 143


def test_after_the_evaluation_a_signal_waits_for_the_save_of_the_epoch() -> None:
    def send() -> None:
        with interruptible(signal.SIGTERM), hold_signals() as held:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
            MidEpochSaves(None, None, held).on_validation_end(None, None)  # type: ignore[arg-type]
            assert signal.getitimer(signal.ITIMER_REAL)[0] == 0

    with pytest.raises(Interrupted):
        send()


def test_a_terminal_that_closes_counts_once_and_is_no_error() -> None:
    """In a process with a terminal of its own, to which nothing can be written any more."""
    listening, ready = os.pipe()
    child, terminal = pty.fork()
    if not child:
        code = 1
        try:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            with interruptible(signal.SIGHUP), hold_signals() as held:
                os.write(ready, b".")
                deadline = time.monotonic() + 20
                while held.number is None and time.monotonic() < deadline:
                    time.sleep(0.01)
                os.write(1, b"nobody reads this")
                os.kill(os.getpid(), signal.SIGHUP)
                held.pass_on()
        except Interrupted as stop:
            code = stop.code
        finally:
            os._exit(code)
    os.read(listening, 1)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129


def test_after_a_signal_was_passed_on_another_is_not_held() -> None:
    def send() -> None:
        with interruptible(signal.SIGTERM, signal.SIGINT), hold_signals() as held:
            os.kill(os.getpid(), signal.SIGTERM)
            try:
                held.pass_on()
            finally:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as stop:
        send()
    assert stop.value.code == 130


def test_what_a_cluster_sends_to_take_a_job_back_outlasts_its_sigterm() -> None:
    """submitit's handler of SIGTERM does nothing."""
    came: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGUSR2)
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in numbers}
    try:
        with hold_signals() as held:
            for number in numbers:
                os.kill(os.getpid(), number)
            assert not came
            held.pass_on()
            assert came == [signal.SIGUSR2]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_what_nobody_handles_is_not_held() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with hold_signals() as held:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert held.number is None
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
