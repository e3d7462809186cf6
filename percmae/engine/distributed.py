"""One process or many: what torchrun's environment says, and the few collectives used."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from percmae.config import Config
from percmae.engine.memory import keep_freed_memory, out_of_memory
from percmae.errors import ConfigError, PeerLost, PercmaeError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place in the job."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes results and logs (rank 0)."""
        return self.rank == 0

    def take(self, tensor: Tensor) -> Tensor:
        """A tensor of the host on the device; the host does not wait until it is there."""
        if self.device.type != "cuda":
            return tensor
        # Only from page-locked memory the device fetches it by itself.
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process (through CPU: it never waits for the GPU)."""
        if self.size == 1:
            return flag
        return bool(self.largest(torch.tensor(float(flag))) > 0)

    def largest(self, tensor: Tensor) -> Tensor:
        """Largest value of a tensor over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share(self, value: T) -> T:
        """Rank 0's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in every process."""
        if self.size == 1:
            return [value]
        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, value)
        return boxes

    def first(self, work: Callable[[], T]) -> T:
        """Do the work in rank 0 only; every process gets its result, or raises its error."""
        if self.size == 1:
            return work()
        result: T | None = None
        error: PercmaeError | None = None
        if self.main:
            try:
                result = work()
            except PercmaeError as raised:
                error = raised
        result, error = self.share((result, error))
        if error is not None:
            raise error
        return cast("T", result)

    def wrap(self, network: nn.Module, always: bool = False) -> nn.Module:
        """The network under DistributedDataParallel when there is more than one process."""
        if not dist.is_initialized() or (self.size == 1 and not always):
            return network
        # 1×1 filters have both layouts at once, and their gradients may come in the other one: a
        # copy of a few hundred numbers, not worth a warning in every process.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=ids)


def _device(config: Config, local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        if config.trainer.devices >= 0:
            raise ConfigError(
                f"trainer.devices={config.trainer.devices}: this machine has no usable GPU; "
                "use trainer.devices=-1"
            )
        return torch.device("cpu")
    count = torch.cuda.device_count()
    index = config.trainer.devices if config.trainer.devices >= 0 else local_rank
    if index >= count:
        raise ConfigError(f"trainer.devices: GPU {index} asked for, but there are {count}")
    return torch.device("cuda", index)


@contextmanager
def distributed(config: Config) -> Iterator[World]:
    """Join the job that torchrun's environment describes; a single process without one.

    Leaves the process group at the end. Raises ConfigError when the number of machines is not
    trainer.num_nodes or when a GPU is asked for that is not there, PeerLost when another process
    of the job has ended or cannot be reached, PercmaeError when memory is used up.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local = (int(os.environ.get(k, d)) for k, d in _LOCAL)
    nodes = size // max(local, 1)
    if config.trainer.num_nodes not in (1, nodes):
        raise ConfigError(
            f"trainer.num_nodes={config.trainer.num_nodes}, but the job has {nodes} node(s)"
        )
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    device = _device(config, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    joined = "RANK" in os.environ and not dist.is_initialized()
    try:
        if joined:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        yield World(rank, size, device)
    except RuntimeError as error:
        if size > 1 and _is_of_the_network(error):
            reason = " ".join(str(error).split())
            message = f"process {rank} of {size} lost the others: {reason}"
            joined = False  # what is under way with the others cannot be ended
            raise PeerLost(message, in_midst=True) from error
        if told := out_of_memory(error):
            raise PercmaeError(told) from None
        raise
    except MemoryError as error:
        raise PercmaeError(out_of_memory(error)) from None
    finally:
        if joined and dist.is_initialized():
            # That the others have gone by now is no failure, and must not hide one.
            with suppress(RuntimeError):
                dist.destroy_process_group()


def _is_of_the_network(error: RuntimeError) -> bool:
    """Whether a collective failed; gloo's errors have no class of their own."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


_LOCAL = (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the randomness of a step (dropout, mixup) a function of (seed, step, rank).

    A resumed run then draws what an uninterrupted one would have, with no generator state to save.
    """
    value = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def mask_noise(seed: int, index: int, rows: range, total: int, patches: int) -> Tensor:
    """Rows of the (total, patches) uniform noise of global micro-batch ``index``, on the CPU.

    Every process draws the whole batch's noise and takes its rows, so the masks do not depend on
    how many processes share the batch.
    """
    state = np.random.SeedSequence([seed, index, 0x6D61736B]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state) & (2**63 - 1))
    return torch.rand(total, patches, generator=generator)[rows.start : rows.stop]
