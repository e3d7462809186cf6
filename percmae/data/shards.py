"""A dataset in the store: shards, their indexes, and the manifest that names them.

::

    <dataset>/manifest.json          written last: a half-made dataset has none
    <dataset>/train/train-000000.tar samples ``<key>.jpg`` + ``<key>.cls``, WebDataset naming
    <dataset>/train/train-000000.npy index: offset, size, label, key of each sample in the shard
    <dataset>/test/test-000000.tar …

Training reads single samples out of shards by the index (ranged reads); anything that knows
WebDataset can read the shards without it. The same content always gives the same bytes, so the
digest in the manifest is the dataset's identity wherever it lies.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from percmae.config import FORMATS
from percmae.errors import DataError
from percmae.storage import StorePath

FORMAT = "percmae-dataset/1"
MANIFEST = "manifest.json"
STORED_SPLITS = ("train", "test")
SPLITS = ("train", "val", "test")
UNLABELLED = -1
"""The label, in a shard's index, of an image that has none."""

# About 2 % of ImageNet's training images, and enough of a small set to mean something.
VAL_SHARE, VAL_AT_LEAST = 0.02, 500


@dataclass(frozen=True)
class ClassInfo:
    """One class; its label is its place in ``Dataset.classes``, which is sorted by wnid."""

    wnid: str
    name: str


