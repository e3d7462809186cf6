"""Several datasets trained on as one; what names them is in ``addresses``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property, reduce
from typing import TypeVar, cast

import numpy as np

from percmae.data.addresses import addresses, joined
from percmae.data.shards import UNLABELLED, ClassInfo, Dataset, Pixels, Split
from percmae.errors import UserError
from percmae.storage import StorePath

FORMAT = "percmae-mixture/1"


class Mixture:
    """The union of datasets, in an order that is part of what it is.

    Each split is the datasets' splits of that name, one after another. Classes are those of all,
    united by wnid: the first dataset's in their order, then what the next ones add.
    """

    def __init__(self, parts: Sequence[Dataset]) -> None:
        """Raises UserError where one is there twice."""
        self.parts = list(parts)
        digests = [part.digest for part in parts]
        for i, part in enumerate(parts):
            if part.digest in digests[:i]:
                first = parts[digests.index(part.digest)]
                raise UserError(
                    f"--data: {first.uri} and {part.uri} hold the same dataset; give it once"
                )
        self.uri = joined([part.uri for part in parts])
        content = json.dumps([FORMAT, digests], separators=(",", ":"))
        self.digest = "sha256:" + hashlib.sha256(content.encode()).hexdigest()
        found: dict[str, ClassInfo] = {}
        for info in (info for part in parts for info in part.classes):
            found.setdefault(info.wnid, info)
        self.classes = list(found.values())
        places = {wnid: label for label, wnid in enumerate(found)}
        self._labels = [
            np.array([places[info.wnid] for info in part.classes], np.int64) for part in parts
        ]
        self.formats = list(dict.fromkeys(name for part in parts for name in part.formats))
        self._splits: dict[str, Split] = {}

    @cached_property
    def pixels(self) -> Pixels | None:
        """Mean and deviation over all training images alike; None where a part has none."""
        weights, first, second = [], [], []
        for part in self.parts:
            if part.pixels is None:
                return None
            mean, std = np.array(part.pixels.mean), np.array(part.pixels.std)
            weights.append(len(part.split("train")))
            first.append(mean)
            second.append(std**2 + mean**2)
        mean = np.average(first, axis=0, weights=weights)
        std = np.sqrt(np.average(second, axis=0, weights=weights) - mean**2)
        return Pixels(*([round(float(x), 4) for x in values] for values in (mean, std)))

    @property
    def pinned(self) -> str:
        """The address of the parts' manifests that stay as they are."""
        return joined([part.pinned for part in self.parts])

    @property
    def labelled_images(self) -> int:
        """How many of the training images have a label."""
        return sum(part.labelled_images for part in self.parts)

    def split(self, name: str) -> Split:
        """``train``, ``val`` or ``test``; raises what :meth:`Dataset.split` raises."""
        if name not in self._splits:
            splits = [part.split(name) for part in self.parts]
            self._splits[name] = _union(name, splits, self._labels)
        return self._splits[name]

    def require_formats(self, formats: Sequence[str]) -> None:
        """Raise DataError where images of a part may be of a format that is not among these."""
        for part in self.parts:
            part.require_formats(formats)


def _union(name: str, parts: Sequence[Split], labels: Sequence[np.ndarray]) -> Split:
    """The samples of several splits, one after another.

    labels: for each part, the label that each of its own becomes, int64 (classes,).
    """
    tables = [part.table for part in parts]
    # What all of their indexes have; keys are as long as the longest.
    columns = [c for c in _columns(tables[0]) if all(c in _columns(table) for table in tables)]
    kinds = [
        (column, reduce(np.promote_types, (table.dtype[column] for table in tables)))
        for column in columns
    ]
    joint = np.empty(sum(map(len, tables)), dtype=kinds)
    for column in columns:
        joint[column] = np.concatenate([table[column] for table in tables])
    joint["label"] = np.concatenate(
        # −1, for none, takes what is appended.
        [np.append(new, UNLABELLED)[p.labels] for p, new in zip(parts, labels, strict=True)]
    )
    starts = np.cumsum([0, *(len(part.shards) for part in parts)])[:-1]
    number = [part.number + np.int32(n) for part, n in zip(parts, starts, strict=True)]
    return Split(name, [s for p in parts for s in p.shards], np.concatenate(number), joint)


def _columns(table: np.ndarray) -> tuple[str, ...]:
    return table.dtype.names or ()


AnyDataset = Dataset | Mixture
"""What a pretraining takes."""


def open_data(data: str) -> AnyDataset:
    """The dataset, or the mixture, of an address; raises what :meth:`Dataset.open` raises."""
    parts = [Dataset.open(manifest) for manifest in addresses(data)]
    return parts[0] if len(parts) == 1 else Mixture(parts)


D = TypeVar("D", bound=AnyDataset)


def as_it_was(dataset: D, uri: str, digest: str) -> D | None:
    """The same dataset, or datasets, as before some of it grew; None if it never was so.

    uri, digest: under which it was known then. Raises what :meth:`Dataset.open` raises.
    """
    if isinstance(dataset, Dataset):
        return cast("D | None", dataset.as_it_was(digest))
    there = [address for address in addresses(uri) if StorePath(address).exists()]
    then = [Dataset.open(address) for address in there]
    if _places(then) != _places(dataset.parts):
        return None
    earlier = Mixture(then)
    return cast("D", earlier) if earlier.digest == digest else None


def _places(parts: Sequence[Dataset]) -> list[str]:
    return [part.folder("train").uri for part in parts]


def open_one(data: str, verb: str) -> Dataset:
    """The dataset of an address that a verb takes one of. Raises UserError for several."""
    if len(named := addresses(data)) > 1:
        raise UserError(f"{verb} takes one dataset, and --data names {len(named)}; give one")
    return Dataset.open(data)


def require_labels(dataset: AnyDataset, what: str) -> None:
    """Raise UserError, naming ``what`` needs them, for a dataset without a single class."""
    if not dataset.classes:
        raise UserError(
            f"{what} needs labels, and {dataset.uri} has none: give --data of a labelled dataset, "
            "or ingest the images in a folder for each class"
        )
