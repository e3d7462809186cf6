"""Writes one shard and its index; the same samples always give the same bytes."""

from __future__ import annotations

import hashlib
import io
import tarfile
from contextlib import ExitStack
from typing import BinaryIO

import numpy as np

from percmae.data.shards import UNLABELLED, IndexRow, ShardInfo, index_table
from percmae.storage import StorePath

_BLOCK = 512


class ShardWriter:
    """Collects samples into ``<folder>/<stem>.tar``, visible only once finished.

    Use as a context manager and call :meth:`finish` before leaving it; leaving without, or by an
    exception, leaves no shard.
    """

    def __init__(self, folder: StorePath, stem: str) -> None:
        self._folder = folder
        self._stem = stem
        self._sha = hashlib.sha256()
        self._rows: list[IndexRow] = []
        self._stack = ExitStack()
        self._finished = False
        self.bytes = 0

    def __enter__(self) -> ShardWriter:
        self._out: BinaryIO = self._stack.enter_context((self._folder / self._tar).create())
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None and not self._finished:
            raise RuntimeError(f"shard {self._tar} was not finished")
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def add(
        self,
        key: str,
        data: bytes,
        label: int,
        stamp: int = 0,
        phash: int = 0,
        ending: str = ".jpg",
    ) -> None:
        """Append one sample. ``key`` has no dot (WebDataset splits names at the first one).

        label: UNLABELLED for none; ending: of the image's file; stamp, phash: for the index.
        """
        header = _header(f"{key}{ending}", len(data))
        encoded = key.encode(errors="surrogateescape")
        self._rows.append((self.bytes + len(header), len(data), label, encoded, stamp, phash))
        parts = [header, data, _padding(data)]
        if label != UNLABELLED:
            text = str(label).encode()
            parts += [_header(f"{key}.cls", len(text)), text, _padding(text)]
        self._write(b"".join(parts))

    def finish(self) -> ShardInfo:
        """Close the shard, write its index, and describe both."""
        self._write(bytes(2 * _BLOCK))
        self._stack.close()
        self._finished = True
        index = _index_bytes(self._rows)
        (self._folder / f"{self._stem}.npy").write_bytes(index)
        return ShardInfo(
            name=self._tar,
            index=f"{self._stem}.npy",
            samples=len(self._rows),
            bytes=self.bytes,
            sha256=self._sha.hexdigest(),
            index_sha256=hashlib.sha256(index).hexdigest(),
        )

    @property
    def _tar(self) -> str:
        return f"{self._stem}.tar"

    def _write(self, data: bytes) -> None:
        self._sha.update(data)
        self._out.write(data)
        self.bytes += len(data)


def stored_bytes(sizes: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Bytes that images of these sizes take in a shard, int64 (n,); labelled: bool (n,)."""
    label = 2 * _BLOCK  # header and content
    return _BLOCK + -(-sizes // _BLOCK) * _BLOCK + np.where(labelled, label, 0)


def _header(name: str, size: int) -> bytes:
    header = tarfile.TarInfo(name)  # mtime, uid and gid are 0, mode is 644
    header.size = size
    try:
        return header.tobuf(tarfile.USTAR_FORMAT)
    except ValueError:  # a name of more than 100 bytes that ustar cannot cut in two
        return header.tobuf(tarfile.GNU_FORMAT)


def _padding(data: bytes) -> bytes:
    return bytes(-len(data) % _BLOCK)


def _index_bytes(rows: list[IndexRow]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, index_table(rows), allow_pickle=False)
    return buffer.getvalue()
