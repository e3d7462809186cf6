"""The ILSVRC archives, listed by their headers: train, a tar of class tars, val, and the devkit."""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from percmae.config import FORMATS
from percmae.data.decode import check_formats
from percmae.data.devkit import Devkit, read_devkit
from percmae.data.imagenet import check_count, class_of, look_at_archive, train_key, val_number
from percmae.data.tars import Oddities, check_ends, members, open_tar
from percmae.errors import DataError
from percmae.ingest.catalogue import BY_HASH, TEST
from percmae.ingest.sources.files import Files, check_size, shown, stamp
from percmae.ingest.sources.listed import Archived, in_order
from percmae.ingest.sources.tar_members import Section
from percmae.storage import Stat, StorePath

_SIDE_BY_SIDE = 16
_TRAIN, _VAL = 0, 1  # numbers of the archives


@dataclass
class Ilsvrc(Archived):
    """A Catalogue of the ILSVRC archives; validation images are the test split."""

    found: Sequence[int] = ()
    """Number of training images of each class."""
    due: Sequence[int] = ()
    """The same as the devkit has it; 0 where it does not say."""

    def name(self, row: int) -> str:
        """The image as a message names it: ``n01440764.tar/n01440764_10026.JPEG``."""
        return shown(self.files.name(int(self.order[row])))


def open_ilsvrc(
    train: str, val: str, devkit: str, *, subset: bool = False, formats: Sequence[str] = FORMATS
) -> Ilsvrc:
    """List the images of ILSVRC archives by their headers, all of which are read.

    train, val, devkit: paths or ``s3://bucket/key``. subset: with the devkit of the real ILSVRC,
    classes may hold far fewer images than it says. formats: of images that will be opened; files
    are images here whatever their ending.

    Raises DataError for archives that are absent, truncated, unsafe or do not belong together, for
    an image that comes twice, and for a class of the real ILSVRC that lacks more than a tenth of
    its images; UserError for a format that there is not; StoreError as the store has it.
    """
    check_formats(formats)
    paths = [StorePath(train), StorePath(val)]
    kit = read_devkit(StorePath(devkit))
    for role, path in zip(("train", "val"), paths, strict=True):
        look_at_archive(path, role)
    stats = [path.stat() for path in paths]
    odd = Oddities()
    # The small one first: what is wrong shows early.
    tests = _list_val(paths[_VAL], stats[_VAL], kit, odd)
    trains = _list_train(paths[_TRAIN], stats[_TRAIN], kit, odd, subset)
    files, keys, labels = Files(), [], []
    for number, parts in ((_TRAIN, trains), (_VAL, [tests])):
        for part in parts:
            files.extend(part.files, number)
            keys.append(part.keys)
            labels.append(part.labels)
    label = np.concatenate(labels)
    trained = np.frombuffer(files.archives, np.int32) == _TRAIN
    splits = np.where(trained, BY_HASH, TEST)

    def twice(first: int, second: int) -> DataError:
        return DataError(f"{shown(files.name(first))} and {shown(files.name(second))} are the same")

    every = (key for part in keys for key in part.tolist())
    columns, order = in_order(files, every, label, splits, twice)
    md5 = hashlib.md5(StorePath(devkit).read_bytes()).hexdigest()
    return Ilsvrc(
        kit.classes,
        columns,
        [
            identity("train", paths[_TRAIN], stats[_TRAIN]),
            identity("val", paths[_VAL], stats[_VAL]),
            identity("devkit", StorePath(devkit), StorePath(devkit).stat()) | {"md5": md5},
        ],
        list(odd.lines()),
        paths[_TRAIN].parent,
        files,
        order,
        paths,
        [path.name for path in paths],
        np.bincount(label[trained], minlength=len(kit.classes)).tolist(),
        kit.train_images.tolist(),
    )


class _Part(NamedTuple):
    """Images of one class, or of validation: keys bytes (n,), labels int32 (n,)."""

    files: Files
    keys: np.ndarray
    labels: np.ndarray


