"""A training's figures on their way to MLflow, which may be away for as long as it likes.

A thread sends them: no step waits for it, and what it cannot send stays in memory until it can. A
run that ends before then is not held up for long; what is missing is sent by whoever comes by next
(percmae.runs.mlflow).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Self

from percmae.config import Config
from percmae.engine.watchdog import SAVING, at
from percmae.errors import Interrupted, PercmaeError
from percmae.progress import note, warn
from percmae.runs.history import HistoryRow
from percmae.runs.mlflow import Logged, Mirror, NotTold, Status
from percmae.runs.record import Run
from percmae.signals import Signals

_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0
# Seconds that the end of a run waits for MLflow: once everything is in its place, and else.
_AT_THE_END, _IN_A_HURRY = 30.0, 5.0


class Sender:
    """Sends the figures of one training; a context manager, in the main process only.

    earlier: what was logged before, of which MLflow may lack some.
    """

    def __init__(self, run: Run, config: Config, earlier: Sequence[HistoryRow]) -> None:
        self._run, self._mirror = run, Mirror(run, config)
        self._changed = threading.Condition()
        self._status: Status = "RUNNING"
        self._left = False
        self._told = False
        now = round(1000 * time.time())
        self._rows = [Logged(now, row) for row in earlier]
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._idle = False
        """Whether everything was sent, the status too."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        status: Status = "FINISHED"
        if error is not None:
            goes_on = isinstance(error, Interrupted) or not isinstance(error, Exception)
            if isinstance(error, PercmaeError):  # a code ≥ 128: its pod begins again
                goes_on = goes_on or error.exit_code >= 128
            status = "KILLED" if goes_on else "FAILED"
        with self._changed:
            self._status, self._idle = status, False
            self._changed.notify_all()
        if not self._sent(_IN_A_HURRY if error is not None else _AT_THE_END) and error is None:
            warn(
                f"MLflow at {self._mirror.server} does not have all of {self._run.uri}; the same "
                "command again sends it, and so does percmae evaluate"
            )
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def add(self, row: HistoryRow) -> None:
        """Take up figures that were logged now."""
        with self._changed:
            self._rows.append(Logged(round(1000 * time.time()), row))
            self._idle = False
            self._changed.notify_all()

    def _sent(self, seconds: float) -> bool:
        """Wait so long, or until told to stop, for everything to be sent; whether it is."""
        until = time.monotonic() + seconds
        signals = Signals.current
        with self._changed:
            while not self._idle and time.monotonic() < until:
                at(SAVING)  # it has an end
                if signals is not None and signals.stopping:
                    until = min(until, time.monotonic() + _IN_A_HURRY)
                    signals = None
                self._changed.wait(0.2)
            return self._idle

    def _work(self) -> None:
        """The thread: what there is, as often as there is something."""
        pause = _FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._left or not self._idle)
                if self._left:
                    return
                rows, status = tuple(self._rows), self._status
            try:
                self._mirror.figures(rows)
                self._mirror.status(status)
            except NotTold as error:
                self._tell(error)
                self._rest(pause, status)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = _FIRST_PAUSE
            if self._told:
                self._told = False
                note(f"MLflow at {self._mirror.server} takes figures again, and has all of them")
            with self._changed:
                del self._rows[: len(rows)]
                self._idle = not self._rows and self._status == status
                self._changed.notify_all()

    def _rest(self, seconds: float, status: Status) -> None:
        """Until the next try; the end of the run is worth one at once."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or self._status != status, seconds)

    def _tell(self, error: NotTold) -> None:
        if not self._told:
            self._told = True
            warn(
                f"MLflow at {self._mirror.server} takes no figures ({error}): training goes on, "
                "and they are sent when it does"
            )
