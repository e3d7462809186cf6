"""SIGINT and SIGTERM as a request to stop at the next step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from percmae.errors import Interrupted, PeerLost
from percmae.progress import note


class Signals:
    """While open, the first SIGINT or SIGTERM only sets ``received``; a second one ends at once.

    Outside the main thread nothing can be caught and nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise self.interrupted("stopped at once, without saving")
        self.received = number
        note("stopping after this step, saving a checkpoint (once more to stop at once)")

    def interrupted(self, message: str) -> Interrupted | PeerLost:
        """The error to end with: PeerLost where it was another process that got the signal."""
        return PeerLost(message) if self.received is None else Interrupted(self.received, message)
