"""A dataset in the store: shards, their indexes, and the manifest that names them.

::

    <dataset>/manifest.json          the newest manifest, written last: a half-made dataset has none
    <dataset>/manifests/<digest>.json each manifest that there has been, by 12 digits of its digest
    <dataset>/train/train-000000.tar samples ``<key>.jpg`` + ``<key>.cls``, WebDataset naming
    <dataset>/train/train-000000.npy index: offset, size, label, key, stamp, phash of each sample
    <dataset>/val/val-000000.tar …   and test/test-000000.tar …

An image without a label has label −1 in the index and no ``.cls``. Shards are never written again:
a dataset that grows gets further ones, and what it loses is marked in the manifest.

Training reads single samples out of shards by the index (ranged reads); anything that knows
WebDataset can read the shards without it. The same content always gives the same bytes, so the
digest in the manifest is the dataset's identity wherever it lies.

Manifests of format 1, of before a dataset could grow, are read as well: there, validation is a
slice of the training images that the digest chooses.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from percmae.config import FORMATS
from percmae.data.key_hashes import key_hashes
from percmae.data.slices import labelled_share, position_hashes, val_slice
from percmae.errors import DataError
from percmae.storage import StorePath

FORMAT, FORMER = "percmae-dataset/2", "percmae-dataset/1"
MANIFEST, MANIFESTS = "manifest.json", "manifests"
SPLITS = ("train", "val", "test")
UNLABELLED = -1
"""Label of an image without one."""

_STORED = {FORMAT: SPLITS, FORMER: ("train", "test")}


@dataclass(frozen=True)
class ClassInfo:
    """One class; its label is its place in ``Dataset.classes``.

    They are sorted by wnid; those that a dataset got as it grew come behind, sorted likewise.
    """

    wnid: str
    name: str


@dataclass(frozen=True)
class ShardInfo:
    """One shard as the manifest lists it; ``name`` and ``index`` are file names in its folder.

    samples: in the shard; removed: places in it, sorted, of those that no longer count.
    """

    name: str
    index: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str
    removed: list[int] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest: ``removed`` only where there is something."""
        values = dataclasses.asdict(self)
        return values if self.removed else {k: v for k, v in values.items() if k != "removed"}


@dataclass(frozen=True)
class Pixels:
    """Mean and standard deviation of each channel in [0, 1], over all training images ingested."""

    mean: list[float]
    std: list[float]

    def __post_init__(self) -> None:
        for values in (self.mean, self.std):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise TypeError(f"{values} is no value for each of three channels")


