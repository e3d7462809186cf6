"""Tar archives from anywhere, read to their last byte: members checked, nothing taken on trust.

tarfile takes a missing rest for the end of an archive, and stops at the first end-of-archive mark.
Here an archive ends with its file. What follows a mark is a further archive (as ``cat a.tar b.tar``
makes one) or an error, and an end without a mark is one.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from percmae.errors import DataError

BLOCK = tarfile.BLOCKSIZE
END_MARK = 2 * BLOCK
"""Bytes of zeros at the end of any tar."""
AGAIN = "download it again"
LARGEST_IMAGE = 256 * 2**20
"""Bytes beyond which a file is no image."""

_BUFFER = 64 * 2**10
# What file managers of macOS, Windows, KDE and Synology leave beside one's files.
_SIDE_NAMES = {
    *(".ds_store", ".localized", ".apdisk", "icon\r"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", ".directory"),
}
_SIDE_FOLDERS = {
    *("__MACOSX", ".AppleDouble", ".Spotlight-V100", ".fseventsd", ".Trashes"),
    *("$RECYCLE.BIN", "System Volume Information", "@eaDir"),
}
# (how a file begins, what it is, what to do)
_OTHER_FILES = (
    (b"\x1f\x8b", "compressed with gzip", "unpack it with gunzip"),
    (b"BZh", "compressed with bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with unzstd"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "unpack it with unlz4"),
    (b"PK\x03\x04", "a zip archive", "make a tar of its content"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "make a tar of its content"),
    (b"Rar!", "a rar archive", "make a tar of its content"),
    (b"version https://git-lfs", "a Git-LFS pointer", "fetch the file itself with git lfs pull"),
    (b"d8:announce", "a torrent file", "download what it names"),
    (b"<", "a web page or an XML message", AGAIN),
)


@dataclass
class Oddities:
    """What is no fault, but worth a line: files that were skipped, archives behind archives."""

    side_files: int = 0
    first_side_file: str = ""
    joined: list[str] = field(default_factory=list)

    def skip(self, name: str) -> None:
        """Count a side file."""
        self.side_files += 1
        self.first_side_file = self.first_side_file or name

    def add(self, other: Oddities) -> None:
        """Count those of another archive, which comes behind, as well."""
        self.side_files += other.side_files
        self.first_side_file = self.first_side_file or other.first_side_file
        self.joined += other.joined

    def lines(self) -> Iterator[str]:
        """A line for each kind, with the number and the first."""
        if self.side_files:
            yield (
                f"skipped {self.side_files:,} side file(s) of macOS, Windows or a NAS (first: "
                f"{self.first_side_file})"
            )
        if self.joined:
            more = f" (and {len(self.joined) - 1:,} more such)" if len(self.joined) > 1 else ""
            yield f"{self.joined[0]} is several archives, one behind the other: all read{more}"


def what_is(head: bytes) -> tuple[str, str] | None:
    """What a file is that begins like this and is no tar, and what to do; None if unknown."""
    text = head.lstrip().lower()
    for start, what, cure in _OTHER_FILES:
        if head.startswith(start) or (start == b"<" and text.startswith(start)):
            return what, cure
    return None


def check_head(head: bytes, source: str) -> None:
    """Raise DataError unless a tar begins like this (one block)."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        what, cure = what_is(head) or ("", AGAIN)
        reason = f"is {what}, not a plain tar" if what else "is not a tar archive"
        raise DataError(f"{source} {reason}; {cure}") from None


def check_ends(file: Any, size: int, source: str, may_be_empty: bool = False) -> None:
    """Raise DataError unless a file of this size begins and ends as a tar does.

    Two small reads, so that the commonest faults, a download cut short and a file that is something
    else, show at once. may_be_empty: it may begin with the mark of its end.
    """
    file.seek(0)
    head = file.read(BLOCK)
    if any(head) or not may_be_empty:
        check_head(head, source)
    file.seek(max(0, size - END_MARK))
    if size < END_MARK or size % BLOCK or any(file.read(END_MARK)):
        raise DataError(
            f"{source} does not end as a tar does: truncated after {size:,} bytes, or something "
            f"follows its end; {AGAIN}"
        )


def open_tar(stream: Any, mode: Any, source: str) -> tarfile.TarFile:
    """``mode``: ``r|`` for a stream, ``r:`` for a file that can seek."""
    try:
        return tarfile.open(
            fileobj=stream, mode=mode, tarinfo=_strict(), bufsize=_BUFFER, ignore_zeros=True
        )
    except tarfile.TarError as error:
        raise DataError(f"{source} is not a readable tar: {error}; {AGAIN}") from None


def members(tar: tarfile.TarFile, source: str, odd: Oddities) -> Iterator[tarfile.TarInfo]:
    """Regular files of a tar, each checked; side files are left out.

    Raises DataError for an entry that points outside the archive, a link or a device, and for a
    truncated or damaged archive.
    """
    while True:
        try:
            member = tar.next()
        except tarfile.TarError as error:
            raise DataError(f"{source}: {error}; {AGAIN}") from None
        if member is None:
            if getattr(tar.tarinfo, "parts", 1) > 1:
                odd.joined.append(source)
            return
        # TarFile remembers all it saw, about 1 KB a file, for methods that are not used here.
        tar.members.clear()  # type: ignore[attr-defined]
        check_inside(member.name, source)
        check_plain(member, source)
        if member.isdir():
            continue
        if is_side_file(member.name):
            odd.skip(f"{source} → {member.name}")
        else:
            yield member


def is_side_file(name: str) -> bool:
    """Whether a file manager left it, not a person."""
    *folders, base = name.rstrip("/").split("/")
    return (
        base.startswith("._")
        or base.lower() in _SIDE_NAMES
        or not _SIDE_FOLDERS.isdisjoint(folders)
    )


def check_inside(name: str, source: str) -> None:
    """Raise DataError for an entry that would be unpacked elsewhere."""
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        raise DataError(
            f"{source}: entry {name!r} points outside the archive; do not unpack it, use another"
        )


def check_plain(member: tarfile.TarInfo, source: str) -> None:
    """Raise DataError for what is neither a file nor a folder."""
    if not (member.isdir() or member.isreg()):
        raise DataError(
            f"{source}: entry {member.name!r} is a link or device, not a file with an image in it; "
            "do not unpack it, use an archive of files alone"
        )


def extract(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    """A stream of a regular file's content."""
    file = tar.extractfile(member)
    assert file is not None  # regular files always have one
    return file


def _strict() -> type[tarfile.TarInfo]:
    """The class of one archive's headers; it is also where that archive's end is kept in mind."""

    class Header(tarfile.TarInfo):
        marked = False  # whether the block before was one of zeros
        parts = 1  # archives that have begun

        @classmethod
        def frombuf(cls, buf: Any, encoding: str, errors: str) -> Header:
            try:
                header = super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as error:
                if len(buf) == BLOCK and not any(buf):
                    cls.marked = True
                    raise
                if not buf and cls.marked:
                    raise
                if buf and cls.marked:
                    raise tarfile.ReadError(
                        "what follows the end of the archive is not another one"
                    ) from None
                raise tarfile.ReadError(f"truncated or damaged ({error})") from None
            if cls.marked:
                cls.marked, cls.parts = False, cls.parts + 1
            return header

    return Header
