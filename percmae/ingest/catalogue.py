"""What a source holds, known before an image is read: the list from which shards are planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from percmae.data.shards import UNLABELLED as UNLABELLED
from percmae.data.shards import ClassInfo
from percmae.storage import StorePath

BY_HASH, TRAIN, VAL, TEST = -1, 0, 1, 2
"""Values of ``Columns.splits``: the hash of the key decides, or the source says it."""


@dataclass(frozen=True)
class Place:
    """Where the bytes of one image lie."""

    path: StorePath
    offset: int = 0
    length: int | None = None
    """Bytes from ``offset``; None for the whole object."""
    deflated: bool = False
    """As a member of a zip may be; ``length`` is then of the compressed bytes."""


class Spans(NamedTuple):
    """Where many images lie in archives; a row for each.

    archives: which there are; archive: which of them, int32 (n,); offsets, lengths: of the bytes
    there, compressed ones where they are deflated, int64 (n,).
    """

    archives: Sequence[StorePath]
    archive: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class Columns:
    """One row for each image, sorted by key, which is unique; n rows."""

    keys: np.ndarray
    """bytes (n,): made of the relative path alone; no dot, not more than 255 bytes."""
    labels: np.ndarray
    """int32 (n,): place in the classes, or UNLABELLED."""
    splits: np.ndarray
    """int8 (n,): see BY_HASH."""
    sizes: np.ndarray
    """int64 (n,): bytes of the image, as far as a listing tells."""
    stamps: np.ndarray
    """uint64 (n,): hash of what changes when the image does (size, and etag or time of change; of
    its archive and its place there)."""


class Catalogue(Protocol):
    """A source, listed."""

    @property
    def classes(self) -> Sequence[ClassInfo]:
        """Sorted by wnid; empty where no image has a label."""

    @property
    def columns(self) -> Columns:
        """A row for each image."""

    @property
    def sources(self) -> Sequence[dict[str, Any]]:
        """What it was listed from, for the manifest: role, name, and what tells it from another."""

    @property
    def notes(self) -> Sequence[str]:
        """What is no fault but worth a line: side files, files that are no image."""

    def name(self, row: int) -> str:
        """The image as a message names it: ``cats/1.jpg``, ``a.tar → cats/1.jpg``."""

    def place(self, row: int) -> Place:
        """Where its bytes lie."""

    def spans(self, rows: np.ndarray) -> Spans | None:
        """The same of many; None where an image is an object of its own."""


@dataclass(frozen=True)
class Wanted:
    """How a source is to be read.

    labels: ``auto`` takes folders for classes where the images lie one folder deep (or below
    ``train``, ``val`` and ``test`` folders), ``folders`` requires that, ``none`` ignores them.
    formats: of images that are opened, by which files are told from images.
    """

    labels: str = "auto"
    formats: Sequence[str] = field(default_factory=tuple)
