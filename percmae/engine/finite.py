"""Losses and gradients that are not finite, watched without waiting for the device.

The verdict of a step stays on the device, where it keeps the optimisers from changing anything
(:func:`percmae.engine.optim.step_unless`); the host reads it only when it waits anyhow: before
figures are logged or anything is saved. When training is to stop at such a step, no later one
changes anything either, so that what is found then is how things stood before it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from percmae.engine.distributed import World


class NotFinite(NamedTuple):
    """What was found: the first such step (counted from 1) and how many, since the last look.

    names: of what was not finite there in this process (none when it was in another one only);
    ids: of the samples that this process had there.
    """

    step: int
    steps: int
    names: list[str]
    ids: list[int]


class Watch:
    """Which steps may change the weights.

    stop: after a step that is not finite no other may, until training gives up.
    """

    def __init__(self, world: World, stop: bool) -> None:
        self._world, self._stop = world, stop
        self._halted = torch.zeros((), device=world.device)
        self._clear()

    def _clear(self) -> None:
        zero = torch.zeros((), dtype=torch.int64, device=self._world.device)
        self._first, self._count = zero, zero
        # For each list of names that steps have had: the first step each name was not finite at.
        self._first_of: dict[tuple[str, ...], Tensor] = {}
        self._ids: Tensor | None = None

    def skips(self, step: int, names: tuple[str, ...], values: Tensor, ids: Tensor) -> Tensor:
        """1.0 where the step must change nothing, else 0.0: a float32 scalar on the device.

        step: counted from 1; values: (len(names),) losses and norms of gradients; ids: (B,) of the
        step's samples, both on the device. Every process calls this, and all get the same.
        """
        wrong = ~values.isfinite()
        bad = self._world.largest(wrong.any().float())
        first_of = self._first_of.get(names)
        if first_of is None:
            first_of = torch.zeros(len(names), dtype=torch.int64, device=values.device)
        self._first_of[names] = first_of.masked_fill(wrong & (first_of == 0), step)
        is_first = (bad > 0) & (self._first == 0)
        self._ids = ids if self._ids is None else torch.where(is_first, ids, self._ids)
        self._first = self._first.masked_fill(is_first, step)
        self._count = self._count + (bad > 0)
        if not self._stop:
            return bad
        self._halted = torch.maximum(self._halted, bad)
        return self._halted

    def found(self) -> NotFinite | None:
        """What was found since the last call; waits for the device."""
        first, count = torch.stack([self._first, self._count]).tolist()
        found = None
        if first:
            assert self._ids is not None
            bad = [
                name
                for names, steps in self._first_of.items()
                for name, step in zip(names, steps.tolist(), strict=True)
                if step == first
            ]
            found = NotFinite(first, count, _causes(bad), self._ids.tolist())
        self._clear()
        return found


def _causes(names: list[str]) -> list[str]:
    """The total and the gradients follow from a term: the cause alone where there is one."""
    terms = [name for name in names if name.startswith("loss/")]
    return terms or [name.replace("grad_norm/", "gradient of ") for name in names]


def listed(names: list[str]) -> str:
    """Names of what was not finite, for a message."""
    return ", ".join(names) if names else "a loss of another process"
