"""What there is to do for a source: all of it, or what changed since the dataset was made.

An image is known by its key. One with the stamp it had is taken to be the same; one with another is
compared with what is stored. What goes into which split is settled by the bounds of the first
ingest, so that nothing ever moves.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from percmae.data.shards import SPLITS, ClassInfo, Dataset, ShardInfo
from percmae.ingest.catalogue import BY_HASH, UNLABELLED, Catalogue
from percmae.ingest.plan import Part
from percmae.ingest.splits import Bounds, assign, choose_bounds

_THREADS = 8
_ORDER = ("test", "val", "train")  # what is small first: a fault shows early

Shards = dict[str, list[ShardInfo]]


@dataclass(frozen=True)
class Change:
    """classes: of the dataset as it will be; labels: of each row of the catalogue among them, int32
    (n,); bounds: of the splits; parts: images to build shards of; shards, held_back: what is there,
    less what is removed; removed: images that go; corrupt: what is known to be damaged."""

    classes: list[ClassInfo]
    labels: np.ndarray
    bounds: Bounds
    parts: list[Part]
    shards: Shards = field(default_factory=lambda: {split: [] for split in SPLITS})
    held_back: Shards = field(default_factory=lambda: {split: [] for split in SPLITS})
    removed: int = 0
    replaced: int = 0
    taken_in: int = 0
    corrupt: list[dict[str, Any]] = field(default_factory=list)

    @property
    def nothing(self) -> bool:
        """Whether the dataset stays as it is."""
        return not (any(len(part.rows) for part in self.parts) or self.removed or self.taken_in)


def everything(catalogue: Catalogue) -> Change:
    """A new dataset."""
    columns = catalogue.columns
    bounds = choose_bounds(columns)
    split = assign(columns, bounds)
    rows = {name: np.flatnonzero(split == place) for place, name in enumerate(SPLITS)}
    parts = [Part(name, rows[name]) for name in _ORDER]
    return Change(list(catalogue.classes), columns.labels, bounds, parts)


class _Stored(NamedTuple):
    """What a dataset holds, less what was removed; a row for each image, sorted by key.

    split: place in SPLITS; held: whether it is held back; shard: place among the shards of its
    split, or among those held back; at: place in that shard.
    """

    keys: np.ndarray
    stamps: np.ndarray
    labels: np.ndarray
    split: np.ndarray
    held: np.ndarray
    shard: np.ndarray
    at: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray


def growth(
    catalogue: Catalogue,
    dataset: Dataset,
    prepared: Callable[[int], bytes | None],
    grow_held_out: bool,
) -> Change:
    """What changed between a dataset and its source.

    prepared: the bytes that would be stored of a row, None of one that is damaged. grow_held_out:
    validation and test take new images in, and those that are held back. Raises StoreError.
    """
    columns = catalogue.columns
    classes, labels = _classes(catalogue, dataset)
    bounds = Bounds(**dataset.manifest["bounds"])
    split = assign(columns, bounds)
    stored = _stored(dataset)
    there = _places(stored.keys, columns.keys)  # of each row, or −1
    known = there >= 0
    same = known.copy()
    same[known] &= labels[known] == stored.labels[there[known]]
    declared = known & (columns.splits != BY_HASH)
    same[declared] &= split[declared] == stored.split[there[declared]]
    touched = np.flatnonzero(same & (columns.stamps != stored.stamps[there]))
    same[touched[_differ(dataset, stored, touched, there, prepared)]] = False
    corrupt, damaged = _corrupt(catalogue, dataset)
    fresh = ~same & ~damaged
    replaced = known & ~same

    gone = np.ones(len(stored.keys), dtype=bool)
    gone[there[same]] = False
    frozen = (split != SPLITS.index("train")) & ~known & (not grow_held_out)
    shards = _without(dataset.shards, stored, gone & ~stored.held)
    held_back = _without(dataset.held_back, stored, gone & stored.held)
    # What replaces an image that is held back is held back as well.
    was_held = np.zeros(len(columns.keys), dtype=bool)
    was_held[known] = stored.held[there[known]]
    frozen |= was_held & (not grow_held_out)
    taken_in = 0
    if grow_held_out:
        taken_in = int((stored.held & ~gone).sum())
        shards = {name: [*shards[name], *held_back[name]] for name in SPLITS}
        held_back = {name: [] for name in SPLITS}
    parts = [
        Part(name, np.flatnonzero(fresh & (split == SPLITS.index(name)) & (frozen == held)), held)
        for held in (False, True)
        for name in _ORDER
    ]
    return Change(
        classes,
        labels,
        bounds,
        parts,
        shards,
        held_back,
        removed=int(gone.sum()),
        replaced=int(replaced.sum()),
        taken_in=taken_in,
        corrupt=corrupt,
    )


def _classes(catalogue: Catalogue, dataset: Dataset) -> tuple[list[ClassInfo], np.ndarray]:
    """The classes, and each row's label among them: those that are there keep their place, for the
    shards have it as a number."""
    place = {info.wnid: label for label, info in enumerate(dataset.classes)}
    more = [info for info in catalogue.classes if info.wnid not in place]
    classes = [*dataset.classes, *more]
    place |= {info.wnid: len(dataset.classes) + n for n, info in enumerate(more)}
    new = np.array([place[c.wnid] for c in catalogue.classes] + [UNLABELLED], dtype=np.int32)
    return classes, new[catalogue.columns.labels]  # UNLABELLED is the last place


def _stored(dataset: Dataset) -> _Stored:
    columns: list[list[np.ndarray]] = []
    for place, split in enumerate(SPLITS):
        for held, infos in enumerate((dataset.shards[split], dataset.held_back[split])):
            for number, table in enumerate(dataset.indexes(split, infos)):
                at = np.delete(np.arange(len(table)), infos[number].removed)
                rows = table[at]
                same = (np.full(len(at), value) for value in (place, bool(held), number))
                first = (rows[name] for name in ("key", "stamp", "label"))
                columns.append([*first, *same, at, rows["offset"], rows["size"]])
    joined = [np.concatenate(column) for column in zip(*columns, strict=True)]
    order = np.argsort(joined[0], kind="stable")
    return _Stored(*(column[order] for column in joined))


def _places(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The place of each wanted key among sorted keys, −1 for one that is not there, int64 (n,)."""
    places = np.searchsorted(keys, wanted)
    found = places < len(keys)
    found[found] = keys[places[found]] == wanted[found]
    return np.where(found, places, -1)


