"""SIGTERM and SIGINT, from the first moment of a command to its last.

:func:`at_once` is there from the beginning: the process ends in one line, and soon, whatever it is
at. Inside it :class:`Signals` makes of the first signal a request, for what has something to bring
to an end before.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

from percmae.errors import Interrupted
from percmae.progress import note

T = TypeVar("T")

INTERRUPTED = "nothing half-written is left"
TERMINATED = f"told to stop (SIGTERM) with nothing to save; {INTERRUPTED}"
_PATIENCE = 5.0  # seconds that a process which has nothing to bring to an end may take over it
_SAME = 1.0  # seconds in which a signal that comes again, as by way of a launcher, is the same one


class Terminated(BaseException):
    """SIGTERM where it has no other meaning; Ctrl-C is KeyboardInterrupt there."""


class _Told(BaseException):
    """A wait is broken off."""


class Signals:
    """While open, the first SIGINT or SIGTERM only sets ``received``; a second one ends at once.

    Outside the main thread nothing can be caught and nothing is changed.
    """

    current: Signals | None = None
    """The one that is open."""

    def __init__(self, again: str, first: str | None = None) -> None:
        """again: what is said when a second signal ends the process; first: a note at the first."""
        self.received: int | None = None
        self.coming = False
        """Whether a signal has come, though what is not Python may keep it from ``received``."""
        self.elsewhere = False
        """Whether another process of the job was told to stop; see :meth:`told_elsewhere`."""
        self.broke = False
        """Whether a wait was broken off: threads may be at work on it still."""
        self._again, self._first = again, first
        self._event = threading.Event()
        self._when = 0.0
        self._breaks = False
        self._previous: dict[int, Any] = {}
        self._before: Signals | None = None

    @property
    def stopping(self) -> bool:
        """Whether to stop."""
        return self.elsewhere or self.received is not None

    def __enter__(self) -> Signals:
        global _last
        self._before, Signals.current, _last = Signals.current, self, None
        if threading.current_thread() is threading.main_thread():
            for number, handler in (
                (signal.SIGINT, self._receive),
                (signal.SIGTERM, self._receive),
                (_WAKE, self._wake),
            ):
                self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        Signals.current = self._before

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until a signal or :meth:`wake`; whether to stop."""
        self._event.wait(seconds)
        if not self.stopping:
            self._event.clear()
        return self.stopping

    def wake(self) -> None:
        """End a wait early: there is something to look at."""
        self._event.set()

    def unless_told(self, work: Callable[[], T]) -> T | None:
        """What ``work`` gives; None where a signal has come before, or comes meanwhile.

        What a signal breaks off is left where it is, as by Ctrl-C.
        """
        try:
            try:
                self._breaks = True
                return None if self.stopping else work()
            finally:
                self._breaks = False
        except _Told:  # it may come as late as in the line above
            self._breaks, self.broke = False, True
            return None

    def told_elsewhere(self) -> None:
        """Stop as if by a signal, for another process was told to; from any thread."""
        self.elsewhere = True
        with suppress(OSError, ValueError):  # the main thread, and what it waits in
            signal.pthread_kill(threading.main_thread().ident or 0, _WAKE)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        global _last
        if self.received is not None:
            if time.monotonic() - self._when < _SAME:
                return
            raise Interrupted(number, self._again)
        self.received, self._when, _last = number, time.monotonic(), number
        self.coming = True
        if self._first is not None:
            note(self._first)
        self._wake(number, frame)

    def _wake(self, number: int, frame: FrameType | None) -> None:
        self._event.set()
        if self._breaks and self.stopping:
            raise _Told


# Nothing is done about it where nobody has asked for it.
_WAKE = signal.SIGURG
_last: int | None = None


def received() -> int | None:
    """The signal that has asked this process to stop, also after what it has stopped is closed."""
    return _last


@contextmanager
def at_once() -> Iterator[None]:
    """SIGTERM raises :class:`Terminated`; outside the main thread nothing is changed.

    Whatever the process is at: its first process in a container would not be ended by SIGTERM, and
    Python's handlers wait for code that is not Python's, as when processes meet. Where it is still
    inside some seconds later, or at its end and waits for threads, it is ended as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _terminating, _inside
    _terminating = False
    outside, _inside = _inside, object()
    told = signal.set_wakeup_fd(_watched(), warn_on_full_buffer=False)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.set_wakeup_fd(told)
        _inside = outside


def _terminate(number: int, frame: FrameType | None) -> None:
    global _terminating
    _terminating = True
    raise Terminated


_terminating = False


def terminating() -> bool:
    """Whether Terminated was raised: a library that swallows it, as while it is being imported,
    fails in some other way soon after."""
    return _terminating


_inside: object | None = None  # another one each time
_wakeup: int | None = None


def _watched() -> int:
    """A descriptor that is told of signals when they come, and a thread that looks at it."""
    global _wakeup
    if _wakeup is None:
        read, _wakeup = os.pipe()
        os.set_blocking(_wakeup, False)
        with suppress(RuntimeError):  # no more threads: what needs them will say so
            threading.Thread(target=_watch, args=(read,), name="signals", daemon=True).start()
    return _wakeup


def _watch(told: int) -> None:
    while True:
        number = os.read(told, 1)[0]
        if number in (signal.SIGINT, signal.SIGTERM) and Signals.current is not None:
            Signals.current.coming = True
        if number != signal.SIGTERM or signal.getsignal(signal.SIGTERM) is not _terminate:
            continue
        told_inside = _inside
        time.sleep(_PATIENCE)
        if _inside is told_inside and signal.getsignal(signal.SIGTERM) is _terminate:
            with suppress(Exception):
                print(f"percmae: stopped: {TERMINATED}", file=sys.stderr, flush=True)
            os._exit(128 + signal.SIGTERM)
        # It has been said, and threads that hang are waited for. A process that is not at its end,
        # such as a program of somebody else's that has called a verb, goes on.
        if not threading.main_thread().is_alive():
            os._exit(128 + signal.SIGTERM)


def _after_fork() -> None:
    """A child has the descriptor, and not the thread: what it is told would be taken for ours."""
    global _wakeup
    if _wakeup is not None:
        _wakeup = None
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_after_fork)
