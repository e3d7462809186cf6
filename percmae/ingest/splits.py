"""Which split an image belongs to: as its source says, or by the hash of its key.

The hash is of the key alone, and the bounds are chosen once, when a dataset is made: whatever is
added later, no image changes its split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from percmae.data.key_hashes import key_fractions
from percmae.data.shards import SPLITS
from percmae.data.slices import held_out_images
from percmae.ingest.catalogue import BY_HASH, TEST, VAL, Columns


@dataclass(frozen=True)
class Bounds:
    """Of the hashes in [0, 1): below ``test`` an image is for testing, else below ``val`` for
    validation, else for training."""

    test: float
    val: float


def choose_bounds(columns: Columns) -> Bounds:
    """The bounds that put aside, of these images, just as many as are wanted.

    A split that the source declares gets nothing by hash.
    """
    hashes = np.sort(_hashes(columns.keys[columns.splits == BY_HASH]))
    wanted = held_out_images(len(hashes))
    declared = set(np.unique(columns.splits).tolist())
    test = 0 if TEST in declared or len(hashes) < 3 else wanted
    val = 0 if VAL in declared else wanted
    return Bounds(_bound(hashes, test), _bound(hashes, test + val))


def assign(columns: Columns, bounds: Bounds) -> np.ndarray:
    """The split of each image as its place in SPLITS, int8 (n,)."""
    split = columns.splits.copy()
    undeclared = np.flatnonzero(split == BY_HASH)
    hashes = _hashes(columns.keys[undeclared])
    below = [hashes < bounds.test, hashes < bounds.val]
    names = [SPLITS.index("test"), SPLITS.index("val")]
    split[undeclared] = np.select(below, names, SPLITS.index("train"))
    return split


def _hashes(keys: np.ndarray) -> np.ndarray:
    return key_fractions(keys, "split")


def _bound(hashes: np.ndarray, count: int) -> float:
    """The number below which ``count`` of the sorted hashes are."""
    if count == 0:
        return 0.0
    return float(hashes[count]) if count < len(hashes) else 1.0
