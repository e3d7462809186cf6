"""Progress as lines and as a bar."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys

import pytest

from percmae import progress as module
from percmae.progress import Progress, note, progress


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_at_a_steady_pace(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("ingest", 5000, "img") as shown:
        for _ in range(50):
            clock.now += 0.5
            shown.update(100)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "ingest: 2000/5000 img, 200 img/s, eta 0:15",
        "ingest: 4000/5000 img, 200 img/s, eta 0:05",
        "ingest: 5000/5000 img, 200 img/s, took 0:25",
    ]


def test_slow_work_says_seconds_an_item(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train", 2000, "step") as shown:
        clock.now += 12.5
        shown.update(5, loss=0.412345, stage="mae")
    assert capsys.readouterr().err.splitlines() == [
        "train: 5/2000 step, 2.5 s/step, eta 1:23:08, loss=0.4123, stage=mae",
        "train: 5/2000 step, 2.5 s/step, took 0:12, loss=0.4123, stage=mae",
    ]


def test_a_resumed_run_counts_its_own_steps_for_the_rate(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("train", 100, "step", initial=80) as shown:
        clock.now += 10
        shown.update(10)
    assert capsys.readouterr().err.splitlines()[0] == "train: 90/100 step, 1 step/s, eta 0:10"


def test_bytes_and_unknown_totals(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("fetch", None, "B") as shown:
        clock.now += 2
        shown.update(3 << 20)
    with Progress("idle", None):
        clock.now += 1
    with Progress("part", 1 << 30, "B") as shown:
        clock.now += 11
        shown.update(512 << 20)
    assert capsys.readouterr().err.splitlines() == [
        "fetch: 3 MiB, 1.5 MiB/s, took 0:02",
        "idle: 0 it, took 0:01",
        "part: 512 MiB/1 GiB, 46.5 MiB/s, eta 0:11",
        "part: 512 MiB/1 GiB, 46.5 MiB/s, took 0:11",
    ]


def test_iterables(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    for item in progress([3, 1, 2], desc="read"):
        seen.append(item)
        clock.now += 1
    assert seen == [3, 1, 2]
    assert list(progress(iter("ab"), 2, "letters", "letter")) == ["a", "b"]
    shown = progress(None, 7, "by hand")
    shown.update(7)
    shown.close()
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "read: 3/3 it, 1 it/s, took 0:03",
        "letters: 2/2 letter, took 0:00",
        "by hand: 7/7 it, took 0:00",
    ]


def test_an_exception_ends_the_line_with_what_was_done(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        for item in progress(range(10), desc="read"):
            clock.now += 1
            if item == 4:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert capsys.readouterr().err.splitlines() == ["read: 4/10 it, 1.25 s/it, took 0:05"]


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_nothing_is_said_by_other_ranks(clock: Clock, stream: type[io.StringIO]) -> None:
    with (
        contextlib.redirect_stderr(stream()) as shown_on,
        Progress("train", 3, show=False) as shown,
    ):
        clock.now += 100
        shown.update(2)
    assert shown_on.getvalue() == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with (
        contextlib.redirect_stderr(Terminal()) as terminal,
        Progress("train", 4, "step") as shown,
    ):
        for step in range(4):
            shown.update(loss=0.5 - step / 10)
            note(f"saved {step}")
    lines = terminal.getvalue().replace("\r", "\n").splitlines()
    assert [line for line in lines if line.startswith("saved")] == [
        f"saved {step}" for step in range(4)
    ]
    assert "train: 100%" in lines[-1]
    assert "4/4" in lines[-1]
    assert "loss=0.2" in lines[-1]
    assert module._open_bars == 0


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with contextlib.redirect_stderr(Terminal()) as terminal, Progress("train", 1) as shown:
        shown.update()
    assert terminal.getvalue().startswith("train: 1/1 it")


def test_note_without_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    note("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_tqdm_is_loaded_for_bars_only() -> None:
    code = (
        "import sys; from percmae.progress import progress, note;"
        "list(progress(range(3), desc='x')); note('y'); assert 'tqdm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
