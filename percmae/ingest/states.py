"""What an ingest has finished: a small file in the store for each shard.

``<dataset>/.ingest/train-000000.json`` is written when that shard is whole, and is deleted before
another one of its name is begun. So whoever comes next, after an interruption or in another pod,
knows what is there. All of it goes once the manifest is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from percmae.data.shards import SPLITS
from percmae.errors import DataError
from percmae.ingest.build import BuiltShard
from percmae.ingest.plan import PlannedShard
from percmae.progress import note, warn
from percmae.storage import Entry, StorePath

FOLDER = ".ingest"
_FORMAT = "percmae-ingest/4"
_THREADS = 8


class States:
    """The finished shards of the ingest into ``to``."""

    def __init__(self, to: StorePath) -> None:
        self._to = to
        self.folder = to / FOLDER

    def forget(self, planned: PlannedShard) -> None:
        """Before a shard is begun: what was finished under its name is about to go."""
        self._path(planned.stem).delete()

    def write(self, planned: PlannedShard, built: BuiltShard) -> None:
        """The shard is whole."""
        self._path(planned.stem).write_json({"format": _FORMAT, **built.to_json()})

    def begin(self, shards: Sequence[PlannedShard]) -> dict[str, BuiltShard]:
        """By stem, what is finished of these shards; says what is gone on with and what is not.

        Raises StoreError.
        """
        made_from = {shard.stem: shard.made_from for shard in shards}
        found = self._read(entry.path for entry in self._entries())
        ours = {stem: b for stem, b in found.items() if b.made_from == made_from.get(stem)}
        others = Counter[str]()
        for stem, built in found.items():
            if stem not in ours:
                others[stem.rpartition("-")[0]] += built.shard.samples + len(built.corrupt)
        for split, images in sorted(others.items()):
            note(
                f"ingest: {self._to} holds {images:,} images of another list of {split} images, or "
                "made with other settings; starting afresh there"
            )
        ours = self._whole(shards, ours)
        if ours:
            images = sum(built.shard.samples + len(built.corrupt) for built in ours.values())
            note(f"ingest: going on after {images:,} images ingested before")
        return ours

    def finished(self, shards: Iterable[PlannedShard]) -> dict[str, BuiltShard]:
        """By stem, what is finished by now of these shards, without a word."""
        wanted = {shard.stem: shard.made_from for shard in shards}
        entries = (e for e in self._entries() if e.name.removesuffix(".json") in wanted)
        found = self._read(entry.path for entry in entries)
        return {stem: built for stem, built in found.items() if built.made_from == wanted[stem]}

    def _entries(self) -> list[Entry]:
        return [e for e in self.folder.iter() if e.name.endswith(".json") and "/" not in e.name]

    def _whole(
        self, shards: Sequence[PlannedShard], found: dict[str, BuiltShard]
    ) -> dict[str, BuiltShard]:
        """Those whose files are in the store, with their size."""
        if not found:
            return {}
        sizes = {
            (split, entry.name): entry.size
            for split in SPLITS
            for entry in (self._to / split).iter()
        }
        return {
            shard.stem: found[shard.stem]
            for shard in shards
            if shard.stem in found
            and sizes.get((shard.split, f"{shard.stem}.tar")) == found[shard.stem].shard.bytes
            and (shard.split, f"{shard.stem}.npy") in sizes
        }

    def _read(self, paths: Iterable[StorePath]) -> dict[str, BuiltShard]:
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(lambda path: (path, _parsed(path)), list(paths))
        return {path.name.removesuffix(".json"): built for path, built in found if built}

    def _path(self, stem: str) -> StorePath:
        return self.folder / f"{stem}.json"


def _parsed(path: StorePath) -> BuiltShard | None:
    try:
        values = path.read_json()
        if values.pop("format") == _FORMAT:
            return BuiltShard.from_json(values)
    except (DataError, KeyError, TypeError, AttributeError, ValueError):
        pass
    warn(f"ingest: {path} is damaged or was written by another version; starting afresh")
    return None
