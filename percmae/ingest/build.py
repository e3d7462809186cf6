"""Building one shard: its images read ahead within bounds, looked at, and written in order."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from percmae.data.shard_writer import ShardWriter
from percmae.data.shards import ShardInfo
from percmae.errors import DataError
from percmae.ingest.catalogue import Catalogue
from percmae.ingest.checked import Seen, checked
from percmae.ingest.places import read_place
from percmae.ingest.plan import PlannedShard
from percmae.ingest.scratch import Scratch
from percmae.ingest.settings import Settings
from percmae.storage import StorePath

_READ_AHEAD = 48 << 20  # bytes of images that wait for their turn
_IMAGES_AHEAD = 1024  # as many as become ready while a part of the shard goes to the store
_AT_A_TIME = 4  # images, for handing one over takes a while as well
_FETCHING = 8  # threads; most of their time they wait for the store
_LOOKING = 2  # threads where the images are here already

Json = dict[str, Any]


@dataclass(frozen=True)
class BuiltShard:
    """What became of a planned shard.

    corrupt: images that were left out, as the manifest lists them; moments: sums over its samples
    (see :class:`percmae.ingest.checked.Seen`).
    """

    made_from: str
    shard: ShardInfo
    corrupt: list[Json] = field(default_factory=list)
    moments: list[float] = field(default_factory=lambda: [0.0] * 6)

    def to_json(self) -> Json:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Json) -> BuiltShard:
        """Raises TypeError, KeyError or ValueError where it is none."""
        return cls(**values | {"shard": ShardInfo(**values["shard"])})


@dataclass(frozen=True)
class Work:
    """What shards are built from: shared by all who build some.

    labels: of each row of the catalogue, as shards store them, int (n,); scratch: where the images
    lie already, None where each is to be fetched from its place.
    """

    catalogue: Catalogue
    labels: np.ndarray
    settings: Settings
    to: StorePath
    scratch: Scratch | None = None

    def build(
        self, planned: PlannedShard, on_image: Callable[[int, str | None], None]
    ) -> BuiltShard:
        """Write a shard and its index; the same images give the same bytes.

        on_image: told of each image its size as listed, and the fault for which it is left out.
        Raises StoreError as the store has it; then nothing of the shard is visible.
        """
        columns = self.catalogue.columns
        corrupt: list[Json] = []
        moments = np.zeros(6)
        with ShardWriter(self.to / planned.split, planned.stem) as writer:
            for row, seen in self._seen(planned.rows.tolist()):
                stamp = int(columns.stamps[row])
                if seen.fault is None:
                    moments += seen.moments
                    key = columns.keys[row].decode(errors="surrogateescape")
                    label = int(self.labels[row])
                    writer.add(key, seen.data, label, stamp, seen.phash, seen.ending)
                else:
                    corrupt.append(self._corrupt(planned.split, row, seen.fault))
                on_image(int(columns.sizes[row]), seen.fault)
            shard = writer.finish()
        return BuiltShard(planned.made_from, shard, corrupt, moments.tolist())

    def read(self, rows: list[int]) -> list[Seen]:
        """Images, looked at."""
        if self.scratch is None:
            return [self._read(row) for row in rows]
        return list(map(self._read, rows, self.scratch.read(rows)))

    def _read(self, row: int, raw: bytes | None = None) -> Seen:
        name = self.catalogue.name(row)
        try:
            data = read_place(self.catalogue.place(row), raw)
        except DataError as error:
            return Seen(str(error))
        return checked(data, name, self.settings)

    def _seen(self, rows: list[int]) -> Iterator[tuple[int, Seen]]:
        """Each row with what was found there, in order."""
        sizes = self.catalogue.columns.sizes
        waiting: deque[tuple[list[int], Future[list[Seen]]]] = deque()
        held = 0

        def next_ones() -> Iterator[tuple[int, Seen]]:
            nonlocal held
            ready, seen = waiting.popleft()
            held -= int(sizes[ready].sum())
            yield from zip(ready, seen.result(), strict=True)

        with ThreadPoolExecutor(_FETCHING if self.scratch is None else _LOOKING) as pool:
            try:
                for first in range(0, len(rows), _AT_A_TIME):
                    some = rows[first : first + _AT_A_TIME]
                    waiting.append((some, pool.submit(self.read, some)))
                    held += int(sizes[some].sum())
                    while held > _READ_AHEAD or len(waiting) > _IMAGES_AHEAD // _AT_A_TIME:
                        yield from next_ones()
                while waiting:
                    yield from next_ones()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _corrupt(self, split: str, row: int, fault: str) -> Json:
        columns = self.catalogue.columns
        key = columns.keys[row].decode(errors="surrogateescape")
        return {
            "split": split,
            "member": self.catalogue.name(row),
            "reason": fault,
            "key": key,
            "stamp": f"{int(columns.stamps[row]):016x}",
        }
