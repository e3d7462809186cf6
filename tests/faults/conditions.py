"""What tests of faults wait for, and what must not be left behind."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from engine.forked import GENEROUS, Job

from percmae.engine.weights import run_state
from percmae.runs.checkpoints import LATEST
from percmae.storage import StorePath


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for a condition."""
    end = time.monotonic() + GENEROUS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def under_way(job: Job, run: Path, step: int = 1) -> None:
    """Wait for a checkpoint of at least this step; none of the processes may have ended."""

    def saved() -> bool:
        ended = [job.said(n) for n, p in enumerate(job.processes) if p.exitcode is not None]
        assert not ended, ended
        with suppress(OSError, ValueError):
            latest = json.loads((run / "checkpoints" / LATEST).read_text())
            return bool(latest["step"] >= step)
        return False

    until(saved, f"no checkpoint in {run}")


def loaders(job: Job, rank: int) -> list[int]:
    """The data workers of a process."""
    leader = job.processes[rank].pid
    assert leader is not None
    return [pid for pid in job.running(leader) if pid != leader]


def idle(pid: int) -> None:
    """Wait until a process computes nothing any more: it waits for something."""

    def ticks() -> list[str]:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]

    still = 0
    before = ticks()

    def quiet() -> bool:
        nonlocal still, before
        now = ticks()
        still, before = (still + 1, now) if now == before else (0, now)
        return still > 25

    until(quiet, f"process {pid} goes on computing")


def nothing_is_left(job: Job, shared: set[str]) -> None:
    """No process, no port, no shared memory of a job that has ended."""
    leaders = [process.pid or 0 for process in job.processes]
    until(lambda: not any(map(job.running, leaders)), "processes are left")
    if job.port:
        socket.create_server(("127.0.0.1", job.port)).close()
    assert shared_memory() <= shared


def shared_memory() -> set[str]:
    """What lies in /dev/shm of torch, its tests' servers apart."""
    return {file.name for file in Path("/dev/shm").iterdir() if "torch" in file.name}


def last_state(run: StorePath | Path) -> dict[str, Any]:
    """The last checkpoint, without what the clock says."""
    clock = ("seconds", "metrics")
    return {name: value for name, value in run_state(str(run)).items() if name not in clock}


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two states are not the same, bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for n in range(len(a)) for d in differences(a[n], b[n], f"{where}/{n}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return [] if same and a.numpy().tobytes() == b.numpy().tobytes() else [where]
    return [] if a == b else [where]
