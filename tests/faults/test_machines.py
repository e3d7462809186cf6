"""A process that hangs or is lost, a data worker that is: what becomes of the run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from engine.forked import Job, verb
from engine.test_processes import command

from percmae.data.shards import Dataset
from percmae.errors import PeerLost, WorkerLost

from .conditions import loaders, nothing_is_left, shared_memory, under_way, until

LONG = ("optim.epochs=4000", "checkpoint.every_steps=5", "data.batch_size=8")
SOON = "trainer.hang_minutes=0.15"


def spinning(arguments: list[str], rank: int) -> int:
    """As the command line, but one process comes to no end in its fourth step."""
    from percmae.engine.loop import Loop

    optimise = Loop._optimise

    def never_ending(self: Loop, *given: object) -> None:
        while self.step == 3 and self.world.rank == rank:
            pass
        optimise(self, *given)  # type: ignore[arg-type]

    Loop._optimise = never_ending  # type: ignore[method-assign]
    return verb(arguments)


@pytest.mark.parametrize(("size", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_a_process_that_comes_to_no_end_is_named(
    tiny_dataset: Dataset, tmp_path: Path, size: int, rank: int
) -> None:
    shared = shared_memory()
    arguments = command(tiny_dataset, tmp_path, *LONG, SOON)
    with Job(spinning, (arguments, rank), tmp_path / "said", size) as job:
        done = job.ended()
        assert [one.returncode for one in done] == [WorkerLost.exit_code] * size, done
        said = [one.stderr for one in done]
        # Where one has ended before, the other may only hear of that.
        told = [text for text in said if "nothing has moved for 0.15 minutes" in text]
        assert told
        assert all(f": process {rank} of {size} is computing at step 3; " in text for text in told)
        if told == said:
            assert "in never_ending" in said[rank]
        nothing_is_left(job, shared)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_stopped_is_named_by_the_other(
    tiny_dataset: Dataset, tmp_path: Path, rank: int
) -> None:
    shared = shared_memory()
    arguments = command(tiny_dataset, tmp_path, *LONG, SOON)
    with Job(verb, (arguments,), tmp_path / "said", 2) as job:
        under_way(job, tmp_path / "mae")
        job.signal(rank, signal.SIGSTOP)
        until(lambda: job.processes[1 - rank].exitcode is not None, "not found")
        job.signal(rank, signal.SIGKILL)  # as torchrun, when the other has ended
        done = job.ended()[1 - rank]
        assert done.returncode == WorkerLost.exit_code, done
        assert f"process {rank} of 2" in done.stderr
        assert "no answer" in done.stderr
        nothing_is_left(job, shared)


def test_a_wait_for_images_is_no_hang(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """It has an end of its own."""
    arguments = command(
        tiny_dataset,
        tmp_path,
        *LONG,
        SOON,
        "data.workers=1",
        "data.timeout=20",
        "tracking.images=0",
    )
    with Job(verb, (arguments,), tmp_path / "said", 2) as job:
        under_way(job, tmp_path / "mae")
        for pid in loaders(job, 1):
            os.kill(pid, signal.SIGSTOP)
        first, second = job.ended()
        assert first.returncode == PeerLost.exit_code, first
        assert second.returncode == WorkerLost.exit_code, second
        assert "nothing has moved" not in first.stderr + second.stderr
        assert "it is stopped by a signal" in second.stderr


Hit = Callable[[Job], int]


@pytest.mark.parametrize(
    ("hit", "codes"),
    [
        (lambda job: loaders(job, 1)[0], (PeerLost.exit_code, WorkerLost.exit_code)),
        (lambda job: job.processes[1].pid, (PeerLost.exit_code, -signal.SIGKILL)),
        (lambda job: job.processes[0].pid, (-signal.SIGKILL, PeerLost.exit_code)),
    ],
    ids=["a data worker", "a process", "the first process"],
)
def test_what_is_killed_leaves_nothing_and_the_run_goes_on(
    tiny_dataset: Dataset, tmp_path: Path, hit: Hit, codes: tuple[int, int]
) -> None:
    shared = shared_memory()
    arguments = command(tiny_dataset, tmp_path, *LONG, "data.workers=2")
    with Job(verb, (arguments,), tmp_path / "said", 2) as job:
        under_way(job, tmp_path / "mae")
        os.kill(hit(job), signal.SIGKILL)
        done = job.ended()
        assert tuple(one.returncode for one in done) == codes, done
        nothing_is_left(job, shared)
    with Job(verb, (arguments,), tmp_path / "again", 2) as job:
        under_way(job, tmp_path / "mae", step=30)
        assert "going on from step" in job.said()
