"""The cache of shards on the disk: what the store is asked, what stays, and who shares it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import archive_building as ab
import pytest
from faulty_proxy import FaultyProxy
from s3_server import S3

from percmae.config import load_config
from percmae.data import cache as module
from percmae.data.augment import framed_transform
from percmae.data.cache import Cache
from percmae.data.shards import Dataset
from percmae.data.stream import Loader
from percmae.errors import UserError
from percmae.ingest import ingest
from percmae.storage import StorePath

BIG = 1 << 30


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 1000)


@pytest.fixture
def shard(tmp_path: Path) -> StorePath:
    """10,500 bytes, each known by its place."""
    file = tmp_path / "train" / "train-000000.tar"
    file.parent.mkdir()
    file.write_bytes(content())
    return StorePath(str(file))


def content() -> bytes:
    return bytes(place % 251 for place in range(10_500))


def blocks(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.block"))


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in blocks(folder))


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 1), (999, 2), (500, 3000), (0, 10_500), (10_400, 500), (12_000, 10), (5000, 0)],
)
def test_what_is_read_is_what_there_is(
    shard: StorePath, tmp_path: Path, start: int, length: int
) -> None:
    cache = Cache(str(tmp_path / "cache"), BIG)
    expected = content()[start : start + length]
    assert cache.read(shard, start, length) == expected
    assert cache.read(shard, start, length) == expected, "from the disk"
    Path(shard.uri).write_bytes(content()[::-1] + b"more")
    replaced = Cache(str(tmp_path / "cache"), BIG)
    assert replaced.read(shard, start, length) == (content()[::-1] + b"more")[start:][:length]


def test_the_limit_holds_and_what_was_not_used_for_longest_goes(
    shard: StorePath, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    cache = Cache(str(folder), 4000)
    for number in range(11):
        cache.read(shard, number * 1000, 1000)
        assert size(folder) <= 4000
        for place, file in enumerate(blocks(folder)):  # all equally old, but for the first block
            os.utime(file, ns=(place, place))
        cache.read(shard, 0, 1)
    requests: list[int] = []

    class Counted(StorePath):
        def read_bytes(self, start: int = 0, length: int | None = None) -> bytes:
            requests.append(start)
            return super().read_bytes(start, length)

    counted = Counted(shard.uri)
    cache.read(counted, 0, 1000)
    assert requests == [], "used again and again, it stays"
    for number in range(1, 11):
        cache.read(counted, number * 1000, 1000)
    assert len(requests) >= 7, "of the ten others there was room for three"
    assert size(folder) <= 4000
    smaller = Cache(str(folder), 2000)
    assert size(folder) <= 2000, "which is looked at where it is opened"
    tiny = Cache(str(folder), 500)
    assert tiny.read(shard, 0, 1000) == smaller.read(shard, 0, 1000) == content()[:1000]


def test_what_was_interrupted_leaves_nothing(shard: StorePath, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = Cache(str(folder), 5000)
    cache.read(shard, 0, 2000)
    (folder / "x.half").write_bytes(b"begun")
    (folder / "total").write_text("0")  # as after a crash, or garbage
    again = Cache(str(folder), 5000)
    assert not list(folder.glob("*.half"))
    assert (folder / "total").read_text() == "2000"
    (folder / "total").write_text("")
    for number in range(10):
        again.read(shard, number * 1000, 1000)
    assert size(folder) <= 5000


def test_folders_that_cannot_be_used(
    shard: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache=.*file/x: .*give a folder that can be"):
        Cache(str(tmp_path / "file" / "x"), BIG)
    cache, told = Cache(str(tmp_path / "cache"), BIG), []

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    monkeypatch.setattr(module, "warn", told.append)
    for _ in range(3):
        assert cache.read(shard, 0, 3000) == content()[:3000]
    assert len(told) == 1
    assert "No space left" in told[0]
    assert not blocks(tmp_path / "cache")


# With a store ------------------------------------------------------------------------------------


@pytest.fixture
def proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3.endpoint) as running:
        yield running


def loader(dataset: Dataset, cache: Cache | None, workers: int = 0) -> Loader:
    split = dataset.split("train")
    transform = framed_transform(load_config().data, True, "pretrain")
    return Loader(
        split,
        transform,
        batch_size=2,
        seed=0,
        shuffle=True,
        drop_last=False,
        workers=workers,
        cache=cache,
    )


def ids(loader: Loader, epoch: int) -> list[Any]:
    return [(b.ids.tolist(), b.images.double().sum()) for _, _, b in loader.batches(epoch)]


def reads(proxy: FaultyProxy) -> list[str]:
    """Requests for the content of shards."""
    return [line for line in proxy.requests if line.startswith("GET") and ".tar" in line]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_epoch_asks_the_store_for_nothing(
    s3: S3, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("percmae.data.reader.HELD_BYTES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    archives = ab.build(tmp_path / "in")
    made = ingest(**archives.uris(), to=s3.uri("cache"), shard_size=12 << 10)
    dataset = Dataset.open(made.manifest_uri)
    plain = loader(dataset, None)
    kept = loader(dataset, Cache(str(tmp_path / "c"), BIG), workers)
    assert not reads(proxy)
    first = ids(kept, 0)
    between = reads(proxy)
    assert between
    second = ids(kept, 1)
    assert reads(proxy) == between
    assert (first, second) == (ids(plain, 0), ids(plain, 1))
    assert len(reads(proxy)) > len(between), "which those without a cache do"


def _fill(folder: str, shard: str, turns: int) -> None:
    cache = Cache(folder, 4000)
    for turn in range(turns):
        for number in range(11):
            start = (number + turn) * 1000 % 10_500
            expected = content()[start : start + 1000]
            assert cache.read(StorePath(shard), start, 1000) == expected


def test_processes_share_a_folder(shard: StorePath, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    fork = multiprocessing.get_context("fork")
    several = [fork.Process(target=_fill, args=(str(folder), shard.uri, 10)) for _ in range(3)]
    for process in several:
        process.start()
    for process in several:
        process.join(300)
        assert process.exitcode == 0
    assert 0 < size(folder) <= 4000
    assert int((folder / "total").read_text()) == size(folder)
