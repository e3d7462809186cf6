"""A training's figures for Prometheus, served over HTTP while it is going on (docs/monitoring.md).

Nothing here waits for a device: the step is the host's own count, and figures are those that a log
has read anyway. Ages are taken when they are asked for, so they grow while nothing moves.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from percmae import __version__
from percmae.engine.plan import Plan
from percmae.engine.spool import Spool
from percmae.progress import note, warn
from percmae.runs.record import Run
from percmae.runs.restarts import STARTS_VARIABLE
from percmae.storage.outage import repeated, waiting

# torchrun's count of how often it has started the processes of this pod again.
_ELASTIC = "TORCHELASTIC_RESTART_COUNT"


class Served(Collector):
    """What is served of one training; open while it is a context.

    spool: in the process that writes checkpoints. A port that is taken is warned of, and nothing
    is served then.
    """

    def __init__(self, run: Run, plan: Plan, spool: Spool | None, step: int, port: int) -> None:
        self._run, self._plan, self._spool, self._port = run, plan, spool, port
        self._step, self._began = step, time.monotonic()
        self._moved = self._logged = self._began
        self._logged_step = step
        self._step_seconds: float | None = None
        self._train: Mapping[str, float] = {}
        self._val: Mapping[str, float] = {}
        self._server: tuple[WSGIServer, threading.Thread] | None = None

    def __enter__(self) -> Served:
        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)
        address = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
        try:
            self._server = start_http_server(self._port, address, registry)
        except OSError as error:
            warn(
                f"no figures for Prometheus at port {self._port}: {error.strerror}; training goes "
                "on without (choose another: tracking.metrics_port, in a job its own metrics_port)"
            )
        else:
            note(f"figures for Prometheus at port {self._port}, /metrics")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()

    def stepped(self, step: int) -> None:
        """A step was begun and handed to the device, or a validation after it has ended."""
        self._step, self._moved = step, time.monotonic()

    def logged(self, values: Mapping[str, float]) -> None:
        """Means over the steps since the last log."""
        now = time.monotonic()
        self._step_seconds = (now - self._logged) / max(1, self._step - self._logged_step)
        self._logged, self._logged_step, self._train = now, self._step, values

    def validated(self, values: Mapping[str, float]) -> None:
        """Figures of a validation."""
        self._val = values

    def collect(self) -> Iterable[Metric]:
        """What there is, when it is asked for."""
        yield self._info()
        now, plan, train = time.monotonic(), self._plan, self._train
        yield _gauge("step", "Optimiser steps done.", self._step)
        yield _gauge("planned_steps", "Optimiser steps of the whole run.", plan.total)
        yield _gauge("epoch", "Passes over the training images.", self._step / plan.epoch)
        what = "Seconds since the last step, or the validation after it, has ended."
        yield _gauge("step_age_seconds", what, now - self._moved)
        terms = {k.removeprefix("loss/"): v for k, v in train.items() if _is_loss(k)}
        yield _gauges("loss", "Terms of the loss, as logged last; loss is the sum.", "term", terms)
        yield from _known("learning_rate", "As logged last.", train.get("lr"))
        what = "Images a second over all processes, as logged last."
        yield from _known("images_per_second", what, train.get("images_per_second"))
        what = "Share of the time in which training waited for images, as logged last."
        yield from _known("loader_wait_ratio", what, train.get("loader_wait"))
        yield _gauges("validation", "Figures of the last validation.", "figure", self._val)
        yield from self._checkpoints(now)
        waits = "Whether a request of this pod's process waits for the store."
        yield _gauge("store_waiting", waits, float(waiting()))
        what = "Requests to the store that were repeated, of this process and its loaders."
        yield CounterMetricFamily("percmae_store_retries", what, value=repeated())
        yield _gauge(
            "restarts",
            "Starts of this pod's processes again since the run has got further.",
            int(os.environ.get(STARTS_VARIABLE, "1")) - 1 + int(os.environ.get(_ELASTIC, "0")),
        )

    def _info(self) -> Metric:
        record = self._run.record
        labels = {
            "run": record.name,
            "uri": self._run.uri,
            "stage": record.stage,
            "variant": record.variant,
            "version": __version__,
        }
        return InfoMetricFamily("percmae_run", "What is trained.", labels)

    def _checkpoints(self, now: float) -> Iterator[Metric]:
        """Of the process that writes them."""
        if self._spool is None:
            return
        last = self._spool.checkpoints.moved
        what = "Seconds since a checkpoint was last in its place, or since this process has begun."
        yield _gauge("checkpoint_age_seconds", what, now - (self._began if last is None else last))
        if self._step_seconds is not None:
            seconds = self._plan.save * self._step_seconds
            minutes = self._spool.checkpoints.rules.every_minutes
            seconds = seconds if minutes is None else min(seconds, 60 * minutes)
            what = "Seconds between checkpoints, as steps take."
            yield _gauge("checkpoint_interval_seconds", what, seconds)


def _is_loss(name: str) -> bool:
    return name == "loss" or name.startswith("loss/")


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"percmae_{name}", what, value=value)


def _known(name: str, what: str, value: float | None) -> Iterator[Metric]:
    if value is not None:
        yield _gauge(name, what, value)


def _gauges(name: str, what: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"percmae_{name}", what, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
