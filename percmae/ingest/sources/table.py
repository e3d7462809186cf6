"""Tables of images: the URI of each and, where there are such columns, its label and its split."""

from __future__ import annotations

import os
import posixpath
import stat as modes
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from percmae.data.shards import ClassInfo
from percmae.errors import DataError, StoreAccessError, UserError
from percmae.ingest.catalogue import BY_HASH, UNLABELLED, Place, Wanted
from percmae.ingest.sources.classes import SPLIT_NAMES, Labels, renumbered, settled
from percmae.ingest.sources.files import Files, Sieve, check_size, shown, stamp
from percmae.ingest.sources.folder import check_readable
from percmae.ingest.sources.keys import key_of
from percmae.ingest.sources.listed import Listed, in_order, listing
from percmae.ingest.sources.rows import Row, rows_of
from percmae.ingest.sources.tar_members import label_text
from percmae.storage import StorePath

_STORE = "s3://"
_SIDE_BY_SIDE = 16
_AT_A_TIME = 16  # images that a thread looks at
# A request lists a thousand objects, or looks at one.
_LISTED_FROM = 50


@dataclass
class Tabled(Listed):
    """A Catalogue of a table's rows; files below the table's folder are named relative to it."""

    def place(self, row: int) -> Place:
        """Where its bytes lie."""
        return Place(_path(self.root, self.files.name(int(self.order[row]))))


def open_table(path: StorePath, sieve: Sieve, wanted: Wanted) -> Tabled:
    """The catalogue of a table's rows.

    Raises DataError, with the row's number, for a URI, label or split that is none, for an image
    that is not there or comes twice; StoreError as the store has it.
    """
    if wanted.labels == "folders":
        raise DataError(f"{path}: --labels folders is for folders; a table has a column for labels")
    table = _Table(path, wanted)
    for row in rows_of(path):
        table.add(row)
    if not len(table.files):
        raise DataError(f"{path} has no rows with images")
    table.look()
    return table.catalogue(sieve)


class _Table:
    def __init__(self, path: StorePath, wanted: Wanted) -> None:
        self.path, self.root = path, path.parent
        self.without_labels = wanted.labels == "none"
        self.files, self.labels = Files(), Labels()
        self.rows, self.numbers, self.splits = array("q"), array("i"), array("b")

    def add(self, row: Row) -> None:
        where = f"{self.path}, row {row.number}"
        number, split = UNLABELLED, BY_HASH
        if not self.without_labels:
            number = self.labels.number(label_text(row.label, where))
        if row.split not in (None, ""):
            word = str(row.split).strip().lower()
            if word not in SPLIT_NAMES:
                raise DataError(
                    f"{where}: unknown split {row.split!r}: choose from {', '.join(SPLIT_NAMES)}, "
                    "or leave it empty"
                )
            split = SPLIT_NAMES[word]
        self.files.add(_name(self.root, row.uri, where), 0, 0)
        self.rows.append(row.number)
        self.numbers.append(number)
        self.splits.append(split)

    def look(self) -> None:
        """Size and stamp of each image. Raises DataError for what is not there."""
        absent: list[int] = []
        listed, single = self._groups()
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            for group, found in zip(listed, pool.map(self._list, listed), strict=True):
                absent += self._note(group, found)
            pieces = [single[k : k + _AT_A_TIME] for k in range(0, len(single), _AT_A_TIME)]
            for piece, found in zip(pieces, pool.map(self._look_at, pieces), strict=True):
                absent += self._note(piece, found)
        if absent:
            more = f" (nor are those of {len(absent) - 1:,} more rows)" if absent[1:] else ""
            raise DataError(f"{self._row(min(absent))} is not there{more}; check the table")

    def _note(self, numbers: Sequence[int], found: Iterable[tuple[int, object]]) -> list[int]:
        """Keep size and stamp of each of these; those that are not there."""
        absent = []
        for number, (size, changed) in zip(numbers, found, strict=True):
            if size < 0:
                absent.append(number)
                continue
            check_size(self._row(number), size)
            self.files.sizes[number] = size
            self.files.stamps[number] = stamp(size, changed)
        return absent

    def catalogue(self, sieve: Sieve) -> Tabled:
        classes: list[ClassInfo]
        classes, places = self.labels.classes(str(self.path))
        labels = renumbered(np.frombuffer(self.numbers, np.int32), places)
        columns, order = in_order(
            self.files,
            (key_of(_key_path(name), sieve.endings) for name in self.files.names()),
            labels,
            settled(np.frombuffer(self.splits, np.int8)),
            self._twice,
        )
        without = int(np.count_nonzero(labels == UNLABELLED)) if classes else 0
        notes = [f"{without:,} of {len(labels):,} images have no label"] if without else []
        found = self.path.stat()
        described = {
            "role": "images",
            "kind": "table",
            "name": self.path.name,
            "size": found.size,
            "etag": found.etag,
            "images": len(labels),
            "listing": listing(columns),
        }
        return Tabled(classes, columns, [described], notes, self.root, self.files, order)

    def _row(self, number: int) -> str:
        return f"{self.path}, row {self.rows[number]}: {shown(self.files.name(number))}"

    def _twice(self, first: int, second: int) -> DataError:
        first, second = sorted((first, second))
        one, other = (shown(self.files.name(number)) for number in (first, second))
        if one == other:
            return DataError(
                f"{self._row(second)} comes twice (first in row {self.rows[first]}); leave one out"
            )
        return DataError(
            f"{self._row(second)} would have the same name in a dataset as {one} in row "
            f"{self.rows[first]}; rename one of them"
        )

    def _groups(self) -> tuple[list[array[int]], array[int]]:
        """Rows whose images are found by listing their folder in a store, and all others."""
        folders: dict[bytes, array[int]] = {}
        single = array("q")
        for number, name in enumerate(self.files.names()):
            if name.startswith(_STORE.encode()) or (self.root.is_s3 and name[:1] != b"/"):
                folders.setdefault(name.rpartition(b"/")[0], array("q")).append(number)
            else:
                single.append(number)
        for group in folders.values():
            if len(group) < _LISTED_FROM:
                single += group
        return [group for group in folders.values() if len(group) >= _LISTED_FROM], single

    def _list(self, numbers: array[int]) -> list[tuple[int, object]]:
        """(bytes, what changes with the content) of images of one folder; -1 bytes for none."""
        paths = [_path(self.root, self.files.name(number)) for number in numbers]
        there = {e.name: (e.size, e.etag) for e in paths[0].parent.iter() if "/" not in e.name}
        return [there.get(path.name, (-1, "")) for path in paths]

    def _look_at(self, numbers: array[int]) -> list[tuple[int, object]]:
        return [_stat(_path(self.root, self.files.name(number))) for number in numbers]


