"""What the steps since the last log have told, summed on the device."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from percmae.engine.distributed import World


@dataclass
class Window:
    """Sums of the terms since the last log, kept on the device: reading them would wait for it.

    A term that is not computed at every step is averaged over those where it was. Terms that come
    together are summed together: (values, number of steps) by their names.
    """

    sums: dict[tuple[str, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)
    steps: int = 0
    started: float = field(default_factory=time.perf_counter)

    def add(self, names: tuple[str, ...], values: Tensor, skip: Tensor) -> None:
        """Count one step's values (len(names),), unless skip is 1."""
        self.steps += 1
        values, count = values.masked_fill(skip > 0, 0.0), 1.0 - skip
        if names in self.sums:
            values, count = values + self.sums[names][0], count + self.sums[names][1]
        self.sums[names] = values, count

    def means(self, world: World) -> dict[str, float]:
        """The mean of each term; waits for the device."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for names, (values, count) in self.sums.items():
            for name, value in zip(names, values.unbind(), strict=True):
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0.0) + count
        if not sums:
            return {}
        ordered = sorted(sums)
        means = torch.stack([sums[name] / counts[name] for name in ordered])
        values = world.sum(means) / world.size
        # Without a single step that counted there is nothing to say.
        told = zip(ordered, values.tolist(), [counts[n] for n in ordered], strict=True)
        return {name: value for name, value, count in told if count > 0}
