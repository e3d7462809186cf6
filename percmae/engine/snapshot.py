"""A copy of a training's state in host memory, which the next step does not change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Snapshots:
    """Makes copies, one at a time.

    What lies on a GPU is copied into page-locked memory, which is dear to allocate and is kept for
    the next copy: the one before is overwritten. On a CPU a copy takes its own memory and gives it
    back with the last reference.
    """

    def __init__(self) -> None:
        self._pinned: list[Tensor] = []

    def take(self, state: Any) -> Any:
        """Dictionaries, lists and tuples anew, their tensors copied; waits until all has arrived.

        What else is in them is kept as it is: numbers and texts, which nobody changes.
        """
        kept, self._pinned = iter(self._pinned), []
        devices: set[torch.device] = set()

        def copied(tensor: Tensor) -> Tensor:
            if not tensor.is_cuda:
                return tensor.detach().clone()
            devices.add(tensor.device)
            host = next(kept, None)
            if host is None or not _alike(host, tensor):
                host = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._pinned.append(host)
            return host.copy_(tensor.detach(), non_blocking=True)

        taken = with_tensors(state, copied)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return taken


def with_tensors(state: Any, change: Callable[[Tensor], Any]) -> Any:
    """Dictionaries, lists and tuples anew, with what ``change`` makes of their tensors."""
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, dict):
        changed = copy.copy(state)  # with the versions that a module's state keeps beside
        changed.update({key: with_tensors(value, change) for key, value in state.items()})
        return changed
    if isinstance(state, list | tuple):
        return type(state)(with_tensors(value, change) for value in state)
    return state


def _alike(host: Tensor, tensor: Tensor) -> bool:
    same = (host.shape, host.dtype, host.stride()) == (tensor.shape, tensor.dtype, tensor.stride())
    return bool(same)
