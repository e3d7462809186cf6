"""How much of the time training waits for images."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from percmae.config.schema import Data

T = TypeVar("T")

TOO_MUCH = 0.05
"""Share of the time beyond which a person is told."""
_SURE = 50  # steps that are looked at before
_HELD = 256  # events that may be unread


class LoaderWait:
    """The share of the time in which training could but wait for the images of its next step.

    On a CPU that is the time until they come. On a GPU the host may wait for them while the device
    still works on earlier steps, which costs nothing: there the device notes when it came to the
    end of its work, and when it went on, and both are read once they are past. The first step's
    images, which come when the loader has started, are not counted.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter):
        self._clock, self._on_gpu = clock, device.type == "cuda"
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._waited = self._since = 0.0
        self._all_waited = self._all_seconds = 0.0
        self._steps = 0
        self._said = False

    def over(self, steps: Iterator[T]) -> Iterator[T]:
        """The same steps; the time that each is waited for is taken."""
        for first in steps:
            self._since = self._clock()
            yield first
            break
        while True:
            before, began = self._event(), self._clock()
            step = next(steps, None)
            if step is None:
                return
            self._steps += 1
            after = self._event()
            if before is None or after is None:
                self._waited += self._clock() - began
            else:
                self._events.append((before, after))
                if len(self._events) > _HELD:
                    self._read()
            yield step

    def share(self) -> float:
        """Of the time since the last call. On a GPU it must have done what it was given."""
        self._read()
        now = self._clock()
        waited, seconds = self._waited, now - self._since
        self._waited, self._since = 0.0, now
        self._all_waited += waited
        self._all_seconds += seconds
        return waited / seconds if seconds > 0 else 0.0

    def remark(self, data: Data) -> str | None:
        """What a person should be told of the shares so far; at most once."""
        if self._said or self._steps < _SURE or self._all_waited < TOO_MUCH * self._all_seconds:
            return None
        self._said = True
        ways = [f"raise data.workers (now {data.workers})"]
        if data.decode != "fastest":
            ways.append("choose data.decode=fastest")
        if data.cache is None:
            ways.append("keep what is read of a store in data.cache")
        return (
            f"training waits for images {self._all_waited / self._all_seconds:.0%} of the time: "
            + " or ".join(ways)
        )

    def _event(self) -> torch.cuda.Event | None:
        if not self._on_gpu:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _read(self) -> None:
        """Take what the device has come past; waits for nothing."""
        while self._events and self._events[0][1].query():
            before, after = self._events.popleft()
            self._waited += before.elapsed_time(after) / 1000
