"""ILSVRC image archives: train, a tar of class tars, and val, a tar of images.

Nothing is unpacked to disk. What a look at the headers can tell comes first, in small reads. Then
the images are read strictly from front to back, so that an MD5 can be taken on the way, and every
sample comes with the position at which reading can go on.
"""

from __future__ import annotations

import itertools
import re
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from percmae.data.devkit import Devkit, require
from percmae.data.tars import (
    AGAIN,
    BLOCK,
    LARGEST_IMAGE,
    Oddities,
    check_ends,
    extract,
    members,
    open_tar,
)
from percmae.errors import DataError
from percmae.storage import StorePath

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_OF_CLASS = re.compile(r"(n\d{8})_")
_VAL_IMAGE = re.compile(r"(ILSVRC2012_val_(\d{8}))\.[A-Za-z0-9]+")
_LOOKED_AT = 100  # of the val archive's entries, before it is read
# A class of the real data set may lack this share of its images before it is an error.
_TOLERATED = 0.1


class Position(NamedTuple):
    """Where reading goes on: byte offset of a header in the archive, files to skip from there."""

    offset: int = 0
    skip: int = 0


START = Position()


class ArchivedImage(NamedTuple):
    """One image file of an archive; ``member`` is its path there, for messages."""

    key: str
    label: int
    data: bytes
    member: str
    after: Position


def look_at_archive(path: StorePath, role: str) -> None:
    """Raise DataError unless the file is there and begins and ends as a tar does.

    Two small reads, so that the commonest faults, a download cut short and a file that is something
    else, show at once.
    """
    size = require(path, role).stat().size
    with path.open() as file:
        check_ends(file, size, f"{path} ({role})")


def look_at_train(path: StorePath, devkit: Devkit, subset: bool = False) -> None:
    """Look at the headers of the class archives: safe, known, unique, all there, each of them a tar
    with a first image and an end.

    One or two small reads a class, before the hours that the images take. subset: see
    :func:`train_images`. Raises DataError.
    """
    source, odd, labels = str(path), Oddities(), devkit.labels
    seen: set[str] = set()
    with path.open() as file, open_tar(file, "r:", source) as tar:
        for member in members(tar, source, odd):
            wnid = class_of(member, source, labels)
            if wnid in seen:
                raise DataError(f"{source}: class archive {member.name} comes twice")
            seen.add(wnid)
            empty = _look_at_class(extract(tar, member), member.size, wnid, source, devkit)
            if empty and not subset:
                check_count(0, wnid, f"{source} → {member.name}", devkit)
    missing = [c.wnid for c in devkit.classes if c.wnid not in seen]
    if missing:
        raise DataError(
            f"{source} lacks {len(missing)} of the devkit's {len(devkit.classes)} classes (first: "
            f"{missing[0]}); do train archive and devkit belong together?"
        )


def _look_at_class(file: Any, size: int, wnid: str, source: str, devkit: Devkit) -> bool:
    """Look at the first image's header and the end of a class archive; whether it holds none."""
    inside = f"{source} → {wnid}.tar"
    try:
        check_ends(file, size, inside, may_be_empty=True)
        file.seek(0)
        with open_tar(file, "r:", inside) as tar:
            first = next(members(tar, inside, Oddities()), None)
    except tarfile.TarError as error:  # the outer archive ends before this one
        raise DataError(f"{inside} is truncated ({error}); {AGAIN}") from None
    if first is not None:
        train_key(first, wnid, inside, devkit.labels)
    return first is None


def look_at_val(path: StorePath, devkit: Devkit) -> None:
    """Look at the headers of the first images. Raises DataError."""
    source = str(path)
    with path.open() as file, open_tar(file, "r:", source) as tar:
        for member in itertools.islice(members(tar, source, Oddities()), _LOOKED_AT):
            val_number(member, source, devkit)


