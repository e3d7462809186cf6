"""The loader's contract: what comes in which order, whoever loads it."""

from __future__ import annotations

import io
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import archive_building as ab
import numpy as np
import pytest
import torch
from faulty_proxy import FaultyProxy
from forks import forked
from PIL import Image
from torch import Tensor

from percmae.data.batch import Batch
from percmae.data.shards import Dataset, Split
from percmae.data.stream import Loader, epoch_order
from percmae.errors import DataError, StoreAccessError, WorkerLost
from percmae.ingest import ingest


def noisy(image: Image.Image) -> Tensor:
    """Draws from all three global generators, and keeps something of the image."""
    pixels = torch.from_numpy(np.array(image.resize((4, 4)), dtype=np.float32)).permute(2, 0, 1)
    return pixels + random.random() + np.random.rand() + torch.rand(())


def make(split: Split, **changed: Any) -> Loader:
    options: dict[str, Any] = {"batch_size": 10, "seed": 3, "shuffle": True, "drop_last": True}
    return Loader(split, noisy, **options | changed)


def collect(loader: Loader, *args: int, **kwargs: int | None) -> list[tuple[int, int, Batch]]:
    return list(loader.batches(*args, **kwargs))


def assert_same(one: list[tuple[int, int, Batch]], two: list[tuple[int, int, Batch]]) -> None:
    assert [item[:2] for item in one] == [item[:2] for item in two]
    for (_, _, a), (_, _, b) in zip(one, two, strict=True):
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.images, b.images)


@pytest.fixture
def train(sample_dataset: Dataset) -> Split:
    """360 training images, from all shards."""
    whole = sample_dataset.split("train")
    return whole.subset("train", np.arange(0, len(whole), 10))


# Order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 100, 4095, 4096, 4097, 10_000])
def test_an_order_is_a_permutation(n: int) -> None:
    order = epoch_order(n, seed=1, epoch=0)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))


def test_an_order_depends_on_seed_and_epoch_alone() -> None:
    first = epoch_order(5000, seed=1, epoch=0)
    np.random.seed(0)
    assert np.array_equal(first, epoch_order(5000, seed=1, epoch=0))
    for seed, epoch in ((1, 1), (2, 0), (0, 1)):
        assert (first == epoch_order(5000, seed, epoch)).mean() < 0.01
    # Fixed for good: a resumed run must meet the order it was started with.
    assert epoch_order(40, seed=7, epoch=3).tolist()[:12] == [
        8,
        23,
        10,
        35,
        15,
        32,
        19,
        37,
        5,
        9,
        31,
        18,
    ]


