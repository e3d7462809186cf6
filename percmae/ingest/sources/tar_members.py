"""The image files of a tar by its headers, and the labels that WebDataset puts beside them."""

from __future__ import annotations

import json
import sys
import tarfile
from array import array
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from percmae.data.tars import check_ends, extract, members, open_tar
from percmae.errors import DataError
from percmae.ingest.catalogue import UNLABELLED
from percmae.ingest.sources.classes import Labels
from percmae.ingest.sources.files import Files, Sieve, check_size, stamp
from percmae.storage import StorePath
from percmae.storage.stream import Positioned

_LABEL_ENDINGS = (".cls", ".json")  # the first, by the alphabet too, goes before the second
_LARGEST_LABEL = 1 << 20


class Section(Positioned):
    """A part of a seekable file as a file of its own, as an archive in an archive is."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        super().__init__(size)
        self._file, self._start = file, start

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._position))
        self._file.seek(self._start + self._position)
        data = self._file.read(count)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


@dataclass
class Members:
    """What one archive holds: its image files, what was left out, and labels of samples."""

    files: Files
    sieve: Sieve
    size: int
    etag: str
    samples: int = 0
    """Image files that have a label's file beside them."""
    labels: Labels = field(default_factory=Labels)
    numbers: array[int] = field(default_factory=lambda: array("i"))
    """Of each image file the label's number, or UNLABELLED; empty for a zip."""

    @classmethod
    def of(cls, path: StorePath, endings: frozenset[bytes]) -> Members:
        """None yet."""
        stat = path.stat()
        return cls(Files(), Sieve(endings), stat.size, stat.etag)


def list_tar(path: StorePath, title: str, endings: frozenset[bytes], labels: bool) -> Members:
    """Image files of a tar, with their places, reading little but its headers.

    title: its name for messages. labels: whether to read what ``.cls`` and ``.json`` say. Raises
    DataError for what is no plain tar, is cut short, holds an unsafe entry or an image that is too
    large, and for an image's label that is none.
    """
    found = Members.of(path, endings)
    beside: dict[str, _Label] = {}
    keys: list[str] = []
    with path.open() as file:
        check_ends(file, found.size, title)
        file.seek(0)
        with open_tar(file, "r:", title) as tar:
            for member in members(tar, title, found.sieve.odd):
                key, ending = sample_of(plain_name(member.name))
                if ending in _LABEL_ENDINGS:
                    if key not in beside or beside[key].ending > ending:
                        label = _read_label(tar, member, ending, title) if labels else None
                        beside[key] = label or _Label(ending)
                elif add_member(found.files, found.sieve, member, title, found.etag):
                    keys.append(key)
    for key in keys:
        number = UNLABELLED
        if key in beside:
            found.samples += 1
            number = found.labels.number(beside[key].text_or_fault())
        found.numbers.append(number)
    for key in sorted(beside.keys() - set(keys)):
        name = (key + beside[key].ending).encode("utf-8", "surrogateescape")
        found.sieve.takes(name)  # which counts it among other files
    return found


def add_member(
    files: Files, sieve: Sieve, member: tarfile.TarInfo, title: str, etag: str, start: int = 0
) -> bool:
    """Take a member that is an image; whether it is. start: of its tar within the object."""
    path = plain_name(member.name).encode("utf-8", "surrogateescape")
    if not sieve.takes(path):
        return False
    check_size(f"{title} → {member.name}", member.size)
    if member.issparse():
        raise DataError(
            f"{title}: entry {member.name!r} is stored with holes (a sparse file); pack the "
            "archive again without --sparse"
        )
    offset = start + member.offset_data
    files.add(path, member.size, stamp(etag, offset, member.size), offset, member.size)
    return True


def plain_name(name: str) -> str:
    """A member's path without what says nothing, such as ``./`` at the beginning."""
    if name.startswith("./") or "//" in name or "/./" in name:
        return "/".join(part for part in name.split("/") if part not in ("", "."))
    return name


def sample_of(name: str) -> tuple[str, str]:
    """(key, ending) of a WebDataset member: what is before and from the file's first dot on."""
    folder, slash, file = name.rpartition("/")
    key, dot, ending = file.partition(".")
    return f"{folder}{slash}{key}", dot + ending.lower()


def label_text(label: object, where: str) -> str:
    """A label as JSON and Parquet have them, as text; empty for none. Raises DataError."""
    if label is None:
        return ""
    if isinstance(label, str):
        return label
    if isinstance(label, int) and not isinstance(label, bool) and label >= 0:
        return str(label)
    raise DataError(
        f"{where}: {label!r} is no label: a word or a whole number from 0 on is due, or nothing "
        "where there is none"
    )


class _Label(NamedTuple):
    """What a label's file says, or what is wrong with it where it belongs to an image."""

    ending: str
    text: str = ""
    """Empty where a JSON has none."""
    fault: DataError | None = None

    def text_or_fault(self) -> str:
        if self.fault is not None:
            raise self.fault
        return self.text


def _read_label(tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str, title: str) -> _Label:
    try:
        return _Label(ending, sys.intern(_parsed(tar, member, ending, f"{title} → {member.name}")))
    except DataError as error:
        return _Label(ending, fault=error)


def _parsed(tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str, where: str) -> str:
    if member.size > _LARGEST_LABEL:
        raise DataError(f"{where} has {member.size:,} bytes, too many for a label")
    data = extract(tar, member).read()
    if ending == ".cls":
        text = data.decode("ascii", "replace").strip()
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise DataError(f"{where}: {text[:20]!r} is no class: a whole number from 0 on is due")
        return str(int(text))
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    return label_text(content.get("label") if isinstance(content, dict) else None, where)
