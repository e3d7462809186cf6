"""A machine without enough descriptors, processes or memory for the data workers: one line."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from forks import forked

from percmae.data.shards import Dataset
from percmae.data.stream import Loader
from percmae.data.workers import Workers
from percmae.errors import UserError, WorkerLost


def forever(worker: int, count: int) -> Iterator[Any]:
    for _ in itertools.count():
        yield np.zeros(1000)


@contextmanager
def descriptors(more: int) -> Iterator[None]:
    """Room for this many further descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fill = [os.open("/dev/null", os.O_RDONLY)]
    while fill[-1] <= highest:  # the gaps below it
        fill.append(os.open("/dev/null", os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fill[-1] + 1 + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in fill:
            os.close(descriptor)


@pytest.mark.parametrize("more", range(7))
def test_too_few_descriptors_for_the_workers(more: int) -> None:
    opened = len(os.listdir("/proc/self/fd"))
    with descriptors(more), pytest.raises(UserError) as caught:
        Workers(8, forever, 60)
    assert str(caught.value).startswith("starting 8 data workers: too many open files (ulimit -n ")
    assert not forked()
    assert len(os.listdir("/proc/self/fd")) == opened


def test_too_few_descriptors_show_before_anything_is_started(sample_dataset: Dataset) -> None:
    split = sample_dataset.split("test")

    def loader(workers: int) -> Loader:
        options: dict[str, Any] = {"batch_size": 8, "seed": 0, "shuffle": True, "drop_last": True}
        return Loader(split, lambda image: torch.zeros(3, 8, 8), workers=workers, **options)

    with descriptors(20):
        with pytest.raises(UserError, match=r"data\.workers=8: \d+ open files are needed, ulimit"):
            loader(8)
        assert sum(1 for _ in loader(1).batches()) == 125


def test_too_few_descriptors_for_a_batch() -> None:
    with closing(Workers(1, forever, 60)) as workers:
        workers.take()
        too_many = r"taking a batch from a data worker: too many open files"
        with descriptors(0), pytest.raises(UserError, match=too_many):
            workers.take()


def test_too_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, forks = os.fork, []

    def limited() -> int:
        if len(forks) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        forks.append(fork())
        return forks[-1]

    monkeypatch.setattr(os, "fork", limited)
    with pytest.raises(UserError, match="starting 4 data workers: too many processes or threads"):
        Workers(4, forever, 60)
    assert not forked()


@pytest.mark.parametrize("error", [OSError(12, "Cannot allocate memory"), MemoryError()])
def test_a_worker_without_memory_is_one_line(error: Exception) -> None:
    def hungry(worker: int, count: int) -> Iterator[Any]:
        raise error
        yield 0

    with (
        closing(Workers(2, hungry, 60)) as workers,
        pytest.raises(WorkerLost, match="not enough memory; lower data"),
    ):
        workers.take()
