"""Archives of images: their trees are read as folders are, or their samples as WebDataset has them.

Several archives are one tree together, as where a large one was cut in pieces. Where all of them
are named after a split (``train.zip``, ``val-0001.tar``, ``test/a.tar``) they lie in its folder.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from percmae.data.shards import ClassInfo
from percmae.errors import DataError
from percmae.ingest.catalogue import BY_HASH, UNLABELLED, Columns, Wanted
from percmae.ingest.sources.classes import SPLIT_NAMES, Labels, renumbered, settled
from percmae.ingest.sources.files import Files, Sieve, also, shown
from percmae.ingest.sources.folder import PACKED
from percmae.ingest.sources.keys import escaped, key_of
from percmae.ingest.sources.listed import Archived, files_twice, in_order
from percmae.ingest.sources.tar_members import Members, list_tar, sample_of
from percmae.ingest.sources.tree import Tops, sort_tree
from percmae.ingest.sources.zip_members import list_zip
from percmae.storage import StorePath

_SIDE_BY_SIDE = 8
_NAMED_SPLIT = re.compile(r"(train|validation|valid|val|test)(?![a-z])", re.IGNORECASE)
_CLASS_LISTS = ("classes.txt", "classnames.txt")


def open_archives(
    root: StorePath, names: Sequence[str], sieve: Sieve, wanted: Wanted, alone: bool = False
) -> Archived:
    """The catalogue of archives below ``root``, of these relative paths.

    alone: the one archive is the source, whatever it is called. Raises DataError for an archive
    that is none, is compressed as a whole, damaged or unsafe, and for trees that :func:`sort_tree`
    refuses; StoreError as the store has it.
    """
    for name in names:
        if name.lower().endswith(PACKED):
            raise DataError(
                f"{root / name} is compressed as a whole, not a plain tar; unpack it (gunzip, "
                "bunzip2, unxz, unzstd or unlz4): images are read from their places in it"
            )
    paths = [root / name for name in names]

    def look(number: int) -> Members:
        path, title = paths[number], str(paths[number])
        if names[number].lower().endswith(".zip"):
            return list_zip(path, title, sieve.endings)
        return list_tar(path, title, sieve.endings, labels=wanted.labels == "auto")

    archives = _Archives(root, list(names), sieve, alone)
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        for number, found in enumerate(pool.map(look, range(len(names)))):
            archives.add(number, paths[number], found)
    if not len(archives.files):
        raise DataError(f"{archives.source} holds no image{also(sieve)}")
    if archives.samples and wanted.labels != "folders":
        return archives.as_samples(wanted)
    return archives.as_tree(wanted)


class _Archives:
    """Archives that were looked into, in their order."""

    def __init__(self, root: StorePath, names: list[str], sieve: Sieve, alone: bool) -> None:
        self.root, self.names, self.sieve = root, names, sieve
        self.source = str(root / names[0] if alone else root)
        self.paths: list[StorePath] = []
        self.described: list[dict[str, Any]] = []
        self.files = Files()
        self.samples, self.labels, self.numbers = 0, Labels(), array("i")
        self.splits = [""] * len(names) if alone else _named_splits(names, self.source)

    def add(self, number: int, path: StorePath, found: Members) -> None:
        self.paths.append(path)
        what = {"role": "images", "kind": "archive", "name": self.names[number]}
        self.described.append({**what, "size": found.size, "etag": found.etag})
        self.files.extend(found.files, number)
        self.sieve.merge(found.sieve)
        self.samples += found.samples
        new = [self.labels.number(text) for text in found.labels]
        numbers = found.numbers or [UNLABELLED] * len(found.files)
        self.numbers.extend(new[n] if n != UNLABELLED else UNLABELLED for n in numbers)

    def as_tree(self, wanted: Wanted) -> Archived:
        """Read as one folder."""
        inside = Tops()
        for name in self.files.names():
            inside.add(name)
        prefixes = [f"{split}/".encode() if split else b"" for split in self.splits]
        if inside.are_splits():  # a folder train in train.zip says it already
            prefixes = [b""] * len(prefixes)

        def paths() -> Iterator[bytes]:
            for archive, name in zip(self.files.archives, self.files.names(), strict=True):
                yield prefixes[archive] + name

        tops = Tops()
        for path in paths():
            tops.add(path)
        tree = sort_tree(paths(), tops, wanted.labels, self.source)
        keys = (key_of(path, self.sieve.endings) for path in paths())
        columns, order = in_order(
            self.files, keys, tree.labels, tree.splits, files_twice(self.source, self._name)
        )
        return self._listed(tree.classes, columns, order, tree.notes)

    def as_samples(self, wanted: Wanted) -> Archived:
        """Read as samples of WebDataset, whose keys are unique in their shard: its path goes
        before them."""
        shards = [name.rpartition(".")[0].encode("utf-8", "surrogateescape") for name in self.names]
        archives = np.frombuffer(self.files.archives, np.int32)
        keys = (
            escaped(shards[archive] + b"/" + _sample_key(name))
            for archive, name in zip(self.files.archives, self.files.names(), strict=True)
        )
        named = np.array([SPLIT_NAMES.get(split, BY_HASH) for split in self.splits], dtype=np.int8)
        classes: list[ClassInfo] = []
        labels = np.full(len(self.files), UNLABELLED, np.int32)
        if wanted.labels != "none":
            names = _class_list(self.root)
            classes, places = self.labels.classes(self.source, dense=True, names=names)
            labels = renumbered(np.frombuffer(self.numbers, np.int32), places)

        def twice(first: int, second: int) -> DataError:
            return DataError(
                f"{self.source}: {self._name(first)} and {self._name(second)} are of one sample, "
                "and one image is due in each; leave one of them out of the shard"
            )

        columns, order = in_order(self.files, keys, labels, settled(named[archives]), twice)
        without = int(np.count_nonzero(labels == UNLABELLED)) if wanted.labels == "auto" else 0
        notes = [f"{without:,} of {len(labels):,} images have no label"] if without else []
        return self._listed(classes, columns, order, notes)

    def _name(self, number: int) -> str:
        return f"{self.names[self.files.archives[number]]} → {shown(self.files.name(number))}"

    def _listed(
        self, classes: list[ClassInfo], columns: Columns, order: np.ndarray, notes: list[str]
    ) -> Archived:
        lines = [*self.sieve.lines(), *notes]
        source = (self.root, self.files, order, self.paths, self.names)
        return Archived(classes, columns, self.described, lines, *source)


def _named_splits(names: Sequence[str], source: str) -> list[str]:
    """Of each archive the split that it is named after; all "" where none is."""
    splits = []
    for name in names:
        top, slash, _ = name.partition("/")
        found = _NAMED_SPLIT.match(name.rpartition("/")[2])
        splits.append(top if slash and top.lower() in SPLIT_NAMES else found[1] if found else "")
    if any(splits) and not all(splits):
        named, other = names[splits.index(next(filter(None, splits)))], names[splits.index("")]
        raise DataError(
            f"{source}: {named} is named after a split, and {other} is not; rename one of them, or "
            "give a folder with the archives that belong together"
        )
    return [split.lower() for split in splits]


def _sample_key(name: bytes) -> bytes:
    return sample_of(name.decode("utf-8", "surrogateescape"))[0].encode("utf-8", "surrogateescape")


def _class_list(folder: StorePath) -> list[str]:
    """Names of classes from a text beside the shards, one in a line; none where there is none."""
    for name in _CLASS_LISTS:
        path = folder / name
        if path.exists():
            lines = [line.strip() for line in path.read_text().splitlines()]
            while lines and not lines[-1]:
                lines.pop()
            return lines
    return []
