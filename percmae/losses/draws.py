"""Random numbers of a step, made on the device from counters.

Each number is a hash of its place, so a row's numbers do not depend on which process has it, nor
on how many rows are drawn with it; and the host does nothing for each row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_BITS = 24  # of each number: as many as float32 holds


def _signed(word: int) -> int:
    """A 64-bit word as the int64 of the same bits."""
    word &= 2**64 - 1
    return word - 2**64 if word >> 63 else word


_STEP = _signed(0x9E3779B97F4A7C15)
_MIX = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))


def splitmix64(state: Tensor) -> Tensor:
    """The output of SplitMix64 (Steele, Lea, Flood 2014) at states, int64 of any shape.

    A generator's n-th output (from 0) is that at its seed + (n + 1) · 0x9E3779B97F4A7C15.
    """
    for shift, factor in _MIX:
        state = (state ^ _shifted(state, shift)) * factor
    return state ^ _shifted(state, 31)


def _shifted(x: Tensor, places: int) -> Tensor:
    """x shifted right as a word without sign."""
    return (x >> places) & (2 ** (64 - places) - 1)


@dataclass(frozen=True)
class Draws:
    """Random numbers of a micro-batch, a function of (seed, micro-batch, row of the whole batch).

    They do not depend on how many processes share the batch. rows: this process's rows.
    """

    seed: int
    index: int
    rows: range
    device: torch.device

    def uniform(self, purpose: int, *shape: int) -> Tensor:
        """(rows, *shape) in [0, 1); another purpose gives other numbers."""
        return self._words(purpose, shape).float() * 2.0**-_BITS

    def normal(self, purpose: int, *shape: int) -> Tensor:
        """(rows, *shape) from the standard normal distribution, cut off at 5.4."""
        # Odd multiples of 2^-24 between -1 and 1, each exact. In float64, as the last bit of a
        # float32 may depend on where in a vector the processor has a number.
        odd = 2 * self._words(purpose, shape) + (1 - 2**_BITS)
        return (torch.erfinv(odd.double() * 2.0**-_BITS) * math.sqrt(2)).float()

    def _words(self, purpose: int, shape: tuple[int, ...]) -> Tensor:
        """(rows, *shape) whole numbers below 2^24."""
        sequence = np.random.SeedSequence([self.seed, self.index, purpose])
        key = int(sequence.generate_state(1, np.uint64)[0])
        rows = torch.arange(self.rows.start, self.rows.stop, device=self.device)
        counts = torch.arange(1, math.prod(shape) + 1, device=self.device)
        streams = splitmix64((rows + 1) * _STEP + _signed(key))
        words = splitmix64(streams[:, None] + counts * _STEP)
        return _shifted(words, 64 - _BITS).view(len(self.rows), *shape)