def _stat(path: StorePath) -> tuple[int, object]:
    if path.is_s3:
        try:
            found = path.stat()
        except StoreAccessError:
            if path.exists():
                raise
            return -1, ""
        return found.size, found.etag
    try:
        status = os.stat(path.uri)
    except OSError:
        return -1, ""
    if not modes.S_ISREG(status.st_mode):
        return -1, ""
    check_readable(path.uri)
    return status.st_size, status.st_mtime_ns


def _name(root: StorePath, uri: object, where: str) -> bytes:
    """The image's path below ``root``, else its whole URI; in one form, however it is written."""
    if not isinstance(uri, str) or not uri.strip():
        said = "no URI" if uri in (None, "") or isinstance(uri, str) else f"{uri!r} is no URI"
        raise DataError(f"{where}: {said}; a path or s3://bucket/key is due")
    if "://" in uri and not uri.startswith(_STORE):
        raise DataError(
            f"{where}: {uri!r} is not in a store: download it first, and give its path or "
            "s3://bucket/key"
        )
    try:
        whole = (StorePath(uri) if uri.startswith((_STORE, "/")) else _below(root, uri)).uri
    except UserError as error:
        raise DataError(f"{where}: {error}") from None
    name = whole.removeprefix(f"{root.uri.rstrip('/')}/")
    return name.encode("utf-8", "surrogateescape")


def _below(root: StorePath, uri: str) -> StorePath:
    """Where a relative URI leads, which may be up and elsewhere."""
    if root.is_s3:
        return StorePath(_STORE + posixpath.normpath(f"{root.uri.removeprefix(_STORE)}/{uri}"))
    return StorePath(os.path.join(root.uri, uri))


def _path(root: StorePath, name: bytes) -> StorePath:
    text = name.decode("utf-8", "surrogateescape")
    return StorePath(text) if text.startswith((_STORE, "/")) else root / text


def _key_path(name: bytes) -> bytes:
    return name.removeprefix(_STORE.encode()).lstrip(b"/")
