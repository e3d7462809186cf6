"""The reader over ranged requests: how many requests, of how many bytes, a way of reading takes."""

from __future__ import annotations

import io
import random

from percmae.storage.stream import Reader

SIZE = 24 << 20


def requests_of(step: int, read: int = 512) -> list[int]:
    """Bytes of each request when ``read`` bytes are read at every ``step``."""
    asked: list[int] = []

    def fetch(start: int, length: int) -> bytes:
        asked.append(length)
        return bytes(length)

    with io.BufferedReader(Reader(SIZE, fetch)) as file:
        for place in range(0, SIZE, step):
            file.seek(place)
            assert len(file.read(read)) == min(read, SIZE - place)
    return asked


def test_headers_of_small_members_come_many_with_a_request() -> None:
    assert len(requests_of(step=110_000)) < 12
    assert len(requests_of(step=1_000)) < 12


def test_large_members_are_skipped_for_the_price_of_their_headers() -> None:
    asked = requests_of(step=1 << 20)
    assert len(asked) == 24
    assert max(asked) == 32 << 10


def test_it_gives_the_bytes_that_are_there() -> None:
    data = random.Random(1).randbytes(1 << 20)
    with io.BufferedReader(Reader(len(data), lambda start, n: data[start : start + n])) as file:
        for place in random.Random(2).choices(range(len(data)), k=200):
            file.seek(place)
            assert file.read(5000) == data[place : place + 5000]
