"""What entries of the ILSVRC archives are called, and what their headers must be like.

train is a tar of class tars, val a tar of images.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import PurePosixPath

from percmae.data.devkit import Devkit, require
from percmae.data.tars import AGAIN, check_ends
from percmae.errors import DataError
from percmae.storage import StorePath

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_OF_CLASS = re.compile(r"(n\d{8})_")
_VAL_IMAGE = re.compile(r"(ILSVRC2012_val_(\d{8}))\.[A-Za-z0-9]+")
# A class of the real data set may lack this share of its images before it is an error.
_TOLERATED = 0.1


def look_at_archive(path: StorePath, role: str) -> None:
    """Raise DataError unless the file is there and begins and ends as a tar does.

    Two small reads, so that the commonest faults, a download cut short and a file that is something
    else, show at once.
    """
    size = require(path, role).stat().size
    with path.open() as file:
        check_ends(file, size, f"{path} ({role})")


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
