"""Told to stop, wherever a run is: saved where there is something to save, 143, and then gone on
with as if nothing had been."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine.forked import Environment, Job, free_port, verb
from engine.test_processes import command, figures, started
from engine.test_torchrun import pod_environment
from faulty_proxy import FaultyProxy
from s3_server import S3

from percmae.data.shards import Dataset
from percmae.errors import PeerLost
from percmae.runs.record import Run

from .conditions import (
    differences,
    idle,
    last_state,
    loaders,
    nothing_is_left,
    shared_memory,
    under_way,
    until,
)

TERM = 128 + signal.SIGTERM
COURSE = (
    *("optim.max_steps=12", "checkpoint.every_steps=5", "trainer.val_interval=0.5"),
    *("tracking.knn_samples=16", "tracking.images=0"),
)


def handled(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def only_line(said: str) -> str:
    (line,) = [line for line in said.splitlines() if line.startswith("percmae: ")]
    assert "Traceback" not in said
    return line


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.5])
def test_while_it_is_being_imported(tiny_dataset: Dataset, tmp_path: Path, seconds: float) -> None:
    """From its first moment: as a container's first process it would not be ended otherwise."""
    process = started(sys.executable, "-m", "percmae", *command(tiny_dataset, tmp_path))
    until(lambda: handled(process.pid), "no handler")
    time.sleep(seconds)  # into what the first seconds are spent with; which, is left to chance
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == TERM, said
    assert only_line(said).startswith("percmae: stopped: ")


