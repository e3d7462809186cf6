"""What both backends offer, and the small records that the files here hand each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class Stat:
    """One object: size in bytes, a tag that changes with the content, seconds since the epoch."""

    size: int
    etag: str
    modified: float


@dataclass(frozen=True)
class Target:
    """What messages say of an object, and of a request about it.

    store: the address, with the proxy on the way; who: whose request it is; keys, token: what its
    keys and its session token come from; sent: " with a session token (…)", or nothing.
    """

    uri: str
    bucket: str
    store: str
    who: str
    keys: str
    token: str
    sent: str


class Backend(Protocol):
    """One object in one kind of store; ``StorePath`` documents what each method promises."""

    def stat(self) -> Stat | None:
        """The object's record, or None where there is none."""

    def read(self, start: int, length: int | None) -> bytes:
        """``length`` bytes from ``start`` (fewer at the end of the object, all when None)."""

    def open(self) -> BinaryIO:
        """A seekable stream over the object as it is now."""

    def create(self, content_type: str | None) -> AbstractContextManager[BinaryIO]:
        """A stream whose content becomes the object when the block ends without an exception."""

    def update(self, change: Callable[[bytes | None], bytes], content_type: str) -> None:
        """Replace the content by what ``change`` makes of it (of None where there is none)."""

    def delete(self) -> None:
        """Remove the object; nothing happens where there is none."""

    def prune(self) -> None:
        """Remove this folder and those in it, as far as they are empty."""

    def entries(self) -> Iterator[tuple[str, int, str, float]]:
        """(relative key, bytes, etag, time of change) of every object below, in any order."""

    def prepare(self) -> None:
        """Create the bucket or directory if it is absent."""
