"""The loader: batches of augmented images, streamed from the shards while training.

What comes out is a function of (dataset, seed, epoch, batch) alone. Not of the number of workers,
of how many ranks share a batch, or of where a run was resumed: the state to resume from is just
the pair (epoch, batch) of the next batch, to be given to :meth:`Loader.batches`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from percmae.config import FORMATS
from percmae.data.augment import Framed
from percmae.data.batch import Batch, Loaded, ready
from percmae.data.cache import Cache
from percmae.data.decode import ImageWarning, Once, check_formats, decode, telling
from percmae.data.reader import Read, grouped, read_ahead, read_store
from percmae.data.seeding import private_randomness, sample_numbers, seed_sample
from percmae.data.shards import Split
from percmae.data.shortage import told
from percmae.data.workers import Workers, require_descriptors
from percmae.errors import DataError
from percmae.progress import warn

_CHUNK, _WINDOW = 16, 4096
CPU = torch.device("cpu")
T = TypeVar("T")

ImageTransform = Framed | Callable[[Image.Image], Tensor]


class Source(Protocol):
    """What batches come from."""

    def batches(
        self, start_epoch: int = 0, start_batch: int = 0, epochs: int | None = 1
    ) -> Generator[tuple[int, int, Batch], None, None]:
        """See :meth:`Loader.batches`."""


def epoch_order(
    samples: int | Split, seed: int, epoch: int, chunk: int = _CHUNK, window: int = _WINDOW
) -> np.ndarray:
    """The order of an epoch: a permutation of 0 … n−1, int64 (n,), from (seed, epoch) alone.

    Chunks of neighbouring samples are shuffled, then samples within windows of the result. A
    window is a mixture of ``window / chunk`` places of the dataset, so classes mix although shards
    are sorted by class, and yet its samples lie in runs that can be read together. Chunk borders
    move from epoch to epoch. Made from raw generator words, which numpy keeps stable over versions.
    """
    n = samples if isinstance(samples, int) else len(samples)
    if n == 0:
        return np.empty(0, np.int64)
    words = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    chunks = -(-n // chunk)
    shuffled = np.argsort(words.random_raw(chunks), kind="stable")
    order = (shuffled[:, None] * chunk + np.arange(chunk)).reshape(-1)
    order = (order[order < n] + int(words.random_raw()) % n) % n
    # One sort for all windows: the number of the window above, random bits below.
    number = (np.arange(n) // window).astype(np.uint64)
    keys = (number << np.uint64(40)) | (words.random_raw(n) >> np.uint64(24))
    return order[np.argsort(keys, kind="stable")].astype(np.int64)


class Loader:
    """Batches of one split, for one rank of ``world``.

    Global batch b of an epoch is ``order[b·world·B : (b+1)·world·B]`` and rank r takes its r-th B,
    so that two ranks with B see, step for step, the samples of one rank with 2B.
    """

    def __init__(
        self,
        split: Split,
        transform: ImageTransform,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
        timeout: float = 600.0,
        formats: Sequence[str] = FORMATS,
        device: torch.device = CPU,
        cache: Cache | None = None,
    ) -> None:
        """
        transform: Framed, or a PIL RGB image to a (3, H, W) tensor; the latter's attribute
        ``min_side``, if it has one, allows JPEGs to be decoded smaller (see decode). batch_size:
        B, of each rank. drop_last: leave out the samples that do not fill a global batch; without
        it the last batch is short, and on ranks that get nothing of it, absent. workers: at most
        so many processes; 0 works in this one. pin_memory: only where there is a GPU. timeout:
        seconds that a batch is waited for, with workers. formats: of images that are opened.
        device: where the batches are wanted. cache: of shards, on the disk.

        Raises DataError if a whole epoch would be empty, UserError for a format that there is not
        and where fewer files may be open than the workers need, ValueError for senseless numbers.
        """
        if batch_size < 1 or not 0 <= rank < world or workers < 0:
            raise ValueError(f"batch_size={batch_size}, {rank=}, {world=}, {workers=}")
        if drop_last and len(split) < batch_size * world:
            raise DataError(
                f"split {split.name} has {len(split):,} samples, fewer than one batch of "
                f"{batch_size} on {world} process(es); lower data.batch_size"
            )
        require_descriptors(workers)
        self.split = split
        self.transform = transform
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.rank = rank
        self.world = world
        self.workers = workers
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.timeout = timeout
        self.formats = check_formats(formats)
        self.device = device
        self.cache = cache
        # Of several ranks, one speaks.
        self._warned: Callable[[ImageWarning], None] = Once(
            warn if rank == 0 else lambda text: None
        )
        self._labels = split.labels  # computed once, before any worker is forked

    def in_order(self, batch_size: int) -> Loader:
        """All samples of the split in its own order, under the same transform."""
        other = copy.copy(self)
        other.batch_size, other.shuffle, other.drop_last = batch_size, False, False
        return other

    @property
    def batches_per_epoch(self) -> int:
        """Global batches in an epoch; the same on all ranks."""
        whole, rest = divmod(len(self.split), self.batch_size * self.world)
        return whole + (1 if rest and not self.drop_last else 0)

    @property
    def samples(self) -> int:
        """Samples an epoch uses, over all ranks."""
        if self.drop_last:
            return self.batches_per_epoch * self.batch_size * self.world
        return len(self.split)

    def batches(
        self, start_epoch: int = 0, start_batch: int = 0, epochs: int | None = 1
    ) -> Generator[tuple[int, int, Batch], None, None]:
        """(epoch, batch, Batch), from a given batch on, to the end of the last of ``epochs``.

        epochs: counted from ``start_epoch``; None goes on for ever. Workers live as long as the
        iterator, over epochs, and end with it: close it, or use it up. Raises DataError for a
        damaged sample, StoreError as the store has it, WorkerLost for a worker that ended or gives
        nothing within the timeout, UserError where this machine has no room for them, ValueError
        for a place that no epoch has.
        """
        if start_epoch < 0 or not 0 <= start_batch <= self.batches_per_epoch:
            raise ValueError(
                f"batch {start_batch} of epoch {start_epoch}: an epoch has "
                f"{self.batches_per_epoch} batches"
            )
        with closing(self.loaded(start_epoch, start_batch, epochs)) as items:
            yield from ready(items, self.device, self._finish)

    def loaded(
        self, epoch: int, batch: int, epochs: int | None
    ) -> Generator[tuple[int, int, Loaded], None, None]:
        """As :meth:`batches`, as they are handed over, for whoever finishes them."""
        workers = self.workers
        if epochs is not None:  # no more than there are batches
            workers = min(workers, epochs * self.batches_per_epoch - batch)
        if workers < 1:
            with told("loading data"):
                yield from self._made_here(epoch, batch, epochs)
        elif self.pin_memory:
            yield from self._pinned_ahead(workers, epoch, batch, epochs)
        else:
            with closing(self._start_workers(workers, epoch, batch, epochs)) as started:
                yield from _present(iter(lambda: self._take(started), None))

    def _made_here(
        self, epoch: int, batch: int, epochs: int | None
    ) -> Iterator[tuple[int, int, Loaded]]:
        plan = self.planned(epoch, batch, epochs)
        for group, blobs in self._read(plan, epochs):
            for place, ids in group:
                if len(ids):
                    with telling(self._warned):
                        loaded = self.load(place[0], ids, blobs)
                    if self.pin_memory:
                        loaded = _pinned(loaded)
                    yield (*place, loaded)

    def _read(self, plan: Iterable[tuple[T, np.ndarray]], epochs: int | None) -> Iterator[Read[T]]:
        # What goes through the split once, and from front to back, need not hold it.
        again = self.shuffle or epochs != 1
        source = self.cache.read if self.cache else read_store
        return read_ahead(self.split, grouped(self.split, plan), again, source)

    def _start_workers(self, count: int, *place: Any) -> Workers:
        return Workers(count, lambda worker, count: self._work(worker, count, *place), self.timeout)

    def _work(
        self, worker: int, count: int, *place: Any
    ) -> Iterator[tuple[int, int, list[np.ndarray], list[ImageWarning]]]:
        """In a worker: the batches of its turns as arrays, with what there was to say of them."""
        mine = itertools.islice(self.planned(*place), worker, None, count)
        warned: list[ImageWarning] = []
        with telling(warned.append):
            for group, blobs in self._read(mine, place[-1]):
                for (epoch, batch), ids in group:
                    # A rank without a part in the last batch still takes its turn.
                    loaded = self.load(epoch, ids, blobs) if len(ids) else ()
                    yield epoch, batch, [tensor.numpy() for tensor in loaded], warned
                    warned.clear()

    def _take(self, workers: Workers) -> tuple[int, int, Loaded | None] | None:
        """The next batch of the workers, None for one without a sample; None at the end."""
        item = workers.take()
        if item is None:
            return None
        epoch, batch, arrays, warned = item
        for warning in warned:
            self._warned(warning)
        if not arrays:
            return epoch, batch, None
        images, *rest = map(torch.from_numpy, arrays)
        # Copied, for whoever keeps labels or ids is not to keep the memory of the images.
        return epoch, batch, Loaded(images, *(tensor.clone() for tensor in rest))

    def _pinned_ahead(self, count: int, *place: Any) -> Iterator[tuple[int, int, Loaded]]:
        """From the workers, each copied into page-locked memory while the one before is used."""
        device = torch.cuda.current_device()

        def take() -> tuple[int, int, Loaded | None] | None:
            item = self._take(workers)
            if item is None or item[2] is None:
                return item
            return item[0], item[1], _pinned(item[2])

        # A thread of its own, which would else open the first GPU for it.
        thread = ThreadPoolExecutor(1, "pin-memory", torch.cuda.set_device, (device,))
        with thread, closing(self._start_workers(count, *place)) as workers:
            yield from _present(_one_ahead(thread, take))

    def _finish(self, loaded: Loaded) -> Batch:
        images, flips, labels, ids = loaded
        if isinstance(self.transform, Framed):
            images = self.transform.finish(images, flips)
        return Batch(images, labels, ids)

    def planned(
        self, start_epoch: int, start_batch: int, epochs: int | None
    ) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """((epoch, batch), ids of this rank's samples) without reading anything."""
        last = None if epochs is None else start_epoch + epochs
        size, total = self.batch_size, self.batch_size * self.world
        for epoch in itertools.count(start_epoch):
            if epoch == last or not self.batches_per_epoch:
                return
            n = len(self.split)
            order = epoch_order(n, self.seed, epoch) if self.shuffle else np.arange(n)
            for batch in range(start_batch, self.batches_per_epoch):
                whole = order[batch * total : (batch + 1) * total]
                yield (epoch, batch), whole[self.rank * size : (self.rank + 1) * size]
            start_batch = 0

    def load(self, epoch: int, ids: np.ndarray, blobs: dict[int, bytes]) -> Loaded:
        """Decode and transform samples; ``blobs`` holds their bytes by id."""
        make = self._framed if isinstance(self.transform, Framed) else self._drawn
        images, flips = make(epoch, ids, blobs)
        labels = torch.from_numpy(self._labels[ids])
        return Loaded(images, flips, labels, torch.from_numpy(ids.astype(np.int64)))

    def _framed(
        self, epoch: int, ids: np.ndarray, blobs: dict[int, bytes]
    ) -> tuple[Tensor, Tensor]:
        transform = cast("Framed", self.transform)
        numbers = sample_numbers(self.seed, epoch, ids, transform.numbers)
        pixels = np.empty((len(ids), transform.side, transform.side, 3), np.uint8)
        for place, (id_, drawn) in enumerate(zip(ids.tolist(), numbers.tolist(), strict=True)):
            name = partial(_describe, self.split, id_)
            make = partial(transform.pixels, numbers=drawn, name=name, formats=self.formats)
            pixels[place] = self._made_of(id_, blobs, make)
        return torch.from_numpy(pixels), torch.from_numpy(transform.flips(numbers))

    def _drawn(self, epoch: int, ids: np.ndarray, blobs: dict[int, bytes]) -> tuple[Tensor, Tensor]:
        transform = cast("Callable[[Image.Image], Tensor]", self.transform)
        min_side = getattr(transform, "min_side", None)
        images: list[Tensor] = []
        with private_randomness():
            for id_ in ids.tolist():
                name = partial(_describe, self.split, id_)
                open_ = partial(decode, min_side=min_side, name=name, formats=self.formats)
                image = self._made_of(id_, blobs, open_)
                seed_sample(self.seed, epoch, id_)
                images.append(transform(image))
        return torch.stack(images), torch.zeros(0, dtype=torch.bool)

    def _made_of(self, id_: int, blobs: dict[int, bytes], make: Callable[[bytes], T]) -> T:
        """``make`` of a sample's bytes; where they were damaged on the way, of those read again."""
        for left in (2, 1, 0):
            try:
                return make(blobs[id_])
            except DataError:
                shard, offset, size = (int(value) for value in self.split.locate(id_))
                path = self.split.shards[shard]
                again = path.read_bytes(offset, size) if path.is_s3 else blobs[id_]
                if not left or again == blobs[id_]:
                    raise
                blobs[id_] = again
        raise AssertionError("unreachable: the last try returns or raises")


def _pinned(loaded: Loaded) -> Loaded:
    return Loaded(*(tensor.pin_memory() for tensor in loaded))


def _one_ahead(thread: ThreadPoolExecutor, take: Callable[[], T | None]) -> Iterator[T]:
    """What ``take`` gives until it gives None, each taken in the thread before it is asked for."""
    following = thread.submit(take)
    while (item := following.result()) is not None:
        following = thread.submit(take)
        yield item


def _present(
    items: Iterator[tuple[int, int, Loaded | None] | None],
) -> Iterator[tuple[int, int, Loaded]]:
    for item in items:
        if item is not None and item[2] is not None:
            yield item[0], item[1], item[2]


def _describe(split: Split, id_: int) -> str:
    shard, offset, _ = (int(v) for v in split.locate(id_))
    return f"sample {split.keys[id_].decode()} ({split.shards[shard]} at byte {offset:,})"
