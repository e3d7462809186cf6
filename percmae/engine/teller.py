"""Telling of a training under way, to all who listen: files, progress bar, MLflow, Prometheus."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from torch import Tensor

from percmae.config import Config
from percmae.engine.mlflow import Sender
from percmae.engine.place import find_place
from percmae.engine.plan import Plan
from percmae.engine.spool import Spool
from percmae.engine.tracking import Tracker
from percmae.errors import UserError
from percmae.jobs.names import METRICS_VARIABLE
from percmae.progress import Progress
from percmae.runs.record import Run

if TYPE_CHECKING:
    from percmae.engine.serving import Served


def metrics_port(config: Config) -> int | None:
    """The port at which this process serves; None where it does not.

    Raises UserError for an environment that names no port.
    """
    port = config.tracking.metrics_port
    if port is None:
        text = os.environ.get(METRICS_VARIABLE, "").strip() or "0"
        if not text.isdecimal() or int(text) > 65535:
            raise UserError(f"{METRICS_VARIABLE} must be a port from 0 to 65535, not {text!r}")
        port = int(text)
    place = find_place()
    return port if port and (place is None or place.local_rank == 0) else None


class Teller:
    """What one process tells; a context manager.

    config: what it is carried out with now; spool: in the main process alone, which writes the
    run's files and shows how far it is; step: where the run goes on.
    """

    def __init__(
        self, run: Run, plan: Plan, config: Config, spool: Spool | None, step: int
    ) -> None:
        self._run, self._plan, self._config = run, plan, config
        self._spool, self._step = spool, step
        self._tracker: Tracker | None = None
        self._bar: Progress | None = None
        self._sender: Sender | None = None
        self._served: Served | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._spool is not None:
                self._tracker = stack.enter_context(Tracker(self._spool, self._step))
                if self._config.tracking.mlflow is not None:
                    earlier = self._tracker.earlier
                    self._sender = stack.enter_context(Sender(self._run, self._config, earlier))
                name, total = self._run.record.name, self._plan.total
                # The rate is that of this process's own steps.
                self._bar = stack.enter_context(Progress(name, total, "step", initial=self._step))
            port = metrics_port(self._config)
            if port is not None:
                from percmae.engine.serving import Served

                served = Served(self._run, self._plan, self._spool, self._step, port)
                self._served = stack.enter_context(served)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def stepped(self, step: int) -> None:
        """So many steps are done."""
        self._step = step
        if self._served is not None:
            self._served.stepped(step)

    def unlogged(self) -> None:
        """Of the last step there is no more to tell."""
        if self._bar is not None:
            self._bar.update(1)

    def log(self, values: dict[str, float]) -> None:
        """Means of training over the steps up to the last one. Raises as Tracker.log does."""
        self._record("train", values)
        if self._bar is not None:
            speed = f"{values['images_per_second']:.0f} img/s"
            self._bar.update(1, loss=f"{values.get('loss', math.nan):.4f}", speed=speed)
        if self._served is not None:
            self._served.logged(values)

    def validated(self, values: dict[str, float]) -> None:
        """Figures of a validation after the last step. Raises as Tracker.log does."""
        self._record("val", values)
        if self._served is not None:
            self._served.validated(values)
            self._served.stepped(self._step)

    def _record(self, split: str, values: dict[str, float]) -> None:
        if self._tracker is not None:
            epoch = self._step / self._plan.epoch
            row = self._tracker.log(self._step, epoch, split, values)
            if self._sender is not None:
                self._sender.add(row)

    def pictures(self, pictures: dict[str, Tensor]) -> None:
        """Pictures (3, H, W) of how things stand after the last step, by name."""
        if self._tracker is not None:
            for name, picture in pictures.items():
                self._tracker.image(self._step, name, picture)

    def flush(self) -> None:
        """Hand on what is new. Raises as Tracker.flush does."""
        if self._tracker is not None:
            self._tracker.flush()
