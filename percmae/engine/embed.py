"""A pretrained encoder for other code: its features of any images, and the network itself."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from percmae.config import Config
from percmae.data.mixture import AnyDataset, open_data
from percmae.data.shards import SPLITS
from percmae.engine.distributed import World, distributed
from percmae.engine.evaluate import pretrained_generator
from percmae.engine.images import CHUNK, Address, chunks, items_of
from percmae.engine.knn import pooled
from percmae.engine.loaders import whole_loader
from percmae.engine.precision import autocast
from percmae.engine.weights import network_weights
from percmae.errors import DataError, UserError
from percmae.models.classifier import vision_transformer
from percmae.models.mae import MaskedAutoencoder
from percmae.models.weights import encoder_tensors, load_strict
from percmae.progress import Progress, note
from percmae.runs.record import Run
from percmae.storage import StorePath
from percmae.storage.outage import outage

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

Images = Address | Image.Image | AnyDataset | Sequence[Address | Image.Image]
"""What features are computed of, see :func:`embed`."""


GROUP_BYTES = 16 << 20
"""Features of a row group of Parquet, at least, but for the last."""


class EmbedResult(NamedTuple):
    """Features (n, D), float32, and the name of the image that each row is of."""

    keys: list[str]
    features: np.ndarray


def embed(run: Run | str, images: Images, split: str | None = None) -> EmbedResult:
    """Features of images by a pretraining run's encoder, of its newest checkpoint.

    images: a folder or prefix, all of whose images are taken at any depth, by name; a file; a list
    of files and of PIL images; or a dataset, opened or as the address of its manifest, of which
    ``split`` names the part (default: train, val and test one after another). Keys are names below
    the folder, the addresses as given, numbers for PIL images, and a dataset's own keys.

    A feature is the mean of the patch tokens behind the encoder's final norm, on the whole image
    under the evaluation transform, D numbers for the encoder's width; neither centred nor scaled.

    Raises DataError for images that are absent or damaged and for a run that there is not,
    UserError for a run of another stage and for a split of what is no dataset, CheckpointError for
    a run without a checkpoint.
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    return _joined(embedded(opened, images, split), opened.config.model.encoder.width)


def embedded(
    run: Run | str, images: Images, split: str | None = None, leave_out: bool = False
) -> Iterator[EmbedResult]:
    """The same part by part, so that not all need be in memory.

    leave_out: damaged image files are left out, and named (:func:`percmae.engine.images.chunks`).
    """
    opened = _pretraining(run)
    with outage(), distributed(opened.config) as world:
        generator = pretrained_generator(opened, world)
        dataset = _dataset(images)
        if dataset is not None:
            yield from _of_dataset(generator, opened, dataset, split, world)
            return
        if split is not None:
            raise UserError(f"split {split!r}: only a dataset has splits; give its manifest")
        data = opened.config.data
        items = items_of(images, data.formats)
        for keys, batch in chunks(items, data, world.device, "features", leave_out):
            yield EmbedResult(keys, _features(generator, opened.config, batch, world))


def encoder(run: Run | str) -> VisionTransformer:
    """A pretraining run's encoder as timm's VisionTransformer, on the CPU in evaluation mode.

    Every weight of the newest checkpoint finds its place. ``forward_features`` takes normalised
    images (N, 3, H, W) to tokens (N, 1 + L, D), the class token first; their mean and deviation are
    those of the run's config (``data.augment``). Raises what :func:`embed` raises.
    """
    opened = _pretraining(run)
    network = vision_transformer(opened.config, "token")
    tensors = encoder_tensors(network_weights(opened.uri, "generator"))
    load_strict(network, tensors, f"run {opened.uri}")
    return network.eval()


