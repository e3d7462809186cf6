"""One process or many: joining the others of a job, and the few collectives used."""

from __future__ import annotations

import ctypes
import os
import queue
import random
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from percmae.config import Config
from percmae.engine.place import Place, find_place, unused_tasks
from percmae.errors import ConfigError, PeerLost, PercmaeError, UserError, one_line
from percmae.memory import keep_freed_memory
from percmae.progress import note
from percmae.signals import received
from percmae.storage.outage import outage_seconds

T = TypeVar("T")

JOIN_VARIABLE = "PERCMAE_JOIN_SECONDS"
"""How long processes wait for each other at the beginning; 300 if it is not set."""
# After so long, say what is waited for.
_PATIENCE = 10.0
# Longest wait for a host's name to be known: a pod's may take some seconds to be.
_NAMING = 30.0
# Longest wait for one collective, as PyTorch has it.
_COLLECTIVE = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """This process's place in the job."""

    rank: int
    size: int
    device: torch.device
    meeting_place: tuple[str, int] | None = None
    """Host and port of the store by which the processes have met; None for one alone."""

    @property
    def main(self) -> bool:
        """Whether this process writes results and logs (rank 0)."""
        return self.rank == 0

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


def _device(config: Config, place: Place | None) -> torch.device:
    if not torch.cuda.is_available():
        if config.trainer.devices >= 0:
            raise ConfigError(
                f"trainer.devices={config.trainer.devices}: this machine has no usable GPU; "
                "use trainer.devices=-1"
            )
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if config.trainer.devices >= 0:
        index, what = config.trainer.devices, f"trainer.devices={config.trainer.devices}"
    else:
        index, what = (place.local_rank, f"LOCAL_RANK={place.local_rank}") if place else (0, "")
    if place is not None and place.slurm and count == 1:
        index = 0  # srun shows each task a GPU of its own (--gpus-per-task)
    if index >= count:
        raise ConfigError(
            f"{what}: there is no GPU {index} here, there are {count}, counted from 0; start as "
            "many processes on a machine as it has GPUs"
        )
    return torch.device("cuda", index)


@contextmanager
def distributed(config: Config) -> Iterator[World]:
    """Join the job that the environment describes (``percmae.engine.place``); alone without one.

    Leaves the process group at the end. Raises UserError for an environment that makes no sense,
    ConfigError when the number of machines is not trainer.num_nodes or when a GPU is asked for
    that is not there, PeerLost when another process of the job has ended or cannot be reached.
    """
    place = find_place()
    rank, size, nodes = (place.rank, place.size, place.nodes) if place else (0, 1, 1)
    if config.trainer.num_nodes not in (1, nodes):
        raise ConfigError(
            f"trainer.num_nodes={config.trainer.num_nodes}, but the job has {nodes} node(s)"
        )
    if (tasks := unused_tasks()) > 1:
        note(
            f"SLURM gave this job {tasks} tasks, but this is one process outside srun: it works "
            "alone (srun in front of the command starts them all)"
        )
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    device = _device(config, place)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    joined = place is not None and not dist.is_initialized()
    meeting_place = (place.address, place.port) if place is not None and joined else None
    here = World(rank, size, device, meeting_place)
    try:
        if place is not None and joined:
            away = timedelta(seconds=60 + outage_seconds(config.trainer.store_outage))
            _join(place, device, away)
            _refuse_shared_gpus(here)
        yield here
    except RuntimeError as error:
        if size > 1 and _is_of_the_network(error):
            reason = one_line(error)
            message = f"process {rank} of {size} lost the others: {reason}"
            joined = False  # what is under way with the others cannot be ended
            raise PeerLost(message, in_midst=True, told=received()) from error
        raise
    finally:
        if joined and dist.is_initialized():
            # That the others have gone by now is no failure, and must not hide one.
            with suppress(RuntimeError):
                dist.destroy_process_group()


