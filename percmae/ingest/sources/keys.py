"""Names of images in a dataset, made from the names of their files.

A file's key depends on its own path alone, and no two paths have the same, so that a source that
grows renames nothing. ``cats/1.jpg`` becomes ``cats/1_jpg``: the ending stays, for ``cats/1.png``
may lie beside it, or come later. Further dots (a shard's member is cut at its first one), control
characters and what is not UTF-8 are percent-encoded, as is ``%`` itself (RFC 3986, 2.1). Letters
with accents are composed (Unicode NFC), since one folder copied from a Mac, packed by it or synced
through it has them in either form. What is longer than a key may be ends with a hash of the whole.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Container

LONGEST_KEY = 255
"""Bytes."""

_PLAIN = re.compile(rb"[^.%\x00-\x1f\x7f-\xff]*")
# Lone surrogates stand for bytes that are not UTF-8.
_ESCAPED = re.compile("[.%\x00-\x1f\x7f\udc80-\udcff]")
_HASH_BYTES = 8


def key_of(path: bytes, endings: Container[bytes]) -> bytes:
    """The key of the file at a relative path.

    endings: of images, in small letters, with their dot; another one counts as part of the name.
    """
    stem, dot, ending = path.rpartition(b".")
    if (dot + ending).lower() not in endings:
        return escaped(path)
    if _PLAIN.fullmatch(stem) and len(path) <= LONGEST_KEY:
        return stem + b"_" + ending
    return _cut(_escape(stem) + b"_" + ending, path)


def escaped(path: bytes) -> bytes:
    """A key for a path or name, the whole of it."""
    return _cut(_escape(path), path)


def composed(name: bytes) -> str:
    """A name as text, accents composed; bytes that are not UTF-8 as ``\\xNN``."""
    return unicodedata.normalize("NFC", name.decode("utf-8", "backslashreplace"))


def _escape(name: bytes) -> bytes:
    text = unicodedata.normalize("NFC", name.decode("utf-8", "surrogateescape"))
    return _ESCAPED.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", text).encode()


def _cut(key: bytes, path: bytes) -> bytes:
    if len(key) <= LONGEST_KEY:
        return key
    digest = hashlib.blake2b(path, digest_size=_HASH_BYTES).hexdigest().encode()
    kept = key[: LONGEST_KEY - len(digest) - 1]
    # Not in the midst of a character.
    return kept.decode("utf-8", "ignore").encode() + b"-" + digest