def write_embedding(parts: Iterable[EmbedResult], to: str) -> None:
    """Write features to ``to``, whole or not at all: ``.npz`` (arrays ``keys``, ``features``), all
    of which is in memory in the end, or ``.parquet``, part by part. Raises DataError where there is
    no part."""
    if to.endswith(".npz"):
        found, buffer = _joined(parts), io.BytesIO()
        _require(found.keys)
        np.savez(buffer, keys=np.array(found.keys, dtype=np.str_), features=found.features)
        StorePath(to).write_bytes(buffer.getvalue())
        return
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    with StorePath(to).create() as stream, ExitStack() as opened:
        writer = None
        for keys, rows in _groups(parts):
            values = pyarrow.FixedSizeListArray.from_arrays(
                pyarrow.array(rows.reshape(-1)), rows.shape[1]
            )
            table = pyarrow.table({"key": pyarrow.array(keys), "features": values})
            if writer is None:
                writer = opened.enter_context(ParquetWriter(stream, table.schema))
            writer.write_table(table)
        _require(writer)


def _groups(parts: Iterable[EmbedResult]) -> Iterator[EmbedResult]:
    """The parts put together to row groups, for a file with many is slow to read."""
    waiting: list[EmbedResult] = []
    for part in parts:
        waiting.append(part)
        if sum(each.features.nbytes for each in waiting) >= GROUP_BYTES:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _require(found: object) -> None:
    if not found:
        raise DataError("no image to compute features of")


def check_target(to: str) -> None:
    """Raise UserError where :func:`write_embedding` could not write there."""
    if not to.endswith((".npz", ".parquet")):
        raise UserError(f"--out {to}: give a name that ends in .npz or .parquet")
    if to.endswith(".parquet"):
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UserError(
                f"--out {to}: pyarrow, which writes it, is not installed; pip install "
                "'percmae[parquet]', or give a name that ends in .npz"
            ) from None


def _pretraining(run: Run | str) -> Run:
    opened = run if isinstance(run, Run) else Run.open(run)
    if opened.config.stage != "pretrain":
        raise UserError(f"run {opened.uri} is a {opened.config.stage} run; give a pretraining run")
    if not opened.complete:
        step = opened.record.step
        note(f"run {opened.uri} is not complete; its checkpoint of step {step} counts")
    return opened


def _dataset(images: Images) -> AnyDataset | None:
    """The dataset that is meant, if one is."""
    if isinstance(images, str | os.PathLike):
        address = os.fspath(images)
        return open_data(address) if address.endswith(".json") else None
    return images if isinstance(images, AnyDataset) else None


def _of_dataset(
    generator: MaskedAutoencoder, run: Run, dataset: AnyDataset, split: str | None, world: World
) -> Iterator[EmbedResult]:
    dataset.require_formats(run.config.data.formats)
    for name in SPLITS if split is None else (split,):
        chosen = dataset.split(name)
        keys = [key.decode(errors="surrogateescape") for key in chosen.keys]
        loader = whole_loader(run.config, chosen, CHUNK, World(0, 1, world.device))
        done = 0
        with Progress(f"features, {name}", len(chosen), "image") as bar:
            for _, _, batch in loader.batches() if len(chosen) else ():
                rows = _features(generator, run.config, batch.images, world)
                yield EmbedResult(keys[done : done + len(rows)], rows)
                done += len(rows)
                bar.update(len(rows))


@torch.no_grad()
def _features(
    generator: MaskedAutoencoder, config: Config, images: Tensor, world: World
) -> np.ndarray:
    with autocast(config, world.device):
        found: np.ndarray = pooled(generator, images.to(world.device)).cpu().numpy()
    return found


def _joined(parts: Iterable[EmbedResult], width: int = 0) -> EmbedResult:
    """All parts as one; width: of a feature, where there may be no part."""
    keys: list[str] = []
    rows = [np.empty((0, width), np.float32)]
    for part in parts:
        keys += part.keys
        rows.append(part.features)
    return EmbedResult(keys, np.concatenate(rows[1:] or rows))
