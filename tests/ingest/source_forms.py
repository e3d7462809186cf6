"""Trees of image files as folders, tars and zips, and what a catalogue says of them."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest
from stored_samples import tar_bytes

from percmae.errors import UserError
from percmae.ingest.catalogue import BY_HASH, TEST, TRAIN, VAL, Catalogue, Wanted
from percmae.ingest.places import read_place
from percmae.ingest.sources import open_source
from percmae.storage import StorePath

SPLITS = {BY_HASH: "hash", TRAIN: "train", VAL: "val", TEST: "test"}


def put(root: StorePath, files: Mapping[str, bytes]) -> StorePath:
    """Files below a folder or prefix."""
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root


def contents(*names: str) -> dict[str, bytes]:
    """Files of these names, each with its own bytes (which no source reads)."""
    return {name: f"content of {name}".encode("utf-8", "surrogateescape") for name in names}


def tar_of(files: Mapping[str, bytes] | Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> bytes:
    return tar_bytes(files, tarfile.GNU_FORMAT)


def zip_of(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def opened(uri: StorePath | str, labels: str = "auto", formats: tuple[str, ...] = ()) -> Catalogue:
    """A source, opened, and held to what its contract says of columns."""
    catalogue = open_source(str(uri), Wanted(labels, formats))
    catalogue = pickle.loads(pickle.dumps(catalogue))  # as where processes share the work
    columns = catalogue.columns
    keys = columns.keys.tolist()
    assert keys == sorted(set(keys))
    assert all(0 < len(key) <= 255 and b"." not in key for key in keys)
    assert [c.wnid for c in catalogue.classes] == sorted({c.wnid for c in catalogue.classes})
    for values, kind in (
        (columns.labels, np.int32),
        (columns.splits, np.int8),
        (columns.sizes, np.int64),
        (columns.stamps, np.uint64),
    ):
        assert values.shape == (len(keys),)
        assert values.dtype == kind
    return catalogue


def rows(catalogue: Catalogue) -> dict[str, tuple[str, str, bytes]]:
    """Key → (class or "", split, bytes), and every size is that of the bytes."""
    columns = catalogue.columns
    found = {}
    for row, key in enumerate(columns.keys.tolist()):
        label = int(columns.labels[row])
        data = read_place(catalogue.place(row))
        assert columns.sizes[row] == len(data)
        name = "" if label < 0 else catalogue.classes[label].name
        found[key.decode()] = (name, SPLITS[int(columns.splits[row])], data)
    return found


def told(catalogue: Catalogue) -> dict[str, tuple[str, str]]:
    """Key → (class or "", split)."""
    return {key: (label, split) for key, (label, split, _) in rows(catalogue).items()}


def refused(uri: StorePath | str, *said: str, **wanted: Any) -> str:
    """The message a source is refused with: one line, exit code 2, with these words in it."""
    with pytest.raises(UserError) as caught:
        opened(uri, **wanted)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    for part in said:
        assert part in message
    return message
