"""Random numbers of a step, made on the device from counters (:mod:`percmae.counters`).

A row's numbers do not depend on which process has it, nor on how many rows are drawn with it; and
the host does nothing for each row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from percmae.counters import BITS, key_of, numbers

_MASKS = 0x6D61736B  # a purpose; those of the objectives are small numbers


@dataclass(frozen=True)
class Draws:
    """Random numbers of a micro-batch, a function of (seed, micro-batch, row of the whole batch).

    They do not depend on how many processes share the batch. rows: this process's rows.
    """

    seed: int
    index: int
    rows: range
    device: torch.device

    def mask_noise(self, patches: int) -> Tensor:
        """(rows, patches) in [0, 1), whose order says which patches are removed."""
        return self.uniform(_MASKS, patches)

    def uniform(self, purpose: int, *shape: int) -> Tensor:
        """(rows, *shape) in [0, 1); another purpose gives other numbers."""
        return self._numbers(purpose, shape).float() * 2.0**-BITS

    def normal(self, purpose: int, *shape: int) -> Tensor:
        """(rows, *shape) from the standard normal distribution, cut off at 5.4."""
        # Odd multiples of 2^-24 between -1 and 1, each exact. In float64, as the last bit of a
        # float32 may depend on where in a vector the processor has a number.
        odd = 2 * self._numbers(purpose, shape) + (1 - 2**BITS)
        return (torch.erfinv(odd.double() * 2.0**-BITS) * math.sqrt(2)).float()

    def _numbers(self, purpose: int, shape: tuple[int, ...]) -> Tensor:
        """(rows, *shape) whole numbers below 2^24."""
        rows = torch.arange(self.rows.start, self.rows.stop, device=self.device)
        counts = torch.arange(1, math.prod(shape) + 1, device=self.device)
        key = key_of(self.seed, self.index, purpose)
        return numbers(key, rows, counts).view(len(self.rows), *shape)