def train_images(
    stream: BinaryIO,
    source: str,
    devkit: Devkit,
    start: Position,
    odd: Oddities,
    subset: bool = False,
) -> Iterator[ArchivedImage]:
    """Images of a train archive, in its order.

    stream: positioned at ``start.offset``; source: the archive's name for messages; odd: what is no
    fault is counted there. subset: the archive may hold fewer images than the real ILSVRC. Raises
    DataError for an unknown class, an unsafe entry, an image of another class, a truncated archive,
    and for a class of the real ILSVRC that lacks more than a tenth of its images.
    """
    labels = devkit.labels
    with open_tar(stream, "r|", source) as outer:
        for member in members(outer, source, odd):
            wnid = class_of(member, source, labels)
            offset = start.offset + member.offset
            skip = start.skip if member.offset == 0 else 0
            inside = f"{source} → {member.name}"
            keys: set[str] = set()
            with open_tar(extract(outer, member), "r|", inside) as inner:
                for number, image in enumerate(members(inner, inside, odd)):
                    key = train_key(image, wnid, inside, labels)
                    if key in keys:
                        raise DataError(f"{inside}: image {image.name} comes twice")
                    keys.add(key)
                    if number < skip:
                        continue
                    data = _read_image(inner, image, inside)
                    place = Position(offset, number + 1)
                    path = f"{member.name}/{image.name}"
                    yield ArchivedImage(key, labels[wnid], data, path, place)
            if not subset:
                check_count(len(keys), wnid, inside, devkit)


def val_images(
    stream: BinaryIO, source: str, devkit: Devkit, start: Position, odd: Oddities
) -> Iterator[ArchivedImage]:
    """Images of a val archive, in its order; like :func:`train_images`.

    An image's label is the line of the devkit's ground truth that its number names. The caller
    counts them: one image for each line is due.
    """
    with open_tar(stream, "r|", source) as tar:
        for member in members(tar, source, odd):
            key, number = val_number(member, source, devkit)
            data = _read_image(tar, member, source)
            padded = -(-member.size // BLOCK) * BLOCK
            after = Position(start.offset + member.offset_data + padded)
            label = int(devkit.val_labels[number - 1])
            yield ArchivedImage(key, label, data, member.name, after)


def class_of(member: tarfile.TarInfo, source: str, labels: dict[str, int]) -> str:
    """The wnid of a class archive. Raises DataError for what is none, or of no known class."""
    path = PurePosixPath(member.name)
    if path.suffix != ".tar":
        raise DataError(
            f"{source}: entry {member.name!r} is not a class archive (n########.tar); a train "
            "archive is a tar of one tar for each class"
        )
    if path.stem not in labels:
        raise DataError(f"{source}: class {path.stem} has no synset in the devkit")
    return path.stem


def train_key(image: tarfile.TarInfo, wnid: str, inside: str, labels: dict[str, int]) -> str:
    """Key of a training image. Raises DataError for one of another class, and a strange name."""
    stem = PurePosixPath(image.name).stem.replace(".", "_")
    other = _OF_CLASS.match(stem)
    if other and other[1] != wnid and other[1] in labels:
        raise DataError(f"{inside}: image {image.name} is named as one of class {other[1]}")
    key = stem if stem.startswith(f"{wnid}_") else f"{wnid}_{stem}"
    if not _KEY.fullmatch(key):
        raise DataError(
            f"{inside}: {image.name!r} is no name for an image; ILSVRC has n########_<number>.JPEG"
        )
    return key


def val_number(member: tarfile.TarInfo, source: str, devkit: Devkit) -> tuple[str, int]:
    """(key, number) of a validation image, which counts from 1. Raises DataError for another."""
    match = _VAL_IMAGE.fullmatch(PurePosixPath(member.name).name)
    number = int(match[2]) if match else 0
    if not match or not 1 <= number <= len(devkit.val_labels):
        raise DataError(
            f"{source}: {member.name} has no line in the devkit's ground truth "
            f"({len(devkit.val_labels):,} lines); do the two belong together?"
        )
    return match[1], number


def check_count(found: int, wnid: str, inside: str, devkit: Devkit) -> None:
    """Raise DataError where a class of the real data set is far from its number of images."""
    due = int(devkit.train_images[devkit.labels[wnid]])
    if devkit.is_ilsvrc and abs(found - due) > _TOLERATED * due:
        raise DataError(
            f"{inside} holds {found:,} images, the devkit says {due:,}; {AGAIN}, or give --subset "
            "if it is meant so"
        )


def _read_image(tar: tarfile.TarFile, member: tarfile.TarInfo, source: str) -> bytes:
    if member.size > LARGEST_IMAGE:
        raise DataError(f"{source}: {member.name} has {member.size:,} bytes; not an image")
    try:
        data: bytes = extract(tar, member).read()
    except tarfile.TarError:
        data = b""
    if len(data) != member.size:
        raise DataError(f"{source} is truncated within {member.name}; {AGAIN}")
    return data
