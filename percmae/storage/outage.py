"""A store that is away for a while: how long that is borne, and what a person is told of it.

A request is repeated for the settings' ``retry_seconds``, a minute: right for a person who waits
for a first answer. What works for hours opens :func:`outage`: a store that has answered and then
does not, is full, or refuses keys that it took before, is waited for much longer, and the wait is
told once a minute. In the end there is ``StoreAway``, whose exit code has a pod made anew. In a pod
the first answer is waited for as long: nobody there could start it again.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from percmae.errors import UserError
from percmae.progress import note, warn

OUTAGE_VARIABLE = "PERCMAE_STORE_OUTAGE_SECONDS"
DEFAULT_SECONDS = 1800.0
_LONGEST = 30 * 24 * 3600.0
# What Kubernetes sets in every container.
_IN_A_POD = "KUBERNETES_SERVICE_HOST"
# A request that has failed for so long is told of; and so long after that again.
_FIRST, _EVERY = 5.0, 60.0
# So long a request that fails counts as one that waits: a silent socket and a pause, and then it
# has failed again.
_HEARTBEAT = 40.0
# The byte of a board's lock that is for counting; the first one is for telling.
_COUNT = 1


class _Board:
    """What the processes of a tree let each other know, in memory that those forked share."""

    # Until when, when, whether an end is to be told, how many requests were repeated.
    _WAITS, _TOLD, _OPEN, _REPEATED = range(4)

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 32)
        self._lock = os.memfd_create("percmae-outage")  # locked, not written; a lock goes with its
        # process, as one in shared memory does not

    def __getitem__(self, place: int) -> float:
        return float(struct.unpack_from("d", self._memory, 8 * place)[0])

    def __setitem__(self, place: int, value: float) -> None:
        struct.pack_into("d", self._memory, 8 * place, value)

    def close(self) -> None:
        os.close(self._lock)

    def waits(self) -> bool:
        return time.monotonic() < self[self._WAITS]

    def fails(self) -> bool:
        """Take note of a request that has failed; whether it is for the caller to tell of it."""
        now = time.monotonic()
        self[self._WAITS] = now + _HEARTBEAT
        with self._alone() as alone:
            due = alone and (not self[self._OPEN] or now - self[self._TOLD] >= _EVERY)
            if due:
                self[self._TOLD], self[self._OPEN] = now, 1.0
            return due

    def recovers(self) -> bool:
        """Whether it is for the caller to tell that there are answers again."""
        if not self[self._OPEN]:
            return False
        with self._alone() as alone:
            due = alone and bool(self[self._OPEN])
            if due:
                self[self._OPEN] = self[self._WAITS] = 0.0
            return due

    def repeats(self) -> None:
        """Count a request that is repeated."""
        with _counting:
            fcntl.lockf(self._lock, fcntl.LOCK_EX, 1, _COUNT)
            try:
                self[self._REPEATED] += 1
            finally:
                fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, _COUNT)

    @property
    def repeated(self) -> int:
        return int(self[self._REPEATED])

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other thread or process is in here; nobody waits."""
        if not _of_threads.acquire(blocking=False):
            yield False
            return
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
            yield True
        except BlockingIOError:
            yield False
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1)
            _of_threads.release()


@dataclass(frozen=True)
class _Outage:
    seconds: float
    board: _Board
    taken: set[tuple[str, str, str]]
    """(URL, bucket, method) of requests that were answered since it was opened."""


_open: _Outage | None = None
_of_threads, _counting = threading.Lock(), threading.Lock()
_in_a_hurry = threading.local()
# URLs of servers that have answered this process.
_answered: set[str] = set()


def _new_lock_in_child() -> None:
    global _of_threads, _counting
    _of_threads, _counting = threading.Lock(), threading.Lock()


os.register_at_fork(after_in_child=_new_lock_in_child)


@contextmanager
def outage(seconds: float | None = None) -> Iterator[None]:
    """While open, a store that has answered is waited for up to ``seconds`` when it is away.

    seconds: None for those of the environment's PERCMAE_STORE_OUTAGE_SECONDS (1800); below
    ``retry_seconds`` they change nothing. It holds for all threads of this process and for
    processes that are forked meanwhile; an inner one replaces the outer. Raises UserError for an
    environment that says no number.
    """
    global _open
    before = _open
    chosen = outage_seconds() if seconds is None else seconds
    board, taken = (before.board, before.taken) if before else (_Board(), set())
    _open = _Outage(chosen, board, taken)
    try:
        yield
    finally:
        _open = before
        if before is None:
            board.close()


@contextmanager
def hurry(seconds: float) -> Iterator[None]:
    """While open, this thread's requests are repeated for ``seconds`` at most, outage or not.

    For what is a courtesy, or has little time left.
    """
    before = getattr(_in_a_hurry, "seconds", None)
    _in_a_hurry.seconds = seconds
    try:
        yield
    finally:
        _in_a_hurry.seconds = before


def waiting() -> bool:
    """Whether a request of this process, or of one that it has forked, waits for a store."""
    return _open is not None and _open.board.waits()


def allowed(url: str, seconds: float) -> float:
    """Seconds for which one request to ``url`` is repeated; by its settings it is ``seconds``."""
    hurried: float | None = getattr(_in_a_hurry, "seconds", None)
    if hurried is not None:
        return min(seconds, hurried)
    if _open is None:
        return seconds
    known = _IN_A_POD in os.environ or url in _answered
    return max(seconds, _open.seconds) if known else seconds


def answered(url: str, bucket: str, method: str) -> None:
    """Remember that a request was answered as it should be."""
    _answered.add(url)
    if _open is not None:
        _open.taken.add((url, bucket, method))


def took_before(url: str, bucket: str, method: str) -> bool:
    """Whether such a request was answered since the outage that is open was opened."""
    return _open is not None and (url, bucket, method) in _open.taken


def is_borne() -> bool:
    """Whether an outage is open."""
    return _open is not None


def fails(server: object, problem: str, since: float, until: float) -> None:
    """Tell, where an outage is open and it is time to, of a request that has failed.

    since, until: when it was begun and is given up, in seconds of ``time.monotonic``.
    """
    now = time.monotonic()
    if _open is not None and now - since >= _FIRST and _open.board.fails():
        warn(
            f"no usable answer from {server} since {_clock(since - now)} ({problem}): asked again "
            f"until {_clock(until - now)}"
        )


def repeats() -> None:
    """Count, where an outage is open, a request that is repeated."""
    if _open is not None:
        _open.board.repeats()


def repeated() -> int:
    """How many requests this process, and those that it has forked, have repeated since the outage
    that is open was opened."""
    return 0 if _open is None else _open.board.repeated


def recovers(server: object, since: float) -> None:
    """Tell, where it was told that requests fail, that one begun at ``since`` is answered."""
    seconds = time.monotonic() - since
    if _open is not None and seconds >= _FIRST and _open.board.recovers():
        note(f"{server} answers again, after {seconds:.0f} s")


def _clock(seconds: float) -> str:
    """The time in so many seconds from now, as logs have it."""
    return time.strftime("%H:%M:%SZ", time.gmtime(time.time() + seconds))


def outage_seconds(minutes: float | None = None) -> float:
    """Seconds of a setting in minutes; of None those of the environment, 1800 without it.

    Raises UserError for an environment that says no number.
    """
    if minutes is not None:
        return 60 * minutes
    text = os.environ.get(OUTAGE_VARIABLE, "").strip() or str(DEFAULT_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST:
        raise UserError(
            f"{OUTAGE_VARIABLE} must be a number of seconds from 0 to {_LONGEST:.0f}, not {text!r}"
        )
    return seconds
