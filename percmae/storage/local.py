"""Files on this machine, with the same promises as objects in a store."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from filelock import FileLock

from percmae.errors import StoreAccessError, StoreError
from percmae.storage.base import Stat

# What a writer that was killed leaves behind; listings do not show it.
_TEMPORARY = ".percmae-"
# Met by the caller's own writes, so it is told apart by number from what else the caller raises.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How a file system says that it knows no fsync, of directories (CIFS, vboxsf, some FUSE) or at all.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


class LocalFile:
    """One file, addressed by its absolute path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stat(self) -> Stat | None:
        with _errors("look at", self.path):
            try:
                status = self.path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        if not self.path.is_file():
            return None
        etag = f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
        return Stat(status.st_size, etag, status.st_mtime)

    def read(self, start: int, length: int | None) -> bytes:
        with _errors("read", self.path), self.path.open("rb", buffering=0) as stream:
            stream.seek(start)
            # A raw read returns at most 2 GiB, so ask until there is no more; it also takes as much
            # memory as it is asked for, so do not ask for more than the file has.
            most = min(1 << 30, max(os.fstat(stream.fileno()).st_size - start, 1 << 16))
            pieces: list[bytes] = []
            while length is None or length > 0:
                piece = stream.read(most if length is None else min(length, most))
                if not piece:
                    break
                pieces.append(piece)
                length = None if length is None else length - len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def open(self) -> BinaryIO:
        with _errors("open", self.path):
            return cast(BinaryIO, self.path.open("rb"))

    @contextmanager
    def create(self, content_type: str | None = None) -> Iterator[BinaryIO]:
        temporary = self.path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}.tmp")
        with _errors("write", self.path):
            if self.path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            stream = temporary.open("xb")
        try:
            with stream:
                yield cast(BinaryIO, stream)
                with _errors("write", self.path):
                    stream.flush()
                    _sync(stream.fileno())
            with _errors("write", self.path):
                temporary.replace(self.path)
                _sync_directory(self.path.parent)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                raise StoreError(f"cannot write {self.path}: {error.strerror}") from error
            raise

    def update(self, change: Callable[[bytes | None], bytes], content_type: str) -> None:
        with _errors("write", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        # Left where it is: who removed it would let two in at once.
        lock = FileLock(self.path.with_name(f"{_TEMPORARY}{self.path.name}.lock.tmp"))
        try:
            with lock:
                before = self.read(0, None) if self.stat() else None
                with self.create(content_type) as stream:
                    stream.write(change(before))
        except NotImplementedError as error:  # a file system without locks
            raise StoreError(f"cannot lock {self.path}: {error}") from error

    def delete(self) -> None:
        with _errors("delete", self.path):
            try:
                self.path.unlink(missing_ok=True)
            except NotADirectoryError:
                return

    def prune(self) -> None:
        for folder, _folders, _files in os.walk(self.path, topdown=False):
            with suppress(OSError):  # there is something in it
                os.rmdir(folder)

    def entries(self) -> Iterator[tuple[str, int, str, float]]:
        with _errors("list", self.path):
            for folder, _folders, files in os.walk(self.path, onerror=_raise_unless_absent):
                for file in files:
                    path = Path(folder, file)
                    if file.startswith(_TEMPORARY) and file.endswith(".tmp"):
                        continue
                    found = LocalFile(path).stat()
                    if found is not None:  # else a broken link, or gone since
                        name = path.relative_to(self.path).as_posix()
                        yield name, found.size, found.etag, found.modified

    def prepare(self) -> None:
        with _errors("create the directory", self.path):
            self.path.mkdir(parents=True, exist_ok=True)


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _sync_directory(path: Path) -> None:
    """Make a rename survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    """fsync, on file systems that know it; the others keep their own pace, and nothing is lost."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


@contextmanager
def _errors(doing: str, path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise StoreAccessError(f"{path} does not exist") from None
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise StoreAccessError(f"cannot {doing} {path}: {error.strerror}") from error
    except OSError as error:
        raise StoreError(f"cannot {doing} {path}: {error.strerror or error}") from error
