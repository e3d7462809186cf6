"""Blocks of shards kept on the local disk, so that a second epoch does not read the store.

All processes of a machine may share a folder. A block is written under a lock and takes its name
when it is whole, so whatever is interrupted leaves nothing that would be read; the lock's holder
removes what it finds half-written. What has not been used for longest goes when the limit is met.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from percmae.errors import UserError, one_line
from percmae.progress import warn
from percmae.storage import StorePath

BLOCK = 2 << 20
"""Bytes. A run of neighbouring samples is about as long; larger ones would be read for little."""
_BLOCKS, _HALF = ".block", ".half"
_ROOM = 0.05  # of the limit, made at once: to look for what is oldest takes a while


class Cache:
    """Ranged reads of shards, whole blocks of which stay on the disk."""

    def __init__(self, folder: str, limit: int) -> None:
        """
        limit: bytes, of all blocks in the folder. Blocks are known by their shard's address, size
        and etag, so that those of one that was replaced are not taken. Raises UserError for a
        folder that cannot be written to.
        """
        self._folder, self._limit = Path(folder), limit
        self._shards: dict[str, str] = {}  # by address: what identifies their content
        self._writes = True
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._make_room(0)
        except OSError as error:
            raise UserError(
                f"data.cache={folder}: {one_line(error)}; give a folder that can be written to, or "
                "null for no cache"
            ) from None

    def read(self, shard: StorePath, start: int, length: int) -> bytes:
        """As :meth:`StorePath.read_bytes`. Raises what that raises."""
        first, last = start // BLOCK, (start + max(length, 1) - 1) // BLOCK
        parts = []
        for number in range(first, last + 1):
            data = self._block(shard, number)
            begin = max(0, start - number * BLOCK)
            parts.append(data[begin : max(0, start + length - number * BLOCK)])
        return b"".join(parts)

    def _block(self, shard: StorePath, number: int) -> bytes:
        name = f"{self._identity(shard)} {number}"
        file = self._folder / (hashlib.sha256(name.encode()).hexdigest() + _BLOCKS)
        with suppress(FileNotFoundError):
            data = file.read_bytes()
            os.utime(file)
            return data
        data = shard.read_bytes(number * BLOCK, BLOCK)
        if self._writes and data:
            try:
                self._keep(file, data)
            except OSError as error:
                self._writes = False
                warn(f"data.cache={self._folder}: {one_line(error)}; nothing more is kept there")
        return data

    def _identity(self, shard: StorePath) -> str:
        if shard.uri not in self._shards:  # asked once in each process
            found = shard.stat()
            self._shards[shard.uri] = f"{shard.uri} {found.size} {found.etag}"
        return self._shards[shard.uri]

    def _keep(self, file: Path, data: bytes) -> None:
        half = file.with_suffix(_HALF)
        with self._locked():
            if file.exists() or len(data) > self._limit:
                return
            total = self._total()
            if total + len(data) > self._limit:
                total = self._make_room(len(data))
            with half.open("wb") as target:
                target.write(data)
                target.flush()
                os.fdatasync(target.fileno())
            self._write_total(total + len(data))
            half.rename(file)

    def _locked(self) -> FileLock:
        # Another object each time: it is of one thread and one process.
        return FileLock(self._folder / "lock")

    def _total(self) -> int:
        """Bytes of all blocks, or more: it is written before a block takes its name."""
        try:
            return int((self._folder / "total").read_text())
        except (FileNotFoundError, ValueError):
            return self._make_room(0)

    def _write_total(self, total: int) -> None:
        (self._folder / "total").write_text(str(total))

    def _make_room(self, wanted: int) -> int:
        """Count what is there, and remove the oldest until ``wanted`` bytes fit; all bytes then."""
        for half in self._folder.glob(f"*{_HALF}"):
            half.unlink()
        blocks = sorted(self._blocks())
        total = sum(size for _, size, _ in blocks)
        if total + wanted > self._limit:
            aim = max(0, int(self._limit * (1 - _ROOM)) - wanted)
            for _, size, file in blocks:
                if total <= aim:
                    break
                file.unlink()
                total -= size
        self._write_total(total)
        return total

    def _blocks(self) -> Iterator[tuple[int, int, Path]]:
        """Time of last use, size and file of each block."""
        for file in self._folder.glob(f"*{_BLOCKS}"):
            found = file.stat()
            yield found.st_mtime_ns, found.st_size, file
