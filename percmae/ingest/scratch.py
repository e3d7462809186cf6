"""Images of archives in a store, read from front to back and laid down in their shards' order.

A shard has images from all over an archive, which one by one cost a request each. So the images of
as many shards as the scratch has room for are read in the order in which they lie, neighbours in
one request, and each is written to the place where its shard has it, in one file on this machine's
disk. Then the shards are built from that. Whatever the number of workers is, the file is the same,
and one that dies costs the piece that it was reading.

The file has no name, so that its space is free again once all who have it open are gone, however
they ended.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np

from percmae.data.tars import LARGEST_IMAGE
from percmae.errors import UserError
from percmae.ingest.catalogue import Catalogue, Spans
from percmae.ingest.plan import PlannedShard
from percmae.progress import warn
from percmae.storage.stream import NEAR

_RUN = 8 << 20  # most bytes of a request, but for an image that has more
_PIECE = 64 << 20  # bytes that one worker reads before it takes the next
_THREADS = 4  # requests of a worker at a time; memory is two runs for each
_IMAGES = 4 << 20  # at a time, of which each takes about 70 bytes of memory
_FEWEST = 2  # images that a request must fetch on average, or the detour is not worth it


@dataclass(frozen=True)
class Space:
    """Where images may be laid down, and how many bytes of them at a time.

    folder: default: that of temporary files. size: the most, and never more than half of what is
    free there, looked at anew each time; 0 for none, so that each image is fetched on its own.
    """

    folder: Path | None = None
    size: int | None = None

    def room(self) -> int:
        """Bytes. Raises UserError for a folder that there is not."""
        try:
            half = shutil.disk_usage(self._folder).free // 2
        except OSError as error:
            raise UserError(f"--scratch {self._folder}: {error.strerror}") from None
        return half if self.size is None else min(self.size, half)

    def file(self, size: int) -> int:
        """The descriptor of a file without a name, with so many bytes reserved.

        Raises UserError where there is no room for them.
        """
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                descriptor = os.dup(file.fileno())
        except OSError as error:
            raise UserError(f"--scratch {self._folder}: {error.strerror}") from None
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            os.close(descriptor)
            raise UserError(
                f"{self._folder} has no room for {size:,} bytes of images on their way to their "
                f"shards ({error.strerror}); give another folder as --scratch, or fewer bytes as "
                "--scratch-size"
            ) from None
        return descriptor

    @property
    def _folder(self) -> Path:
        return self.folder or Path(tempfile.gettempdir())


@dataclass(frozen=True)
class Piece:
    """Neighbouring images for one worker to fetch: runs, by number, from ``first`` to before
    ``last``."""

    name: str
    first: int
    last: int


class Scratch:
    """The images of some shards. A context manager; leaving it gives the space back."""

    def __init__(self, spans: Spans, rows: np.ndarray, space: Space) -> None:
        """rows: of the catalogue, in the order of the shards, int64 (n,); spans: where they lie.

        Raises UserError where there is no room.
        """
        self._spans = spans
        kept = np.where(spans.lengths > LARGEST_IMAGE, 0, spans.lengths)  # those are refused
        self._lengths = kept
        self._starts = np.cumsum(kept) - kept
        self._sorted = np.argsort(rows, kind="stable")
        self._rows = rows[self._sorted]
        self._order, self._runs = _runs(spans, kept)
        self._bytes = int(kept.sum())
        self._space = space
        self._file = -1

    @property
    def worth_it(self) -> bool:
        """Whether neighbours are near enough to one another for several in a request."""
        return len(self._order) >= _FEWEST * (len(self._runs) - 1)

    def __enter__(self) -> Self:
        self._file = self._space.file(self._bytes)
        # Of each image the bytes that have arrived: written by any worker, read by all.
        self._memory = mmap.mmap(-1, 8 * len(self._rows))
        self._arrived = np.frombuffer(self._memory, np.int64)
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._file)
        self._file = -1

    def pieces(self) -> list[Piece]:
        """What there is to fetch, in the order of the archives."""
        spans, firsts = self._spans, self._order[self._runs[:-1]]
        lasts = self._order[self._runs[1:] - 1]
        sizes = spans.offsets[lasts] + self._lengths[lasts] - spans.offsets[firsts]
        ends = np.cumsum(sizes)
        pieces, first = [], 0
        while first < len(sizes):
            done = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, done + _PIECE, side="right")))
            place = int(firsts[first])
            name = f"{spans.archives[spans.archive[place]]} from byte {spans.offsets[place]:,} on"
            pieces.append(Piece(name, first, last))
            first = last
        return pieces

    def fetch(self, piece: Piece, told: Callable[[int, str | None], None]) -> None:
        """Lay the images of a piece down. told: of bytes of images that are there now.

        Raises StoreError as the store has it, UserError where the disk is full.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            for count in pool.map(self._fetch, range(piece.first, piece.last)):
                told(count, None)

    def read(self, rows: list[int]) -> list[bytes]:
        """The bytes of these images as they lie in their archive; fewer where that ended before."""
        places = self._sorted[self._rows.searchsorted(rows)]
        arrived, starts = self._arrived[places].tolist(), self._starts[places].tolist()
        return [os.pread(self._file, n, at) for n, at in zip(arrived, starts, strict=True)]

    def _fetch(self, run: int) -> int:
        places = self._order[self._runs[run] : self._runs[run + 1]]
        offsets, lengths = self._spans.offsets[places], self._lengths[places]
        first = int(offsets[0])
        path = self._spans.archives[self._spans.archive[places[0]]]
        data = memoryview(path.read_bytes(first, int((offsets + lengths).max()) - first))
        starts = self._starts[places].tolist()
        parts = (data[at : at + n] for at, n in zip(offsets - first, lengths, strict=True))
        arrived = [_write(self._file, part, at) for part, at in zip(parts, starts, strict=True)]
        self._arrived[places] = arrived
        return sum(arrived)