def test_as_the_first_process_of_a_container(tiny_dataset: Dataset, tmp_path: Path) -> None:
    alone = ["unshare", "--pid", "--fork", "--kill-child=SIGKILL"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no right to a namespace of processes")
    arguments = command(tiny_dataset, tmp_path, "optim.epochs=4000")
    outer = started(*alone, sys.executable, "-m", "percmae", *arguments)
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    until(lambda: children.read_text().split(), "not begun")
    first = int(children.read_text())
    until(lambda: Path(f"/proc/{first}/cmdline").read_bytes().count(b"percmae"), "not begun")
    until(lambda: handled(first), "no handler")
    os.kill(first, signal.SIGTERM)
    _, said = outer.communicate()
    assert outer.returncode == TERM, said


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a program that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(("rank", "there"), [(0, False), (1, False), (1, True)])
def test_while_the_others_are_waited_for(
    tiny_dataset: Dataset, tmp_path: Path, silent: int, rank: int, there: bool
) -> None:
    told: Environment = {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(silent if there else free_port()),
    }
    arguments = command(tiny_dataset, tmp_path)
    with Job(verb, (arguments,), tmp_path / "said", told=[told]) as job:
        idle(job.processes[0].pid or 0)
        job.signal(0, signal.SIGTERM)
        (done,) = job.ended()
    assert done.returncode == TERM, done
    assert "told to stop (SIGTERM)" in only_line(done.stderr)


def stuck_in_the_others(arguments: list[str]) -> int:
    """As the command line; process 1 comes to the meeting and no further."""
    import torch.distributed as dist

    if os.environ["RANK"] == "1":

        def never(*_: Any, **__: Any) -> None:
            while True:
                time.sleep(1)

        dist.init_process_group = never  # type: ignore[assignment]
    return verb(arguments)


def test_in_the_midst_of_what_is_not_python(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Where no handler of Python's can run: some seconds later the process is ended as it is."""
    with Job(stuck_in_the_others, (command(tiny_dataset, tmp_path),), tmp_path / "said", 2) as job:
        idle(job.processes[0].pid or 0)
        for rank in (0, 1):
            job.signal(rank, signal.SIGTERM)
        done = job.ended()
    assert [one.returncode for one in done] == [TERM, TERM], done
    assert all("told to stop (SIGTERM)" in only_line(one.stderr) for one in done)


def test_while_the_dataset_is_read(s3: S3, tmp_path: Path, tiny_dataset: Dataset) -> None:
    with FaultyProxy(s3.endpoint) as proxy:
        proxy.fault("hang", times=100)
        arguments = command(tiny_dataset, tmp_path)
        arguments[arguments.index("--data") + 1] = f"s3://{s3.bucket}/datasets/manifest.json"
        environment = {"AWS_ENDPOINT_URL": proxy.endpoint}
        with Job(verb, (arguments,), tmp_path / "said", told=[environment]) as job:
            until(lambda: proxy.requests, "asks for nothing")
            job.signal(0, signal.SIGTERM)
            (done,) = job.ended()
    assert done.returncode == TERM, done
    assert "told to stop (SIGTERM)" in only_line(done.stderr)


@pytest.mark.parametrize("told", ["who waits", "the other"])
def test_while_images_are_waited_for(tiny_dataset: Dataset, tmp_path: Path, told: str) -> None:
    """All stop at the same step, also those that get no images and no signal."""
    shared = shared_memory()
    settings = (*COURSE, "data.batch_size=8", "data.workers=1", "optim.max_steps=4000")
    arguments = command(tiny_dataset, tmp_path, *settings, "optim.epochs=4000")
    with Job(verb, (arguments,), tmp_path / "said", 2) as job:
        under_way(job, tmp_path / "mae")
        for pid in loaders(job, 1):
            os.kill(pid, signal.SIGSTOP)
        for process in job.processes:
            idle(process.pid or 0)
        rank = 1 if told == "who waits" else 0
        job.signal(rank, signal.SIGTERM)
        done = job.ended()
        codes = [PeerLost.exit_code] * 2
        codes[rank] = TERM
        assert [one.returncode for one in done] == codes, done
        step = Run.open(str(tmp_path / "mae")).record.step
        for one in done:
            assert f"stopped at step {step} of 4000, checkpoint saved" in one.stderr
        nothing_is_left(job, shared)


def told_in_validation(arguments: list[str], batch: int) -> int:
    """As the command line, but the last process is told to stop when it validates first."""
    from percmae.engine import pretrain

    together = pretrain.together

    def signalled(items: Any, world: Any) -> Iterator[Any]:
        for number, item in enumerate(together(items, world)):
            if number == batch and world.rank == world.size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield item

    pretrain.together = signalled
    return verb(arguments)


@pytest.mark.parametrize(("size", "steps"), [(1, 12), (2, 12), (1, 6)])
def test_in_a_validation(tiny_dataset: Dataset, tmp_path: Path, size: int, steps: int) -> None:
    """Which is made up for; also where it is the last."""
    settings = [*COURSE, f"data.batch_size={16 // size}", f"optim.max_steps={steps}"]
    whole = command(tiny_dataset, tmp_path / "whole", *settings)
    cut = command(tiny_dataset, tmp_path / "cut", *settings)
    with Job(verb, (whole,), tmp_path / "said-whole", size) as job:
        assert [one.returncode for one in job.ended()] == [0] * size
    with Job(told_in_validation, (cut, 0), tmp_path / "said-cut", size) as job:
        done = job.ended()
    codes = [one.returncode for one in done]
    assert codes == [*[PeerLost.exit_code] * (size - 1), TERM], done
    assert Run.open(str(tmp_path / "cut" / "mae")).record.step in (6, 7)
    with Job(verb, (cut,), tmp_path / "said-again", size) as job:
        done = job.ended()
        assert [one.returncode for one in done] == [0] * size, done
    assert figures(tmp_path / "cut" / "mae") == figures(tmp_path / "whole" / "mae")
    states = [last_state(tmp_path / name / "mae") for name in ("cut", "whole")]
    assert differences(*states) == []


def test_twice_ends_at_once_and_loses_the_last_interval_at_most(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    arguments = command(tiny_dataset, tmp_path, *COURSE, "optim.max_steps=4000", "optim.epochs=999")
    with Job(told_twice, (arguments,), tmp_path / "said") as job:
        (done,) = job.ended()
    assert done.returncode == TERM, done
    assert "stopped at once, without saving" in only_line(done.stderr)
    assert Run.open(str(tmp_path / "mae")).record.step == 5
    with Job(verb, (arguments,), tmp_path / "again") as job:
        under_way(job, tmp_path / "mae", step=15)
        assert "going on from step 5 of" in job.said()


def told_twice(arguments: list[str]) -> int:
    """As the command line, but a step lasts until a second signal comes."""
    from percmae.engine.loop import Loop

    optimise = Loop._optimise

    def slow(self: Loop, *given: Any) -> None:
        optimise(self, *given)
        if self.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # the same one, by another way
            time.sleep(1.1)
            os.kill(os.getpid(), signal.SIGTERM)

    Loop._optimise = slow  # type: ignore[method-assign]
    return verb(arguments)


def test_while_torchrun_waits_for_the_other_pods(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """In code that is not Python, before any process of ours has begun."""
    pod = subprocess.Popen(
        [sys.executable, "-m", "percmae.engine.torchrun", "--", *command(tiny_dataset, tmp_path)],
        env=pod_environment(1, free_port(), elastic=False),
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: handled(pod.pid), "no handler")
    idle(pod.pid)
    pod.send_signal(signal.SIGTERM)
    _, said = pod.communicate()
    assert pod.returncode == TERM, said
    assert "told to stop (SIGTERM)" in only_line(said)


def test_while_another_process_is_lost(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Who was told ends as told, though it could not save together with the others."""
    arguments = command(tiny_dataset, tmp_path, *COURSE, "optim.max_steps=4000", "optim.epochs=999")
    with Job(verb, (arguments,), tmp_path / "said", 2) as job:
        under_way(job, tmp_path / "mae")
        job.signal(0, signal.SIGSTOP)
        idle(job.processes[1].pid or 0)
        job.signal(1, signal.SIGTERM)
        job.signal(0, signal.SIGKILL)
        done = job.ended()
    assert [one.returncode for one in done] == [-signal.SIGKILL, TERM], done
    assert "lost the others" in only_line(done[1].stderr)