class Dataset:
    """An ingested dataset, opened by its manifest."""

    def __init__(self, uri: str, manifest: dict[str, Any]) -> None:
        self.uri = uri
        self.manifest = manifest
        self.name: str = manifest["name"]
        self.digest: str = manifest["digest"]
        self.classes = [ClassInfo(**c) for c in manifest["classes"]]
        # Manifests of before there was a choice do not say.
        self.formats: list[str] = list(manifest.get("formats", FORMATS))
        self.pixels = Pixels(**manifest["pixels"]) if "pixels" in manifest else None
        """None in a manifest of before they were computed."""
        self._grows = manifest["format"] != FORMER
        self._root = _root(StorePath(uri))
        listed = {name: manifest["splits"][name] for name in _STORED[manifest["format"]]}
        self.shards = {name: _infos(split["shards"]) for name, split in listed.items()}
        """By stored split."""
        self.held_back = {
            name: _infos(split.get("held_back", [])) for name, split in listed.items()
        }
        """By stored split, shards of images that came later than the split was made, unused."""
        self._stored: dict[str, Split] = {}

    @classmethod
    def open(cls, manifest_uri: str) -> Dataset:
        """Open a dataset and check that its shards are all there, with the sizes recorded.

        Raises DataError for an absent, foreign or damaged manifest, for an edited one (its digest
        no longer fits) and for a shard that is missing or has another size; StoreError as the
        store has it.
        """
        dataset = cls.read(manifest_uri)
        dataset._check_shards()
        return dataset

    @classmethod
    def read(cls, manifest_uri: str) -> Dataset:
        """What a manifest says, without a look at the shards; raises as :meth:`open` does."""
        path = StorePath(manifest_uri)
        if not path.exists():
            raise DataError(_absent(path))
        try:
            manifest = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not a manifest: {error}; run ingest again") from None
        if not isinstance(manifest, dict) or manifest.get("format") not in _STORED:
            raise DataError(f"{path} is not a manifest of format {FORMAT}; run ingest again")
        try:
            dataset = cls(path.uri, manifest)
            if dataset._grows:
                digest = content_digest(dataset.classes, dataset.shards, dataset.held_back)
            else:
                digest = _former_digest(dataset.classes, dataset.shards)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: damaged manifest ({error!r}); run ingest again") from None
        if digest != dataset.digest:
            raise DataError(f"{path}: its digest does not fit its content; run ingest again")
        return dataset

    @property
    def grows(self) -> bool:
        """Whether further images may be ingested into it; not into one of format 1."""
        return self._grows

    @cached_property
    def pinned(self) -> str:
        """URI of the manifest that stays as it is; its own where there is no such copy."""
        path = pinned_path(self._root, self.digest)
        return path.uri if self._grows and path.exists() else self.uri

    def as_it_was(self, digest: str) -> Dataset | None:
        """The same dataset with another digest: as it was before it grew. None if it never was.

        Raises what :meth:`open` raises.
        """
        path = pinned_path(self._root, digest)
        return Dataset.open(path.uri) if self._grows and path.exists() else None

    def split(self, name: str) -> Split:
        """``train``, ``val`` or ``test``, without what was removed or is held back.

        Which image is in which was settled when it was ingested. (In a dataset of format 1 ``val``
        is a fixed slice of the ingested training images, that its digest chooses.) Raises DataError
        for another name or a damaged index.
        """
        if name not in SPLITS:
            raise DataError(f"unknown split {name!r}: choose from {', '.join(SPLITS)}")
        if name in self.shards and (self._grows or name == "test"):
            return self._load(name)
        whole = self._load("train")
        chosen = val_slice(len(whole), self.digest)
        if name == "train":
            chosen = np.setdiff1d(np.arange(len(whole)), chosen, assume_unique=True)
        return whole.subset(name, chosen)

    @property
    def labelled_images(self) -> int:
        """How many of the training images have a label."""
        return int((self.split("train").labels >= 0).sum())

    def labelled(self, fraction: float) -> Split:
        """The training images whose labels are used: a share in (0, 1] of each class, 1 or more.

        Which, depends on the keys alone (in a dataset of format 1 on its digest), and those of a
        smaller share are among those of a larger one. Images without a label are none of them.
        """
        train = self.split("train").labelled()
        if fraction == 1:
            return train
        if self._grows:
            hashes = key_hashes(train.keys, "labels")
        else:
            hashes = position_hashes(len(train), self.digest)
        return train.subset("train", labelled_share(train.labels, fraction, hashes))

    def folder(self, split: str) -> StorePath:
        """Where the shards of a stored split lie."""
        return self._root / split

    def indexes(self, split: str, infos: Sequence[ShardInfo]) -> list[np.ndarray]:
        """The index of each shard, as it was written: removed samples have their rows.

        Raises DataError for one that is damaged.
        """
        with ThreadPoolExecutor(max_workers=8) as pool:
            files = pool.map(lambda info: _read_index(self.folder(split), info), infos)
            # Read by one thread: numpy parses the header as Python, and CPython 3.11 fails
            # where two threads parse at a time (SystemError: AST constructor recursion depth).
            return [np.load(io.BytesIO(data), allow_pickle=False) for data in files]

    def require_formats(self, formats: Sequence[str]) -> None:
        """Raise DataError where its images may be of a format that is not among these."""
        more = [name for name in self.formats if name not in formats]
        if more:
            raise DataError(
                f"{self.uri} was ingested with images of format {', '.join(more)}; set "
                f"data.formats=[{','.join([*formats, *more])}]"
            )

    def _load(self, stored: str) -> Split:
        if stored not in self._stored:
            infos = self.shards[stored]
            tables = self.indexes(stored, infos) or [index_table([])]
            counts = [len(table) for table in tables]
            number = np.repeat(np.arange(len(tables), dtype=np.int32), counts)
            kept = np.ones(len(number), dtype=bool)
            for first, info in zip(np.cumsum([0, *counts]).tolist(), infos, strict=False):
                kept[first + np.array(info.removed, dtype=np.int64)] = False
            shards = [self.folder(stored) / info.name for info in infos]
            table = np.concatenate(tables)
            self._stored[stored] = Split(stored, shards, number[kept], table[kept])
        return self._stored[stored]

    def _check_shards(self) -> None:
        for split, shards in self.shards.items():
            folder = self.folder(split)
            found = {entry.name.rsplit("/", 1)[-1]: entry.size for entry in folder.iter()}
            for shard in [*shards, *self.held_back[split]]:
                self._check(folder, shard.name, found.get(shard.name), shard.bytes)
                self._check(folder, shard.index, found.get(shard.index), None)

    def _check(self, folder: StorePath, name: str, size: int | None, recorded: int | None) -> None:
        """Raise DataError where a file of the dataset, listed with ``size``, is not as recorded."""
        file = folder / name
        if size is None:
            # A listing alone does not tell that a file has gone, and to delete is no light advice.
            if not file.exists():
                raise DataError(
                    f"{self.uri}: {folder.name}/{name} is missing; delete the manifest and run "
                    "ingest again"
                )
            size = file.stat().size
        if recorded is not None and size != recorded:
            raise DataError(
                f"{self.uri}: {folder.name}/{name} has {size} bytes, not the {recorded} recorded: "
                "it was not copied whole, or was changed; copy it again, or ingest to another place"
            )


