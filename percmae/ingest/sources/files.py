"""The image files of a source as columns: a million take some hundred megabytes, not gigabytes."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from percmae.data.tars import LARGEST_IMAGE, Oddities, is_side_file
from percmae.errors import DataError

_AT_A_TIME = 1 << 16


class Files:
    """Files that were found, in the order they were added.

    Names are relative paths, as bytes. A file in an archive has its place there: number of the
    archive, offset and length of the data, and whether it is deflated.
    """

    def __init__(self) -> None:
        self._names, self._ends = bytearray(), array("q")
        self.sizes, self.stamps = array("q"), array("Q")
        self.archives, self.offsets, self.lengths = array("i"), array("q"), array("q")
        self.deflated = bytearray()

    def __len__(self) -> int:
        return len(self._ends)

    def add(
        self,
        name: bytes,
        size: int,
        stamp: int,
        offset: int = 0,
        length: int = -1,
        deflated: bool = False,
    ) -> None:
        """length: -1 for the whole object."""
        self._names += name
        self._ends.append(len(self._names))
        self.sizes.append(size)
        self.stamps.append(stamp)
        self.archives.append(0)
        self.offsets.append(offset)
        self.lengths.append(length)
        self.deflated.append(deflated)

    def extend(self, other: Files, archive: int) -> None:
        """All files of ``other`` behind these, as those of an archive of this number."""
        shift = len(self._names)
        self._names += other._names
        self._ends.extend(end + shift for end in other._ends)
        self.sizes.extend(other.sizes)
        self.stamps.extend(other.stamps)
        self.archives.extend([archive] * len(other))
        self.offsets.extend(other.offsets)
        self.lengths.extend(other.lengths)
        self.deflated.extend(other.deflated)

    def name(self, number: int) -> bytes:
        start = self._ends[number - 1] if number else 0
        return bytes(self._names[start : self._ends[number]])

    def names(self) -> Iterator[bytes]:
        start = 0
        for end in self._ends:
            yield bytes(self._names[start:end])
            start = end


class Sieve:
    """Tells images from other files by their names, and counts what it leaves out."""

    def __init__(self, endings: frozenset[bytes]) -> None:
        self.endings = endings
        self.odd = Oddities()
        self.left_out: dict[str, tuple[int, str]] = {}
        """What, with how many and the first."""
        self._folder, self._beside = b"", False

    def takes(self, path: bytes) -> bool:
        """Whether a file with this relative path is an image of the source."""
        if not is_image(path, self.endings):
            if _is_beside(path):
                self.odd.skip(shown(path))
            elif is_hidden(path):
                self.leave_out("hidden file(s)", path)
            else:
                self.leave_out("file(s) that by their ending are no images", path)
            return False
        folder = path.rpartition(b"/")[0]
        if folder != self._folder:  # the next one lies there, as a rule
            self._folder, self._beside = folder, _is_beside(folder + b"/x")
        if self._beside or _is_beside(path.rpartition(b"/")[2]):
            self.odd.skip(shown(path))
            return False
        if is_hidden(path):
            self.leave_out("hidden file(s)", path)
            return False
        return True

    def leave_out(self, what: str, path: bytes) -> None:
        """Count a file that is left out."""
        count, first = self.left_out.get(what, (0, shown(path)))
        self.left_out[what] = (count + 1, first)

    def merge(self, other: Sieve) -> None:
        """Count what another one has left out behind that of this one."""
        self.odd.add(other.odd)
        for what, (count, first) in other.left_out.items():
            before, earlier = self.left_out.get(what, (0, first))
            self.left_out[what] = (before + count, earlier)

    def lines(self) -> list[str]:
        """A line for each kind of file that was left out."""
        more = (f"skipped {n:,} {what} (first: {one})" for what, (n, one) in self.left_out.items())
        return [*self.odd.lines(), *more]


def also(sieve: Sieve) -> str:
    """What there is instead of images, for a message."""
    lines = "; ".join(sieve.lines())
    return f" ({lines})" if lines else ""


def is_image(path: bytes, endings: frozenset[bytes]) -> bool:
    dot = path.rfind(b".")
    return dot >= 0 and path[dot:].lower() in endings


def is_hidden(path: bytes) -> bool:
    """Whether the file or a folder above it is one that listings of a shell leave out."""
    return path.startswith(b".") or b"/." in path


def endings_of(formats: Iterable[str]) -> frozenset[bytes]:
    """Endings of files of these formats, by Pillow's names; small letters, with their dot."""
    from PIL import Image  # slow to start

    of = set(formats)
    known = Image.registered_extensions()
    return frozenset(ending.encode() for ending, format in known.items() if format in of)


def stamp(*parts: object) -> int:
    """A 64-bit hash of what changes when an image does (BLAKE2b)."""
    text = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def check_size(name: str, size: int) -> None:
    """Raise DataError for a file that is too large for an image."""
    if size > LARGEST_IMAGE:
        raise DataError(
            f"{name} has {size:,} bytes, and no image has more than {LARGEST_IMAGE >> 20} MiB; "
            "take it out of the source"
        )


def packed(texts: Iterable[bytes]) -> np.ndarray:
    """bytes (n,) of n > 0 texts, without a list of all of them."""
    pieces, rest = [], iter(texts)
    while piece := list(islice(rest, _AT_A_TIME)):
        pieces.append(np.array(piece))
    return np.concatenate(pieces)


def shown(name: bytes) -> str:
    """A file's name for a message: one line, whatever is in it."""
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode-escape").decode() for c in text)


def _is_beside(path: bytes) -> bool:
    return is_side_file(path.decode("utf-8", "surrogateescape"))
