"""Signals as a request to stop (whole runs that are told to: tests/faults/test_signals.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from percmae.command import exit_code
from percmae.errors import Interrupted
from percmae.signals import Signals, received


def tell(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_the_first_is_a_request_and_the_second_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Signals(again="at once", first="soon") as signals:
        assert (signals.received, received()) == (None, None)
        tell()
        assert signals.received == received() == signal.SIGTERM
        tell()  # the same one, by another way
        now += 2
        with pytest.raises(Interrupted, match="at once") as ended:
            tell(signal.SIGINT)
        assert ended.value.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err.count("soon") == 1


@pytest.mark.parametrize("how", ["a signal", "another process"])
def test_a_wait_is_broken_off(how: str) -> None:
    with Signals(again="at once") as signals:
        assert signals.unless_told(lambda: 1) == 1
        act = tell if how == "a signal" else signals.told_elsewhere
        later = threading.Timer(0.1, act)
        later.start()
        assert signals.unless_told(lambda: time.sleep(600)) is None
        later.join()
        assert signals.broke
        assert signals.stopping
        assert signals.received == (signal.SIGTERM if how == "a signal" else None)
        assert signals.unless_told(lambda: 1) is None


def test_work_that_no_wait_is_is_not_broken_off() -> None:
    with Signals(again="at once") as signals:
        tell()
        assert sum(range(1000)) == 499500
        assert not signals.broke


def test_a_library_that_swallows_the_end_and_fails_is_no_fault_of_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As one does while it is being imported: half of it is there, then something is missing."""

    def work() -> None:
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        raise AttributeError("module has no attribute")

    assert exit_code(work) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.startswith("percmae: stopped: told to stop (SIGTERM)")


# A command that is told to stop, and leaves only when the thread that watches has seen that.
WATCHED = """
import signal, sys, threading, time
from percmae import signals
from percmae.command import exit_code

signals._PATIENCE = 0.2
seen = threading.Event()
class Seen:
    sleep = staticmethod(lambda seconds: (seen.set(), time.sleep(seconds)))
signals.time = Seen

def work():
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        seen.wait(60)

code = exit_code(work)
"""


@pytest.mark.parametrize(
    ("then", "code", "out"),
    [
        ("exit_code(lambda: time.sleep(1)); print(code)", 0, "143\n"),  # a program goes on
        ("threading.Thread(target=time.sleep, args=(600,)).start(); sys.exit(3)", 143, ""),
    ],
)
def test_who_outlives_a_command_that_was_told_to_stop(then: str, code: int, out: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED + then], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert done.stderr.count("told to stop") == 1
