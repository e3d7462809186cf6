"""``percmae ingest``: what was asked for, checked, and made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

from percmae.config import FORMATS
from percmae.data.archives import PUBLISHED
from percmae.data.devkit import require
from percmae.data.shards import MANIFEST, Dataset
from percmae.errors import DataError, UserError
from percmae.ingest.catalogue import Catalogue, Wanted
from percmae.ingest.cores import SCRATCH_SIZE
from percmae.ingest.make import IngestResult, Making, made_with
from percmae.ingest.pods import Pods, pods_of
from percmae.ingest.scratch import Space
from percmae.ingest.settings import SHARD_BYTES, Settings, settings_of, size_of
from percmae.ingest.sources import open_ilsvrc, open_source
from percmae.ingest.sources.ilsvrc import Ilsvrc, identity
from percmae.progress import Progress, note, warn
from percmae.storage import StorePath
from percmae.storage.outage import outage
from percmae.storage.path import local_path

_PIECE = 4 << 20
_CLASSES = 1000  # of ILSVRC2012


class Asked(TypedDict, total=False):
    """What :func:`ingest` takes.

    to: folder of the dataset. images: a folder or prefix, a table, archives or shards; or instead
    train, val and devkit: ILSVRC archives. All are paths or ``s3://bucket/key``.

    labels: of images, see :class:`percmae.ingest.catalogue.Wanted`. formats: of images that are
    opened; others count as damaged. subset: with the devkit of the real ILSVRC, classes may hold
    far fewer images than it says. md5: compare published archives with their published MD5 first.
    shard_size, short_side, quality: see :class:`percmae.ingest.settings.Settings`. workers:
    processes that build shards; default: as many as this one may use cores. grow_held_out:
    validation and testing take in new images too. scratch, scratch_size: see
    :class:`percmae.ingest.scratch.Space`; bytes, or such as ``64G``.
    """

    to: Required[str]
    images: str | None
    train: str | None
    val: str | None
    devkit: str | None
    labels: str
    formats: Sequence[str]
    subset: bool
    md5: bool
    shard_size: int | str
    short_side: int | None
    quality: int | None
    workers: int | None
    grow_held_out: bool
    scratch: str | None
    scratch_size: int | str | None


@outage()
def ingest(**asked: Unpack[Asked]) -> IngestResult:
    """Make a dataset of images, or bring one up to date with its source.

    The same images give the same dataset, however many workers there are and however often they
    were interrupted. Raises UserError for what cannot be asked for, DataError for a source that is
    absent, damaged or unsafe, and where ``to`` already holds a dataset of another; StoreError as
    the store has it.
    """
    result = _make(asked, None)
    assert result is not None, "only a pod that shares the work may have none"
    return result


@outage()
def ingest_share(of: int, **asked: Unpack[Asked]) -> IngestResult | None:
    """One pod's share of :func:`ingest`, in an Indexed Job of ``of`` pods; only pod 0 has a result.

    Raises PercmaeError where another pod has failed as well.
    """
    return _make(asked, pods_of(of))


def _make(asked: Asked, pods: Pods | None) -> IngestResult | None:
    settings = settings_of(
        asked.get("shard_size") or SHARD_BYTES,
        asked.get("formats") or FORMATS,
        asked.get("short_side"),
        asked.get("quality"),
    )
    workers, to = asked.get("workers"), StorePath(asked["to"])
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: give 1 or more")
    space = _space(asked)
    archives, grow = _archives(asked), asked.get("grow_held_out", False)
    more: dict[str, Any] = {}
    catalogue: Catalogue | Ilsvrc
    if archives:
        if asked.get("md5"):
            for path in archives[:2]:
                _check_md5(path)
        if not grow and (there := _unchanged(to, settings, archives)):
            return there
        train, val, devkit = (path.uri for path in archives)
        subset = asked.get("subset", False)
        catalogue = open_ilsvrc(train, val, devkit, subset=subset, formats=settings.formats)
        more |= _miscounted(catalogue)
        if not subset:
            _look_at_sizes(archives[:2], len(catalogue.classes))
    else:
        labels = asked.get("labels", Wanted().labels)
        catalogue = open_source(str(asked["images"]), Wanted(labels, settings.formats))
        more["labels"] = labels
    return Making(catalogue, to, settings, workers, grow, more, space).run(pods)


def _space(asked: Asked) -> Space:
    """Raises UserError for a size that is none and a folder that is not on this machine."""
    folder, option, size = asked.get("scratch"), "--scratch-size", asked.get("scratch_size")
    if size is None and (given := os.environ.get(SCRATCH_SIZE)):
        option, size = SCRATCH_SIZE, given
    return Space(
        None if folder is None else Path(local_path(folder, "--scratch")),
        None if size is None else size_of(size, option, least=0),
    )


def _archives(asked: Asked) -> list[StorePath]:
    """The three ILSVRC archives; none where images are given instead. Raises UserError for a
    mixture, for less than is needed, and for options of the other kind."""
    given = {name: asked.get(name) for name in ("train", "val", "devkit")}
    some, images = [name for name, uri in given.items() if uri], asked.get("images")
    if bool(images) == bool(some) or len(some) not in (0, 3):
        got = " ".join(f"--{name}" for name in (*(["images"] if images else []), *some))
        raise UserError(
            "give --images, or else the three ILSVRC archives --train, --val and --devkit: got "
            + (got or "neither")
        )
    ours, others = (("labels",), ("subset", "md5"))
    for name in others if images else ours:
        if asked.get(name) not in (None, False, Wanted().labels):
            kind = "the ILSVRC archives" if images else "--images"
            raise UserError(f"--{name} goes with {kind}; leave it out")
    return [StorePath(str(uri)) for uri in given.values()] if some else []


def _unchanged(
    to: StorePath, settings: Settings, archives: Sequence[StorePath]
) -> IngestResult | None:
    """The dataset at ``to``, if it was made from these very archives: they need no listing then."""
    now = [
        identity(role, require(path, role), path.stat())
        for role, path in zip(("train", "val"), archives, strict=False)
    ]
    md5 = hashlib.md5(require(archives[2], "devkit").read_bytes()).hexdigest()
    to.prepare()
    manifest = to / MANIFEST
    if not manifest.exists():
        return None
    dataset = Dataset.open(manifest.uri)
    before = {source["role"]: source for source in dataset.manifest["sources"]}
    same = before.get("devkit", {}).get("md5") == md5 and all(
        before.get(str(source["role"]), {}).get(key) == source[key]
        for source in now
        for key in ("size", "etag")
    )
    if not same or not made_with(dataset, settings):
        return None
    return IngestResult(manifest.uri, dataset, reused=True)


def _miscounted(catalogue: Ilsvrc) -> dict[str, Any]:
    """For the manifest: classes whose number of images is not the one that the devkit says."""
    listed = [
        {"wnid": info.wnid, "images": images, "devkit": said}
        for info, images, said in zip(
            catalogue.classes, catalogue.found, catalogue.due, strict=True
        )
        if said > 0 and images != said
    ]
    if not listed:
        return {}
    first = listed[0]
    note(
        f"ingest: {len(listed):,} of {len(catalogue.found):,} classes hold another number of "
        f"training images than the devkit says (first: {first['wnid']}, {first['images']:,} "
        f"instead of {first['devkit']:,}); the manifest lists them"
    )
    return {"miscounted": listed}


def _look_at_sizes(archives: Sequence[StorePath], classes: int) -> None:
    """Warn of archives that bear a published name and have another size."""
    for path in archives if classes == _CLASSES else ():
        size = path.stat().size
        for name, published in PUBLISHED:
            if path.name == name and size != published:
                warn(
                    f"ingest: {path} has {size:,} bytes, the published archive {published:,}: it "
                    "is not as it was published"
                )


def _check_md5(path: StorePath) -> None:
    """Read an archive as a whole. Raises DataError unless it is one that was published."""
    size = path.stat().size
    published = PUBLISHED.get((path.name, size))
    if published is None:
        raise DataError(
            f"{path} ({size:,} bytes) has not the name and size of an ILSVRC2012 archive, so there "
            "is no published MD5 to compare; leave out --md5"
        )
    md5 = hashlib.md5()
    with Progress(f"md5 {path.name}", size, unit="B") as bar, path.open() as file:
        while piece := file.read(_PIECE):
            md5.update(piece)
            bar.update(len(piece))
    if md5.hexdigest() != published:
        raise DataError(
            f"{path} has the name and size of the ILSVRC2012 archive but MD5 {md5.hexdigest()}, "
            f"not {published}; download it again"
        )
