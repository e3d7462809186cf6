"""Notes and progress: lines that can be told apart in a log, and a bar on a terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import subprocess
import sys

import pytest

from percmae import progress as module
from percmae.progress import Progress, log_to_stderr, note, progress, relay, warn

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO: "


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


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr, each of which has begun with a time and its level."""
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(STAMP, line) for line in lines), lines
    return [re.sub(STAMP, "", line) for line in lines]


def test_lines_at_a_steady_pace(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("ingest", 5000, "img") as shown:
        for _ in range(50):
            clock.now += 0.5
            shown.update(100)
    assert said(capsys) == [
        "ingest:  40% 2000/5000 [00:10<00:15, 200.00img/s]",
        "ingest:  80% 4000/5000 [00:20<00:05, 200.00img/s]",
        "ingest: 100% 5000/5000 [00:25<00:00, 200.00img/s]",
    ]


def test_slow_work_says_seconds_an_item(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train", 2000, "step") as shown:
        clock.now += 12.5
        shown.update(5, loss=0.412345, stage="mae")
    line = "train:   0% 5/2000 [00:12<1:23:07,  2.50s/step, loss=0.412, stage=mae]"
    assert said(capsys) == [line, line]


def test_a_resumed_run_counts_its_own_steps_for_the_rate(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("train", 100, "step", initial=80) as shown:
        clock.now += 10
        shown.update(10)
    assert said(capsys)[0] == "train:  90% 90/100 [00:10<00:10,  1.00step/s]"


def test_bytes_and_unknown_totals(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("fetch", None, "B") as shown:
        clock.now += 2
        shown.update(3 * 10**6)
    with Progress("idle", None):
        clock.now += 1
    with Progress("part", 10**9, "B") as shown:
        clock.now += 10
        shown.update(5 * 10**8)
    assert said(capsys) == [
        "fetch: 3.00MB [00:02, 1.50MB/s]",
        "idle: 0it [00:01, ?it/s]",
        "part:  50% 500M/1.00G [00:10<00:10, 50.0MB/s]",
        "part:  50% 500M/1.00G [00:10<00:10, 50.0MB/s]",
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
    assert said(capsys) == [
        "read: 100% 3/3 [00:03<00:00,  1.00it/s]",
        "letters: 100% 2/2 [00:00<?, ?letter/s]",
        "by hand: 100% 7/7 [00:00<?, ?it/s]",
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
    assert said(capsys) == ["read:  40% 4/10 [00:05<00:07,  1.25s/it]"]


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
    assert re.match(STAMP + "train: 100% 1/1", terminal.getvalue())


def test_notes_and_warnings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    note("100% done")
    warn("hot")
    monkeypatch.setenv("RANK", "31")
    note("rank's own")
    relay("2026-01-01T00:00:00Z INFO rank 3: of another process")
    out, err = capsys.readouterr()
    assert out == ""
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    expected = [
        f"{time} INFO: 100% done",
        f"{time} WARNING: hot",
        f"{time} INFO rank 31: rank's own",
        "2026-01-01T00:00:00Z INFO rank 3: of another process",
    ]
    lines = err.splitlines()
    assert len(lines) == len(expected)
    assert all(map(re.fullmatch, expected, lines)), lines


def test_short_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("RANK", "3")
    with contextlib.redirect_stderr(Terminal()) as terminal:
        note("hello")
        warn("hot")
    assert terminal.getvalue() == "hello\nwarning: hot\n"


def run(code: str) -> tuple[str, str]:
    """stdout and stderr of a program."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout, done.stderr


WORK = "from percmae.progress import note, progress, warn\nnote('a'); warn('b')\n"
WORK += "list(progress([1], desc='c'))\n"


def test_a_program_that_configures_nothing_hears_warnings() -> None:
    assert run(WORK) == ("", "b\n")


def test_a_program_that_configures_logging_keeps_control() -> None:
    own = "import logging, sys\n"
    own += "logging.basicConfig(level='INFO', stream=sys.stdout, format='%(name)s %(message)s')\n"
    out, err = run(own + WORK)
    assert err == ""
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "percmae a",
        "percmae b",
        "percmae c",
    ]


def test_an_entry_point_says_everything_once_whatever_the_root_logger_does() -> None:
    """KFP's executor gives the root logger a handler before it starts a step."""
    own = "import logging, sys\n"
    own += "logging.basicConfig(level='INFO', stream=sys.stdout)\n"
    own += "from percmae.command import exit_code\nfrom percmae.progress import note\n"
    own += "exit_code(lambda: exit_code(lambda: note('once')))\nnote('after')"
    out, err = run(own)
    assert out == "INFO:percmae:after\n"
    assert re.fullmatch(STAMP + "once\n", err)


def test_a_handler_of_the_callers_is_the_only_one(capsys: pytest.CaptureFixture[str]) -> None:
    logger, stream = logging.getLogger("percmae"), io.StringIO()
    ours = logger.handlers[:]
    handler = logging.StreamHandler(stream)
    logger.handlers[:] = [handler]
    try:
        with log_to_stderr():
            note("to the caller")
    finally:
        logger.handlers[:] = ours
    assert stream.getvalue() == "to the caller\n"
    assert capsys.readouterr().err == ""


def test_tqdm_is_loaded_for_progress_only() -> None:
    run(
        "import sys; from percmae.progress import note; note('y'); assert 'tqdm' not in sys.modules"
    )
