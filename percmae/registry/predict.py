"""What a version says of images: their likeliest classes (``percmae predict``) or features."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from percmae.engine.embed import EmbedResult
from percmae.engine.formats import new_file
from percmae.engine.images import chunks, items_of
from percmae.errors import DataError, UserError
from percmae.registry.files import Label, Package, open_package
from percmae.registry.network import classifier, device, encoder
from percmae.storage.outage import outage

_CONTENT_TYPES = {"jsonl": "application/x-ndjson", "csv": "text/csv"}


class Guess(NamedTuple):
    """A class, and its probability (softmax of the logits) in 0..1."""

    label: Label
    probability: float


class Prediction(NamedTuple):
    """The likeliest classes of an image, the likeliest first."""

    image: str
    top: list[Guess]


def predictions(model: str, images: Any, top: int) -> Iterator[Prediction]:
    """The ``top`` likeliest classes of each image, by a version of a model.

    model: as :func:`percmae.registry.files.open_package` takes it; images: as
    :func:`percmae.engine.images.items_of` does. Images are read as they are judged, prepared as the
    version's preprocess.json says; damaged ones are left out and named. Raises UserError and its
    kinds for a model that there is not or that tells no classes, and for images that are absent or
    all damaged.
    """
    if top < 1:
        raise UserError(f"--top {top}: give 1 or more")
    package = open_package(model)
    network, labels = classifier(package), package.labels
    for keys, logits in _outputs(package, network, images, "predictions"):
        if logits.shape[1] != len(labels):
            raise DataError(
                f"model {package.where} has {logits.shape[1]} outputs and {len(labels)} labels; "
                "pull the model again"
            )
        found = logits.double().softmax(1).topk(min(top, len(labels)))
        for key, values, places in zip(keys, *(part.tolist() for part in found), strict=True):
            guesses = [Guess(labels[k], value) for k, value in zip(places, values, strict=True)]
            yield Prediction(key, guesses)


def features(model: str, images: Any) -> Iterator[EmbedResult]:
    """Features of images by a version's encoder (:class:`percmae.registry.network.Features`), part
    by part. Arguments, damaged images and errors as of :func:`predictions`."""
    package = open_package(model)
    for keys, found in _outputs(package, encoder(package), images, "features"):
        yield EmbedResult(keys, found.numpy())


def write_predictions(
    found: Iterator[Prediction], form: str, to: str | None = None, force: bool = False
) -> None:
    """Write predictions as ``jsonl`` or ``csv``, an image a line: to stdout as they come, or to
    ``to``, whole or not at all.

    A line of JSON: ``{"image": …, "top": [{"label": …, "name": …, "probability": …}, …]}``. Of CSV
    columns image, label_1, name_1, probability_1 and so on. Raises UserError where ``to`` exists
    and ``force`` is not set.
    """
    opened: AbstractContextManager[BinaryIO] = nullcontext(sys.stdout.buffer)
    if to is not None:
        opened = new_file(to, force).create(_CONTENT_TYPES[form])
    rows = _json_rows(found) if form == "jsonl" else _csv_rows(found)
    with opened as stream:
        for row in rows:
            # Bytes of a file's name that are no text, as in every text that is written.
            stream.write(row.encode("utf-8", "backslashreplace"))
            if to is None:
                stream.flush()


def _json_rows(found: Iterator[Prediction]) -> Iterator[str]:
    for image, top in found:
        guesses = [
            {"label": label.id, "name": label.name, "probability": round(probability, 6)}
            for label, probability in top
        ]
        yield json.dumps({"image": image, "top": guesses}, ensure_ascii=False) + "\n"


def _csv_rows(found: Iterator[Prediction]) -> Iterator[str]:
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")

    def row(values: Sequence[object]) -> str:
        line.seek(0)
        line.truncate()
        writer.writerow(values)
        return line.getvalue()

    for number, (image, top) in enumerate(found):
        if number == 0:
            names = ("label", "name", "probability")
            yield row(["image", *(f"{name}_{k + 1}" for k in range(len(top)) for name in names)])
        told = ((label.id, label.name, f"{probability:.6f}") for label, probability in top)
        yield row([image, *(value for guess in told for value in guess)])


@torch.no_grad()
def _run(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return network(images).float().cpu()


def _outputs(
    package: Package, network: nn.Module, images: Any, desc: str
) -> Iterator[tuple[list[str], Tensor]]:
    if isinstance(images, str) and images.endswith(".json"):
        raise UserError(f"--images {images}: give image files, or a folder or prefix of them")
    data, where = package.preprocess.data, device()
    network.to(where)
    with outage():
        items = items_of(images, data.formats)
        for keys, batch in chunks(items, data, where, desc, leave_out=True):
            yield keys, _run(network, batch)
