"""Sample archives: real images in the very form of the ILSVRC2012 downloads.

So that everything after the download is the same for the newcomer and for ImageNet, and can be
tried in minutes. The three files bear the real names; ``torchvision.datasets.ImageNet`` reads them.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from percmae.data.archives import ARCHIVES
from percmae.data.decode import Once, telling
from percmae.data.devkit import GROUND_TRUTH, META
from percmae.data.sample_sources import DEFAULT_SOURCE, SOURCES, Source, fingerprint, load_source
from percmae.errors import DataError, StoreAccessError
from percmae.progress import Progress, warn
from percmae.storage import StorePath, local_path
from percmae.storage.outage import outage

__all__ = ["SOURCES", "SampleArchives", "make_sample_archives", "put_sample_archives"]

_RECORD = "sample.json"
_FORMAT = "percmae-sample/1"
_DEVKIT = ARCHIVES["devkit"].removesuffix(".tar.gz")
_FIELDS = (
    "ILSVRC2012_ID",
    "WNID",
    "words",
    "gloss",
    "num_children",
    "children",
    "wordnet_height",
    "num_train_images",
)


@dataclass(frozen=True)
class SampleArchives:
    """Paths of the three archives; ``reused`` when they were there already."""

    train: Path
    val: Path
    devkit: Path
    reused: bool

    def uris(self) -> dict[str, str]:
        """As ``percmae.ingest.ingest`` takes them."""
        return {"train": str(self.train), "val": str(self.val), "devkit": str(self.devkit)}


def make_sample_archives(out: str | Path, source: str = DEFAULT_SOURCE) -> SampleArchives:
    """Write ILSVRC archives of real images into the directory ``out``.

    source: one of SOURCES, or a folder with one folder of images a class (optionally below
    ``train`` and ``val``). The same source again changes nothing. Raises DataError for an unknown
    source, one that cannot be had here, or archives in ``out`` that were not made by this.
    """
    folder = local_path(out, "--out").resolve()
    train, val, devkit = paths = tuple(folder / name for name in ARCHIVES.values())
    record = _record(source)
    if _is_made(StorePath(folder), record):
        return SampleArchives(train, val, devkit, reused=True)
    StorePath(folder).prepare()
    with _scratch(folder) as scratch, telling(Once(warn)):
        images = load_source(source, Path(scratch))
        # Without sizes: while the archives are replaced, old and new may be mixed.
        _write_record(folder / _RECORD, record)
        with Progress(f"sample {source}", len(images.train) + len(images.val), "img") as bar:
            val_labels = _write_val(val, images, bar)
            _write_train(train, images, bar)
        _write_devkit(devkit, images, val_labels)
    _write_record(folder / _RECORD, record | {"sizes": [p.stat().st_size for p in paths]})
    return SampleArchives(train, val, devkit, reused=False)


def _scratch(folder: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(dir=folder, prefix=".download-")
    except OSError as error:
        raise StoreAccessError(f"cannot write in {folder}: {error.strerror}") from None


@outage()
def put_sample_archives(out: StorePath, source: str = DEFAULT_SOURCE) -> bool:
    """The same archives below an address in a store; whether they were there already.

    They are made on this machine first, in a folder that goes again. Raises what
    :func:`make_sample_archives` does, and StoreError.
    """
    record = _record(source)
    if _is_made(out, record):
        return True
    with tempfile.TemporaryDirectory(prefix="percmae-sample-") as scratch:
        made = make_sample_archives(scratch, source)
        (out / _RECORD).write_json(record)  # without sizes, as on a disk
        paths = (made.train, made.val, made.devkit)
        for path in paths:
            (out / path.name).write_file(path)
        (out / _RECORD).write_json(record | {"sizes": [path.stat().st_size for path in paths]})
    return False


def _record(source: str) -> dict[str, Any]:
    return {"format": _FORMAT, "source": source, "fingerprint": fingerprint(source)}


def _is_made(folder: StorePath, wanted: dict[str, Any]) -> bool:
    """Whether the archives are there as recorded; DataError if others lie in their place."""
    paths, record = [folder / name for name in ARCHIVES.values()], folder / _RECORD
    if record.exists():
        sizes = [path.stat().size if path.exists() else None for path in paths]
        try:
            return bool(json.loads(record.read_bytes()) == wanted | {"sizes": sizes})
        except ValueError:
            raise DataError(f"{record} is damaged; delete it, or choose another --out") from None
    for path in paths:
        if path.exists():
            raise DataError(f"{path} was not written by sample-data; choose another --out")
    return False


def _write_record(path: Path, values: dict[str, Any]) -> None:
    with StorePath(path).create() as file:
        file.write(json.dumps(values, indent=1).encode())


def _write_train(path: Path, source: Source, bar: Progress) -> None:
    """A tar of one tar a class: ``n########.tar`` of ``n########_<number>.JPEG``."""
    with StorePath(path).create() as file, _tar(file) as outer:
        for label, (wnid, _) in enumerate(source.classes):
            buffer = io.BytesIO()
            with _tar(buffer) as inner:
                mine = (picture for picture in source.train if picture.label == label)
                for number, picture in enumerate(mine, start=1):
                    _add(inner, f"{wnid}_{number}.JPEG", picture.jpeg())
                    bar.update()
            _add(outer, f"{wnid}.tar", buffer.getvalue())


