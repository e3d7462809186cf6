"""Random numbers as hashes of their places: SplitMix64 (Steele, Lea, Flood 2014).

A number does not depend on which others are made with it, so neither on the process that makes it
nor on the size of a batch; and there is no state to save. The same lines work on int64 arrays of
numpy and on int64 tensors of torch, on any device: both wrap around at 64 bits.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

BITS = 24
"""Of each number: as many as float32 holds."""

Words = TypeVar("Words")  # int64: a numpy array or a tensor


def _signed(word: int) -> int:
    """A 64-bit word as the int64 of the same bits."""
    word &= 2**64 - 1
    return word - 2**64 if word >> 63 else word


STEP = _signed(0x9E3779B97F4A7C15)
_MIX = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))


def splitmix64(state: Words) -> Words:
    """The output of SplitMix64 at states, int64 of any shape.

    A generator's n-th output (from 0) is that at its seed + (n + 1) · STEP.
    """
    word: Any = state
    for shift, factor in _MIX:
        word = (word ^ _shifted(word, shift)) * factor
    mixed: Words = word ^ _shifted(word, 31)
    return mixed


def numbers(key: int, rows: Words, counts: Words) -> Words:
    """Whole numbers below 2^BITS, int64 (rows, counts): a table of which each entry is fixed.

    key: of the table, from :func:`key_of`. rows, counts: places in it, int64 (n,) and (m,), below
    2^31; row r is the stretch of the key's sequence that begins at r · 2^32.
    """
    places: Any = rows
    table = splitmix64(((places[:, None] << 32) + counts) * STEP + key)
    below: Words = _shifted(table, 64 - BITS)
    return below


def key_of(*seeds: int) -> int:
    """A key from whole numbers of at least 0: others give, as good as surely, another key."""
    return _signed(int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]))


def _shifted(word: Any, places: int) -> Any:
    """A word shifted right as one without sign."""
    return (word >> places) & (2 ** (64 - places) - 1)
