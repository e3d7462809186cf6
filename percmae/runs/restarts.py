"""How often the pods of a job have started without getting further, kept in the run's folder.

The training operator makes a pod anew for as long as it ends with a code ≥ 128, and counts nothing:
one that is killed for its memory would start over and over. So each pod counts its own starts in
``<run>/restarts/<pod>.json``. A start counts from its beginning, since what is killed can say
nothing in the end; and counts no more as soon as the run has a later checkpoint, when the pod is
told to stop, or when the job ends.
"""

from __future__ import annotations

import socket

from percmae.errors import PercmaeError, StoreAway, StoreError
from percmae.progress import note
from percmae.runs.files import Part, parse
from percmae.runs.record import RECORD, RESTARTS, read_record
from percmae.storage import StorePath
from percmae.storage.outage import hurry

RUN_FOLDER, BACKOFF_LIMIT = "--run-folder", "--backoff-limit"
"""Options of percmae.engine.torchrun, which counts."""
STARTS_VARIABLE = "PERCMAE_STARTS"
"""Which start of the pod this is, for the processes that percmae.engine.torchrun starts."""
_BLAMELESS = (130, 143, StoreAway.exit_code)
"""Codes of a pod that was told to stop (SIGINT, SIGTERM), or whose store was away: no failure."""
_END_SECONDS = 5.0  # of the pod's grace period, for what is a courtesy


class TooManyRestarts(PercmaeError):
    """A pod has started again and again, and the run has got no further."""


class Starts(Part):
    """One pod's file: how often it has started since the run was at ``step``."""

    starts: int
    step: int


class Restarts:
    """The starts of this pod."""

    def __init__(self, run: str, limit: int, pod: str | None = None) -> None:
        """run: the run's folder, which may not be there yet; limit: restarts that are borne."""
        self._run = StorePath(run)
        self._folder = self._run / RESTARTS
        self._pod = pod or socket.gethostname()
        self._file = self._folder / f"{self._pod}.json"
        self._limit = limit

    def begin(self) -> int:
        """Count a start; which it is since the run has got further, from 1.

        Raises TooManyRestarts where it would be one too many; StoreError.
        """
        step = read_record(self._run).step if (self._run / RECORD).exists() else 0
        before = Starts(starts=0, step=step)
        if self._file.exists():
            found = parse(Starts, self._file.read_bytes(), self._file.uri, "delete it")
            before = found if found.step >= step else before
        if before.starts > self._limit:
            self._clear()
            raise TooManyRestarts(
                f"pod {self._pod} has started {before.starts} times, and {self._run.uri} is still "
                f"at step {step}: it was killed (mostly for its memory: raise job setting memory, "
                f"or lower data.workers), crashed, or lost the others; job setting backoff_limit="
                f"{self._limit}"
            )
        starts = before.starts + 1
        self._file.write_json(Starts(starts=starts, step=step).model_dump(mode="json"))
        return starts

    def end(self, code: int) -> None:
        """Take note of how this start has ended; a store that is away changes nothing about it."""
        try:
            with hurry(_END_SECONDS):
                if code < 128:
                    self._clear()
                elif code in _BLAMELESS:
                    self._file.delete()
        except StoreError as error:
            note(f"the starts of pod {self._pod} stay counted: {error}")

    def _clear(self) -> None:
        """The job ends: its next one begins to count anew."""
        for entry in list(self._folder.iter()):
            entry.path.delete()