def _join(place: Place, device: torch.device, away: timedelta) -> None:
    """Meet the others. Raises UserError where that cannot be, PeerLost where they do not come.

    away: so long a collective may wait for a process whose store is away.
    """
    seconds = _join_seconds()
    # torchrun's own process listens in the place of process 0.
    hosts = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
    waited_for = "the other processes" if hosts else "process 0"
    where = f"{place.address}:{place.port}"
    told = threading.Timer(_PATIENCE, note, [f"waiting for {waited_for} at {where}"])
    told.daemon = True
    told.start()
    try:
        store = _meeting_place(place, hosts, seconds)
    except TimeoutError as error:
        raise PeerLost(
            f"process {place.rank} of {place.size}: {waited_for} did not come to {where} "
            f"(MASTER_ADDR, MASTER_PORT) within {seconds:g} s ({error}): see whether they run, and "
            "whether that port may be reached from here",
            in_midst=True,
        ) from None
    finally:
        told.cancel()
    store.set_timeout(_COLLECTIVE)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    group = dist.PrefixStore("default_pg", store)
    try:
        dist.init_process_group(
            backend,
            timeout=away if away > _COLLECTIVE else None,
            store=group,
            rank=place.rank,
            world_size=place.size,
        )
    except RuntimeError as error:
        if "Unable to find" not in str(error):
            raise
        reason = one_line(error).rpartition("Unable to find")
        raise UserError(
            f"this machine has no network for the other processes: {''.join(reason[1:])}; set "
            "GLOO_SOCKET_IFNAME to one of those that `ip address` lists, or unset it"
        ) from None
    # Never taken apart before the process ends: PyTorch would hold the interpreter's lock and wait
    # for a thread of the group that may be waiting for the same lock, which is for ever.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))


def _meeting_place(place: Place, hosts: bool, seconds: float) -> dist.TCPStore:
    """Process 0's store. Raises TimeoutError where nobody comes, UserError where it cannot be."""
    until = time.monotonic() + seconds
    _wait_for_name(place.address, min(seconds, _NAMING))
    while not hosts:  # PyTorch would wait as well, but prints a page about it
        try:
            socket.create_connection((place.address, place.port), timeout=seconds).close()
            break
        except OSError as error:
            if time.monotonic() > until:
                raise TimeoutError(error.strerror or str(error)) from None
            time.sleep(0.2)
    left = timedelta(seconds=max(1.0, until - time.monotonic()))
    made: queue.SimpleQueue[dist.TCPStore | Exception] = queue.SimpleQueue()

    def make() -> None:
        try:
            made.put(
                dist.TCPStore(place.address, place.port, place.size, hosts, left, multi_tenant=True)
            )
        except Exception as error:
            made.put(error)

    # In a thread: of a program that is no process of ours it would wait for an answer for ever.
    threading.Thread(target=make, daemon=True).start()
    try:
        found = made.get(timeout=left.total_seconds() + 1)
    except queue.Empty:
        raise TimeoutError("another program is there") from None
    if isinstance(found, Exception):
        reason = one_line(found)
        if hosts and ("EADDRINUSE" in reason or "EACCES" in reason):
            why = "is taken by another program" if "EADDRINUSE" in reason else "may not be used"
            raise UserError(
                f"MASTER_PORT={place.port} {why} on this machine: set MASTER_PORT to a free one"
            ) from None
        raise TimeoutError(reason) from None
    return found


def _join_seconds() -> float:
    text = os.environ.get(JOIN_VARIABLE) or "300"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= _COLLECTIVE.total_seconds():
        raise UserError(f"{JOIN_VARIABLE}={text}: expected seconds, from 1 to 1800")
    return seconds


def _wait_for_name(host: str, seconds: float) -> None:
    """Raises UserError for a host that nobody knows by then, PeerLost where nobody can be asked."""
    until = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() < until:
                time.sleep(min(1.0, seconds / 10))
                continue
            message = f"MASTER_ADDR={host}: no host of that name is known here ({error})"
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
                raise PeerLost(message) from None
            raise UserError(f"{message}; set it to the machine of process 0") from None


def _refuse_shared_gpus(here: World) -> None:
    """NCCL cannot work between two processes on one GPU, and says so late and obscurely."""
    gpu = None
    if here.device.type == "cuda":
        gpu = str(torch.cuda.get_device_properties(here.device).uuid)
    first: dict[str, int] = {}
    for rank, other in enumerate(here.gather(gpu)):
        if other is not None and first.setdefault(other, rank) != rank:
            raise UserError(
                f"processes {first[other]} and {rank} have the same GPU ({other}); start as many "
                "processes on a machine as it has GPUs, each with its own LOCAL_RANK"
            )


def _is_of_the_network(error: RuntimeError) -> bool:
    """Whether a collective failed; gloo's errors have no class of their own."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the randomness of a step (dropout, mixup) a function of (seed, step, rank).

    A resumed run then draws what an uninterrupted one would have, with no generator state to save.
    """
    value = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