def scratches(
    catalogue: Catalogue, shards: Sequence[PlannedShard], space: Space
) -> Iterator[tuple[Sequence[PlannedShard], Scratch | None]]:
    """The shards in their order, as many at a time as there is room for the images of, with the
    scratch for these; None for those whose images are fetched each on its own.

    That is so where they are not in archives in a store, where a shard alone is too large for the
    scratch, and where too few of the images are near one another; where it is for lack of room it
    is said. Raises UserError as :class:`Space` does.
    """
    left, said = list(shards), False
    while left:
        if not _in_archives(catalogue, left[0]):
            yield left, None
            return
        room = space.room()
        group = _fitting(catalogue, left, room)
        scratch = None
        if group:
            rows = np.concatenate([shard.rows for shard in group])
            spans = catalogue.spans(rows)
            assert spans is not None
            scratch = Scratch(spans, rows, space)
            if not scratch.worth_it:
                scratch = None
        if scratch is None and len(group) < len(left) and space.size != 0 and not said:
            said = True
            _say(group, left, room)
        group = group or left[:1]
        del left[: len(group)]
        yield group, scratch


def _in_archives(catalogue: Catalogue, shard: PlannedShard) -> bool:
    spans = catalogue.spans(shard.rows[:1])
    # On a disk an image is read from its place as quickly as from another.
    return spans is not None and all(path.is_s3 for path in spans.archives)


def _fitting(
    catalogue: Catalogue, shards: Sequence[PlannedShard], room: int
) -> Sequence[PlannedShard]:
    taken, size, images = 0, 0, 0
    for shard in shards:
        spans = catalogue.spans(shard.rows)
        assert spans is not None
        size, images = size + int(spans.lengths.sum()), images + len(shard.rows)
        if size > room or images > _IMAGES:
            break
        taken += 1
    return shards[:taken]


def _say(group: Sequence[PlannedShard], left: Sequence[PlannedShard], room: int) -> None:
    what = f"{len(group):,} of {len(left):,} shards" if group else "less than a shard"
    warn(
        f"ingest: the scratch of {room / 2**30:,.1f} GiB holds {what} at a time, whose images lie "
        "too far apart in their archives: each is fetched on its own, which takes longer; "
        "--scratch names another folder, --scratch-size more bytes"
    )


def _runs(spans: Spans, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images in the order in which they lie, int64 (n,), and where in that each run begins, with
    the end of the last, int64 (runs + 1,).

    A run lies in one archive, has no gap of more than NEAR, and is not longer than _RUN unless it
    is a single image.
    """
    order = np.lexsort((spans.offsets, spans.archive))
    starts, archive = spans.offsets[order], spans.archive[order]
    ends = starts + lengths[order]
    apart = (starts[1:] - ends[:-1] > NEAR) | (archive[1:] != archive[:-1])
    bounds = [0, *(np.flatnonzero(apart) + 1).tolist(), len(order)]
    runs = [0]
    for first, last in pairwise(bounds):
        at = first
        while at < last:
            fits = int(np.searchsorted(ends[first:last], starts[at] + _RUN, side="right")) + first
            at = max(at + 1, fits)
            runs.append(at)
    return order, np.array(runs)


def _write(file: int, data: memoryview, at: int) -> int:
    done = 0
    while done < len(data):
        try:
            done += os.pwrite(file, data[done:], at + done)
        except OSError as error:
            raise UserError(
                f"cannot write images to the scratch ({error.strerror}); give another folder as "
                "--scratch, or fewer bytes as --scratch-size"
            ) from None
    return done
