"""The standard streams as they are found: closed, full, or of an encoding that lacks a character.

:func:`prepare` is called where a program begins. From then on

- stdout writes what its encoding lacks in ASCII (``→`` as ``->``), and a file name that is not text
  as the bytes it is made of, so that a script gets the name back. A result that cannot be written
  is an error (:class:`OutputLost`).
- stderr loses in silence what cannot be written: a training does not end because its log's disk is
  full or its terminal was closed.
- A pipe whose reader has left ends the program (:class:`ReaderGone`), as is usual.
- A stream that is closed leads nowhere. (Its number would go to the next file that is opened, and
  what is printed into that file.)
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from typing import Any, TextIO

from percmae.errors import PercmaeError

_ASCII = {
    "→": "->",
    "×": "x",
    "±": "+-",
    "≥": ">=",
    "‖": "|",
    **dict.fromkeys("–−─·", "-"),
}


class OutputLost(PercmaeError):
    """A result could not be written to stdout."""


class ReaderGone(BrokenPipeError):
    """What reads stdout or stderr at the other end of a pipe has ended."""


def prepare() -> None:
    """Make the standard streams such as this module describes; once is enough.

    Streams that someone else has put in their place are left alone.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the lowest free number is given away first
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("percmae", _in_ascii)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(1, sys.stdout, "percmae")
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(2, sys.stderr, "backslashreplace")


class _Stream(io.FileIO):
    """Standard output or error, without what cannot be written to it."""

    _lost = False

    def write(self, data: Any) -> int:
        if self._lost:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except BrokenPipeError:
            self._lost = True
            raise ReaderGone from None
        except OSError as error:
            if self.fileno() == 2:
                return memoryview(data).nbytes
            self._lost = True
            raise OutputLost(
                f"cannot write to stdout: {error.strerror}; what it was to show is lost, what was "
                "done before is not"
            ) from None


def _text(descriptor: int, found: TextIO | None, errors: str) -> TextIO:
    """A text stream like the one found; one that was closed speaks UTF-8."""
    raw = _Stream(descriptor, "w", closefd=False)
    if found is not None:
        found.flush()
    # As Python decides it, with PYTHONUNBUFFERED too.
    by_line = descriptor == 2 or raw.isatty() or bool(getattr(found, "write_through", False))
    encoding = getattr(found, "encoding", "utf-8")
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=by_line)


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for a character that an encoding lacks; for :func:`codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # how Python keeps a byte that is not text
        return bytes([ord(character) - 0xDC00]), error.start + 1
    plain = _ASCII.get(character) or unicodedata.normalize("NFKD", character)
    if not plain.isascii():
        plain = character.encode("ascii", "backslashreplace").decode()
    return plain, error.start + 1
