"""Ingest: ILSVRC archives to a dataset in the store, streaming, resumable, all or nothing.

What happens to an image: its bytes are copied unchanged into a shard. Before that all of its coded
data is read once (:mod:`percmae.data.checked`), because a truncated JPEG that slips through
would stop a training days later; one that fails is left out and listed in the manifest. This takes
0.9 ms of a core for a 48 KB photo, against 1.2 ms for a full decode: about 45 core-minutes for
ImageNet, spread over all cores.

What can be known without reading images is looked at before (:mod:`percmae.data.imagenet`), and the
val archive, a twentieth of the train archive, is read first: what is wrong shows early.

An interrupted ingest goes on after the last finished shard. Its state lies in
``<to>/.ingest/state.json``, removed at the end; the manifest is written last. On resuming, the
part of an archive that was already ingested is read once more for its MD5 alone (a hash cannot be
stored half-way), which is the price of a checksum over exactly the bytes that were ingested.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from percmae.config import FORMATS
from percmae.data.checked import Seen, checked, statistics
from percmae.data.decode import Once, check_formats, telling
from percmae.data.devkit import read_devkit
from percmae.data.imagenet import (
    PUBLISHED_MD5,
    ArchivedImage,
    look_at_archive,
    look_at_train,
    look_at_val,
    train_images,
    val_images,
)
from percmae.data.ingest_state import STATE, State, load_state, save_state
from percmae.data.shard_writer import ShardWriter
from percmae.data.shards import FORMAT, MANIFEST, STORED_SPLITS, Dataset, content_digest
from percmae.data.tars import Oddities
from percmae.errors import DataError
from percmae.progress import Progress, note, warn
from percmae.storage import StorePath

_READ = 1 << 20
_NOTED = 10  # corrupt images that are named while ingesting; the manifest lists all
_ORDER = ("test", "train")  # in which the archives are read


@dataclass(frozen=True)
class IngestResult:
    """A finished dataset; ``reused`` when it was there already, made from the same archives."""

    manifest_uri: str
    dataset: Dataset
    reused: bool


def ingest(
    train: str,
    val: str,
    devkit: str,
    to: str,
    *,
    shard_bytes: int = 128 * 2**20,
    formats: Sequence[str] = FORMATS,
    subset: bool = False,
) -> IngestResult:
    """Turn ILSVRC archives into a dataset at ``to``.

    train, val, devkit, to: paths or ``s3://bucket/key``. shard_bytes: a shard is closed once it
    holds this many bytes (shards are part of the digest: another size is another dataset). formats:
    of images that are opened; others count as damaged. subset: with the devkit of the real ILSVRC,
    classes may hold far fewer images than it says.

    The same archives again: nothing is done. Raises DataError for archives that are absent,
    truncated, unsafe or do not belong together, for an MD5 that is not the published one, and
    where ``to`` already holds a dataset made from other archives; UserError for a format that
    there is not; StoreError as the store has it.
    """
    archives = {"train": StorePath(train), "test": StorePath(val)}
    settings = _Settings(shard_bytes, list(check_formats(formats)), subset)
    job = _Job(archives, StorePath(devkit), StorePath(to), settings)
    job.to.prepare()
    return job.reuse() or job.run()


@dataclass(frozen=True)
class _Settings:
    shard_bytes: int
    formats: list[str]
    subset: bool


class _Job:
    def __init__(
        self,
        archives: dict[str, StorePath],
        devkit: StorePath,
        to: StorePath,
        settings: _Settings,
    ) -> None:
        self.archives = archives
        self.to = to
        self.settings = settings
        self.devkit = read_devkit(devkit)
        for role, path in (("train", archives["train"]), ("val", archives["test"])):
            look_at_archive(path, role)
        self.sources = [
            _identity("train", archives["train"]),
            _identity("val", archives["test"]),
            _identity("devkit", devkit) | {"md5": hashlib.md5(devkit.read_bytes()).hexdigest()},
        ]

    def reuse(self) -> IngestResult | None:
        """The dataset at the destination, if it was made from these archives."""
        manifest = self.to / MANIFEST
        if not manifest.exists():
            return None
        dataset = Dataset.open(manifest.uri)
        before = {source["role"]: source for source in dataset.manifest["sources"]}
        paths = {"train": self.archives["train"], "val": self.archives["test"]}
        same = (
            dataset.manifest["shard_bytes"] == self.settings.shard_bytes
            and dataset.formats == self.settings.formats
            and all(
                _same_source(before[now["role"]], now, paths.get(now["role"]))
                for now in self.sources
            )
        )
        if not same:
            raise DataError(
                f"{self.to} already holds a dataset made from other archives, or with other "
                f"settings; give another destination, or delete {manifest} to replace it"
            )
        return IngestResult(manifest.uri, dataset, reused=True)

    def run(self) -> IngestResult:
        look_at_val(self.archives["test"], self.devkit)
        look_at_train(self.archives["train"], self.devkit, self.settings.subset)
        state = load_state(self.to, self._made_from(), len(self.devkit.classes))
        with telling(Once(lambda text: warn(f"ingest: {text}"))):
            for split in _ORDER:
                if state[split].md5 is None:
                    _SplitIngest(self, split, state).run()
        self._clean_up(state)
        manifest = self.to / MANIFEST
        content = self._manifest(state)
        _check_keys(Dataset(manifest.uri, content))
        manifest.write_json(content)
        (self.to / STATE).delete()
        return IngestResult(manifest.uri, Dataset.open(manifest.uri), reused=False)

    def _made_from(self) -> dict[str, dict[str, Any]]:
        """What the shards of each split depend upon."""
        classes = [c.wnid for c in self.devkit.classes]
        labels: dict[str, list[Any]] = {
            "train": classes,
            "test": [classes, self.devkit.val_labels.tolist()],
        }
        return {
            split: {
                "archive": source,
                "labels": hashlib.sha256(json.dumps(labels[split]).encode()).hexdigest(),
                "shard_bytes": self.settings.shard_bytes,
                "formats": self.settings.formats,
            }
            for split, source in zip(("train", "test"), self.sources, strict=False)
        }

    def _clean_up(self, state: State) -> None:
        """Delete shards of an earlier, different ingest that this one did not overwrite."""
        for split, progress in state.items():
            ours = {name for s in progress.shards for name in (s.name, s.index)}
            for entry in list((self.to / split).iter()):
                if entry.name not in ours:
                    entry.path.delete()

    def _manifest(self, state: State) -> dict[str, Any]:
        shards = {split: state[split].shards for split in STORED_SPLITS}
        md5 = {"train": state["train"].md5, "val": state["test"].md5}
        content = {
            "format": FORMAT,
            "digest": content_digest(self.devkit.classes, shards),
            "name": self.to.name,
            "classes": [dataclasses.asdict(c) for c in self.devkit.classes],
            "splits": {
                split: {
                    "samples": state[split].samples,
                    "shards": [dataclasses.asdict(s) for s in listed],
                }
                for split, listed in shards.items()
            },
            "pixels": statistics(state["train"].moments, state["train"].samples),
            "corrupt": [c for split in STORED_SPLITS for c in state[split].corrupt],
            "shard_bytes": self.settings.shard_bytes,
            "formats": self.settings.formats,
            "sources": [{"md5": md5.get(s["role"])} | s for s in self.sources],
        }
        if miscounted := self._miscounted(state["train"].found):
            content["miscounted"] = miscounted
        return content

    def _miscounted(self, found: list[int]) -> list[dict[str, Any]]:
        """Classes whose archive held another number of images than the devkit says."""
        due = self.devkit.train_images.tolist()
        listed = [
            {"wnid": info.wnid, "images": images, "devkit": said}
            for info, images, said in zip(self.devkit.classes, found, due, strict=True)
            if said > 0 and images != said
        ]
        if listed:
            first = listed[0]
            note(
                f"ingest: {len(listed):,} of {len(found):,} classes hold another number of "
                f"training images than the devkit says (first: {first['wnid']}, "
                f"{first['images']:,} instead of {first['devkit']:,}); the manifest lists them"
            )
        return listed


class _SplitIngest:
    """One archive to the shards of one split."""

    def __init__(self, job: _Job, split: str, state: State) -> None:
        self.job = job
        self.split = split
        self.archive = job.archives[split]
        self.state = state
        self.progress = state[split]
        self.odd = Oddities()

    def run(self) -> None:
        size = self.archive.stat().size
        with (
            self.archive.open() as file,
            Progress(f"ingest {self.split}", size, unit="B") as bar,
        ):
            stream = _HashingReader(file, bar.update)
            stream.skip(self.progress.position.offset)
            train = self.split == "train"
            images = checked(self._images(stream), self.job.settings.formats, moments=train)
            for first in images:
                self._write_shard(itertools.chain([first], images))
            stream.skip(size - stream.position)  # what a shrunken archive lacks is noticed
        for line in self.odd.lines():
            warn(f"ingest: {line}")
        if self.progress.corrupt:
            count = len(self.progress.corrupt)
            warn(f"ingest: left out {count:,} damaged image(s) of {self.archive} in all")
        self._check_complete(stream)
        self.progress.md5 = stream.md5.hexdigest()
        save_state(self.job.to, self.state)

    def _images(self, stream: Any) -> Iterator[ArchivedImage]:
        place = (stream, str(self.archive), self.job.devkit, self.progress.position, self.odd)
        if self.split == "test":
            return val_images(*place)
        return train_images(*place, subset=self.job.settings.subset)

    def _write_shard(self, images: Iterator[tuple[ArchivedImage, Seen]]) -> None:
        """Move images into one shard until it is full; then it counts as done."""
        progress = self.progress
        # Nothing of this shard enters the state before the shard is in the store.
        corrupt, found, position = list(progress.corrupt), list(progress.found), progress.position
        moments = progress.moments
        stem = f"{self.split}-{len(progress.shards):06d}"
        with ShardWriter(self.job.to / self.split, stem) as writer:
            for image, (fault, own) in images:
                if fault is None:
                    writer.add(image.key, image.data, image.label)
                    moments = [a + b for a, b in zip(moments, own, strict=True)] if own else moments
                else:
                    if len(corrupt) < _NOTED:
                        warn(f"ingest: left out: {fault}")
                    entry = {"split": self.split, "member": image.member, "reason": fault}
                    corrupt.append(entry)
                found[image.label] += 1
                position = image.after
                if writer.bytes >= self.job.settings.shard_bytes:
                    break
            shard = writer.finish()
        progress.shards.append(shard)
        progress.corrupt = corrupt
        progress.position = position
        progress.found = found
        progress.moments = moments
        save_state(self.job.to, self.state)

    def _check_complete(self, stream: _HashingReader) -> None:
        """After the last image: the MD5, if one is published, and the number of images."""
        name, size = self.archive.name, stream.position
        published = PUBLISHED_MD5.get((name, size))
        if published not in (None, stream.md5.hexdigest()):
            raise DataError(
                f"{self.archive} has the name and size of the ILSVRC2012 archive but MD5 "
                f"{stream.md5.hexdigest()}, not {published}; download it again"
            )
        due = len(self.job.devkit.val_labels)
        if self.split == "test" and self.progress.images != due:
            raise DataError(
                f"{self.archive} holds {self.progress.images:,} images, the devkit's ground truth "
                f"{due:,} lines; do the two belong together?"
            )
        if not self.progress.samples:
            raise DataError(
                f"{self.archive}: no image in it could be opened as "
                f"{', '.join(self.job.settings.formats)}"
            )


def _check_keys(dataset: Dataset) -> None:
    """Raise DataError where a sample comes twice; reads the indexes back from the store."""
    for split in STORED_SPLITS:
        keys, counts = np.unique(dataset.split(split).keys, return_counts=True)
        if len(keys) and counts.max() > 1:
            raise DataError(
                f"the {split} archive holds {keys[counts.argmax()].decode()} twice; is it damaged?"
            )


class _HashingReader:
    """A stream read from front to back, its MD5 taken on the way."""

    def __init__(self, file: BinaryIO, on_read: Callable[[int], None]) -> None:
        self.md5 = hashlib.md5()
        self.position = 0
        self._file = file
        self._on_read = on_read

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.md5.update(data)
        self.position += len(data)
        self._on_read(len(data))
        return data

    def skip(self, size: int) -> None:
        """Read on, for the checksum alone."""
        while size > 0:
            data = self.read(min(size, _READ))
            if not data:
                raise DataError(f"an archive became shorter while it was read, at {self.position}")
            size -= len(data)


def _identity(role: str, path: StorePath) -> dict[str, Any]:
    """What tells one archive from another without reading it."""
    stat = path.stat()
    return {"role": role, "name": path.name, "size": stat.size, "etag": stat.etag}


def _same_source(before: dict[str, Any], now: dict[str, Any], path: StorePath | None) -> bool:
    """Whether an archive is the one a dataset was made from; a copy is known by its MD5."""
    if before["size"] != now["size"]:
        return False
    if path is None or before["etag"] == now["etag"]:
        return bool(before["etag"] == now["etag"] or before["md5"] == now.get("md5"))
    note(f"ingest: {path} was touched since it was ingested; comparing its MD5")
    with path.open() as file:
        reader = _HashingReader(file, lambda count: None)
        reader.skip(now["size"])
    return bool(before["md5"] == reader.md5.hexdigest())
