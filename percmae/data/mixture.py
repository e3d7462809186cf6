"""Several datasets trained on as one; what names them is in ``addresses``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from percmae.data.addresses import addresses, joined
from percmae.data.shards import ClassInfo, Dataset, Pixels, Split
from percmae.errors import UserError

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
    def labelled_images(self) -> int:
        """How many of the training images have a label."""
        return sum(part.labelled_images for part in self.parts)

    def split(self, name: str) -> Split:
        """``train``, ``val`` or ``test``; raises what :meth:`Dataset.split` raises."""
        if name not in self._splits:
            splits = [part.split(name) for part in self.parts]
            self._splits[name] = Split.joined(name, splits, self._labels)
        return self._splits[name]

    def require_formats(self, formats: Sequence[str]) -> None:
        """Raise DataError where images of a part may be of a format that is not among these."""
        for part in self.parts:
            part.require_formats(formats)


AnyDataset = Dataset | Mixture
"""What a pretraining takes."""


def open_data(data: str) -> AnyDataset:
    """The dataset, or the mixture, of an address; raises what :meth:`Dataset.open` raises."""
    parts = [Dataset.open(manifest) for manifest in addresses(data)]
    return parts[0] if len(parts) == 1 else Mixture(parts)


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
