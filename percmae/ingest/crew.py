"""The processes that do the work of an ingest side by side, and what becomes of one that dies.

Each does one task at a time, fetching a piece or building a shard, and says now and then how far
it is. The task of one that ended without a word (killed for memory, crashed in a decoder) is done
again by another; a task that has cost two of them their life ends the ingest.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, Generic, Protocol, TypeVar

from percmae.data.decode import ImageWarning, telling
from percmae.errors import PercmaeError
from percmae.progress import warn

_LIVES = 2  # workers that one task may cost
_SILENT = 0.2  # seconds for which a worker gathers what it has to say of images


class Task(Protocol):
    """Something to do."""

    @property
    def name(self) -> str:
        """As messages have it; no two tasks have the same."""


T = TypeVar("T", bound=Task)
R = TypeVar("R")
Told = Callable[[int, str | None], None]


@dataclass(frozen=True)
class Job(Generic[T, R]):
    """What is to be done with each of some tasks.

    do: in a worker; it tells how many bytes of images are done, and the fault of one that is left
    out. done: here, with what ``do`` gave. lost: what to say of a task that kills, and how it did.
    """

    do: Callable[[T, Told], R]
    done: Callable[[T, R], None]
    lost: Callable[[T, str], str]


@dataclass(frozen=True)
class Hear:
    """What is told on the way.

    image: bytes of images that are done, and the fault for which one is left out; warned: what a
    decoder had to say.
    """

    image: Told
    warned: Callable[[ImageWarning], None]


def share_out(tasks: Sequence[T], job: Job[T, R], workers: int, hear: Hear) -> None:
    """Do the tasks, by so many processes; one alone does it in this process.

    Raises what doing raises, and PercmaeError for a task that kills who does it.
    """
    if min(workers, len(tasks)) > 1:
        _Crew(tasks, job, workers, hear).run()
        return
    with telling(hear.warned):
        for task in tasks:
            job.done(task, job.do(task, hear.image))


@dataclass
class _Worker(Generic[T]):
    process: ForkProcess
    link: Connection
    at: T | None = None


class _Crew(Generic[T, R]):
    def __init__(self, tasks: Sequence[T], job: Job[T, R], workers: int, hear: Hear) -> None:
        self._job = job
        self._todo = deque(tasks)
        self._count = min(workers, len(tasks))
        self._hear = hear
        self._workers: list[_Worker[T]] = []
        self._lost = Counter[str]()

    def run(self) -> None:
        try:
            for _ in range(self._count):
                self._start()
            while busy := [worker for worker in self._workers if worker.at is not None]:
                ready = wait([worker.link for worker in busy])
                for worker in busy:
                    if worker.link in ready:
                        self._listen(worker)
        finally:
            for worker in self._workers:
                worker.process.kill()  # what it has begun is not visible
                worker.process.join()
                worker.link.close()

    def _start(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        others = [ours, *(worker.link for worker in self._workers)]
        process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(theirs, others, self._job.do)
        )
        process.start()
        theirs.close()
        worker: _Worker[T] = _Worker(process, ours)
        self._workers.append(worker)
        self._give(worker)

    def _give(self, worker: _Worker[T]) -> None:
        worker.at = self._todo.popleft() if self._todo else None
        if worker.at is not None:
            with suppress(ConnectionError):  # dead already, which listening to it will tell
                worker.link.send(worker.at)

    def _listen(self, worker: _Worker[T]) -> None:
        try:
            kind, *content = worker.link.recv()
        except (EOFError, ConnectionError):
            self._bury(worker)
            return
        if kind == "image":
            self._hear.image(*content)
        elif kind == "warned":
            self._hear.warned(*content)
        elif kind == "done":
            assert worker.at is not None
            self._job.done(worker.at, *content)
            self._give(worker)
        elif kind == "error":
            raise content[0]
        else:
            raise RuntimeError(f"a worker of ingest: {content[0]}")

    def _bury(self, worker: _Worker[T]) -> None:
        """Have the task of a worker that is dead done by another."""
        task = worker.at
        assert task is not None
        worker.process.join()
        worker.link.close()
        self._workers.remove(worker)
        code = worker.process.exitcode or 0
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        self._lost[task.name] += 1
        if self._lost[task.name] == _LIVES:
            raise PercmaeError(f"{_LIVES} workers ended {self._job.lost(task, how)}")
        warn(f"ingest: a worker ended {how} at {task.name}, which is done again")
        self._todo.appendleft(task)
        self._start()


class _Voice:
    """What a worker says to its parent: of images a sum now and then, all else at once."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._turn = threading.Lock()  # threads that decode may have something to say as well
        self._bytes, self._said = 0, time.monotonic()

    def image(self, size: int, fault: str | None) -> None:
        self._bytes += size
        if fault is not None or time.monotonic() - self._said > _SILENT:
            self.say("image", self._bytes, fault)
            self._bytes, self._said = 0, time.monotonic()

    def say(self, *message: Any) -> None:
        with self._turn:
            self._link.send(message)

    def done(self, result: object) -> None:
        self.say("image", self._bytes, None)
        self._bytes = 0
        self.say("done", result)


def _serve(link: Connection, inherited: list[Connection], do: Callable[[Any, Told], Any]) -> None:
    """In a worker: do what one is given, until the parent has gone."""
    # Ctrl-C and a supervisor's SIGTERM reach all; the parent decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for other in inherited:  # or the parent's end would go unnoticed
        other.close()
    voice = _Voice(link)
    try:
        with telling(lambda warning: voice.say("warned", warning)):
            while True:
                voice.done(do(link.recv(), voice.image))
    except (EOFError, ConnectionError):
        pass
    except PercmaeError as error:
        voice.say("error", error)
    except BaseException:
        voice.say("fault", traceback.format_exc())
    finally:
        os._exit(0)  # without the parent's clean-up
