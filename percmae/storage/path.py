"""``StorePath``: a file, wherever it is."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from percmae.errors import DataError, StoreAccessError, UserError
from percmae.progress import note
from percmae.storage.base import Backend, Stat
from percmae.storage.hashing import PIECE, Hashing
from percmae.storage.local import LocalFile
from percmae.storage.settings import StoreSettings

_SCHEME = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_LONGEST_KEY = 1024
_AGAIN = 2  # times that what was damaged on the way is read again
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".tar": "application/x-tar",
    ".txt": "text/plain; charset=utf-8",
    ".yaml": "application/yaml",
}


class StorePath:
    """A file or folder at a local path or at ``s3://bucket/key``, used alike; immutable.

    Writing is atomic: a reader sees the old content or the new, never half of it, and after an
    exception the old. Missing local folders are made on the way. Requests to a store are repeated
    while it does not answer, for ``StoreSettings.retry_seconds`` at most.

    Every method raises ``StoreAccessError`` where trying again will not help (wrong keys, absent
    bucket, absent object, no permission) and ``StoreError`` where it may (server down, disk full),
    with one line for the person at the keyboard.

    Pickles and may be used in forked children: each process makes its own connections.
    """

    __slots__ = ("_bucket", "_key", "_local", "_settings")
    _bucket: str
    _key: str
    _local: Path | None
    _settings: StoreSettings | None

    def __init__(
        self, uri: str | os.PathLike[str] | StorePath, settings: StoreSettings | None = None
    ) -> None:
        """``settings``: which store ``s3://`` means; default: ``StoreSettings.load()`` when used.

        Every URI has one normal form, as paths have: no empty parts, none that is ``.``, no slash
        at the end. (A key with ``//`` in it is another object to S3, but one object to the stores
        that keep files, so whatever is written there is not found by the same name everywhere.)
        Local paths become absolute; ``~`` and ``..`` are resolved. Raises ``UserError`` for a URI
        of another kind, and for ``..`` in a key, which has nothing above it.
        """
        if isinstance(uri, StorePath):
            settings = settings or uri._settings
            self._bucket, self._key, self._local = uri._bucket, uri._key, uri._local
        else:
            self._bucket, self._key, self._local = _parse(os.fspath(uri))
        self._settings = settings

    @property
    def uri(self) -> str:
        """The absolute path, or ``s3://bucket/key`` without a slash at the end."""
        if self._local is not None:
            return str(self._local)
        return f"{_SCHEME}{self._bucket}/{self._key}" if self._key else f"{_SCHEME}{self._bucket}"

    @property
    def is_s3(self) -> bool:
        return self._local is None

    @property
    def name(self) -> str:
        """The last part; "" for a bucket or the root directory."""
        return self._local.name if self._local is not None else self._key.rpartition("/")[2]

    @property
    def parent(self) -> StorePath:
        """One level up; a bucket or the root directory is its own parent."""
        if self._local is not None:
            return self._with(local=self._local.parent)
        return self._with(key=self._key.rpartition("/")[0])

    def __truediv__(self, below: str) -> StorePath:
        """The path ``below`` this one. Raises ``UserError`` if it leads anywhere else."""
        parts = _parts(below)
        if below.startswith("/") or ".." in parts or not parts:
            raise UserError(f"{below!r} is not a path below {self.uri}")
        if self._local is not None:
            return self._with(local=self._local.joinpath(*parts))
        return self._with(key="/".join([self._key, *parts] if self._key else parts))

    def exists(self) -> bool:
        """Whether there is a file or object here (folders and prefixes are neither)."""
        return self._backend().stat() is not None

    def stat(self) -> Stat:
        """Size, etag and time of change. Raises ``StoreAccessError`` if there is nothing here."""
        found = self._object().stat()
        if found is None:
            raise StoreAccessError(f"{self.uri} does not exist")
        return found

    def read_bytes(
        self,
        start: int = 0,
        length: int | None = None,
        is_whole: Callable[[bytes], bool] | None = None,
    ) -> bytes:
        """``length`` bytes from ``start``; as with a file, fewer or none where the object ends.

        is_whole: whether they are what they should be, as by a checksum. Where it says no, a store
        is asked again, twice; what it gives in the end is for the caller to refuse.
        """
        if start < 0 or (length is not None and length < 0):
            raise ValueError(f"start and length must not be negative: {start}, {length}")
        data = self._object().read(start, length)
        for _ in range(_AGAIN if self.is_s3 and is_whole is not None else 0):
            if is_whole is None or is_whole(data):
                break
            note(f"{self.uri}: what was read is damaged; reading it again")
            data = self._object().read(start, length)
        return data

    def read_text(self) -> str:
        """The content as UTF-8. Raises ``DataError`` if it is not."""
        try:
            return self.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.uri} is not UTF-8 text: {error.reason}") from error

    def read_json(self) -> Any:
        """The content as JSON. Raises ``DataError`` naming the line if it is not."""
        try:
            return json.loads(self.read_text())
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{self.uri} is not valid JSON: {error}") from error

    def open(self) -> BinaryIO:
        """A buffered, seekable binary stream for reading.

        On a store it reads ahead by ranged requests, little after a jump and more the longer
        reading goes on; it stays on the version found now, and raises ``StoreError`` if that is
        replaced meanwhile.
        """
        return self._object().open()

    def copy_into(self, stream: BinaryIO | None, sha256: str | None = None) -> str:
        """Write the content to a seekable stream, if any, in parts; its SHA-256 in hex.

        sha256: what it should be. Where it is not, a store is asked again as by ``read_bytes``.
        """
        for again in range(_AGAIN if self.is_s3 and sha256 is not None else 0, -1, -1):
            hashing = Hashing(stream)
            with self.open() as source:
                shutil.copyfileobj(source, hashing, PIECE)
            if not again or hashing.sha256 == sha256:
                break
            note(f"{self.uri}: what was read is damaged; reading it again")
            if stream is not None:
                stream.seek(0)
                stream.truncate()
        return hashing.sha256

    def read_file(self, local_path: str | os.PathLike[str]) -> None:
        """Download to ``local_path``, which is replaced only when all has arrived."""
        target = StorePath(Path(local_path))
        with self.open() as source, target.create() as copy:
            shutil.copyfileobj(source, copy, PIECE)

    def write_bytes(
        self, data: bytes | bytearray | memoryview, content_type: str | None = None
    ) -> None:
        with self.create(content_type) as stream:
            stream.write(data)

    def write_text(self, text: str) -> None:
        """Write ``text`` as UTF-8; bytes of a file name that are no text, as ``\\udcXX``."""
        self.write_bytes(text.encode("utf-8", "backslashreplace"))

    def write_json(self, value: Any) -> None:
        """Write ``value`` as indented JSON; NaN and infinity, which JSON lacks, are ValueErrors."""
        # JSON writes and reads bytes of a file name that are no text (\udcXX) in the same way.
        self.write_bytes(json_text(value).encode("utf-8", "backslashreplace"), "application/json")

    def update(self, change: Callable[[bytes | None], bytes]) -> None:
        """Replace the content by ``change(content)``, of None where there is nothing here.

        Of several at once, on however many machines, each builds upon what the one before has left:
        where the content was replaced meanwhile, ``change`` is called again with the new one. What
        it raises comes through, and nothing has changed. For small files; on a store by conditional
        requests (If-Match), which MinIO, SeaweedFS and AWS have.
        """
        guess = _CONTENT_TYPES.get(Path(self.name).suffix.lower(), "application/octet-stream")
        self._object().update(change, guess)

    def write_file(self, local_path: str | os.PathLike[str]) -> None:
        """Upload the file at ``local_path``."""
        with StorePath(Path(local_path)).open() as source, self.create() as copy:
            shutil.copyfileobj(source, copy, PIECE)

    def create(self, content_type: str | None = None) -> AbstractContextManager[BinaryIO]:
        """A binary stream to write to; what was written becomes the content at a clean exit.

        After an exception nothing has changed and nothing is left behind. On a store, large
        content goes up in parts of 16 MiB as it is written; that much memory is used, and the
        stream cannot seek.
        ``content_type`` is what browsers are told; default: by the name's ending.
        """
        guess = _CONTENT_TYPES.get(Path(self.name).suffix.lower())
        return self._object().create(content_type or guess)

    def delete(self, missing_ok: bool = True) -> None:
        """Remove this one file or object."""
        if not missing_ok:
            self.stat()
        self._object().delete()

    def prune(self) -> None:
        """Remove this folder and those in it, as far as they are empty; a store has none."""
        self._backend().prune()

    def iter(self) -> Iterator[Entry]:
        """Every file or object below this path at any depth, sorted by name; none if absent."""
        for name, size, etag, modified in sorted(self._backend().entries()):
            if self._local is not None:
                path = self._with(local=self._local / name)
            else:
                path = self._with(key=f"{self._key}/{name}" if self._key else name)
            yield Entry(path, name, size, etag, modified)

    def prepare(self) -> None:
        """Create the bucket, or the directory at this path, if it is absent."""
        self._backend().prepare()

    def _object(self) -> Backend:
        if self._local is None and not self._key:
            raise StoreAccessError(f"{self.uri} names a bucket, not an object in it")
        return self._backend()

    def _backend(self) -> Backend:
        if self._local is not None:
            return LocalFile(self._local)
        from percmae.storage.s3 import S3Object

        return S3Object(self._bucket, self._key, self._settings or StoreSettings.load())

    def _with(self, *, local: Path | None = None, key: str = "") -> StorePath:
        other = StorePath(self)
        other._local, other._key = local, key
        return other

    def __str__(self) -> str:
        return self.uri

    def __repr__(self) -> str:
        return f"StorePath({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StorePath):
            return NotImplemented
        return (self.uri, self._settings) == (other.uri, other._settings)

    def __hash__(self) -> int:
        return hash(self.uri)


