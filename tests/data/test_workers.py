"""The processes that make batches: what they hand over, and every way in which they can fail."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faulty_proxy import FaultyProxy
from forks import forked
from torch import Tensor

from percmae.data.shards import Dataset
from percmae.data.stream import Loader
from percmae.data.workers import Workers
from percmae.errors import DataError, StoreAway, WorkerLost
from percmae.storage import StorePath, outage, transport


def numbers(worker: int, count: int) -> Iterator[Any]:
    for number in range(worker, 7, count):
        yield number, np.full((number, 3), number, np.float32)


def start(make: Callable[[int, int], Iterator[Any]], count: int = 2, timeout: float = 60) -> Any:
    return closing(Workers(count, make, timeout))


def forever(worker: int, count: int) -> Iterator[Any]:
    for _ in itertools.count():
        yield np.zeros(1000)


def exhaust(workers: Workers) -> list[Any]:
    items = []
    while (item := workers.take()) is not None:
        items.append(item)
    return items


# Handing over -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_items_come_in_turn_and_whole(count: int) -> None:
    with start(numbers, count) as workers:
        items = exhaust(workers)
        assert workers.take() is None
    assert [number for number, _ in items] == list(range(7))
    for number, array in items:
        assert np.array_equal(array, np.full((number, 3), number, np.float32))
        array += 1
    assert not forked()


def test_a_batch_lies_in_memory_that_belongs_to_no_file_system(sample_dataset: Dataset) -> None:
    gc.collect()
    before = Path("/proc/self/maps").read_text().count("memfd:percmae-batch")
    split = sample_dataset.split("train")
    options: dict[str, Any] = {"batch_size": 32, "seed": 0, "shuffle": True, "drop_last": True}
    loader = Loader(split, lambda image: torch.zeros(3, 64, 64), workers=2, **options)
    with closing(loader.batches(epochs=None)) as batches:
        _, _, batch = next(batches)
        for pid in (os.getpid(), *forked()):
            opened = [
                os.readlink(link)
                for link in Path(f"/proc/{pid}/fd").iterdir()
                if os.path.lexists(link)
            ]
            mapped = Path(f"/proc/{pid}/maps").read_text()
            assert not [name for name in (*opened, mapped) if "/dev/shm" in name]
        assert Path("/proc/self/maps").read_text().count("memfd:percmae-batch") > before
        # Whoever keeps labels and ids does not keep the images with them.
        del batch, batches
        kept = [item[2].ids for item in itertools.islice(loader.batches(), 5)]
        assert len(kept) == 5
    gc.collect()
    assert Path("/proc/self/maps").read_text().count("memfd:percmae-batch") == before


SMALL = """
import subprocess, sys, torch
from percmae.data.shards import Dataset
from percmae.data.stream import Loader
split = Dataset.open(sys.argv[1]).split("val")
large = lambda image: torch.zeros(3, 256, 256)
loader = Loader(split, large, batch_size=32, seed=0, shuffle=True, drop_last=True, workers=3)
print(sum(len(batch.ids) for _, _, batch in loader.batches()))
subprocess.run(["mount", "-o", "remount,ro", "/dev/shm"], check=True)
try:
    open("/dev/shm/x", "w")
except OSError as error:
    print(error.strerror)
print(sum(len(batch.ids) for _, _, batch in loader.batches()))
"""


@pytest.mark.slow
def test_a_small_and_a_read_only_dev_shm(sample_dataset: Dataset) -> None:
    """Batches of 25 MB, with 1 MB of /dev/shm."""
    mount = "mount -t tmpfs -o size=1m none /dev/shm"
    unshare = ["unshare", *([] if os.geteuid() == 0 else ["-r"]), "-m", "sh", "-c"]
    if subprocess.run([*unshare, mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    work = [*unshare, f'{mount} && exec "$@"', "sh", sys.executable, "-c", SMALL]
    done = subprocess.run([*work, sample_dataset.uri], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "384\nRead-only file system\n384\n"


# Failing ----------------------------------------------------------------------------------------


def test_an_error_of_a_worker_is_raised_here() -> None:
    def bad(worker: int, count: int) -> Iterator[Any]:
        yield 1
        raise DataError("a sample is damaged")

    with start(bad) as workers:
        assert [workers.take(), workers.take()] == [1, 1]
        with pytest.raises(DataError, match="a sample is damaged"):
            workers.take()
    assert not forked()


def test_a_bug_comes_with_its_traceback() -> None:
    def buggy(worker: int, count: int) -> Iterator[Any]:
        yield 1 / worker

    with start(buggy) as workers, pytest.raises(RuntimeError) as caught:
        workers.take()
    assert str(caught.value).startswith("data worker 0: Traceback")
    assert "in buggy\n" in str(caught.value)
    assert str(caught.value).endswith("ZeroDivisionError: division by zero\n")


def crash(worker: int, count: int) -> Iterator[Any]:
    yield 0
    os.kill(os.getpid(), signal.SIGSEGV)
    yield 1


def leave(worker: int, count: int) -> Iterator[Any]:
    yield 0
    os._exit(3)


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (crash, r"by signal SIGSEGV at data/test_workers\.py:\d+ \(crash\) "),
        (leave, "with code 3;"),
    ],
)
def test_a_worker_that_ends(make: Any, how: str) -> None:
    with start(make, 1) as workers:
        assert workers.take() == 0
        with pytest.raises(WorkerLost, match=f"a data worker ended {how}") as caught:
            workers.take()
    assert caught.value.exit_code == 138
    assert "\n" not in str(caught.value)


def stuck(worker: int, count: int) -> Iterator[Any]:
    yield 0
    if worker == 1:
        time.sleep(1000)
    yield 0


def test_a_worker_that_gives_nothing_says_where_it_is() -> None:
    with start(stuck, 2, timeout=0.5) as workers:
        for _ in range(3):
            workers.take()
        with pytest.raises(WorkerLost) as caught:
            workers.take()
    message = str(caught.value)
    assert "no batch from data worker 1 (process " in message
    assert "for 0.5 s: it is waiting, at data/test_workers.py:" in message
    assert " (stuck) called from percmae/data/workers.py:" in message
    assert " (_serve); 1 of 2 workers are alive; if" in message
    assert "\n" not in message
    assert not forked()


def test_a_worker_whose_store_is_away_is_waited_for(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "_FIRST", 0.2)
    monkeypatch.setattr(transport, "_LONGEST_PAUSE", 0.2)
    path = StorePath(s3.uri("workers") + "/file")
    path.write_bytes(b"content")
    with FaultyProxy(s3.endpoint) as proxy:
        seen = StorePath(path, replace(s3.settings, endpoint=proxy.endpoint, retry_seconds=0.5))

        def make(worker: int, count: int) -> Iterator[Any]:
            yield seen.read_bytes()

        seen.exists()
        with outage.outage(30):
            # Longer than the timeout; and that is long enough for a busy machine to try once.
            proxy.last(10.0, "refuse")
            began = time.monotonic()
            with start(make, 2, timeout=5) as workers:
                assert workers.take() == b"content"
            assert time.monotonic() - began > 9
        with (
            outage.outage(0.8),
            proxy.lasting("refuse"),
            start(make, 2, timeout=30) as workers,
            pytest.raises(StoreAway),
        ):
            workers.take()


def test_a_worker_that_was_stopped() -> None:
    with start(forever, 2, timeout=1) as workers:
        workers.take()
        for pid in forked():
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(WorkerLost, match="stopped by a signal, and does not answer; 2 of 2"):
            exhaust(workers)
    assert not forked()


PAUSED = """
import itertools, sys, time
from percmae.data.workers import Workers
def slow(worker, count):
    for number in range(3):
        time.sleep(1)
        yield number
