"""Finds out what a source is, and opens it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from percmae.config import FORMATS
from percmae.data.tars import what_is
from percmae.errors import DataError, UserError
from percmae.ingest.catalogue import Catalogue, Wanted
from percmae.ingest.sources.archives import open_archives
from percmae.ingest.sources.files import Sieve, also, endings_of
from percmae.ingest.sources.folder import (
    ARCHIVES,
    PACKED,
    TABLES,
    look_into,
    open_folder,
    refuse_dataset,
)
from percmae.ingest.sources.table import open_table
from percmae.storage import StorePath

LABELS = ("auto", "folders", "none")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 100_000


def open_source(uri: str, wanted: Wanted) -> Catalogue:
    """List the images of a source, without reading them.

    uri: a path or ``s3://bucket/key`` of a folder of image files; of a table of their URIs (.csv,
    .tsv, .jsonl, .ndjson, .parquet); of a .tar or .zip, or a folder of such; of a folder of
    WebDataset's shards, or a pattern such as ``train-{000000..000012}.tar``.

    Raises DataError, in one line, for a source that is absent, holds no image, is damaged, unsafe
    or of no kind that is known; UserError for a URI or setting that is none; StoreError as the
    store has it.
    """
    if wanted.labels not in LABELS:
        raise UserError(f"labels {wanted.labels!r}: choose from {', '.join(LABELS)}")
    sieve = Sieve(endings_of(wanted.formats or FORMATS))
    if _RANGE.search(uri):
        return _open_pattern(uri, sieve, wanted)
    if re.search(r"\{[^}]*\}", uri) and not StorePath(uri).exists():
        raise DataError(f"{uri}: of patterns, ranges of numbers are known, as in {{000..012}}")
    path = StorePath(uri)
    if path.name and path.exists():
        return _open_file(path, sieve, wanted)
    return _open_folder(path, sieve, wanted)


def _open_file(path: StorePath, sieve: Sieve, wanted: Wanted) -> Catalogue:
    name = path.name.lower()
    if name.endswith((*ARCHIVES, *PACKED)):
        return open_archives(path.parent, [path.name], sieve, wanted, alone=True)
    if name.endswith(TABLES):
        return open_table(path, sieve, wanted)
    if name.endswith(".json"):
        refuse_dataset(path)
    found = what_is(path.read_bytes(0, 512))
    what = f"is {found[0]}" if found else "is a single file"
    raise DataError(
        f"{path} {what}; --images takes a folder, a table ({', '.join(TABLES)}) or an archive "
        f"({', '.join(ARCHIVES)})"
    )


def _open_folder(path: StorePath, sieve: Sieve, wanted: Wanted) -> Catalogue:
    if not path.is_s3 and not Path(path.uri).is_dir():
        raise DataError(f"there is nothing at {path}; check the path or URI")
    content = look_into(path, sieve)
    if content.archives and len(content.files):
        raise DataError(
            f"{path} holds {len(content.files):,} image file(s) and {len(content.archives):,} "
            f"archive(s) (first: {content.archives[0]}); give a folder of either"
        )
    if content.archives:
        return open_archives(path, content.archives, sieve, wanted)
    if not len(content.files):
        hint = f"; to use a table, give it: {path / content.tables[0]}" if content.tables else ""
        raise DataError(f"there is no image below {path}{also(sieve)}{hint}; check the path or URI")
    return open_folder(path, content, sieve, wanted)


def _open_pattern(pattern: str, sieve: Sieve, wanted: Wanted) -> Catalogue:
    """Shards by their numbers; all that lies beside them is left alone."""
    ranges = _RANGE.findall(pattern)
    count = 1
    for first, last in ranges:
        count *= max(0, int(last) - int(first) + 1)
    if not 0 < count <= _MOST_SHARDS:
        raise DataError(
            f"{pattern} stands for {count:,} archives; 1 to {_MOST_SHARDS:,} are taken, from the "
            "smaller number to the larger"
        )
    # What comes before the first number is the folder; shards of several folders lie below it.
    root = StorePath(pattern[: _RANGE.search(pattern).start()].rpartition("/")[0] or ".")  # type: ignore[union-attr]
    texts = _RANGE.split(pattern)[::3]
    names = []
    for numbers in itertools.product(*(_numbers(*ends) for ends in ranges)):
        text = "".join(itertools.chain(*zip(texts, (*numbers, ""), strict=True)))
        path = StorePath(text)
        if not path.name.lower().endswith((*ARCHIVES, *PACKED)):
            raise DataError(f"{path} is no archive ({', '.join(ARCHIVES)}); patterns are for these")
        names.append(path.uri[len(root.uri) :].lstrip("/"))
    return open_archives(root, names, sieve, wanted)


def _numbers(first: str, last: str) -> Iterator[str]:
    width = len(first) if first.startswith("0") else 0
    return (str(n).zfill(width) for n in range(int(first), int(last) + 1))