class _ClassTar(NamedTuple):
    wnid: str
    name: str
    offset: int
    size: int


def _list_train(
    path: StorePath, stat: Stat, devkit: Devkit, odd: Oddities, subset: bool
) -> Iterator[_Part]:
    tars = list(_class_tars(path, devkit, odd))

    def look(tar: _ClassTar) -> tuple[_Part, Oddities]:
        return _list_class(path, stat, tar, devkit, subset)

    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        for part, own in pool.map(look, tars):
            odd.add(own)
            yield part


def _class_tars(path: StorePath, devkit: Devkit, odd: Oddities) -> Iterator[_ClassTar]:
    """The class archives: known, unique, all there. Raises DataError."""
    source, seen = str(path), set()
    with path.open() as file, open_tar(file, "r:", source) as tar:
        for member in members(tar, source, odd):
            wnid = class_of(member, source, devkit.labels)
            if wnid in seen:
                raise DataError(f"{source}: class archive {member.name} comes twice")
            seen.add(wnid)
            yield _ClassTar(wnid, member.name, member.offset_data, member.size)
    missing = [c.wnid for c in devkit.classes if c.wnid not in seen]
    if missing:
        raise DataError(
            f"{source} lacks {len(missing)} of the devkit's {len(devkit.classes)} classes (first: "
            f"{missing[0]}); do train archive and devkit belong together?"
        )


def _list_class(
    path: StorePath, stat: Stat, tar: _ClassTar, devkit: Devkit, subset: bool
) -> tuple[_Part, Oddities]:
    inside, odd = f"{path} → {tar.name}", Oddities()
    files, keys = Files(), dict[str, None]()
    with path.open() as file:
        part = cast(BinaryIO, io.BufferedReader(Section(file, tar.offset, tar.size)))
        check_ends(part, tar.size, inside, may_be_empty=True)
        part.seek(0)
        with open_tar(part, "r:", inside) as images:
            for image in members(images, inside, odd):
                key = train_key(image, tar.wnid, inside, devkit.labels)
                if key in keys:
                    raise DataError(f"{inside}: image {image.name} comes twice")
                keys[key] = None
                check_size(f"{inside} → {image.name}", image.size)
                _add(
                    files,
                    f"{tar.name}/{image.name}",
                    stat,
                    tar.offset + image.offset_data,
                    image.size,
                )
    if not subset:
        check_count(len(keys), tar.wnid, inside, devkit)
    label = devkit.labels[tar.wnid]
    return _Part(files, np.array([*keys], "S"), np.full(len(keys), label, np.int32)), odd


def _list_val(path: StorePath, stat: Stat, devkit: Devkit, odd: Oddities) -> _Part:
    source, files = str(path), Files()
    keys, labels = dict[str, None](), array("i")
    with path.open() as file, open_tar(file, "r:", source) as tar:
        for member in members(tar, source, odd):
            key, number = val_number(member, source, devkit)
            if key in keys:
                raise DataError(f"the test archive holds {key} twice; is it damaged?")
            keys[key] = None
            check_size(f"{source} → {member.name}", member.size)
            _add(files, member.name, stat, member.offset_data, member.size)
            labels.append(int(devkit.val_labels[number - 1]))
    due = len(devkit.val_labels)
    if len(keys) != due:
        raise DataError(
            f"{source} holds {len(keys):,} images, the devkit's ground truth {due:,} lines; do the "
            "two belong together?"
        )
    return _Part(files, np.array([*keys], "S"), np.array(labels, np.int32))


def _add(files: Files, name: str, stat: Stat, offset: int, size: int) -> None:
    path = name.encode("utf-8", "surrogateescape")
    files.add(path, size, stamp(stat.etag, offset, size), offset, size)


def identity(role: str, path: StorePath, stat: Stat) -> dict[str, object]:
    """What tells one archive from another without reading it."""
    return {"role": role, "name": path.name, "size": stat.size, "etag": stat.etag}
