"""The ILSVRC2012 devkit: classes, labels of the validation images, number of training images."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from percmae.data.shards import ClassInfo
from percmae.data.tars import AGAIN, check_inside, check_plain, extract, what_is
from percmae.errors import DataError
from percmae.storage import StorePath

META, GROUND_TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"

_LARGEST_FILE = 64 * 2**20
# Classes and training images of the published data set.
_ILSVRC = (1000, 1_281_167)


@dataclass(frozen=True)
class Devkit:
    """What the devkit says: the classes, and the label of each validation image.

    classes: sorted by wnid, so that a label is what torchvision.datasets.ImageNet makes of it.
    val_labels: int64 (n,), for ILSVRC2012_val_00000001 onwards. train_images: number of training
    images of each class, int64 (classes,); 0 where the devkit does not say.
    """

    classes: list[ClassInfo]
    val_labels: np.ndarray
    train_images: np.ndarray

    @cached_property
    def labels(self) -> dict[str, int]:
        """wnid → label."""
        return {c.wnid: label for label, c in enumerate(self.classes)}

    @property
    def is_ilsvrc(self) -> bool:
        """Whether it is the devkit of the real data set, so that its numbers can be relied upon."""
        return (len(self.classes), int(self.train_images.sum())) == _ILSVRC


def read_devkit(path: StorePath) -> Devkit:
    """Read ``ILSVRC2012_devkit_t12.tar.gz`` (about 2.5 MB; plain or otherwise compressed will do).

    Raises DataError where it is absent, not a devkit, damaged, or contradicts itself.
    """
    size = require(path, "devkit").stat().size
    if size > _LARGEST_FILE:
        raise DataError(f"{path} is not a devkit archive: {size:,} bytes, about 2.5 MB are due")
    files = _files(path.read_bytes(), path)
    for wanted in (META, GROUND_TRUTH):
        if wanted not in files:
            raise DataError(f"{path} is not an ILSVRC2012 devkit: it lacks {wanted}")
    synsets = _parse_meta(files[META], path)
    classes = [ClassInfo(wnid, name) for wnid, name, _, _ in synsets]
    train_images = np.array([images for *_, images in synsets], dtype=np.int64)
    label_of = {id_: label for label, (_, _, id_, _) in enumerate(synsets)}
    return Devkit(classes, _parse_truth(files[GROUND_TRUTH], label_of, path), train_images)


def require(path: StorePath, role: str) -> StorePath:
    """The path itself; raises DataError if no file is there."""
    if path.exists():
        return path
    if not path.is_s3 and Path(path.uri).is_dir():
        raise DataError(f"{role} archive {path} is a folder; give the archive as it was downloaded")
    raise DataError(f"{role} archive {path} does not exist; check the path or URI")


def _files(data: bytes, path: StorePath) -> dict[str, bytes]:
    """The two files that are used, by their names in the devkit."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as tar:
            for member in tar:
                check_inside(member.name, str(path))
                wanted = next((f for f in (META, GROUND_TRUTH) if _ends(member.name, f)), None)
                if wanted:
                    check_plain(member, str(path))
                    if member.size > _LARGEST_FILE:
                        raise DataError(f"{path}: {member.name} is too large for a devkit")
                    files[wanted] = extract(tar, member).read()
    except DataError:
        raise
    except Exception as error:  # each decompressor raises errors of its own
        # tarfile lists what it tried, in lines.
        reason = (str(error) or repr(error)).splitlines()[0].rstrip(":")
        found = what_is(data)
        if found and not found[0].startswith("compressed"):
            raise DataError(f"{path} is {found[0]}, not a devkit archive; {found[1]}") from None
        raise DataError(f"{path} is not a devkit archive (tar.gz): {reason}; {AGAIN}") from None
    return files


def _ends(name: str, path: str) -> bool:
    return name == path or name.endswith("/" + path)


def _parse_meta(data: bytes, path: StorePath) -> list[tuple[str, str, int, int]]:
    """(wnid, name, ILSVRC2012_ID, training images) of the synsets without children, by wnid."""
    from scipy.io import loadmat

    try:
        table = np.atleast_1d(loadmat(io.BytesIO(data), squeeze_me=True)["synsets"])
        counted = "num_train_images" in (table.dtype.names or ())
        synsets = sorted(
            (
                str(s["WNID"]),
                str(s["words"]).split(", ")[0],
                int(s["ILSVRC2012_ID"]),
                int(s["num_train_images"]) if counted else 0,
            )
            for s in table
            if int(s["num_children"]) == 0
        )
    except Exception as error:  # scipy raises whatever a damaged file leads it to
        raise DataError(f"{path}: {META} is not the ILSVRC2012 synset table: {error}") from None
    if not synsets or any(len({s[k] for s in synsets}) != len(synsets) for k in (0, 2)):
        raise DataError(f"{path}: {META} holds no classes, or one twice")
    return synsets


def _parse_truth(data: bytes, label_of: dict[int, int], path: StorePath) -> np.ndarray:
    """label_of: label of each ILSVRC2012_ID."""
    labels: list[int] = []
    for line, text in enumerate(data.decode("ascii", "replace").split(), start=1):
        label = label_of.get(int(text)) if text.isdigit() and len(text) < 10 else None
        if label is None:
            raise DataError(
                f"{path}: {GROUND_TRUTH} line {line}: label {text[:20]!r} has no synset"
            )
        labels.append(label)
    if not labels:
        raise DataError(f"{path}: {GROUND_TRUTH} is empty")
    return np.array(labels, dtype=np.int64)
