"""The processes that build shards side by side, and what becomes of one that dies.

Each builds one shard at a time and says after every image how far it is. The shard of one that
ended without a word (killed for memory, crashed in a decoder) is built again by another; a shard
that has cost two of them their life ends the ingest.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any

from percmae.data.decode import ImageWarning, telling
from percmae.errors import PercmaeError
from percmae.ingest.build import BuiltShard, Work
from percmae.ingest.plan import PlannedShard
from percmae.ingest.states import States
from percmae.progress import warn

_LIVES = 2  # workers that one shard may cost


@dataclass(frozen=True)
class Hear:
    """What is told on the way.

    image: of each image its size as listed, and the fault for which it is left out; warned: what a
    decoder had to say; built: a shard that is whole.
    """

    image: Callable[[int, str | None], None]
    warned: Callable[[ImageWarning], None]
    built: Callable[[PlannedShard, BuiltShard], None]


def build_all(
    work: Work, states: States, shards: Sequence[PlannedShard], workers: int, hear: Hear
) -> None:
    """Build the shards, by so many processes; one alone does it in this process.

    Raises what building raises, and PercmaeError for a shard that kills who builds it.
    """
    if min(workers, len(shards)) > 1:
        _Crew(work, states, shards, workers, hear).run()
        return
    with telling(hear.warned):
        for planned in shards:
            hear.built(planned, _build(work, states, planned, hear.image))


def _build(
    work: Work,
    states: States,
    planned: PlannedShard,
    on_image: Callable[[int, str | None], None],
) -> BuiltShard:
    states.forget(planned)
    built = work.build(planned, on_image)
    states.write(planned, built)
    return built


@dataclass
class _Worker:
    process: ForkProcess
    link: Connection
    at: PlannedShard | None = None


class _Crew:
    def __init__(
        self,
        work: Work,
        states: States,
        shards: Sequence[PlannedShard],
        workers: int,
        hear: Hear,
    ) -> None:
        self._work = work
        self._states = states
        self._todo = deque(shards)
        self._count = min(workers, len(shards))
        self._hear = hear
        self._workers: list[_Worker] = []
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
            target=_serve, args=(theirs, others, self._work, self._states)
        )
        process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        self._give(worker)

    def _give(self, worker: _Worker) -> None:
        worker.at = self._todo.popleft() if self._todo else None
        if worker.at is not None:
            with suppress(ConnectionError):  # dead already, which listening to it will tell
                worker.link.send(worker.at)

    def _listen(self, worker: _Worker) -> None:
        try:
            kind, *content = worker.link.recv()
        except (EOFError, ConnectionError):
            self._bury(worker)
            return
        if kind == "image":
            self._hear.image(*content)
        elif kind == "warned":
            self._hear.warned(*content)
        elif kind == "built":
            assert worker.at is not None
            self._hear.built(worker.at, *content)
            self._give(worker)
        elif kind == "error":
            raise content[0]
        else:
            raise RuntimeError(f"a worker of ingest: {content[0]}")

    def _bury(self, worker: _Worker) -> None:
        """Have the shard of a worker that is dead done by another."""
        shard = worker.at
        assert shard is not None
        worker.process.join()
        worker.link.close()
        self._workers.remove(worker)
        code = worker.process.exitcode or 0
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        self._lost[shard.stem] += 1
        if self._lost[shard.stem] == _LIVES:
            first = self._work.catalogue.name(int(shard.rows[0]))
            raise PercmaeError(
                f"{_LIVES} workers ended while they built {shard.name} ({how}); if they were "
                f"killed for memory, lower --workers; else one of its {len(shard.rows):,} images "
                f"(first: {first}) crashes the decoder: find it and take it out"
            )
        warn(f"ingest: a worker ended {how} at {shard.name}, which is done again")
        self._todo.appendleft(shard)
        self._start()


def _serve(link: Connection, inherited: list[Connection], work: Work, states: States) -> None:
    """In a worker: build what one is given, until the parent has gone."""
    # Ctrl-C and a supervisor's SIGTERM reach all; the parent decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for other in inherited:  # or the parent's end would go unnoticed
        other.close()

    turn = threading.Lock()  # threads that decode may have something to say as well

    def say(*message: Any) -> None:
        with turn:
            link.send(message)

    try:
        with telling(lambda warning: say("warned", warning)):
            while True:
                planned = link.recv()
                built = _build(work, states, planned, lambda *image: say("image", *image))
                say("built", built)
    except (EOFError, ConnectionError):
        pass
    except PercmaeError as error:
        say("error", error)
    except BaseException:
        say("fault", traceback.format_exc())
    finally:
        os._exit(0)  # without the parent's clean-up
