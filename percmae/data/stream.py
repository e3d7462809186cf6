"""The loader: batches of augmented images, streamed from the shards while training.

What comes out is a function of (dataset, seed, epoch, batch) alone. Not of the number of workers,
of how many ranks share a batch, or of where a run was resumed: the state to resume from is just
the pair (epoch, batch) of the next batch, to be given to :meth:`Loader.batches`.
"""

from __future__ import annotations

import itertools
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from percmae.data.decode import decode
from percmae.data.reader import grouped, read_ahead
from percmae.data.seeding import private_randomness, seed_sample
from percmae.data.shards import Split
from percmae.errors import DataError, PercmaeError

_CHUNK, _WINDOW = 16, 4096
# Batches that each worker may have ready before they are asked for.
_PREFETCH = 2

Transform = Callable[[Image.Image], Tensor]


class Batch(NamedTuple):
    """Samples as a network takes them."""

    images: Tensor
    """(B, 3, H, W) float32, normalised."""
    labels: Tensor
    """(B,) int64."""
    ids: Tensor
    """(B,) int64, positions in the split."""


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
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """
        transform: a PIL RGB image to a (3, H, W) tensor; its attribute ``min_side``, if it has
        one, allows JPEGs to be decoded smaller (see decode). batch_size: B, of each rank.
        drop_last: leave out the samples that do not fill a global batch; without it the last
        batch is short, and on ranks that get nothing of it, absent. workers: processes; 0 works
        in this one. pin_memory: only where there is a GPU.

        Raises DataError if a whole epoch would be empty, ValueError for senseless numbers.
        """
        if batch_size < 1 or not 0 <= rank < world or workers < 0:
            raise ValueError(f"batch_size={batch_size}, {rank=}, {world=}, {workers=}")
        if drop_last and len(split) < batch_size * world:
            raise DataError(
                f"split {split.name} has {len(split):,} samples, fewer than one batch of "
                f"{batch_size} on {world} process(es); lower data.batch_size"
            )
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
        self._labels = split.labels  # computed once, before any worker is forked

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
        damaged sample, StoreError as the store has it, PercmaeError for a worker that died,
        ValueError for a place that no epoch has.
        """
        if start_epoch < 0 or not 0 <= start_batch <= self.batches_per_epoch:
            raise ValueError(
                f"batch {start_batch} of epoch {start_epoch}: an epoch has "
                f"{self.batches_per_epoch} batches"
            )
        plan = _Plan(self, start_epoch, start_batch, epochs)
        with warnings.catch_warnings(), _same_child_handler():
            # More workers than cores: the configuration's business, and no reason to warn twice.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            loader = DataLoader(
                plan,
                batch_size=None,
                num_workers=self.workers,
                pin_memory=self.pin_memory,
                collate_fn=_as_it_is,
                worker_init_fn=_ignore_interrupt,
                multiprocessing_context="fork" if self.workers else None,
                prefetch_factor=_PREFETCH if self.workers else None,
                generator=torch.Generator(),  # else it draws from the global one
            )
            iterator = iter(loader)
        try:
            yield from _unpacked(iterator, self.workers)
        finally:
            if self.workers:
                # It would do so when collected, but an exception on its way up keeps it alive.
                iterator._shutdown_workers()  # type: ignore[attr-defined]

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

    def load(self, epoch: int, ids: np.ndarray, blobs: dict[int, bytes]) -> Batch:
        """Decode and transform samples; ``blobs`` holds their bytes by id."""
        min_side = getattr(self.transform, "min_side", None)
        images: list[Tensor] = []
        with private_randomness():
            for id_ in ids.tolist():
                try:
                    image = decode(blobs[id_], min_side)
                except DataError as error:
                    raise DataError(f"{_describe(self.split, id_)}: {error}") from None
                seed_sample(self.seed, epoch, id_)
                images.append(self.transform(image))
        labels = torch.from_numpy(self._labels[ids])
        return Batch(torch.stack(images), labels, torch.from_numpy(ids.astype(np.int64)))


class _Failure(NamedTuple):
    """An error on its way from a worker: a message for a person, not a traceback."""

    error: PercmaeError


class _Plan(IterableDataset[Any]):
    """What one iteration yields. Worker w of W makes the batches w, w+W, …; DataLoader takes from
    the workers in turn, so the batches come in order."""

    def __init__(
        self, loader: Loader, start_epoch: int, start_batch: int, epochs: int | None
    ) -> None:
        self._loader = loader
        self._start = (start_epoch, start_batch, epochs)

    def __iter__(self) -> Iterator[tuple[int, int, Batch | None] | _Failure]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        split = self._loader.split
        mine = itertools.islice(self._loader.planned(*self._start), first, None, step)
        try:
            for group, blobs in read_ahead(split, grouped(split, mine)):
                for (epoch, batch), ids in group:
                    # A rank without a part in the last batch still takes its turn.
                    loaded = self._loader.load(epoch, ids, blobs) if len(ids) else None
                    yield epoch, batch, loaded
        except PercmaeError as error:
            yield _Failure(error)


def _unpacked(iterator: Iterator[Any], workers: int) -> Iterator[tuple[int, int, Batch]]:
    while True:
        try:
            item = next(iterator, None)
        except (RuntimeError, OSError, EOFError) as error:
            # With workers, an OSError here is the broken connection to one: they do the reading.
            found_dead = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
            if not found_dead and (not workers or isinstance(error, RuntimeError)):
                raise
            raise PercmaeError(
                f"a data worker ended unexpectedly ({' '.join(str(error).split())}); if it was "
                "killed for memory, lower data.workers or data.batch_size"
            ) from None
        if item is None:
            return
        if isinstance(item, _Failure):
            raise item.error
        if item[2] is not None:
            yield tuple(item)


@contextmanager
def _same_child_handler() -> Iterator[None]:
    """Undo the SIGCHLD handler that DataLoader installs.

    It would raise its RuntimeError for a dead worker out of whatever line the main process is at,
    in the midst of a training step or of the shutdown. Without it, the next batch raises it.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if in_main and before is not None:  # None: a handler that was not installed from Python
        signal.signal(signal.SIGCHLD, before)


def _describe(split: Split, id_: int) -> str:
    shard, offset, _ = (int(v) for v in split.locate(id_))
    return f"sample {split.keys[id_].decode()} ({split.shards[shard]} at byte {offset:,})"


def _as_it_is(item: Any) -> Any:
    return item


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the main process alone decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