def _differ(
    dataset: Dataset,
    stored: _Stored,
    rows: np.ndarray,
    there: np.ndarray,
    prepared: Callable[[int], bytes | None],
) -> np.ndarray:
    """Whether each of the rows has other bytes than are stored, bool (n,)."""

    def differs(row: int) -> bool:
        place = int(there[row])
        split = SPLITS[int(stored.split[place])]
        infos = (dataset.held_back if stored.held[place] else dataset.shards)[split]
        shard = dataset.folder(split) / infos[int(stored.shard[place])].name
        before = shard.read_bytes(int(stored.offsets[place]), int(stored.sizes[place]))
        return prepared(row) != before

    with ThreadPoolExecutor(_THREADS) as pool:
        return np.fromiter(pool.map(differs, rows.tolist()), dtype=bool, count=len(rows))


def _corrupt(catalogue: Catalogue, dataset: Dataset) -> tuple[list[dict[str, Any]], np.ndarray]:
    """What is known to be damaged and is still as it was; and which rows these are, bool (n,)."""
    columns = catalogue.columns
    entries = sorted(dataset.manifest["corrupt"], key=lambda e: e["key"].encode(**_BYTES))
    keys = np.array([entry["key"].encode(**_BYTES) for entry in entries], dtype=np.bytes_)
    stamps = np.array([int(entry["stamp"], 16) for entry in entries], dtype=np.uint64)
    if not entries:
        return [], np.zeros(len(columns.keys), dtype=bool)
    there = _places(keys, columns.keys)
    still = (there >= 0) & (columns.stamps == stamps[there])
    kept = set(there[still].tolist())
    return [entry for place, entry in enumerate(entries) if place in kept], still


_BYTES: dict[str, Any] = {"errors": "surrogateescape"}


def _without(shards: Shards, stored: _Stored, gone: np.ndarray) -> Shards:
    """The shards with further images marked as removed."""
    left = {split: list(infos) for split, infos in shards.items()}
    more: dict[tuple[str, int], list[int]] = {}
    for place in np.flatnonzero(gone).tolist():
        shard = SPLITS[int(stored.split[place])], int(stored.shard[place])
        more.setdefault(shard, []).append(int(stored.at[place]))
    for (split, number), places in more.items():
        info = left[split][number]
        left[split][number] = replace(info, removed=sorted([*info.removed, *places]))
    return left
