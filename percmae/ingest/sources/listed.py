"""The catalogue of a source whose files were listed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from percmae.data.shards import ClassInfo
from percmae.errors import DataError
from percmae.ingest.catalogue import Columns, Place, Spans
from percmae.ingest.sources.files import Files, packed, shown
from percmae.storage import StorePath


@dataclass
class Listed:
    """A Catalogue of files below one root."""

    classes: Sequence[ClassInfo]
    columns: Columns
    sources: Sequence[dict[str, Any]]
    notes: Sequence[str]
    root: StorePath
    files: Files
    order: np.ndarray
    """Which of the files each row is, int64 (n,)."""

    def name(self, row: int) -> str:
        """The image as a message names it: its path below the root."""
        return shown(self.files.name(int(self.order[row])))

    def place(self, row: int) -> Place:
        """Where its bytes lie."""
        path = self.files.name(int(self.order[row])).decode("utf-8", "surrogateescape")
        return Place(self.root / path)

    def spans(self, rows: np.ndarray) -> Spans | None:
        """Nothing: each is an object of its own."""
        return None


@dataclass
class Archived(Listed):
    """A Catalogue of members of archives."""

    archives: Sequence[StorePath] = ()
    titles: Sequence[str] = ()
    """Of each archive its name for messages."""

    def name(self, row: int) -> str:
        """The image as a message names it: ``a.tar → cats/1.jpg``."""
        number = int(self.order[row])
        return f"{self.titles[self.files.archives[number]]} → {shown(self.files.name(number))}"

    def place(self, row: int) -> Place:
        """Where its bytes lie."""
        number, files = int(self.order[row]), self.files
        return Place(
            self.archives[files.archives[number]],
            files.offsets[number],
            files.lengths[number],
            bool(files.deflated[number]),
        )

    def spans(self, rows: np.ndarray) -> Spans | None:
        """Where the bytes of these rows lie."""
        numbers, files = self.order[rows], self.files
        return Spans(
            self.archives,
            np.frombuffer(files.archives, np.int32)[numbers],
            np.frombuffer(files.offsets, np.int64)[numbers],
            np.frombuffer(files.lengths, np.int64)[numbers],
        )


def in_order(
    files: Files,
    keys: Iterable[bytes],
    labels: np.ndarray,
    splits: np.ndarray,
    twice: Callable[[int, int], DataError],
) -> tuple[Columns, np.ndarray]:
    """Columns sorted by key, and which file each row is, int64 (n,).

    keys, labels, splits: of each file, in their order. twice: the error for two files, by number,
    that have one key.
    """
    unsorted = packed(keys)
    order = np.argsort(unsorted, kind="stable")
    ordered = unsorted[order]
    again = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(again):
        first = int(again[0])
        raise twice(int(order[first]), int(order[first + 1]))
    columns = Columns(
        ordered,
        labels.astype(np.int32)[order],
        splits.astype(np.int8)[order],
        np.frombuffer(files.sizes, np.int64)[order],
        np.frombuffer(files.stamps, np.uint64)[order],
    )
    return columns, order


def files_twice(source: str, name: Callable[[int], str]) -> Callable[[int, int], DataError]:
    """The error for two files with one key, by their names."""

    def error(first: int, second: int) -> DataError:
        one, other = name(first), name(second)
        if one == other:
            return DataError(f"{source}: {one} comes twice; take one of them away")
        return DataError(
            f"{source}: {one} and {other} would have the same name in a dataset (they differ in "
            "how accents are written, or in the archive alone); rename one of them"
        )

    return error


def listing(columns: Columns) -> str:
    """What tells this listing from another: a hash of its keys and stamps."""
    digest = hashlib.sha256(np.ascontiguousarray(columns.keys).tobytes())
    digest.update(np.ascontiguousarray(columns.stamps).tobytes())
    return f"sha256:{digest.hexdigest()}"
