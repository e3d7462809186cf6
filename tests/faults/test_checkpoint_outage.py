"""Told to stop, or killed, while the store is away: the checkpoint is on the disk, and is sent."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from engine.forked import Job, percmae, verb
from engine.test_processes import command
from faulty_proxy import FaultyProxy
from s3_server import S3

from percmae.data.shards import Dataset
from percmae.storage import StorePath

from .conditions import until
from .test_store_training import figures

COURSE = (
    *("optim.epochs=8", "checkpoint.every_steps=5", "trainer.val_interval=5"),
    *("tracking.knn_samples=0", "tracking.rankme_samples=0", "tracking.images=0"),
)


@pytest.fixture(scope="module")
def undisturbed(
    tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    to = tmp_path_factory.mktemp("whole")
    (done,) = percmae(command(tiny_dataset, to, *COURSE), to / "said")
    assert done.returncode == 0, done.stderr
    return figures(f"{to}/mae")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_is_on_the_disk_is_sent_by_the_next_start(
    s3: S3,
    tiny_dataset: Dataset,
    tmp_path: Path,
    undisturbed: list[dict[str, Any]],
    number: signal.Signals,
) -> None:
    to, spool = s3.uri("runs"), tmp_path / "spool"
    settings = (*COURSE, f"checkpoint.spool={spool}", "checkpoint.grace=1")
    arguments = command(tiny_dataset, tmp_path, *settings)
    arguments[arguments.index("--to") + 1] = to
    latest = StorePath(f"{to}/mae/checkpoints/latest.json")

    def spooled() -> int:
        """The step of the newest whole checkpoint on the disk."""
        steps = [0]
        for file in spool.glob("*/checkpoints/*.json"):
            with suppress(FileNotFoundError):  # another has taken its place
                steps.append(json.loads(file.read_text())["saved"]["step"])
        return max(steps)

    with (
        FaultyProxy(s3.endpoint) as proxy,
        Job(
            verb, (arguments,), tmp_path / "first", told=[{"AWS_ENDPOINT_URL": proxy.endpoint}]
        ) as job,
    ):
        until(latest.exists, "no checkpoint")
        with proxy.lasting("503", on="PUT"):
            there = latest.read_json()["step"]
            until(lambda: spooled() > there + 10, "nothing on the disk")
            job.signal(0, number)
            (done,) = job.ended()
    assert done.returncode == (-number if number == signal.SIGKILL else 128 + number), done.stderr
    assert (f"it lies in {spool}/" in done.stderr) == (number == signal.SIGTERM)
    step = spooled()
    assert latest.read_json()["step"] < step
    (again,) = percmae(arguments, tmp_path / "again")
    assert again.returncode == 0, again.stderr
    assert f"sending what an earlier process left in {spool}/" in again.stderr
    assert f"going on from step {step} of 104" in again.stderr
    assert figures(f"{to}/mae") == undisturbed
    assert not list(spool.iterdir())
