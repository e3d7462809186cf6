"""Folders and prefixes: what lies in them, and the catalogue of those with image files."""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from percmae.data.shards import FORMAT, MANIFEST
from percmae.errors import DataError
from percmae.ingest.catalogue import Wanted
from percmae.ingest.sources.files import Files, Sieve, check_size, shown, stamp
from percmae.ingest.sources.keys import key_of
from percmae.ingest.sources.listed import Listed, files_twice, in_order, listing
from percmae.ingest.sources.tree import Tops, sort_tree
from percmae.storage import StorePath

ARCHIVES = (".tar", ".zip")
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

_LINK_AGAIN = "link(s) to folders that are read elsewhere"
_LINK_NOWHERE = "link(s) that lead nowhere"


@dataclass
class Content:
    """What lies in a folder or below a prefix."""

    files: Files = field(default_factory=Files)
    tops: Tops = field(default_factory=Tops)
    archives: list[str] = field(default_factory=list)
    """Relative paths, sorted, of plain and compressed ones; those of tables as well."""
    tables: list[str] = field(default_factory=list)


def look_into(root: StorePath, sieve: Sieve) -> Content:
    """Everything below a folder or prefix, by its names and sizes.

    Raises DataError for a dataset's own folder, for what cannot be read and for a file that is too
    large; StoreError as the store has it.
    """
    refuse_dataset(root / MANIFEST)
    content = Content()
    for name, size, changed in _objects(root) if root.is_s3 else _walk(root, sieve):
        path = name.encode("utf-8", "surrogateescape")
        if name.lower().endswith((*ARCHIVES, *PACKED)) and not _is_aside(name):
            content.archives.append(name)
        elif sieve.takes(path):
            check_size(f"{root}/{shown(path)}", size)
            content.files.add(path, size, stamp(size, changed))
            content.tops.add(path)
        elif name.lower().endswith(TABLES):
            content.tables.append(name)
    content.archives.sort()
    content.tables.sort()
    return content


def open_folder(root: StorePath, content: Content, sieve: Sieve, wanted: Wanted) -> Listed:
    """The catalogue of a folder's image files. Raises DataError."""
    files, source = content.files, str(root)
    tree = sort_tree(files.names(), content.tops, wanted.labels, source)
    columns, order = in_order(
        files,
        (key_of(name, sieve.endings) for name in files.names()),
        tree.labels,
        tree.splits,
        files_twice(source, lambda number: shown(files.name(number))),
    )
    described = {
        "role": "images",
        "kind": "folder",
        "name": root.name or str(root),
        "images": len(files),
        "listing": listing(columns),
    }
    notes = [*sieve.lines(), *tree.notes]
    return Listed(tree.classes, columns, [described], notes, root, files, order)


def refuse_dataset(manifest: StorePath) -> None:
    """Raise DataError where this is the manifest of a dataset of ours."""
    if not manifest.exists():
        return
    try:
        content = manifest.read_json()
    except DataError:  # of something else
        return
    named = content.get("format") if isinstance(content, dict) else None
    if isinstance(named, str) and named.startswith(FORMAT.partition("/")[0] + "/"):
        raise DataError(
            f"{manifest.parent} is a dataset already, which needs no ingest: give --data {manifest}"
        )


def _is_aside(name: str) -> bool:
    """Whether a part of the path is hidden, or of a side folder's kind."""
    return name.startswith((".", "__MACOSX/")) or "/." in name


def _objects(root: StorePath) -> Iterator[tuple[str, int, object]]:
    for entry in root.iter():
        parts = entry.name.split("/")
        if not {"", ".", ".."}.isdisjoint(parts):
            raise DataError(
                f"{root}: the object {entry.name!r} has an empty part, '.' or '..' in its key, and "
                "cannot be read by it; rename it"
            )
        yield entry.name, entry.size, entry.etag


def _walk(root: StorePath, sieve: Sieve) -> Iterator[tuple[str, int, object]]:
    """(relative path, bytes, time of change) of each file, also of those that links lead to.

    A link to a folder within the root is left out, as its files are found there, and so are one
    to a folder above the root and a second one to the same folder: whatever the links are, this
    comes to an end.
    """
    top = os.path.realpath(root.uri)
    waiting, linked = [""], {top}
    while waiting:
        below = waiting.pop()
        folders = []
        for entry in _entries(root, below):
            path = f"{below}{entry.name}"
            name = path.encode("utf-8", "surrogateescape")
            try:
                found = entry.stat()
            except OSError:
                sieve.leave_out(_LINK_NOWHERE, name)
                continue
            if modes.S_ISDIR(found.st_mode):
                if entry.name.startswith("."):
                    sieve.leave_out("hidden folder(s)", name)
                elif entry.is_symlink() and not _leads_on(entry.path, top, linked):
                    sieve.leave_out(_LINK_AGAIN, name)
                else:
                    folders.append(f"{path}/")
            elif not modes.S_ISREG(found.st_mode):
                sieve.leave_out("device(s), pipe(s) or socket(s)", name)
            else:
                check_readable(entry.path)
                yield path, found.st_size, found.st_mtime_ns
        waiting.extend(reversed(folders))


def _entries(root: StorePath, below: str) -> list[os.DirEntry[str]]:
    folder = Path(root.uri, below)
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}; see who may read it") from None


def _leads_on(link: str, top: str, linked: set[str]) -> bool:
    """Whether a link leads to a folder beside the source's, to which no other link led."""
    target = os.path.realpath(link)
    if target in linked or os.path.commonpath([target, top]) in (target, top):
        return False
    linked.add(target)
    return True


def check_readable(path: str) -> None:
    """Raise DataError for a file that this process may not read."""
    if not os.access(path, os.R_OK):
        shown_path = shown(os.fsencode(path))
        raise DataError(f"{shown_path} may not be read; see who may, or take it out of the source")
