"""The manifest of a dataset that was ingested: what it says, and how it comes into the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from percmae.data.shards import (
    FORMAT,
    MANIFEST,
    SPLITS,
    UNLABELLED,
    Dataset,
    ShardInfo,
    content_digest,
    pinned_path,
)
from percmae.errors import DataError
from percmae.ingest.build import BuiltShard
from percmae.ingest.catalogue import BY_HASH, Catalogue
from percmae.ingest.checked import statistics
from percmae.ingest.duplicates import DISTANCE, near_duplicates
from percmae.ingest.growth import Change, Shards
from percmae.ingest.plan import PlannedShard
from percmae.ingest.settings import Settings
from percmae.storage import StorePath

_NAMED = 100  # images that are nearly in training as well, which the manifest names

Json = dict[str, Any]


def compose(
    to: StorePath,
    catalogue: Catalogue,
    change: Change,
    built: Sequence[tuple[PlannedShard, BuiltShard]],
    settings: Settings,
    before: Dataset | None,
    more: Mapping[str, Any],
) -> Json:
    """The manifest of the dataset at ``to``.

    built: the new shards, in the order of the plan; before: the dataset as it was; more: what else
    is to stand there. Raises DataError where a split has no image that could be opened.
    """
    shards, held_back = _with_new(change, built)
    moments = _moments(built, before)
    _require_images(catalogue, change, shards, settings)
    corrupt = [*change.corrupt, *(entry for _, done in built for entry in done.corrupt)]
    content: Json = {
        "format": FORMAT,
        "digest": content_digest(change.classes, shards, held_back),
        "name": to.name,
        "classes": [dataclasses.asdict(c) for c in change.classes],
        "splits": {name: _split(shards[name], held_back[name]) for name in SPLITS},
        "bounds": dataclasses.asdict(change.bounds),
        "pixels": statistics(moments["sums"], moments["images"]),
        "moments": moments,
        "corrupt": sorted(corrupt, key=lambda e: (SPLITS.index(e["split"]), e["member"])),
        **settings.to_json(),
        **more,
        "sources": list(catalogue.sources),
    }
    dataset = Dataset((to / MANIFEST).uri, content)
    for name in SPLITS:
        labelled = int(np.count_nonzero(dataset.split(name).labels != UNLABELLED))
        content["splits"][name]["labelled"] = labelled
    content["near_duplicates"] = _alike(dataset)
    return content


def write(to: StorePath, content: Json) -> Dataset:
    """Put a manifest into the store: the copy that stays, then the one that is the newest."""
    pinned_path(to, content["digest"]).write_json(content)
    manifest = to / MANIFEST
    manifest.write_json(content)
    return Dataset.open(manifest.uri)


def _with_new(
    change: Change, built: Sequence[tuple[PlannedShard, BuiltShard]]
) -> tuple[Shards, Shards]:
    shards = {name: list(change.shards[name]) for name in SPLITS}
    held_back = {name: list(change.held_back[name]) for name in SPLITS}
    for planned, done in built:
        if done.shard.samples:  # else all of its images are damaged
            (held_back if planned.held_back else shards)[planned.split].append(done.shard)
    return shards, held_back


def _split(shards: Sequence[ShardInfo], held_back: Sequence[ShardInfo]) -> Json:
    values: Json = {"samples": _samples(shards), "shards": [s.to_json() for s in shards]}
    if held_back:
        values["held_back"] = [s.to_json() for s in held_back]
    return values


def _samples(shards: Sequence[ShardInfo]) -> int:
    return sum(shard.samples - len(shard.removed) for shard in shards)


def _moments(
    built: Sequence[tuple[PlannedShard, BuiltShard]], before: Dataset | None
) -> dict[str, Any]:
    """Sums over all training images that were ever ingested, those that are removed among them."""
    earlier: Json = before.manifest["moments"] if before else {"sums": [0.0] * 6, "images": 0}
    sums, images = np.array(earlier["sums"]), int(earlier["images"])
    for planned, done in built:
        if planned.split == "train":
            sums = sums + done.moments
            images += done.shard.samples
    return {"sums": sums.tolist(), "images": images}


def _require_images(
    catalogue: Catalogue, change: Change, shards: Shards, settings: Settings
) -> None:
    """Raise DataError for training, or a split that the source declares, without a sound image."""
    splits = catalogue.columns.splits
    declared = {SPLITS[place] for place in np.unique(splits[splits != BY_HASH]).tolist()}
    for name in SPLITS:
        if not _samples(shards[name]) and name in {"train", *declared}:
            places = ", ".join(str(source.get("name", "")) for source in catalogue.sources)
            tried = sum(len(part.rows) for part in change.parts if part.split == name)
            raise DataError(
                f"{places}: of {tried:,} {name} images no image in it could be opened as "
                f"{', '.join(settings.formats)}"
            )


def _alike(dataset: Dataset) -> Json:
    """How many images for validation and testing have one nearly equal in training, and which."""
    train = dataset.split("train")
    found: Json = {"distance": DISTANCE}
    first: list[list[str]] = []
    for name in ("val", "test"):
        held_out = dataset.split(name)
        pairs = near_duplicates(held_out.phashes, train.phashes)
        found[name] = len(pairs)
        for pair in pairs[: _NAMED - len(first)]:
            keys = held_out.keys[pair.held_out], train.keys[pair.trained]
            first.append([name, *(key.decode(errors="surrogateescape") for key in keys)])
    return found | {"first": first}
