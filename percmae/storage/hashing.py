"""The SHA-256 of what passes through."""

from __future__ import annotations

import hashlib
from typing import Any, BinaryIO

PIECE = 4 << 20
"""Bytes that are copied at a time where a file is hashed on its way."""


class Hashing:
    """A stream to write to that hands on to another one, if any, and knows the SHA-256 of it all.

    error: what the other one raised, kept since a library that writes may raise another instead.
    """

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._stream, self._hash = stream, hashlib.sha256()
        self.error: Exception | None = None

    def write(self, data: Any) -> int:
        """Raises what the other stream raises."""
        if self._stream is not None:
            try:
                self._stream.write(data)
            except Exception as error:
                self.error = error
                raise
        self._hash.update(data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        """As of any stream; libraries ask for it in the end."""
        if self._stream is not None:
            self._stream.flush()

    @property
    def sha256(self) -> str:
        """In hex, of what was written till now."""
        return self._hash.hexdigest()
