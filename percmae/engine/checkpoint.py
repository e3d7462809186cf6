"""Archives of a training's state: written as a stream, checked when read, never executed.

An archive is torch's, of tensors and plain values; percmae.runs.checkpoints has which there are.
Reading never runs pickled code (``weights_only``).
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import pickletools
import re
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from percmae.errors import CheckpointError, UnsafeFileError, UserError
from percmae.storage import StorePath
from percmae.storage.hashing import Hashing

State = dict[str, Any]


def write_state(path: StorePath, state: State) -> str:
    """Write a state as a torch archive, as a stream; its SHA-256 in hex.

    Atomic as :meth:`StorePath.create` is. Raises StoreError.
    """
    with path.create() as stream:
        hashing = Hashing(stream)
        try:
            torch.save(state, cast("BinaryIO", hashing))
        except RuntimeError:
            if hashing.error is not None:
                raise hashing.error from None
            raise
    return hashing.sha256


def archive(state: State) -> bytes:
    """A state as a torch archive, in memory."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def read_state(path: StorePath, sha256: str | None = None) -> State:
    """Tensors and plain values of a torch archive, on the CPU.

    On Linux the archive is fetched in parts and is in memory once: the tensors lie in it, in a
    private mapping, so what is to live on while they are changed is better copied. Raises
    CheckpointError when the checksum differs, when it is not such an archive, or when it would need
    to run code to be read.
    """
    what = f"checkpoint {path}"
    fix = "restore it or start over under another --tag"
    try:
        with _in_memory(path, what, sha256, fix) as file:
            return torch_dict(file, what, fix)
    except OSError:
        return torch_dict(checked_bytes(path, what, sha256, fix)[0], what, fix)


@contextmanager
def _in_memory(path: StorePath, what: str, sha256: str | None, fix: str) -> Iterator[Path]:
    """A name for the file's content in memory, checked; gone then, but for what has mapped it.

    Raises OSError where there is no such memory (it is Linux's), or it is limited as a file is.
    """
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    with os.fdopen(os.memfd_create("checkpoint"), "wb") as copy:
        try:
            found = path.copy_into(copy, sha256)
        except UserError as error:
            raise CheckpointError(f"{what}: cannot be read ({error})") from None
        _compare(found, what, sha256, fix)
        copy.flush()
        yield Path(f"/proc/self/fd/{copy.fileno()}")


def _compare(found: str, what: str, sha256: str | None, fix: str) -> None:
    if sha256 is not None and found != sha256:
        raise CheckpointError(
            f"{what}: its SHA-256 is {found}, not {sha256}; it is damaged or another file: {fix}"
        )


def checked_bytes(path: StorePath, what: str, sha256: str | None, fix: str) -> tuple[bytes, str]:
    """A file's content and its SHA-256 in hex. Raises CheckpointError when it cannot be read or its
    checksum is not ``sha256``; ``fix`` says what to do then."""
    try:
        data = path.read_bytes(is_whole=lambda data: sha256 in (None, _sha256(data)))
    except UserError as error:
        raise CheckpointError(f"{what}: cannot be read ({error})") from None
    found = _sha256(data)
    _compare(found, what, sha256, fix)
    return data, found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def torch_dict(data: bytes | Path, what: str, fix: str = "fetch it again") -> State:
    """The dictionary in a torch archive of either format, read without running pickled code.

    Of a file (torch's newer format only) tensors lie in a private mapping of it.

    Raises UnsafeFileError for a pickle of anything but plain values, CheckpointError for any other
    file; both name ``what``. ``fix`` says how to get a damaged file whole.
    """
    try:
        # The official MAE code keeps its command line beside the weights: a Namespace holds plain
        # values and runs nothing.
        # Its guesses at what is wrong with a pickle it then refuses are no use to anyone here.
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = data if isinstance(data, Path) else io.BytesIO(data)
            mapped = isinstance(data, Path)
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        # Damaged bytes make the parser raise whatever it stumbles over.
        ended = isinstance(error, EOFError) or "unexpected EOF" in str(error)
        if ended or _is_cut_off(data.read_bytes() if isinstance(data, Path) else data):
            raise CheckpointError(f"{what}: a torch file that is cut off; {fix}") from None
        if isinstance(error, pickle.UnpicklingError):
            held = re.search(r"GLOBAL ([\w.]+)", str(error))
            told = f" (it holds {held[1]})" if held else ""
            raise UnsafeFileError(
                f"{what}: refused, it is no plain archive of tensors{told}, and opening it could "
                "run code; where you trust it, save its state_dict() alone with torch.save"
            ) from None
        raise CheckpointError(
            f"{what}: not a torch checkpoint, or a damaged one ({first_line(error)}); {fix}"
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{what}: expected a dictionary of tensors")
    return state


def _is_cut_off(data: bytes) -> bool:
    """Whether a pickle among the first of a file has no end; nothing is run to see it."""
    stream = io.BytesIO(data)
    try:
        # torch's older format: a magic number, a version, sizes of numbers, then the state.
        for _ in range(4 if data[:1] == b"\x80" else 0):
            if stream.tell() < len(data):
                for _operation in pickletools.genops(stream):
                    pass
    except ValueError:
        return stream.tell() == len(data)
    return False


def first_line(error: Exception) -> str:
    """What a library's error says, short enough for a message of one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]
