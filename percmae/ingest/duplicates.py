"""Images that look alike: difference hashes, and what of a held-out split is in training as well.

The hash is dHash (Neal Krawetz, "Kind of Like That", hackerfactor.com, 2013): the image in grey at
9 × 8 pixels, a bit for each pair of neighbours in a row. A copy in another size, format or quality
differs in no or few bits of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

DISTANCE = 2
"""Bits in which the hashes of two images may differ that are taken for nearly equal."""
PLAIN = 0
"""Hash of an image with too few edges to be told by them."""

_EDGES = 16  # of 64 that an image must have
_STEP = 2  # levels of grey that make an edge
_BITS = 64
_PAIRS = 1 << 20  # that are looked at at a time


def difference_hash(image: Image.Image) -> int:
    """The dHash of an image of any size and mode, below 2⁶⁴; PLAIN for one that has none.

    Bit 8·y + x, from the lowest, says whether pixel (x + 1, y) is lighter than (x, y).
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    steps = np.diff(grey, axis=1)
    if np.count_nonzero(np.abs(steps) >= _STEP) < _EDGES:
        return PLAIN
    bits = np.packbits((steps > 0).ravel(), bitorder="little")
    return int.from_bytes(bits.tobytes(), "little")


class Alike(NamedTuple):
    """A place among the held-out images and one among the training images."""

    held_out: int
    trained: int


def near_duplicates(held_out: np.ndarray, trained: np.ndarray) -> list[Alike]:
    """The held-out images that have a training image within DISTANCE, with the first such.

    held_out, trained: hashes, uint64 (n,) and (m,). Hashes that differ in at most d bits agree in
    at least one of d + 1 bands of bits, so only those that share a band are compared; memory is
    O(n + m).
    """
    queries, asked = np.unique(held_out, return_inverse=True)
    bank, first = np.unique(trained, return_index=True)
    found = np.full(len(queries), -1, dtype=np.int64)
    for mask in _bands():
        banded = bank & mask
        order = np.argsort(banded, kind="stable")
        starts, ends = (
            np.searchsorted(banded[order], queries & mask, side=side) for side in ("left", "right")
        )
        for rows, places in _pairs(starts, ends):
            near = order[places]
            close = _popcount(queries[rows] ^ bank[near]) <= DISTANCE
            rows, near = rows[close], near[close]
            # Of several the one that comes first in training, whatever the bands' order.
            best = np.full(len(queries), len(trained), dtype=np.int64)
            np.minimum.at(best, rows, first[near])
            better = (best < len(trained)) & ((found < 0) | (best < found))
            found[better] = best[better]
    found[queries == PLAIN] = -1
    each = found[asked]
    return [Alike(row, int(each[row])) for row in np.flatnonzero(each >= 0).tolist()]


def _bands() -> list[np.uint64]:
    """Masks of DISTANCE + 1 bands that together are all bits."""
    edges = [_BITS * k // (DISTANCE + 1) for k in range(DISTANCE + 2)]
    return [np.uint64((1 << end) - (1 << start)) for start, end in pairwise(edges)]


def _pairs(starts: np.ndarray, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row, place) for each place in [starts, ends) of each row, some at a time."""
    lengths = ends - starts
    total = np.concatenate([[0], np.cumsum(lengths)])
    for begin in range(0, int(total[-1]), _PAIRS):
        wanted = np.arange(begin, min(begin + _PAIRS, int(total[-1])))
        rows = np.searchsorted(total, wanted, side="right") - 1
        yield rows, starts[rows] + (wanted - total[rows])


def _popcount(words: np.ndarray) -> np.ndarray:
    """Bits that are set in each word, uint8 (n,)."""
    return np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1, dtype=np.uint8)
