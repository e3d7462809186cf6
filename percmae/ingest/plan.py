"""Which image goes into which shard: a function of the catalogue and the settings alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from percmae.data.key_hashes import key_hashes
from percmae.data.shard_writer import stored_bytes
from percmae.ingest.catalogue import UNLABELLED, Columns
from percmae.ingest.settings import Settings

_FORMAT = "percmae-shard/1"
"""Changes when the same images would give another shard."""


@dataclass(frozen=True)
class PlannedShard:
    """One shard to build.

    stem: its file's name without the ending; rows: of the catalogue, int64, in the order in which
    they are stored; held_back: whether its images are not used yet; made_from: digest of all that
    decides what it holds, in hex.
    """

    split: str
    stem: str
    rows: np.ndarray
    held_back: bool
    made_from: str

    @property
    def name(self) -> str:
        """``train/train-000000``: as messages and its state have it."""
        return f"{self.split}/{self.stem}"


@dataclass(frozen=True)
class Part:
    """Images that share shards: rows of the catalogue, of one split, all used or all held back."""

    split: str
    rows: np.ndarray
    held_back: bool = False


def plan(
    columns: Columns,
    labels: np.ndarray,
    parts: list[Part],
    taken: Mapping[str, int],
    settings: Settings,
) -> list[PlannedShard]:
    """The shards of the parts, in their order.

    labels: of each row as shards store them, int (n,); taken: by split, how many shards' names are
    in use. The images of a part are shuffled by a hash of their keys, so that classes mix, and cut
    where a shard has its bytes.
    """
    shards = []
    numbers = dict(taken)
    for part in parts:
        for rows in _cut(part.rows, columns, labels, settings.shard_bytes):
            stem = f"{part.split}-{numbers.get(part.split, 0):06d}"
            numbers[part.split] = numbers.get(part.split, 0) + 1
            made_from = _made_from(part.split, columns, labels, rows, settings)
            shards.append(PlannedShard(part.split, stem, rows, part.held_back, made_from))
    return shards


def _cut(
    rows: np.ndarray, columns: Columns, labels: np.ndarray, shard_bytes: int
) -> Iterator[np.ndarray]:
    shuffled = rows[np.argsort(key_hashes(columns.keys[rows], "order"), kind="stable")]
    ends = np.cumsum(stored_bytes(columns.sizes[shuffled], labels[shuffled] != UNLABELLED))
    first, done = 0, 0
    while first < len(shuffled):
        # The image with which the shard has its bytes is its last one.
        last = int(np.searchsorted(ends, done + shard_bytes))
        yield shuffled[first : last + 1]
        first, done = last + 1, int(ends[min(last, len(ends) - 1)])


def _made_from(
    split: str, columns: Columns, labels: np.ndarray, rows: np.ndarray, settings: Settings
) -> str:
    # Of the settings, where shards end shows in the rows.
    how = {key: value for key, value in settings.to_json().items() if key != "shard_bytes"}
    digest = hashlib.sha256(json.dumps([_FORMAT, split, how]).encode())
    digest.update(b"\n".join(columns.keys[rows].tolist()))
    digest.update(labels[rows].astype("<i4").tobytes())
    digest.update(columns.stamps[rows].astype("<u8").tobytes())
    return digest.hexdigest()