class Split:
    """The samples of one split, numbered 0 … len−1 in the order they are stored.

    number, table: of each sample, place of its shard in ``shards``, and its row of the index.
    """

    def __init__(
        self, name: str, shards: Sequence[StorePath], number: np.ndarray, table: np.ndarray
    ) -> None:
        self.name = name
        self.shards = list(shards)
        self.number = number
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def labels(self) -> np.ndarray:
        """Label of each sample, int64 (n,); UNLABELLED where it has none."""
        return self.table["label"].astype(np.int64)

    @property
    def keys(self) -> np.ndarray:
        """Name of each sample (``n01440764_10026``, ``ILSVRC2012_val_00000001``), bytes (n,)."""
        return self.table["key"]

    @property
    def phashes(self) -> np.ndarray:
        """What tells of each sample which others look alike, uint64 (n,); not in format 1."""
        return self.table["phash"]

    def locate(self, ids: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where samples lie: shard (place in ``shards``), byte offset and size, each int64."""
        rows = self.table[np.asarray(ids)]
        number = self.number[np.asarray(ids)].astype(np.int64)
        return number, rows["offset"].astype(np.int64), rows["size"].astype(np.int64)

    def subset(self, name: str, ids: np.ndarray) -> Split:
        """The samples at ``ids``, as a split of their own."""
        return Split(name, self.shards, self.number[ids], self.table[ids])

    def labelled(self) -> Split:
        """The samples that have a label; the split itself where all have one."""
        known = self.labels >= 0
        return self if known.all() else self.subset(self.name, np.flatnonzero(known))


Shards = Mapping[str, Sequence[ShardInfo]]


def content_digest(classes: Sequence[ClassInfo], shards: Shards, held_back: Shards) -> str:
    """``sha256:…`` of what a dataset holds, whatever its name, place, age and sources.

    shards, held_back: by split.
    """
    listed = {"shards": shards, "held_back": held_back}
    return digest_of(
        {"format": FORMAT, "classes": [[c.wnid, c.name] for c in classes]}
        | {
            kind: {split: [[s.sha256, s.removed] for s in of[split]] for split in SPLITS}
            for kind, of in listed.items()
        }
    )


def _former_digest(classes: Sequence[ClassInfo], shards: Shards) -> str:
    return digest_of(
        {
            "format": FORMER,
            "classes": [[c.wnid, c.name] for c in classes],
            "shards": {split: [s.sha256 for s in shards[split]] for split in _STORED[FORMER]},
        }
    )


def digest_of(content: dict[str, Any]) -> str:
    """``sha256:…`` of a JSON object."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return "sha256:" + sha256(text.encode()).hexdigest()


def pinned_path(root: StorePath, digest: str) -> StorePath:
    """Where the dataset at ``root`` keeps the manifest of this digest."""
    return root / MANIFESTS / f"{digest.removeprefix('sha256:')[:12]}.json"


IndexRow = tuple[int, int, int, bytes, int, int]
"""offset and size in the shard, label, key, stamp and phash of a sample."""


def index_table(rows: Sequence[IndexRow]) -> np.ndarray:
    """An index, as it is stored (n,).

    stamp: see :class:`percmae.ingest.catalogue.Columns`; phash: see
    :func:`percmae.ingest.duplicates.difference_hash`.
    """
    width = max((len(row[3]) for row in rows), default=1)
    fields = [("offset", "<u8"), ("size", "<u4"), ("label", "<i4"), ("key", f"S{width}")]
    return np.array(list(rows), dtype=[*fields, ("stamp", "<u8"), ("phash", "<u8")])


def _infos(listed: Sequence[dict[str, Any]]) -> list[ShardInfo]:
    return [ShardInfo(**shard) for shard in listed]


def _root(manifest: StorePath) -> StorePath:
    folder = manifest.parent
    return folder.parent if folder.name == MANIFESTS else folder


def _absent(path: StorePath) -> str:
    if (path / MANIFEST).exists():
        return f"{path} is a dataset's folder; give its manifest, {path / MANIFEST}"
    return f"no dataset at {path}: run percmae ingest first, or check the URI"


def _read_index(folder: StorePath, info: ShardInfo) -> bytes:
    path = folder / info.index
    data = path.read_bytes(is_whole=lambda data: sha256(data).hexdigest() == info.index_sha256)
    if sha256(data).hexdigest() != info.index_sha256:
        raise DataError(f"{path}: index does not have the recorded checksum; run ingest again")
    return data
