"""Large S3 objects in pieces: a seekable reader and a writer that is all or nothing."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import urllib3

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_FIRST_WINDOW = 32 << 10
_LARGEST_WINDOW = 8 << 20
# What lies so near behind the window is read on to: a request takes as long as this many bytes do.
NEAR = 256 << 10
# Of a multipart upload. S3 allows 10,000 parts of at least 5 MiB each, so this reaches 160 GB.
PART_BYTES = 16 << 20


class Positioned(io.RawIOBase):
    """A stream of known size that can be read from any place; who derives from it reads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}, before the beginning")
        self._position = base + offset
        return self._position


class Reader(Positioned):
    """A seekable stream over one version of an object, by ranged requests.

    Holds one window of bytes. The window doubles (32 KiB to 8 MiB) while reading goes forward in
    short steps and falls back after a long one, so that a copy runs at full speed, ``tarfile`` can
    skip over large members for the price of their headers, and small ones come many at a time. No
    connection is held between requests: there is nothing to break in a forked child, and a lost
    connection is taken up where it broke.
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        """``fetch(start, length)`` gives exactly the bytes that exist in that range."""
        super().__init__(size)
        self._fetch = fetch
        self._start = 0
        self._window = b""
        self._window_bytes = _FIRST_WINDOW

    def readinto(self, buffer: Any) -> int:
        if self.closed:
            raise ValueError("read of a closed stream")
        view = memoryview(buffer).cast("B")
        if self._position >= self._size or not len(view):
            return 0
        if not self._start <= self._position < self._start + len(self._window):
            self._fill(len(view))
        at = self._position - self._start
        count = min(len(view), len(self._window) - at)
        view[:count] = self._window[at : at + count]
        self._position += count
        return count

    def _fill(self, wanted: int) -> None:
        gap = self._position - (self._start + len(self._window))
        if 0 <= gap <= max(self._window_bytes, NEAR):
            self._window_bytes = min(2 * self._window_bytes, _LARGEST_WINDOW)
        else:
            self._window_bytes = _FIRST_WINDOW
        length = max(self._window_bytes, min(wanted, _LARGEST_WINDOW))
        length = min(length, self._size - self._position)
        self._start, self._window = self._position, b""
        self._window = self._fetch(self._position, length)


class Body:
    """What has arrived of one object so far."""

    def __init__(self, etag: str | None) -> None:
        self.etag = etag
        self.bytes = 0
        self._pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self.bytes += len(piece)

    def joined(self) -> bytes:
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


def promised(response: urllib3.BaseHTTPResponse, first: int, last: int | None) -> int | None:
    """Bytes that are still to come of those asked for, as the answer says; None if it does not.

    Raises ``ProtocolError`` for an answer to another question.
    """
    from urllib3.exceptions import ProtocolError  # not before the first request

    if response.status != 206:  # all of the object
        size = response.headers.get("content-length")
        if size is None or last is None:
            return None if size is None else int(size)
        return min(int(size), last + 1)
    said = response.headers.get("content-range", "")
    found = _CONTENT_RANGE.fullmatch(said.strip())
    if found is None or int(found[1]) != first:
        raise ProtocolError(f"bytes from {first} on were asked for, {said or 'others'} have come")
    if found[3] == "*":
        return int(found[2]) - first + 1
    end = int(found[3]) if last is None else min(last + 1, int(found[3]))
    return end - first


class Uploads(Protocol):
    """An object that can be put at once, or in parts by a multipart upload."""

    def put(self, data: bytes, content_type: str) -> None: ...

    def start_upload(self, content_type: str) -> str: ...

    def upload_part(self, upload: str, number: int, data: bytes) -> str: ...

    def complete_upload(self, upload: str, etags: list[str], size: int) -> None: ...

    def abort_upload(self, upload: str) -> None: ...


class Writer(io.RawIOBase):
    """Collects bytes and uploads them a part at a time; ``commit`` makes them the object.

    Up to one part it is a single atomic put. Beyond, a multipart upload, which no reader sees
    before it is completed. ``abort`` removes what was uploaded.
    """

    def __init__(self, target: Uploads, content_type: str) -> None:
        self._target = target
        self._content_type = content_type
        self._buffer = bytearray()
        self._upload: str | None = None
        self._etags: list[str] = []
        self._sent = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._sent + len(self._buffer)

    def write(self, data: Any) -> int:
        if self.closed:
            raise ValueError("write to a closed stream")
        if not memoryview(data).nbytes:  # which cannot always be cast
            return 0
        view = memoryview(data).cast("B")
        for at in range(0, len(view), PART_BYTES):
            self._buffer += view[at : at + PART_BYTES]
            if len(self._buffer) > PART_BYTES:
                self._send(PART_BYTES)
        return len(view)

    def commit(self) -> None:
        """Make everything written the object. Raises ``StoreError``; then nothing has changed."""
        if self._upload is None:
            self._target.put(bytes(self._buffer), self._content_type)
        else:
            self._send(len(self._buffer))
            self._target.complete_upload(self._upload, self._etags, self._sent)
        self.close()

    def abort(self) -> None:
        """Forget everything written. Never raises: another error is already on its way."""
        if self._upload is not None:
            self._target.abort_upload(self._upload)
        self._buffer.clear()
        self.close()

    def _send(self, count: int) -> None:
        if self._upload is None:
            self._upload = self._target.start_upload(self._content_type)
        with memoryview(self._buffer) as view:
            part = bytes(view[:count])
        self._etags.append(self._target.upload_part(self._upload, len(self._etags) + 1, part))
        self._sent += count
        del self._buffer[:count]


def multipart_etag(etags: list[str]) -> str:
    """The etag S3 gives an object made of parts with these (MD5) etags."""
    joined = b"".join(bytes.fromhex(etag) for etag in etags)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(etags)}"
