"""A small source for tests of building: a folder of class folders, listed without any finesse."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from percmae.data.shards import ClassInfo
from percmae.ingest.catalogue import BY_HASH, UNLABELLED, Columns, Place
from percmae.storage import StorePath

DECLARED = {"train": 0, "val": 1, "test": 2}


class FolderSource:
    """``<class>/<image>``, or ``<image>`` without a label; a split may be declared by key."""

    def __init__(self, folder: Path, declared: Mapping[str, str] | None = None) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self._folder = folder
        self._files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
        keys = sorted(self._files, key=str.encode)
        names = sorted({key.split("/")[0] for key in keys if "/" in key})
        label = {name: n for n, name in enumerate(names)}
        stats = [self._files[key].stat() for key in keys]
        self.classes = [ClassInfo(name, name) for name in names]
        self.columns = Columns(
            np.array([key.encode() for key in keys], dtype=np.bytes_),
            np.array(
                [label[k.split("/")[0]] if "/" in k else UNLABELLED for k in keys], dtype=np.int32
            ),
            np.array([DECLARED.get((declared or {}).get(k, ""), BY_HASH) for k in keys], np.int8),
            np.array([stat.st_size for stat in stats], dtype=np.int64),
            np.array([_stamp(stat) for stat in stats], dtype=np.uint64),
        )
        self._keys = keys
        self.sources: list[dict[str, Any]] = [{"role": "images", "name": str(folder)}]
        self.notes: list[str] = []

    def name(self, row: int) -> str:
        return self._files[self._keys[row]].relative_to(self._folder).as_posix()

    def place(self, row: int) -> Place:
        return Place(StorePath(self._files[self._keys[row]]))

    def spans(self, rows: np.ndarray) -> None:
        return None


def _stamp(stat: Any) -> int:
    text = f"{stat.st_size} {stat.st_mtime_ns}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def picture(seed: int, format: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    """A file with a random but smooth RGB picture in it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, format)
    return buffer.getvalue()


def tree(folder: Path, per_class: int = 30, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """A folder of class folders of pictures; its path."""
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for n in range(per_class):
            (folder / name / f"{n:03d}.jpg").write_bytes(picture(10_000 * k + n))
    return folder