def json_text(value: Any) -> str:
    """What :meth:`StorePath.write_json` writes."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def local_path(text: str | os.PathLike[str], what: str) -> Path:
    """A path on this machine, for what is kept nowhere else.

    Raises UserError, naming ``what``, for an address in a store: as a path it would be a folder
    called ``s3:``.
    """
    if _is_address(os.fspath(text)):
        raise UserError(f"{what} {text}: is kept on this machine; give a path")
    return Path(text).expanduser()


def _is_address(text: str) -> bool:
    return "://" in text or text.startswith("s3:")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a listing: the object, its key relative to the listed path, size in bytes, the
    tag that changes with the content and the time of change, as ``Stat`` has them."""

    path: StorePath
    name: str
    size: int
    etag: str
    modified: float


def _parse(text: str) -> tuple[str, str, Path | None]:
    """(bucket, key, None) of an S3 URI, ("", "", absolute path) of a local one."""
    if not text or "\0" in text:
        raise UserError(f"{text!r} is not a path or an s3://bucket/key URI")
    if text.startswith(_SCHEME):
        return (*_parse_s3(text), None)
    if _is_address(text):
        raise UserError(f"{text!r}: only local paths and s3://bucket/key are understood")
    try:
        # POSIX lets two slashes mean something else; here they do not.
        return "", "", Path("/", os.path.abspath(Path(text).expanduser()).lstrip("/"))
    except (RuntimeError, OSError) as error:  # ~someone; a current directory that is gone
        raise UserError(f"{text!r}: {error}") from None


def _parse_s3(text: str) -> tuple[str, str]:
    bucket, _, key = text[len(_SCHEME) :].partition("/")
    parts = _parts(key)
    key = "/".join(parts)
    if not _BUCKET.fullmatch(bucket):
        raise UserError(
            f"{text!r} needs a bucket name of 3 to 63 small letters, digits, dots and hyphens:"
            " s3://bucket/key"
        )
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        raise UserError(f"{text!r}: a key must be UTF-8") from None
    if ".." in parts or length > _LONGEST_KEY:
        raise UserError(f"{text!r}: a key has no '..' parts and at most {_LONGEST_KEY} bytes")
    return bucket, key


def _parts(key: str) -> list[str]:
    return [part for part in key.split("/") if part not in ("", ".")]
