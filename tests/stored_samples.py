"""What tests of ingest share: tars to read, writing that is interrupted, samples read back."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

from percmae.data.shard_writer import ShardWriter
from percmae.data.shards import Dataset


def tar_bytes(
    files: Mapping[str, bytes] | Iterable[tuple[tarfile.TarInfo | str, bytes]],
    format: int = tarfile.USTAR_FORMAT,
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            header = tarfile.TarInfo(name) if isinstance(name, str) else name
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def interrupt_after(monkeypatch: pytest.MonkeyPatch, images: int) -> list[str]:
    """Ctrl-C before image number ``images`` + 1 is written; gives the list of those written."""
    written: list[str] = []
    add: Callable[..., None] = ShardWriter.add

    def counting(self: ShardWriter, key: str, *rest: Any) -> None:
        if len(written) == images:
            raise KeyboardInterrupt
        written.append(key)
        add(self, key, *rest)

    monkeypatch.setattr(ShardWriter, "add", counting)
    return written


def stored_files(dataset: Dataset, split: str) -> dict[str, tuple[int, bytes]]:
    """key → (label, bytes), read through the index."""
    whole = dataset.split(split)
    found = {}
    for n in range(len(whole)):
        shard, offset, size = (int(v) for v in whole.locate(n))
        data = whole.shards[shard].read_bytes(offset, size)
        found[whole.keys[n].decode()] = (int(whole.labels[n]), data)
    return found
