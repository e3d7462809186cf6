"""Reads samples out of shards ahead of their use, in few and large ranged requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from percmae.data.shards import Split
from percmae.errors import DataError
from percmae.storage import StorePath

T = TypeVar("T")
Group = list[tuple[T, np.ndarray]]
"""Batches whose samples are read together: (anything, ids) each."""
Read = tuple[Group[T], dict[int, bytes]]
"""A group, and the bytes of its samples by id."""

# A request costs about as long as this many bytes take; smaller gaps are read and thrown away.
_GAP = 128 << 10
_LARGEST_RUN = 8 << 20
_THREADS = 4

# What one group may hold. Two groups are in memory at a time, so a worker holds up to twice this
# (or two batches, where a batch alone is larger).
GROUP_BYTES = 32 << 20
GROUP_SAMPLES = 4096
# A split that takes no more is read once and kept, within the same bound: of small images a group
# is spread so thinly over the shards that almost each few of them would be a request, every epoch.
HELD_BYTES = 2 * GROUP_BYTES


Source = Callable[[StorePath, int, int], bytes]
"""A shard, a place in it and a length to the bytes there."""


def read_store(shard: StorePath, start: int, length: int) -> bytes:
    """As :meth:`percmae.storage.StorePath.read_bytes`."""
    return shard.read_bytes(start, length)


class _Run(NamedTuple):
    """A stretch of one shard that is read in one request, and the samples in it."""

    shard: int
    start: int
    end: int
    samples: list[tuple[int, int, int]]  # id, offset, size


def grouped(split: Split, batches: Iterable[tuple[T, np.ndarray]]) -> Iterator[Group[T]]:
    """Neighbouring batches, put together as long as their samples stay within one group's bounds.

    batches: (anything, ids) each. The more batches in a group, the nearer its samples lie to each
    other in the shards.
    """
    group: Group[T] = []
    held = samples = 0
    for batch in batches:
        size = int(split.locate(batch[1])[2].sum())
        full = held + size > GROUP_BYTES or samples + len(batch[1]) > GROUP_SAMPLES
        if group and full:
            yield group
            group, held, samples = [], 0, 0
        group.append(batch)
        held += size
        samples += len(batch[1])
    if group:
        yield group


def read_ahead(
    split: Split, groups: Iterable[Group[T]], hold: bool = True, source: Source = read_store
) -> Iterator[Read[T]]:
    """Each group with the bytes of its samples by id, the next one being read meanwhile.

    hold: of a split within HELD_BYTES give all samples, the same with each group. source: what
    reads. Raises DataError for a shard shorter than its index says, StoreError as the store has it.
    """
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="shard-reader")
    try:
        if hold and _size(split) <= HELD_BYTES:
            held: dict[int, bytes] | None = None
            for group in groups:
                if held is None:
                    runs = _runs(split, np.arange(len(split)))
                    held = _collect([pool.submit(_read, split, run, source) for run in runs])
                yield group, held
            return
        current: tuple[Group[T], list[Future[dict[int, bytes]]]] | None
        current = None
        for group in groups:
            ids = np.concatenate([ids for _, ids in group])
            following = (
                group,
                [pool.submit(_read, split, run, source) for run in _runs(split, ids)],
            )
            if current:
                yield current[0], _collect(current[1])
            current = following
        if current:
            yield current[0], _collect(current[1])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _size(split: Split) -> int:
    return int(split.locate(np.arange(len(split)))[2].sum())


def _collect(reads: Sequence[Future[dict[int, bytes]]]) -> dict[int, bytes]:
    blobs: dict[int, bytes] = {}
    for read in reads:
        blobs.update(read.result())
    return blobs


def _runs(split: Split, ids: np.ndarray) -> list[_Run]:
    ids = np.unique(ids)  # ids count the samples in the order they are stored
    runs: list[_Run] = []
    columns = (ids, *split.locate(ids))
    for id_, shard, offset, size in zip(*(c.tolist() for c in columns), strict=True):
        end = offset + size
        last = runs[-1] if runs else None
        if (
            last
            and last.shard == shard
            and offset - last.end <= _GAP
            and end - last.start <= _LARGEST_RUN
        ):
            last.samples.append((id_, offset, size))
            runs[-1] = last._replace(end=end)
        else:
            runs.append(_Run(shard, offset, end, [(id_, offset, size)]))
    return runs


def _read(split: Split, run: _Run, source: Source) -> dict[int, bytes]:
    path = split.shards[run.shard]
    data = source(path, run.start, run.end - run.start)
    if len(data) != run.end - run.start:
        raise DataError(f"{path} is shorter than its index says; run ingest again")
    # Copies, so that the gaps do not stay in memory with the samples.
    start = run.start
    return {id_: data[offset - start : offset - start + size] for id_, offset, size in run.samples}
