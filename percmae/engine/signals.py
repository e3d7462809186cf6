"""A signal to one process of a job stops them all, at the same step."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TypeVar

from percmae.engine.distributed import World
from percmae.engine.watchdog import IMAGES, OTHERS, VALIDATING, at
from percmae.errors import Interrupted, PeerLost
from percmae.signals import Signals

T = TypeVar("T")


class BrokenOff(Exception):
    """What the processes did together was broken off in all of them, for one is told to stop."""


def training_signals() -> Signals:
    """A request to stop before the next step."""
    return Signals(
        again="stopped at once, without saving",
        first="stopping before the next step, saving a checkpoint (once more to stop at once)",
    )


def stopped(signals: Signals, message: str) -> Interrupted | PeerLost:
    """The error to end with: PeerLost where it was another process that got the signal."""
    if signals.received is None:
        return PeerLost(message, signals.broke)
    return Interrupted(signals.received, message, signals.broke)


def together(items: Generator[T, None, None], world: World) -> Iterator[T]:
    """This process's share of some items, whose sums all processes make next.

    Where training is told to stop, each process breaks off its own, also while it waits for them,
    and BrokenOff is raised in all. (Before training has begun a signal ends the process at once.)
    """
    signals = Signals.current
    if signals is None:
        yield from items
        return
    with closing(items):
        while True:
            at(IMAGES)
            item = signals.unless_told(lambda: next(items, _END))
            if item is None or isinstance(item, _End):
                break
            at(VALIDATING)
            yield item
    at(OTHERS)
    if world.any(item is None):
        raise BrokenOff
    at(VALIDATING)


class _End:
    """Stands behind the last item."""


_END = _End()
