"""Ranged reads: few, large, one group ahead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from percmae.data import reader
from percmae.data.reader import grouped, read_ahead
from percmae.data.shards import Split
from percmae.storage import StorePath

SIZE = 1000


def split_of(folder: Path, gaps: list[int], shards: int = 1) -> Split:
    """Samples of 1,000 bytes (all equal to the sample's number) behind gaps, in each shard."""
    rows, numbers = [], []
    for shard in range(shards):
        content = bytearray()
        for gap in gaps:
            content += bytes([255]) * gap
            rows.append((len(content), SIZE, 0, b"k"))
            numbers.append(shard)
            content += bytes([len(rows) - 1]) * SIZE
        (folder / f"{shard}.tar").write_bytes(content)
    fields = [("offset", "<u8"), ("size", "<u4"), ("label", "<i4"), ("key", "S1")]
    paths = [StorePath(folder / f"{n}.tar") for n in range(shards)]
    return Split("train", paths, np.array(numbers, np.int32), np.array(rows, dtype=fields))


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(file name, start, length) of every ranged read."""
    made: list[tuple[str, int, int]] = []
    read_bytes = StorePath.read_bytes

    def recorded(self: StorePath, start: int = 0, length: int | None = None) -> bytes:
        made.append((self.name, start, length or 0))
        return read_bytes(self, start, length)

    monkeypatch.setattr(StorePath, "read_bytes", recorded)
    return made


@pytest.fixture
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a split that is too large to be kept."""
    monkeypatch.setattr(reader, "HELD_BYTES", 0)


def test_what_is_small_is_read_once_and_kept(
    tmp_path: Path, requests: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    split = split_of(tmp_path, [0] * 5, shards=2)
    epochs = [[("batch", ids)] for ids in (np.array([9, 0]), np.array([3, 4]), np.array([9, 1]))]
    for _, blobs in read_ahead(split, epochs):
        assert blobs == {n: bytes([n]) * SIZE for n in range(10)}
    assert sorted(requests) == [("0.tar", 0, 5 * SIZE), ("1.tar", 0, 5 * SIZE)]
    monkeypatch.setattr(reader, "HELD_BYTES", 10 * SIZE - 1)
    assert [len(blobs) for _, blobs in read_ahead(split, epochs)] == [2, 2, 2]
    requests.clear()
    assert not list(read_ahead(split, []))
    assert not requests


@pytest.mark.usefixtures("nothing_held")
def test_neighbours_are_read_together_and_far_ones_apart(
    tmp_path: Path, requests: list[tuple[str, int, int]]
) -> None:
    near, far = 100 << 10, 200 << 10
    split = split_of(tmp_path, [0, 0, near, far, 0], shards=2)
    ids = np.array([9, 3, 1, 0, 2, 4, 8])
    ((group, blobs),) = read_ahead(split, [[("batch", ids)]])
    assert group == [("batch", ids)]
    assert blobs == {n: bytes([n]) * SIZE for n in ids.tolist()}
    assert sorted(requests) == [
        ("0.tar", 0, 3 * SIZE + near),
        ("0.tar", 3 * SIZE + near + far, 2 * SIZE),
        ("1.tar", 3 * SIZE + near + far, 2 * SIZE),
    ]


def test_a_request_is_not_larger_than_eight_mebibytes(
    tmp_path: Path, requests: list[tuple[str, int, int]]
) -> None:
    split = split_of(tmp_path, [127 << 10] * 150)
    ((_, blobs),) = read_ahead(split, [[("all", np.arange(150))]])
    assert all(blobs[n] == bytes([n]) * SIZE for n in range(150))
    assert len(requests) == 3
    assert max(length for _, _, length in requests) <= 8 << 20


@pytest.mark.usefixtures("nothing_held")
def test_one_group_is_read_ahead_and_no_more(tmp_path: Path) -> None:
    split = split_of(tmp_path, [0] * 10)
    asked: list[int] = []

    def groups() -> Iterator[list[tuple[int, np.ndarray]]]:
        for n in range(10):
            asked.append(n)
            yield [(n, np.array([n]))]

    stream = read_ahead(split, groups())
    for n in range(10):
        assert next(stream)[1] == {n: bytes([n]) * SIZE}
        assert asked == list(range(min(n + 2, 10)))
    assert next(stream, None) is None


def test_groups_are_bounded_in_bytes_and_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = split_of(tmp_path, [0] * 10)
    batches = [(n, np.arange(n, n + 2)) for n in range(0, 10, 2)]

    def sizes() -> list[int]:
        groups = list(grouped(split, batches))
        assert [batch[0] for group in groups for batch in group] == [0, 2, 4, 6, 8]
        return [len(group) for group in groups]

    assert sizes() == [5]
    monkeypatch.setattr(reader, "GROUP_SAMPLES", 5)
    assert sizes() == [2, 2, 1]
    monkeypatch.setattr(reader, "GROUP_BYTES", 3 * SIZE)
    assert sizes() == [1, 1, 1, 1, 1], "a batch is never divided"
