"""``percmae`` in one process or in several, forked from one that has imported it.

What torchrun would start anew, with what torchrun would tell them: real processes that meet over
gloo, without paying for Python's and torch's start each time. Those of torchrun itself, and of
signals from outside, are in test_torchrun.py and test_processes.py.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
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
    return forked(verb, (arguments,), folder, size, told)


def forked(
    work: Callable[..., object],
    arguments: tuple[Any, ...],
    folder: Path,
    size: int,
    told: list[Environment] | None = None,
) -> list[Done]:
    """Call ``work`` in ``size`` processes that know of each other, and wait for them.

    told: variables for each of them, instead of torchrun's.
    """
    with Job(work, arguments, folder, size, told) as job:
        return job.ended()


class Job:
    """Processes that know of each other, under way; each leads a session of its own."""

    def __init__(
        self,
        work: Callable[..., object],
        arguments: tuple[Any, ...],
        folder: Path,
        size: int = 1,
        told: list[Environment] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        if told is None:
            told = torchrun_says(size) if size > 1 else [{}]
        self.port = int(told[0].get("MASTER_PORT", "0"))
        self.processes = []
        for rank, environment in enumerate(told):
            given = ({**os.environ, **environment}, folder / f"said-{rank}", work, arguments)
            self.processes.append(FORKS.Process(target=_process, args=given))
            self.processes[-1].start()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.processes:
            for pid in (*self.running(process.pid or 0), process.pid or 0):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.join()

    def said(self, rank: int = 0) -> str:
        """What a process has said on stderr."""
        file = self.folder / f"said-{rank}.err"
        return file.read_text() if file.exists() else ""

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one process."""
        os.kill(self.processes[rank].pid or 0, number)

    @staticmethod
    def running(session: int) -> list[int]:
        """The processes of a session, all that one of ours has started."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                state, _, _, its = stat.read_text().rpartition(")")[2].split()[:4]
                if int(its) == session and state != "Z":
                    found.append(int(stat.parent.name))
        return found

    def ended(self) -> list[Done]:
        """How the processes have ended, once they have."""
        done = []
        for rank, process in enumerate(self.processes):
            process.join(GENEROUS)
            if process.exitcode is None:
                process.kill()
                process.join()
            out = (self.folder / f"said-{rank}.out").read_text()
            assert process.exitcode is not None
            done.append(Done(process.exitcode, out, self.said(rank)))
        return done


def _process(
    environment: dict[str, str], said: Path, work: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    os.setsid()
    for stream, descriptor in (("out", 1), ("err", 2)):
        with open(f"{said}.{stream}", "w") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    gc.freeze()
    sys.exit(work(*arguments))


def verb(arguments: list[str]) -> int:
    from percmae.cli.verbs import main

    return main(arguments)