@dataclass(frozen=True)
class ShardInfo:
    """One shard as the manifest lists it; ``name`` and ``index`` are file names in its folder."""

    name: str
    index: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Pixels:
    """Mean and standard deviation of each channel in [0, 1], over all ingested training images."""

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
        self._shards = {
            name: [ShardInfo(**s) for s in manifest["splits"][name]["shards"]]
            for name in STORED_SPLITS
        }
        self._stored: dict[str, Split] = {}

    @classmethod
    def open(cls, manifest_uri: str) -> Dataset:
        """Open a dataset and check that its shards are all there, with the sizes recorded.

        Raises DataError for an absent, foreign or damaged manifest, for an edited one (its digest
        no longer fits) and for a shard that is missing or has another size; StoreError as the
        store has it.
        """
        path = StorePath(manifest_uri)
        if not path.exists():
            raise DataError(_absent(path))
        try:
            manifest = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not a manifest: {error}; run ingest again") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise DataError(f"{path} is not a manifest of format {FORMAT}; run ingest again")
        try:
            dataset = cls(path.uri, manifest)
            digest = content_digest(dataset.classes, dataset._shards)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: damaged manifest ({error!r}); run ingest again") from None
        if digest != dataset.digest:
            raise DataError(f"{path}: its digest does not fit its content; run ingest again")
        dataset._check_shards()
        return dataset

    def split(self, name: str) -> Split:
        """``train``, ``val`` or ``test``.

        ``test`` is what was ingested as the ILSVRC validation archive. ``val`` is a fixed slice of
        the ingested training images and ``train`` the rest; which image goes where depends on the
        dataset's digest alone. Raises DataError for another name or a damaged index.
        """
        if name not in SPLITS:
            raise DataError(f"unknown split {name!r}: choose from {', '.join(SPLITS)}")
        if name == "test":
            return self._load("test")
        whole = self._load("train")
        chosen = _val_slice(len(whole), self.digest)
        if name == "train":
            chosen = np.setdiff1d(np.arange(len(whole)), chosen, assume_unique=True)
        return whole.subset(name, chosen)

    @property
    def labelled_images(self) -> int:
        """How many of the training images have a label."""
        return int((self.split("train").labels >= 0).sum())

    def labelled(self, fraction: float) -> Split:
        """The training images whose labels are used: a share in (0, 1] of each class, 1 or more.

        Which, depends on the dataset's digest alone, and those of a smaller share are among those
        of a larger one. Images without a label are none of them.
        """
        train = self.split("train").labelled()
        if fraction == 1:
            return train
        return train.subset("train", _labelled(train.labels, fraction, self.digest))

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
            folder = StorePath(self.uri).parent / stored
            infos = self._shards[stored]
            with ThreadPoolExecutor(max_workers=8) as pool:
                files = pool.map(lambda info: _read_index(folder, info), infos)
                # Read by one thread: numpy parses the header as Python, and CPython 3.11 fails
                # where two threads parse at a time (SystemError: AST constructor recursion depth).
                tables = [np.load(io.BytesIO(data), allow_pickle=False) for data in files]
            counts = [len(table) for table in tables]
            table = np.concatenate(tables)
            number = np.repeat(np.arange(len(infos), dtype=np.int32), counts)
            self._stored[stored] = Split(stored, [folder / i.name for i in infos], number, table)
        return self._stored[stored]

    def _check_shards(self) -> None:
        for split, shards in self._shards.items():
            folder = StorePath(self.uri).parent / split
            found = {entry.name.rsplit("/", 1)[-1]: entry.size for entry in folder.iter()}
            for shard in shards:
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
    """The samples of one split, numbered 0 … len−1 in the order they are stored."""

    def __init__(
        self, name: str, shards: Sequence[StorePath], number: np.ndarray, table: np.ndarray
    ) -> None:
        self.name = name
        self.shards = list(shards)
        self._number = number
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    @cached_property
    def labels(self) -> np.ndarray:
        """Label of each sample, int64 (n,); UNLABELLED where it has none."""
        return self._table["label"].astype(np.int64)

    @property
    def keys(self) -> np.ndarray:
        """Name of each sample (``n01440764_10026``, ``ILSVRC2012_val_00000001``), bytes (n,)."""
        return self._table["key"]

    def locate(self, ids: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where samples lie: shard (place in ``shards``), byte offset and size, each int64."""
        rows = self._table[np.asarray(ids)]
        number = self._number[np.asarray(ids)].astype(np.int64)
        return number, rows["offset"].astype(np.int64), rows["size"].astype(np.int64)

    def subset(self, name: str, ids: np.ndarray) -> Split:
        """The samples at ``ids``, as a split of their own."""
        return Split(name, self.shards, self._number[ids], self._table[ids])

    def labelled(self) -> Split:
        """The samples that have a label; the split itself where all have one."""
        known = self.labels >= 0
        return self if known.all() else self.subset(self.name, np.flatnonzero(known))

    @classmethod
    def joined(cls, name: str, parts: Sequence[Split], labels: Sequence[np.ndarray]) -> Split:
        """The samples of several splits, one after another.

        labels: for each part, the label that each of its own becomes, int64 (classes,).
        """
        fields = [f for f in parts[0]._fields if all(f in part._fields for part in parts)]
        kinds = [
            (field, reduce(np.promote_types, (part._table.dtype[field] for part in parts)))
            for field in fields
        ]
        table = np.empty(sum(map(len, parts)), dtype=kinds)
        for field in fields:
            table[field] = np.concatenate([part._table[field] for part in parts])
        table["label"] = np.concatenate(
            [_renamed(part.labels, new) for part, new in zip(parts, labels, strict=True)]
        )
        starts = np.cumsum([0, *(len(part.shards) for part in parts)])[:-1]
        number = [p._number + np.int32(start) for p, start in zip(parts, starts, strict=True)]
        return cls(name, [s for p in parts for s in p.shards], np.concatenate(number), table)

    @property
    def _fields(self) -> tuple[str, ...]:
        return self._table.dtype.names or ()


def _renamed(labels: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Labels (n,) as the numbers that they become; UNLABELLED stays what it is."""
    return np.append(new, UNLABELLED)[labels]  # −1 is the last


def content_digest(classes: Sequence[ClassInfo], shards: dict[str, list[ShardInfo]]) -> str:
    """``sha256:…`` of what a dataset holds, whatever its name, place, age and sources."""
    content = {
        "format": FORMAT,
        "classes": [[c.wnid, c.name] for c in classes],
        "shards": {split: [s.sha256 for s in shards[split]] for split in STORED_SPLITS},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _absent(path: StorePath) -> str:
    if (path / MANIFEST).exists():
        return f"{path} is a dataset's folder; give its manifest, {path / MANIFEST}"
    return f"no dataset at {path}: run percmae ingest first, or check the URI"


def _read_index(folder: StorePath, info: ShardInfo) -> bytes:
    path = folder / info.index
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != info.index_sha256:
        raise DataError(f"{path}: index does not have the recorded checksum; run ingest again")
    return data


def _val_slice(samples: int, digest: str) -> np.ndarray:
    """Sorted positions of the validation samples among the ingested training samples.

    Those with the smallest hash of (digest, position): a choice that looks random, never moves,
    and takes from every class of a training set sorted by class.
    """
    share = max(round(samples * VAL_SHARE), min(samples // 10, VAL_AT_LEAST))
    count = max(share, 1) if samples > 1 else 0
    return np.sort(np.argsort(_hashes(samples, digest), kind="stable")[:count])


def _labelled(labels: np.ndarray, fraction: float, digest: str) -> np.ndarray:
    """Sorted positions of a share of each class, at least one: those with the smallest hash.

    labels: class of each training sample, int64 (n,).
    """
    by_class = np.lexsort((_mix(_hashes(len(labels), digest)), labels))
    ordered = labels[by_class]
    counts = np.bincount(labels)
    taken = np.maximum(np.rint(fraction * counts).astype(np.int64), 1)
    # The place of each sample among those of its class.
    places = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return np.sort(by_class[places < taken[ordered]])


def _hashes(samples: int, digest: str) -> np.ndarray:
    """A hash of (digest, position) for each position, uint64 (n,)."""
    key = np.uint64(int(digest.removeprefix("sha256:")[:16], 16))
    with np.errstate(over="ignore"):
        return _mix(np.arange(samples, dtype=np.uint64) + key)


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea, Flood 2014) as a hash: a bijection of 64-bit words, uint64 (n,)."""
    with np.errstate(over="ignore"):
        values = values * np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
