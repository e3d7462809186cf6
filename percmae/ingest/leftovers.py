"""Files of a dataset's folder that no manifest refers to, and shard names that are in use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from percmae.data.shards import MANIFEST, MANIFESTS, SPLITS, Dataset, ShardInfo
from percmae.errors import DataError
from percmae.ingest.states import FOLDER
from percmae.storage import Entry, StorePath


def manifests(to: StorePath) -> list[Dataset]:
    """Every manifest of the dataset at ``to``: the newest, and all that there have been.

    Raises DataError for one that is damaged.
    """
    paths = [entry.path for entry in (to / MANIFESTS).iter() if entry.name.endswith(".json")]
    if (to / MANIFEST).exists():
        paths.append(to / MANIFEST)
    return [Dataset.read(path.uri) for path in paths]


def used_numbers(to: StorePath) -> dict[str, int]:
    """By split, the first number behind those of all shards that a manifest refers to.

    A further shard under such a name would take it from under those who read it.
    """
    used = dict.fromkeys(SPLITS, 0)
    for dataset in manifests(to):
        for split, info in _shards(dataset):
            used[split] = max(used[split], _number(info) + 1)
    return used


def leftovers(to: StorePath) -> list[Entry]:
    """Shards and indexes that no manifest refers to, and what is left of ingests."""
    wanted = {
        f"{split}/{name}"
        for dataset in manifests(to)
        for split, info in _shards(dataset)
        for name in (info.name, info.index)
    }
    found = []
    for folder in (*SPLITS, FOLDER):
        for entry in (to / folder).iter():
            if f"{folder}/{entry.name}" not in wanted:
                found.append(replace(entry, name=f"{folder}/{entry.name}"))
    return found


def _shards(dataset: Dataset) -> Iterator[tuple[str, ShardInfo]]:
    for listed in (dataset.shards, dataset.held_back):
        for split, infos in listed.items():
            for info in infos:
                yield split, info


def _number(info: ShardInfo) -> int:
    text = info.name.removesuffix(".tar").rpartition("-")[2]
    if not text.isdigit():
        raise DataError(f"shard {info.name}: its name has no number")
    return int(text)
