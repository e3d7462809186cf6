"""The image files of a zip by its directory, each checked."""

from __future__ import annotations

import stat as modes
import struct
import zipfile
from typing import BinaryIO

from percmae.data.tars import AGAIN, check_inside, what_is
from percmae.errors import DataError
from percmae.ingest.sources.files import check_size, stamp
from percmae.ingest.sources.tar_members import Members, plain_name
from percmae.storage import StorePath

_HEADER = struct.Struct("<4s22xHH")  # of a member: signature, lengths of its name and extra field
_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED, _UTF8 = 0x1, 0x800
_KNOWN_METHODS = {9: "deflate64", 12: "bzip2", 14: "LZMA", 93: "zstd", 95: "xz", 99: "AES"}


def list_zip(path: StorePath, title: str, endings: frozenset[bytes]) -> Members:
    """Image files of a zip, with their places, reading its directory and each image's header.

    Members may be stored or deflated. Raises DataError for what is no zip or is cut short, for an
    unsafe entry (outside of the archive, a link, encrypted, overlapping another), another method
    and an image that is too large.
    """
    found = Members.of(path, endings)
    with path.open() as file:
        try:
            with zipfile.ZipFile(file) as archive:
                entries, end = archive.infolist(), archive.start_dir
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            file.seek(0)
            what, cure = what_is(file.read(512)) or ("", AGAIN)
            if what and "zip" not in what:
                raise DataError(f"{title} is {what}, not a zip; {cure}") from None
            raise DataError(f"{title} is not a readable zip: {error}; {AGAIN}") from None
        entries.sort(key=lambda entry: entry.header_offset)
        ends = [entry.header_offset for entry in entries[1:]] + [end]
        for entry, next_one in zip(entries, ends, strict=True):
            _add(found, file, entry, next_one, title)
    return found


def _add(found: Members, file: BinaryIO, entry: zipfile.ZipInfo, end: int, title: str) -> None:
    name = _name(entry)
    check_inside(name, title)
    if name.endswith("/"):
        return
    if modes.S_ISLNK(entry.external_attr >> 16):
        raise DataError(
            f"{title}: entry {name!r} is a link or device, not a file with an image in it; do not "
            "unpack it, use an archive of files alone"
        )
    path = plain_name(name).encode("utf-8", "surrogateescape")
    if not found.sieve.takes(path):
        return
    _check(entry, name, title)
    start = _data_offset(file, entry, name, title)
    if start + entry.compress_size > end:
        raise DataError(
            f"{title}: entry {name!r} reaches into what follows it: damaged, or made to fill a "
            f"disk; {AGAIN}"
        )
    found.files.add(
        path,
        entry.file_size,
        stamp(found.etag, start, entry.compress_size, entry.CRC),
        start,
        entry.compress_size,
        entry.compress_type == zipfile.ZIP_DEFLATED,
    )


def _name(entry: zipfile.ZipInfo) -> str:
    """The path, with slashes, of an entry.

    Some programs of Windows write backslashes, and some (of macOS, for one) write UTF-8 without
    saying so, where zip's own coding would be due.
    """
    name = entry.filename
    if not entry.flag_bits & _UTF8 and not name.isascii():
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = entry.filename
    return name.replace("\\", "/")


def _check(entry: zipfile.ZipInfo, name: str, title: str) -> None:
    if entry.flag_bits & _ENCRYPTED:
        raise DataError(f"{title}: entry {name!r} is encrypted; unpack it and give the folder")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = _KNOWN_METHODS.get(entry.compress_type, f"method {entry.compress_type}")
        raise DataError(
            f"{title}: entry {name!r} is compressed by {method}, and only stored and deflated ones "
            "are read; pack it again, or unpack it and give the folder"
        )
    if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
        raise DataError(f"{title}: entry {name!r} contradicts itself in its size; {AGAIN}")
    check_size(f"{title} → {name}", max(entry.file_size, entry.compress_size))


def _data_offset(file: BinaryIO, entry: zipfile.ZipInfo, name: str, title: str) -> int:
    file.seek(entry.header_offset)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_SIGNATURE):
        raise DataError(f"{title}: entry {name!r} is not where the directory has it; {AGAIN}")
    _, name_bytes, extra_bytes = _HEADER.unpack(header)
    offset: int = entry.header_offset + _HEADER.size + name_bytes + extra_bytes
    return offset