def test_classes_mix_although_shards_are_sorted_by_class() -> None:
    labels = np.repeat(np.arange(1000), 1281)  # the shape of ImageNet's training set
    began = time.perf_counter()
    order = epoch_order(len(labels), seed=0, epoch=0)
    assert time.perf_counter() - began < 3  # 0.3 s on an idle core
    batches = labels[order][: len(order) // 256 * 256].reshape(-1, 256)
    distinct = [len(np.unique(batch)) for batch in batches[::50]]
    # 226 classes are expected in 256 independent draws.
    assert np.mean(distinct) > 150
    assert min(distinct) > 120
    small = np.repeat(np.arange(10), 360)
    for batch in small[epoch_order(3600, seed=0, epoch=0)].reshape(-1, 100):
        assert np.bincount(batch, minlength=10).min() >= 1


def test_an_order_keeps_reads_near_each_other() -> None:
    order = epoch_order(200_000, seed=0, epoch=0)
    for window in order[: 40 * 4096].reshape(40, 4096):
        runs = 1 + np.count_nonzero(np.diff(np.sort(window)) > 1)
        assert runs <= 4096 / 16 + 2


# Batches --------------------------------------------------------------------------------------


def test_images_labels_and_ids_belong_together(train: Split) -> None:
    def plain(image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()

    loader = Loader(train, plain, batch_size=64, seed=0, shuffle=True, drop_last=True)
    _, _, batch = next(iter(loader.batches()))
    assert batch.images.shape == (64, 3, 28, 28)
    assert batch.images.dtype == torch.float32
    assert batch.labels.dtype == batch.ids.dtype == torch.int64
    for image, label, id_ in zip(*batch, strict=True):
        shard, offset, size = (int(v) for v in train.locate(int(id_)))
        data = train.shards[shard].read_bytes(offset, size)
        expected = np.array(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(image.numpy(), expected)
        assert int(label) == train.labels[int(id_)]
        assert train.keys[int(id_)].decode().startswith(f"n9000{int(label) + 1:04d}_")


@pytest.mark.parametrize(("drop_last", "batches", "used"), [(True, 5, 350), (False, 6, 360)])
def test_ranks_are_disjoint_and_complete(
    train: Split, drop_last: bool, batches: int, used: int
) -> None:
    loaders = [make(train, rank=r, world=7, drop_last=drop_last) for r in range(7)]
    assert {loader.batches_per_epoch for loader in loaders} == {batches}
    assert {loader.samples for loader in loaders} == {used}
    ids = [torch.cat([b.ids for _, _, b in loader.batches()]).tolist() for loader in loaders]
    everything = list(itertools.chain(*ids))
    assert len(set(everything)) == len(everything) == used


def test_an_evaluation_covers_every_sample_once_in_order(sample_dataset: Dataset) -> None:
    test = sample_dataset.split("test")
    for workers in (0, 2):
        parts = [
            make(
                test,
                shuffle=False,
                drop_last=False,
                rank=r,
                world=3,
                batch_size=111,
                workers=workers,
            )
            for r in range(3)
        ]
        ids = [torch.cat([b.ids for _, _, b in part.batches()]).tolist() for part in parts]
        assert sorted(itertools.chain(*ids)) == list(range(1000))
        # 1000 = 3 · 333 + 1: the last batch is one sample, and only rank 0 has it.
        assert [len(i) for i in ids] == [334, 333, 333]
        assert ids[0] == sorted(ids[0])


def test_two_ranks_see_what_one_rank_with_the_doubled_batch_sees(train: Split) -> None:
    whole = collect(make(train, batch_size=20))
    halves = [collect(make(train, batch_size=10, rank=r, world=2)) for r in range(2)]
    joined = [
        (a[0], a[1], Batch(*(torch.cat(pair) for pair in zip(a[2], b[2], strict=True))))
        for a, b in zip(*halves, strict=True)
    ]
    assert_same(whole, joined)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_anything(train: Split, workers: int) -> None:
    alone = collect(make(train), epochs=2)
    assert len(alone) == 72
    assert_same(alone, collect(make(train, workers=workers), epochs=2))
    assert not torch.equal(alone[0][2].images, alone[36][2].images)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_rest_of_an_uninterrupted_run(train: Split, workers: int) -> None:
    whole = collect(make(train), epochs=3)
    for epoch, batch in ((0, 1), (1, 0), (1, 35), (2, 7)):
        resumed = collect(make(train, workers=workers), epoch, batch, epochs=3 - epoch)
        assert_same(whole[epoch * 36 + batch :], resumed)
    at_the_end = collect(make(train, workers=workers), 0, 36, epochs=2)
    assert_same(whole[36:72], at_the_end)


def test_epochs_without_end(train: Split) -> None:
    stream = make(train, batch_size=180, workers=1).batches(epochs=None)
    taken = [item[:2] for item in itertools.islice(stream, 5)]
    assert taken == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    stream.close()
    assert not forked()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_caller_s_random_generators_are_left_alone(train: Split, workers: int) -> None:
    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = [draw() for _ in range(3)]
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    got = []
    for _ in make(train, batch_size=120, workers=workers).batches():
        got.append(draw())
    assert got == expected


def test_seeds_and_epochs_change_the_augmentation(train: Split) -> None:
    def images(seed: int, epoch: int) -> Tensor:
        loader = make(train, shuffle=False, seed=seed)
        return next(iter(loader.batches(epoch)))[2].images

    base = images(0, 0)
    assert torch.equal(base, images(0, 0))
    assert not torch.isclose(base, images(1, 0)).any(dim=0).all()
    assert not torch.isclose(base, images(0, 1)).any(dim=0).all()


def test_an_empty_split_ends_at_once(train: Split) -> None:
    empty = train.subset("val", np.arange(0))
    assert collect(make(empty, drop_last=False), epochs=None) == []


def test_senseless_arguments(train: Split) -> None:
    with pytest.raises(DataError, match="split train has 360 samples, fewer than one batch"):
        make(train, batch_size=181, world=2)
    assert make(train, batch_size=181, world=2, drop_last=False).batches_per_epoch == 1
    for epoch, batch in ((-1, 0), (0, -1), (0, 37)):
        with pytest.raises(ValueError, match="an epoch has 36 batches"):
            next(iter(make(train).batches(epoch, batch)))
    for wrong in ({"batch_size": 0}, {"rank": 1}, {"rank": -1}, {"workers": -1}):
        with pytest.raises(ValueError, match=r"batch_size="):
            make(train, **wrong)


# Reading --------------------------------------------------------------------------------------


def small_dataset(tmp_path: Path, to: str | None = None) -> Dataset:
    archives = ab.build(tmp_path / "in")
    return ingest(**archives.uris(), to=to or str(tmp_path / "out"), shard_size=12 << 10).dataset


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(tmp_path: Path, workers: int) -> None:
    test = small_dataset(tmp_path).split("test")
    shard, offset, size = (int(v) for v in test.locate(2))
    with open(test.shards[shard].uri, "r+b") as file:
        file.seek(offset + size // 3)
        file.write(bytes(size - size // 3))
    loader = make(test, batch_size=1, workers=workers, drop_last=False)
    with pytest.raises(DataError, match=r"sample ILSVRC2012_val_00000003 \(.*\.tar at byte") as e:
        collect(loader)
    assert "\n" not in str(e.value)
    assert not forked()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_becomes_shorter_is_an_error(tmp_path: Path, workers: int) -> None:
    test = small_dataset(tmp_path).split("test")
    os.truncate(test.shards[0].uri, 3000)
    with pytest.raises(DataError, match=r"test-000000.tar is shorter than its index says"):
        collect(make(test, batch_size=2, workers=workers))
    assert not forked()


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_from_the_store(
    tmp_path: Path, s3: Any, sample_dataset: Dataset, workers: int
) -> None:
    local = small_dataset(tmp_path)
    remote = small_dataset(tmp_path, s3.uri("loader"))
    expected = collect(make(local.split("train"), batch_size=4), epochs=2)
    test = remote.split("test")
    assert_same(
        expected, collect(make(remote.split("train"), batch_size=4, workers=workers), epochs=2)
    )
    test.shards[0].delete()
    with pytest.raises(StoreAccessError, match=r"test-000000\.tar"):
        collect(make(test, batch_size=2, workers=workers))
    assert not forked()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_damaged_on_the_way_is_read_again(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    local = small_dataset(tmp_path)
    remote = small_dataset(tmp_path, s3.uri("loader"))
    expected = collect(make(local.split("train"), batch_size=4))
    with FaultyProxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        train = Dataset.open(remote.uri).split("train")
        proxy.fault("damage", on="GET")
        proxy.fault("short", on="GET")
        assert_same(expected, collect(make(train, batch_size=4, workers=workers)))
        assert not proxy._faults


# Processes ------------------------------------------------------------------------------------


def test_workers_end_with_the_iterator(train: Split) -> None:
    stream = make(train, workers=2).batches(epochs=None)
    next(stream)
    assert len(forked()) == 2
    stream.close()
    assert not forked()

    def failing() -> Iterator[None]:
        for _ in make(train, workers=2).batches(epochs=None):
            yield
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(failing())
    assert not forked()


def test_workers_leave_ctrl_c_to_the_main_process(train: Split) -> None:
    """Which may want to finish its step and write a checkpoint."""
    stream = make(train, workers=2).batches(epochs=None)
    next(stream)
    for pid in forked():
        os.kill(pid, signal.SIGINT)
    for _ in range(60):
        next(stream)
    assert len(forked()) == 2
    stream.close()


def test_a_killed_worker_is_one_clear_line(train: Split) -> None:
    stream = make(train, workers=2).batches(epochs=None)
    next(stream)
    victim = next(iter(forked()))
    os.kill(victim, signal.SIGKILL)
    time.sleep(0.2)  # not an exception out of the training step, here
    with pytest.raises(WorkerLost, match="a data worker ended by signal SIGKILL") as caught:
        for _ in stream:
            pass
    assert "\n" not in str(caught.value)
    assert not forked()


ENDLESS = """
import signal, sys
from percmae.data.shards import Dataset
from percmae.data.stream import Loader
import torch
# As in a terminal: a job that a shell has put into the background ignores the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
split = Dataset.open(sys.argv[1]).split("train")
zeros = lambda image: torch.zeros(3, 8, 8)
loader = Loader(split, zeros, batch_size=32, seed=0, shuffle=True, drop_last=True, workers=2)
for number, _ in enumerate(loader.batches(epochs=None)):
    if number == 3:
        print("going", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(sample_dataset: Dataset, how: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, sample_dataset.uri],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "going\n"
    workers = forked(process.pid)
    assert len(workers) == 2
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does: the whole group
    else:
        process.send_signal(how)
    try:
        _, stderr = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode != 0
    if how == signal.SIGINT:
        assert stderr.count("Traceback") == 1, "workers keep quiet"
    deadline = time.monotonic() + 20  # after SIGKILL they notice within 5 s that they are orphans
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
