"""Finds that a run gets no further, and which process is to blame.

A thread in each process looks on while training says where it is. Where nothing moves for
``trainer.hang_minutes`` it writes down where all threads of its process are, names the processes
that are behind, and ends its own with WorkerLost's code, which has the job begin again.

Waits that have an end of their own are left to that: for images (``data.timeout``), and for a store
that is away while something is saved. So a process does not only look at itself: the threads tell
each other by the job's store, over a connection of their own, where their processes are. Behind is
who has begun the fewest collectives, for the others wait in the next one. A process that says
nothing any more was stopped, or its machine was. By the same way a process that is told to stop is
heard by those that wait for their images.

Time is counted in looks, not read from a clock: what stops all processes, as a laptop asleep or a
debugger does, is no hang.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import uuid
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist

from percmae.engine.distributed import World
from percmae.errors import WorkerLost
from percmae.signals import Signals

IMAGES, COMPUTING, OTHERS = "waiting for images", "computing", "waiting for the others"
VALIDATING, SAVING = "validating", "saving"
_BOUNDED = (IMAGES, SAVING)
"""What ends by itself."""
_LOOK = 2.0  # seconds between two looks


class Place(NamedTuple):
    """Where a process is."""

    phase: str
    step: int
    collectives: int = 0
    """How many it has begun."""

    def told(self) -> str:
        """In words."""
        return f"{self.phase} at step {self.step}"


class Watchdog:
    """Looks on while it is open; :func:`at` tells it where training is."""

    def __init__(self, world: World, minutes: float, signals: Signals) -> None:
        """minutes: the longest time without a move; signals: open, to be told of others'."""
        self._world, self._signals, self._minutes = world, signals, minutes
        self._every = min(_LOOK, 6 * minutes)
        self._most = round(60 * minutes / self._every)
        self._at = (COMPUTING, 0)
        self._moves = 0
        self._talk = _Talk(world) if world.meeting_place is not None else None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="watchdog", daemon=True)

    def at(self, phase: str, step: int | None = None) -> None:
        """See :func:`at`."""
        self._at = (phase, self._at[1] if step is None else step)
        self._moves += 1

    def __enter__(self) -> Watchdog:
        global _open
        _open = self
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        global _open
        _open = None
        self._end.set()

    def _look_on(self) -> None:
        moves, still = self._moves, 0
        while not self._end.wait(self._every):
            moved = self._moves != moves or self._at[0] in _BOUNDED
            moves, still = self._moves, 0 if moved else still + 1
            place = Place(*self._at, self._talk.collectives() if self._talk else 0)
            if self._talk is not None:
                # All are asked only once it matters: of many processes that is much to read.
                self._hear(self._talk, place, ask=2 * still >= self._most)
            if still >= self._most:
                behind = self._behind(place)
                if behind is not None and not self._end.is_set():
                    self._give_up(behind)

    def _hear(self, talk: _Talk, place: Place, ask: bool) -> None:
        talk.exchange(place, self._signals.coming, ask)
        if talk.stop and not self._signals.stopping:
            self._signals.told_elsewhere()

    def _behind(self, here: Place) -> str | None:
        """Who is behind, in words; None where another process waits for what has an end."""
        rank, size = self._world.rank, self._world.size
        if self._talk is None:
            return f"process {rank} of {size} is {here.told()}"
        heard = self._talk.heard
        places = {other: _read(words) for other, (words, _) in heard.items()}
        silent = sorted(r for r, (_, looks) in heard.items() if 4 * looks > self._most)
        if any(p.phase in _BOUNDED for r, p in places.items() if r not in silent):
            return None
        if self._talk.unanswered:
            return f"process 0 of {size}, or who has its store, gives no answer"
        if silent:
            return "; ".join(
                f"process {r} of {size} gives no answer, and was {places[r].told()}" for r in silent
            )
        places[rank] = here
        least = min(place.collectives for place in places.values())
        return "; ".join(
            f"process {r} of {size} is {place.told()}"
            for r, place in sorted(places.items())
            if place.collectives == least
        )

    def _give_up(self, behind: str) -> None:
        with suppress(Exception):  # stderr may be closed
            faulthandler.dump_traceback(2, all_threads=True)
        message = (
            f"percmae: stopped: nothing has moved for {self._minutes:g} minutes "
            f"(trainer.hang_minutes): {behind}; where the threads of this process are stands above"
        )
        with suppress(Exception):
            print(message, file=sys.stderr, flush=True)
        os._exit(WorkerLost.exit_code)


_open: Watchdog | None = None


def at(phase: str, step: int | None = None) -> None:
    """Training has come to a new place, or again to an old one; without a step: in the same."""
    if _open is not None:
        _open.at(phase, step)


class _Talk:
    """What the watchdogs of a job tell each other.

    heard: the last words of the others, and how often they have been the same since.
    """

    def __init__(self, world: World) -> None:
        self._rank, self._size, self._address = world.rank, world.size, world.meeting_place
        # Of this start of the job alone: the store may be that of earlier ones too.
        self._prefix = world.share(f"watchdog/{uuid.uuid4().hex}")
        self._store: dist.Store | None = None
        self._under_way: threading.Thread | None = None
        self._beat = 0
        self.heard: dict[int, tuple[str, int]] = {}
        self.stop = False
        self.unanswered = False

    def collectives(self) -> int:
        """How many this process has begun."""
        group = dist.group.WORLD
        return int(group._get_sequence_number_for_group())  # type: ignore[union-attr]

    def exchange(self, place: Place, stop: bool, ask: bool) -> None:
        """Tell the others, and hear of them; what does not answer is not waited for."""
        self.unanswered = self._under_way is not None and self._under_way.is_alive()
        if not self.unanswered:
            given = (place, stop, ask)
            self._under_way = threading.Thread(target=self._exchange, args=given, daemon=True)
            self._under_way.start()

    def _exchange(self, place: Place, stop: bool, ask: bool) -> None:
        with suppress(RuntimeError):  # the store has gone, and with it the job
            store = self._connected()
            self._beat += 1
            store.set(str(self._rank), "/".join(map(str, (*place, self._beat))))
            if stop:
                store.set("stop", "")
            self.stop = store.check(["stop"])
            for rank in range(self._size) if ask else ():
                if rank != self._rank:
                    known = store.check([str(rank)])
                    words = store.get(str(rank)).decode() if known else ""
                    before, same = self.heard.get(rank, ("", 0))
                    same = same + 1 if words == before else 0
                    self.heard = {**self.heard, rank: (words, same)}

    def _connected(self) -> dist.Store:
        if self._store is None:
            assert self._address is not None
            host, port = self._address
            patience = timedelta(seconds=30)
            tcp = dist.TCPStore(host, port, None, False, patience, wait_for_workers=False)
            self._store = dist.PrefixStore(self._prefix, tcp)
        return self._store


def _read(words: str) -> Place:
    if not words:
        return Place("not yet heard of", 0)
    phase, step, collectives, _ = words.split("/")
    return Place(phase, int(step), int(collectives))