def _write_val(path: Path, source: Source, bar: Progress) -> list[int]:
    """Validation images, classes mixed as in the real archive; gives their labels in order."""
    mixed = sorted(enumerate(source.val), key=lambda pair: _hash(pair[0]))
    with StorePath(path).create() as file, _tar(file) as tar:
        for number, (_, picture) in enumerate(mixed, start=1):
            _add(tar, f"ILSVRC2012_val_{number:08d}.JPEG", picture.jpeg())
            bar.update()
    return [picture.label for _, picture in mixed]


def _write_devkit(path: Path, source: Source, val_labels: list[int]) -> None:
    ids = _ilsvrc_ids(len(source.classes))
    counts = np.bincount([p.label for p in source.train], minlength=len(source.classes))
    truth = "".join(f"{ids[label]}\n" for label in val_labels)
    with (
        StorePath(path).create() as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed,
        _tar(packed) as tar,
    ):
        _add(tar, f"{_DEVKIT}/{META}", _meta_mat(source.classes, ids, counts.tolist()))
        _add(tar, f"{_DEVKIT}/{GROUND_TRUTH}", truth.encode())


def _ilsvrc_ids(classes: int) -> list[int]:
    """ILSVRC2012_ID of each class. As in the real devkit, not in the order of the wnids, so that
    a reader who takes the one order for the other is found out."""
    order = sorted(range(classes), key=_hash)
    return [order.index(label) + 1 for label in range(classes)]


def _meta_mat(classes: list[tuple[str, str]], ids: list[int], counts: list[int]) -> bytes:
    """meta.mat: a struct array of the classes and, after them, of the nodes above them."""
    from scipy.io import savemat

    none = np.zeros((1, 0))
    leaves = [
        (number, wnid, words, f"images of {words}", 0, none, 0, count)
        for number, (wnid, words), count in zip(ids, classes, counts, strict=True)
    ]
    half, last = len(ids) // 2, len(ids)
    nodes = [
        (last + 1, "n99000001", "first half", "inner node", half, sorted(ids)[:half], 1, 0),
        (last + 2, "n99000002", "second half", "inner node", last - half, sorted(ids)[half:], 1, 0),
        (last + 3, "n99000003", "whole", "root", 2, [last + 1, last + 2], 2, 0),
    ]
    table = np.empty((last + 3, 1), dtype=[(name, object) for name in _FIELDS])
    rows = sorted(leaves) + [n for n in nodes if n[4]]
    for row, values in enumerate(rows):
        table[row, 0] = values
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": table[: len(rows)]})
    # The first 116 bytes of a MAT-file are free text, into which scipy writes the time of day.
    return b"MATLAB 5.0 MAT-file, percmae".ljust(116) + buffer.getvalue()[116:]


def _hash(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def _tar(file: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)  # no time, no owner: the same images give the same bytes
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))
