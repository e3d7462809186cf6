"""What is shown of a step: lines that stay, the line that is redrawn, and errors in one line."""

from __future__ import annotations

import io
import os
import signal

import pytest

from pipelines.local.console import Console, Lines
from pipelines.local.output import StepErrors, pump


def fed(*pieces: str) -> tuple[list[str], str]:
    lines = Lines()
    done = [line for piece in pieces for line in lines.feed(piece)]
    return done, lines.open


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (("one\ntwo\nthr",), (["one", "two"], "thr")),
        (("o", "ne\nt", "wo"), (["one"], "two")),
        (("one\r\ntwo\r\n",), (["one", "two"], "")),
        (("one\r", "\ntwo"), (["one"], "two")),
        (("\r10%", "\r20%", "\r30%"), ([], "30%")),
        (("\r10%\r20%\n",), (["20%"], "")),
        # How tqdm clears its bar, writes a note and draws the bar again.
        (("\r 10%|#", "\r       \rnote\n\r 20%|##"), (["note"], " 20%|##")),
        (("\x1b[31mred\x1b[0m\n\n",), (["red"], "")),
    ],
)
def test_lines(pieces: tuple[str, ...], expected: tuple[list[str], str]) -> None:
    assert fed(*pieces) == expected


def test_a_long_lived_bar_is_not_kept() -> None:
    lines = Lines()
    for number in range(10_000):
        lines.feed(f"\r{number:6}/10000 steps")
    assert lines.open.strip() == "9999/10000 steps"
    assert len(lines._open) < 100


def shown(text: str, code: int = 1) -> tuple[list[str], str]:
    errors = StepErrors()
    lines = [line for line in text.splitlines() if line and not errors.takes(line)]
    return lines, errors.summary(code)


def test_our_error_is_the_line_itself() -> None:
    text = "reading\npercmae: error: no such archive: a.tar\n"
    assert shown(text, 2) == (["reading"], "no such archive: a.tar")


TRACEBACK = """\
before
Traceback (most recent call last):
  File "a.py", line 1, in f
    x = 1 / 0
        ~~^~~
ZeroDivisionError: division by zero

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 2, in g
    raise ValueError("odd")
ValueError: odd
after
"""


def test_a_traceback_becomes_its_last_line() -> None:
    assert shown(TRACEBACK) == (["before", "after"], "ValueError: odd (traceback in the log)")


@pytest.mark.parametrize("code", [-signal.SIGKILL, 137])
def test_a_killed_step(code: int) -> None:
    assert shown("Killed", code) == (
        [],
        "it was killed (SIGKILL), as the system does when memory runs out",
    )


def test_a_silent_step() -> None:
    assert shown("note", 3)[1] == "it ended with exit code 3 and said nothing; see the log"


def test_pump_shows_and_logs() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, "grün\npercmae: error: wrong\nrest".encode())
    os.close(theirs)
    screen, log, errors = io.StringIO(), io.StringIO(), StepErrors()
    pump(ours, "seed 1 probe", Console(screen), log, errors)
    assert screen.getvalue().splitlines() == [
        f"{'seed 1 probe':24} | grün",
        f"{'seed 1 probe':24} | rest",
    ]
    assert "percmae: error: wrong" in log.getvalue()
    assert errors.summary(2) == "wrong"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ours)
