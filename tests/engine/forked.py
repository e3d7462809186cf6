"""``percmae`` in one process or in several, forked from one that has imported it.

What torchrun would start anew, with what torchrun would tell them: real processes that meet over
gloo, without paying for Python's and torch's start each time. Those of torchrun itself, and of
signals from outside, are in test_torchrun.py and test_processes.py.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["percmae.cli.verbs", "percmae.engine.pretrain", "percmae.engine.finetune", "torch._dynamo"]
)
GENEROUS = 600  # seconds: nothing here takes as long, on any machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Done:
    """How one process has ended."""

    returncode: int
    stdout: str
    stderr: str


Environment = dict[str, str]


def torchrun_says(size: int) -> list[Environment]:
    """What torchrun tells each of its processes."""
    port = free_port()
    said = [
        {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        for rank in range(size)
    ]
    return [{name: str(value) for name, value in job.items()} for job in said]


def percmae(
    arguments: list[str], folder: Path, size: int = 1, told: list[Environment] | None = None
) -> list[Done]:
    """Run the command line in ``size`` processes; ``folder`` is for what they say."""
    return forked(_verb, (arguments,), folder, size, told)


def forked(
    work: Callable[..., object],
    arguments: tuple[Any, ...],
    folder: Path,
    size: int,
    told: list[Environment] | None = None,
) -> list[Done]:
    """Call ``work`` in ``size`` processes that know of each other.

    told: variables for each of them, instead of torchrun's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if told is None:
        told = torchrun_says(size) if size > 1 else [{}]
    processes = []
    for rank, environment in enumerate(told):
        given = ({**os.environ, **environment}, folder / f"said-{rank}", work, arguments)
        processes.append(FORKS.Process(target=_process, args=given))
        processes[-1].start()
    done = []
    for rank, process in enumerate(processes):
        process.join(GENEROUS)
        if process.exitcode is None:
            process.kill()
            process.join()
        said = [(folder / f"said-{rank}.{stream}").read_text() for stream in ("out", "err")]
        assert process.exitcode is not None
        done.append(Done(process.exitcode, *said))
    return done


def _process(
    environment: dict[str, str], said: Path, work: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    for stream, descriptor in (("out", 1), ("err", 2)):
        with open(f"{said}.{stream}", "w") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    gc.freeze()
    sys.exit(work(*arguments))


def _verb(arguments: list[str]) -> int:
    from percmae.cli.verbs import main

    return main(arguments)
