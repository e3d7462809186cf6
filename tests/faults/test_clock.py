"""The machine's clock is set while a run trains."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from engine.forked import Job, verb
from engine.test_processes import command

from percmae.data.shards import Dataset
from percmae.runs.record import Run


def set_again_and_again(arguments: list[str], by: float) -> int:
    """As the command line, but the clock goes on by so many seconds each time it is looked at."""
    right, looks = time.time, 0

    def wrong() -> float:
        nonlocal looks
        looks += 1
        return right() + by * looks

    time.time = wrong
    return verb(arguments)


@pytest.mark.parametrize("by", [-3600.0, 3600.0])
def test_a_run_counts_its_own_seconds(tiny_dataset: Dataset, tmp_path: Path, by: float) -> None:
    settings = ("optim.max_steps=6", "checkpoint.every_steps=2", "trainer.hang_minutes=10")
    arguments = command(tiny_dataset, tmp_path, *settings)
    begun = time.monotonic()
    with Job(set_again_and_again, (arguments, by), tmp_path / "said") as job:
        (done,) = job.ended()
    assert done.returncode == 0, done
    record = Run.open(str(tmp_path / "mae")).record
    assert record.seconds is not None
    assert 0 < record.seconds < time.monotonic() - begun