workers = Workers(1, slow, timeout=4)
print("going", flush=True)
print(*iter(workers.take, None))
"""


@pytest.mark.slow
def test_time_in_which_all_processes_were_stopped_does_not_count() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSED], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "going\n"
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(6)
    os.killpg(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=600)[0] == "0 1 2\n"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_group_are_left_to_the_parent(how: signal.Signals) -> None:
    with start(forever) as workers:
        workers.take()
        for pid in forked():
            os.kill(pid, how)
        for _ in range(20):
            workers.take()


def test_closing_while_another_thread_waits() -> None:
    workers = Workers(1, stuck_at_once, 60)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            workers.take()
        except WorkerLost as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    workers.close()
    workers.close()
    thread.join(timeout=600)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert not forked()


def stuck_at_once(worker: int, count: int) -> Iterator[Any]:
    time.sleep(1000)
    yield 0


# Page-locked memory, with stand-ins for the GPU --------------------------------------------------


def test_batches_are_copied_ahead_by_a_thread(
    sample_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = sample_dataset.split("test").subset("test", np.arange(100))

    def zeros(image: object) -> Tensor:
        return torch.rand(3, 8, 8)

    chosen: list[tuple[int, str]] = []
    here = threading.current_thread().name

    def choose(device: int) -> None:
        chosen.append((device, threading.current_thread().name))

    def pinned(tensor: Tensor) -> Tensor:
        assert threading.current_thread().name != here
        return tensor.clone()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    monkeypatch.setattr(torch.cuda, "set_device", choose)
    monkeypatch.setattr(Tensor, "pin_memory", pinned)
    options: dict[str, Any] = {"batch_size": 8, "seed": 0, "shuffle": True, "drop_last": False}
    plain = list(Loader(split, zeros, **options).batches(epochs=2))
    loader = Loader(split, zeros, workers=3, pin_memory=True, **options)
    ahead = list(loader.batches(epochs=2))
    assert [item[:2] for item in ahead] == [item[:2] for item in plain]
    for (_, _, one), (_, _, two) in zip(plain, ahead, strict=True):
        assert all(map(torch.equal, one, two))
    assert chosen == [(5, "pin-memory_0")]
    with closing(loader.batches(epochs=None)) as batches:
        next(batches)
    assert not forked()
    assert not [t for t in threading.enumerate() if t.name.startswith("pin-memory")]


# The command line -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_ends_when_its_workers_give_nothing(
    sample_dataset: Dataset, tmp_path: Path
) -> None:
    settings = [
        *("data.workers=2", "data.timeout=2", "data.batch_size=8", "optim.total_batch=null"),
        *("trainer.log_interval=1", "trainer.threads=1", "tracking.knn_samples=0"),
        *("trainer.val_samples=8", "optim.epochs=1"),
    ]
    command = [
        *(sys.executable, "-m", "percmae", "pretrain", "--recipe", "demo", "--tag", "t"),
        *("--data", sample_dataset.uri, "--to", str(tmp_path)),
    ]
    process = subprocess.Popen([*command, *settings], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while process.poll() is None and len(forked(process.pid)) < 2:
        time.sleep(0.1)
    for pid in forked(process.pid):
        os.kill(pid, signal.SIGSTOP)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 138, stderr
    last = stderr.splitlines()[-1]
    assert last.startswith("percmae: error: no batch from data worker ")
    assert "for 2 s: it is stopped by a signal, and does not answer; 2 of 2 workers" in last
    assert "Traceback" not in stderr
