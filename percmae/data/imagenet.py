"""ILSVRC archives as streams: the devkit, the train archive (a tar of class tars), the val archive.

Nothing is unpacked to disk. Image archives are read strictly from front to back, so that an MD5
can be taken on the way, and every sample comes with the position at which reading can go on.
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from percmae.data.archives import ARCHIVES
from percmae.data.shards import ClassInfo
from percmae.errors import DataError
from percmae.storage import StorePath

# (name, size in bytes) of the published archives and their MD5.
PUBLISHED_MD5 = {
    (ARCHIVES["train"], 147_897_477_120): "1d675b47d978889d74fa0da5fadfb00e",
    (ARCHIVES["val"], 6_744_924_160): "29b22e2961454d5413ddabcf34fc5622",
}
META, GROUND_TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_LARGEST_IMAGE = 256 * 2**20
_LARGEST_DEVKIT_FILE = 64 * 2**20
_BUFFER = 64 * 2**10
_AGAIN = "download it again"


@dataclass(frozen=True)
class Devkit:
    """What the devkit says: the classes, and the label of each validation image.

    classes: sorted by wnid, so that a label is what torchvision.datasets.ImageNet makes of it.
    val_labels: int64 (n,), for ILSVRC2012_val_00000001 onwards.
    """

    classes: list[ClassInfo]
    val_labels: np.ndarray

    @property
    def labels(self) -> dict[str, int]:
        """wnid → label."""
        return {c.wnid: label for label, c in enumerate(self.classes)}


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


def read_devkit(path: StorePath) -> Devkit:
    """Read ``ILSVRC2012_devkit_t12.tar.gz`` (about 2.5 MB).

    Raises DataError where it is absent, not a devkit, damaged, or contradicts itself.
    """
    size = require(path, "devkit").stat().size
    if size > _LARGEST_DEVKIT_FILE:
        raise DataError(f"{path} is not a devkit archive: {size:,} bytes, about 2.5 MB are due")
    data = path.read_bytes()
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as tar:
            for member in tar:
                _check_inside(member, str(path))
                wanted = next((f for f in (META, GROUND_TRUTH) if _ends(member.name, f)), None)
                if wanted:
                    _check_plain(member, str(path))
                    if member.size > _LARGEST_DEVKIT_FILE:
                        raise DataError(f"{path}: {member.name} is too large for a devkit")
                    files[wanted] = _extract(tar, member).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = (
            (str(error) or repr(error)).splitlines()[0].rstrip(":")
        )  # tarfile lists what it tried, in lines
        raise DataError(f"{path} is not a devkit archive (tar.gz): {reason}; {_AGAIN}") from None
    for wanted in (META, GROUND_TRUTH):
        if wanted not in files:
            raise DataError(f"{path} is not an ILSVRC2012 devkit: it lacks {wanted}")
    classes, wnid_of = _parse_meta(files[META], path)
    return Devkit(classes, _parse_truth(files[GROUND_TRUTH], classes, wnid_of, path))


def check_archive(path: StorePath, role: str) -> None:
    """Raise DataError unless the file is there and begins and ends as a tar does.

    Two small reads, so that the commonest fault, a download cut short, shows at once.
    """
    size = require(path, role).stat().size
    head = path.read_bytes(0, min(size, tarfile.BLOCKSIZE)) if size else b""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise DataError(f"{path} ({role}) is not a tar archive; {_AGAIN}") from None
    mark = 2 * tarfile.BLOCKSIZE  # of zeros, at the end of any tar
    if size < mark or size % tarfile.BLOCKSIZE or any(path.read_bytes(size - mark, mark)):
        raise DataError(f"{path} ({role}) is truncated after {size:,} bytes; {_AGAIN}")


def check_train(path: StorePath, devkit: Devkit) -> None:
    """Look at the headers of the class archives only: safe, known, unique, all there.

    Takes one small read a class, before the hours that the images take. Raises DataError.
    """
    seen: set[str] = set()
    with path.open() as file, _open_tar(file, "r:", str(path)) as tar:
        for member in _members(tar, str(path)):
            wnid = _wnid(member, str(path), devkit.labels)
            if wnid in seen:
                raise DataError(f"{path}: class archive {member.name} comes twice")
            seen.add(wnid)
    missing = [c.wnid for c in devkit.classes if c.wnid not in seen]
    if missing:
        raise DataError(
            f"{path} lacks {len(missing)} of the devkit's {len(devkit.classes)} classes (first: "
            f"{missing[0]}); do train archive and devkit belong together?"
        )


def train_images(
    stream: BinaryIO, source: str, devkit: Devkit, start: Position = START
) -> Iterator[ArchivedImage]:
    """Images of a train archive, in its order.

    stream: positioned at ``start.offset``; source: the archive's name for messages. Raises
    DataError for an unknown class, an unsafe entry, or a truncated archive.
    """
    with _open_tar(stream, "r|", source) as outer:
        for member in _members(outer, source):
            wnid = _wnid(member, source, devkit.labels)
            offset = start.offset + member.offset
            skip = start.skip if member.offset == 0 else 0
            inside = f"{source} → {member.name}"
            keys: set[str] = set()
            with _open_tar(_extract(outer, member), "r|", inside) as inner:
                for number, image in enumerate(_members(inner, inside)):
                    stem = PurePosixPath(image.name).stem.replace(".", "_")
                    key = stem if stem.startswith(f"{wnid}_") else f"{wnid}_{stem}"
                    if not _KEY.fullmatch(key):
                        raise DataError(
                            f"{inside}: {image.name!r} is no name for an image; ILSVRC has "
                            "n########_<number>.JPEG"
                        )
                    if key in keys:
                        raise DataError(f"{inside}: image {image.name} comes twice")
                    keys.add(key)
                    if number < skip:
                        continue
                    data = _read_image(inner, image, inside)
                    place = Position(offset, number + 1)
                    path = f"{member.name}/{image.name}"
                    yield ArchivedImage(key, devkit.labels[wnid], data, path, place)


def val_images(
    stream: BinaryIO, source: str, devkit: Devkit, start: Position = START
) -> Iterator[ArchivedImage]:
    """Images of a val archive, in its order; like :func:`train_images`.

    An image's label is the line of the devkit's ground truth that its number names. The caller
    counts them: one image for each line is due.
    """
    with _open_tar(stream, "r|", source) as tar:
        for member in _members(tar, source):
            name = PurePosixPath(member.name).name
            match = _VAL_IMAGE.fullmatch(name)
            number = int(match.group(1)) if match else 0
            if not 1 <= number <= len(devkit.val_labels):
                raise DataError(
                    f"{source}: {member.name} has no line in the devkit's ground truth "
                    f"({len(devkit.val_labels):,} lines); do the two belong together?"
                )
            data = _read_image(tar, member, source)
            padded = -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            after = Position(start.offset + member.offset_data + padded)
            label = int(devkit.val_labels[number - 1])
            yield ArchivedImage(PurePosixPath(name).stem, label, data, member.name, after)


def require(path: StorePath, role: str) -> StorePath:
    """The path itself; raises DataError if nothing is there."""
    if not path.exists():
        raise DataError(f"{role} archive {path} does not exist; check the path or URI")
    return path


class _StrictHeader(tarfile.TarInfo):
    """A header that must be followed by another one or by the end-of-archive mark.

    tarfile takes garbage and a missing rest for the end of an archive without a word.
    """

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _StrictHeader:
        end_of_archive = len(buf) == tarfile.BLOCKSIZE and not any(buf)
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if end_of_archive:
                raise
            raise tarfile.ReadError(f"truncated or damaged ({error})") from None


def _open_tar(stream: Any, mode: Any, source: str) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=stream, mode=mode, tarinfo=_StrictHeader, bufsize=_BUFFER)
    except tarfile.TarError as error:
        raise DataError(f"{source} is not a readable tar: {error}; {_AGAIN}") from None


def _members(tar: tarfile.TarFile, source: str) -> Iterator[tarfile.TarInfo]:
    """Regular files of a tar, each checked."""
    while True:
        try:
            member = tar.next()
        except tarfile.TarError as error:
            raise DataError(f"{source}: {error}; {_AGAIN}") from None
        if member is None:
            return
        # TarFile remembers all it saw, about 1 KB a file, for methods that are not used here.
        tar.members.clear()  # type: ignore[attr-defined]
        _check_inside(member, source)
        _check_plain(member, source)
        if not member.isdir():
            yield member


def _check_inside(member: tarfile.TarInfo, source: str) -> None:
    name = member.name
    if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts:
        raise DataError(
            f"{source}: entry {name!r} points outside the archive; this is not an ILSVRC archive, "
            "do not unpack it"
        )


def _check_plain(member: tarfile.TarInfo, source: str) -> None:
    if not (member.isdir() or member.isreg()):
        raise DataError(
            f"{source}: entry {member.name!r} is a link or device, which no ILSVRC archive holds; "
            "do not unpack it"
        )


def _wnid(member: tarfile.TarInfo, source: str, labels: dict[str, int]) -> str:
    path = PurePosixPath(member.name)
    if path.suffix != ".tar":
        raise DataError(
            f"{source}: entry {member.name!r} is not a class archive (n########.tar); a train "
            "archive is a tar of one tar for each class"
        )
    if path.stem not in labels:
        raise DataError(f"{source}: class {path.stem} has no synset in the devkit")
    return path.stem


def _read_image(tar: tarfile.TarFile, member: tarfile.TarInfo, source: str) -> bytes:
    if member.size > _LARGEST_IMAGE:
        raise DataError(f"{source}: {member.name} has {member.size:,} bytes; not an image")
    try:
        data = _extract(tar, member).read()
    except tarfile.TarError:
        data = b""
    if len(data) != member.size:
        raise DataError(f"{source} is truncated within {member.name}; {_AGAIN}")
    return data


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    file = tar.extractfile(member)
    assert file is not None  # regular files always have one
    return file


def _ends(name: str, path: str) -> bool:
    return name == path or name.endswith("/" + path)


def _parse_meta(data: bytes, path: StorePath) -> tuple[list[ClassInfo], dict[int, str]]:
    """Classes sorted by wnid, and ILSVRC2012_ID → wnid, of the synsets that have no children."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(data), squeeze_me=True)["synsets"]
        leaves = [s for s in np.atleast_1d(synsets) if int(s["num_children"]) == 0]
        wnid_of = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in leaves}
        classes = [ClassInfo(str(s["WNID"]), str(s["words"]).split(", ")[0]) for s in leaves]
    except Exception as error:  # scipy raises whatever a damaged file leads it to
        raise DataError(f"{path}: {META} is not the ILSVRC2012 synset table: {error}") from None
    if not classes or len(set(wnid_of.values())) != len(leaves):
        raise DataError(f"{path}: {META} holds no classes, or one twice")
    return sorted(classes, key=lambda c: c.wnid), wnid_of


def _parse_truth(
    data: bytes, classes: list[ClassInfo], wnid_of: dict[int, str], path: StorePath
) -> np.ndarray:
    label_of = {c.wnid: label for label, c in enumerate(classes)}
    labels: list[int] = []
    for line, text in enumerate(data.decode("ascii", "replace").split(), start=1):
        wnid = wnid_of.get(int(text)) if text.isdigit() else None
        if wnid is None:
            raise DataError(f"{path}: {GROUND_TRUTH} line {line}: label {text!r} has no synset")
        labels.append(label_of[wnid])
    if not labels:
        raise DataError(f"{path}: {GROUND_TRUTH} is empty")
    return np.array(labels, dtype=np.int64)
