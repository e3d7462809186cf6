"""SIGTERM and SIGINT as a request to stop, which what is under way looks at when it can."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from percmae.errors import Interrupted


class StopSignals:
    """Which signal has asked to stop, and a way to wait for one."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._event = threading.Event()

    def wake(self) -> None:
        """End a wait early: there is something to look at."""
        self._event.set()

    def receive(self, number: int, frame: object) -> None:
        """Signal handler; the second signal ends at once."""
        if self.received is not None:
            raise Interrupted(number, "stopped at once; the job may go on in the cluster")
        self.received = number
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until a signal or :meth:`wake`; whether to stop."""
        self._event.wait(seconds)
        if self.received is None:
            self._event.clear()
        return self.received is not None


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """SIGTERM and SIGINT as a request to stop, where this is the main thread."""
    stop = StopSignals()
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, stop.receive)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
