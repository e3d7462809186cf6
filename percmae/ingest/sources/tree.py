"""What a tree of folders says of the images in it: their splits and their classes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from percmae.data.shards import ClassInfo
from percmae.errors import DataError
from percmae.ingest.catalogue import BY_HASH, TEST, TRAIN, UNLABELLED, VAL
from percmae.ingest.sources.classes import SPLIT_NAMES, Labels, renumbered, settled
from percmae.ingest.sources.files import shown
from percmae.ingest.sources.keys import composed


@dataclass(frozen=True)
class Sorted:
    """labels: int32 (n,), UNLABELLED or place in ``classes``; splits: int8 (n,), as declared."""

    labels: np.ndarray
    splits: np.ndarray
    classes: list[ClassInfo]
    notes: list[str]


@dataclass
class _Depths:
    """How many folders deep the images of one split lie, with the first of the least and most."""

    least: int
    most: int
    shallow: bytes
    deep: bytes

    def add(self, depth: int, path: bytes) -> None:
        if depth < self.least:
            self.least, self.shallow = depth, path
        if depth > self.most:
            self.most, self.deep = depth, path


def sort_tree(paths: Iterable[bytes], tops: Tops, labels: str, source: str) -> Sorted:
    """Splits and classes of images by their relative paths, of which there are n.

    Where all lie below folders that are named as splits are, these are the splits. Below, or in all
    else: images that are exactly one folder deep have its name for their class, images in no
    folder have none; each split may be either. labels: as of ``Wanted``: ``folders`` takes the
    first folder for the class however deep images lie below, ``none`` asks for no classes.

    Raises DataError where the tree is neither, or not what is required.
    """
    declared = tops.are_splits()
    if labels == "auto":
        tops.check(source)
    numbers, splits, found = array("i"), array("b"), Labels()
    depths: dict[int, _Depths] = {}
    for path in paths:
        split, below = BY_HASH, path
        if declared:
            top, _, below = path.partition(b"/")
            split = SPLIT_NAMES[shown(top).lower()]
        splits.append(split)
        depth = below.count(b"/")
        if split in depths:
            depths[split].add(depth, path)
        else:
            depths[split] = _Depths(depth, depth, path, path)
        folder = below.partition(b"/")[0] if depth and labels != "none" else b""
        numbers.append(found.number(composed(folder)) if folder else UNLABELLED)
    _check(depths, labels, source)
    classes, places = found.classes(source)
    notes = list(tops.notes(labels))
    if len(classes) == 1:
        notes.append(
            f"all labelled images are of one class, {classes[0].name}: if it is none, --labels none"
        )
    numbered = renumbered(np.frombuffer(numbers, np.int32), places)
    return Sorted(numbered, settled(np.frombuffer(splits, np.int8)), classes, notes)


class Tops:
    """The folders at the top of a tree, and whether images lie beside them."""

    def __init__(self) -> None:
        self._folders: dict[bytes, int] = {}
        self._beside = False

    def add(self, path: bytes) -> None:
        folder, slash, _ = path.partition(b"/")
        if slash:
            self._folders[folder] = self._folders.get(folder, 0) + 1
        else:
            self._beside = True

    def are_splits(self) -> bool:
        """Whether all images lie below folders that are named as splits are."""
        return bool(self._folders) and not self._beside and not self._others()

    def check(self, source: str) -> None:
        """Raise DataError where some folders are named as splits are, and others are not."""
        named, others = self._named(), self._others()
        if named and others:
            raise DataError(
                f"{source}: beside the folder(s) {_listed(named)} of a split there are others "
                f"({_listed(others)}): move them into a split; or --labels folders takes all of "
                "them for classes, --labels none for none"
            )

    def notes(self, labels: str) -> Iterable[str]:
        """What becomes of folders that could have been splits."""
        if self._named() and not self.are_splits():
            what = "a class" if labels == "folders" else "no split"
            yield f"{_listed(self._named())} is taken for {what}, since there is more beside it"

    def _named(self) -> list[bytes]:
        return sorted(f for f in self._folders if shown(f).lower() in SPLIT_NAMES)

    def _others(self) -> list[bytes]:
        return sorted(f for f in self._folders if shown(f).lower() not in SPLIT_NAMES)


def _check(depths: dict[int, _Depths], labels: str, source: str) -> None:
    flat = next((d for d in depths.values() if d.least == 0), None)
    if labels == "folders" and flat is not None:
        raise DataError(
            f"{source}: {shown(flat.shallow)} lies in no folder, and --labels folders takes the "
            "folder for the class; move it into one, or give --labels none"
        )
    if labels != "auto":
        return
    for split, seen in sorted(depths.items()):
        if seen.least == seen.most <= 1:
            continue
        where = {TRAIN: " of train", VAL: " of val", TEST: " of test"}.get(split, "")
        saw = (
            f"images{where} lie {seen.least} to {seen.most} folders deep "
            f"({shown(seen.shallow)}, {shown(seen.deep)})"
            if seen.least != seen.most
            else f"images{where} lie {seen.most} folders deep ({shown(seen.deep)})"
        )
        fits = ", --labels folders takes the first folder for the class" if flat is None else ""
        raise DataError(
            f"{source}: {saw}; classes are told by exactly one folder: --labels none takes all "
            f"images without a label, at any depth{fits}"
        )


def _listed(folders: list[bytes]) -> str:
    more = f" and {len(folders) - 3:,} more" if len(folders) > 3 else ""
    return ", ".join(map(shown, folders[:3])) + more
