"""What both backends offer, and the small records they answer with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

if TYPE_CHECKING:
    from percmae.storage.path import StorePath


@dataclass(frozen=True)
class Stat:
    """One object: size in bytes, a tag that changes with the content, seconds since the epoch."""

    size: int
    etag: str
    modified: float


@dataclass(frozen=True)
class Entry:
    """One line of a listing: the object, its key relative to the listed path, size in bytes."""

    path: StorePath
    name: str
    size: int


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

    def delete(self) -> None:
        """Remove the object; nothing happens where there is none."""

    def entries(self) -> Iterator[tuple[str, int]]:
        """(relative key, bytes) of every object below, in any order."""

    def prepare(self) -> None:
        """Create the bucket or directory if it is absent."""
