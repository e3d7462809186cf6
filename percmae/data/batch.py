"""Batches of the host made ready on the device that works on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Samples as a network takes them."""

    images: Tensor
    """(B, 3, H, W) float32, normalised."""
    labels: Tensor
    """(B,) int64."""
    ids: Tensor
    """(B,) int64, positions in the split."""


class Loaded(NamedTuple):
    """Samples as they are handed over, on the host."""

    images: Tensor
    """(B, H, W, 3) uint8, or (B, 3, H, W) float32 of a transform that leaves nothing to do."""
    flips: Tensor
    """(B,) bool: which are to be mirrored; without a row where nothing is left to do."""
    labels: Tensor
    ids: Tensor


Finish = Callable[[Loaded], Batch]


def ready(
    items: Iterator[tuple[int, int, Loaded]], device: torch.device, finish: Finish
) -> Iterator[tuple[int, int, Batch]]:
    """Each item's samples, finished on the device.

    On a GPU each is fetched and finished while the one before is worked on, by a stream of its own;
    the host waits for nothing.
    """
    if device.type != "cuda":
        for epoch, index, loaded in items:
            yield epoch, index, finish(loaded)
        return
    fetching, working = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    fetched: tuple[int, int, Batch] | None = None
    for epoch, index, loaded in items:
        with torch.cuda.stream(fetching):
            # Only from page-locked memory the device fetches it by itself.
            moved = (tensor.to(device, non_blocking=True) for tensor in loaded)
            batch = finish(Loaded(*moved))
        if fetched is not None:
            yield fetched
        # What is begun from here on waits for it; its memory is not given away before.
        working.wait_stream(fetching)
        for tensor in batch:
            tensor.record_stream(working)
        fetched = epoch, index, batch
    if fetched is not None:
        yield fetched
