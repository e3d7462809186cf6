"""A pretrained encoder for other code: its features of any images, and the network itself."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from percmae.config import Config
from percmae.data.augment import Framed, framed_transform
from percmae.data.decode import Once, check_formats, telling, to_rgb
from percmae.data.mixture import AnyDataset, open_data
from percmae.data.shards import SPLITS
from percmae.data.tars import is_side_file
from percmae.engine.distributed import World, distributed
from percmae.engine.evaluate import pretrained_generator
from percmae.engine.knn import pooled
from percmae.engine.loaders import whole_loader
from percmae.engine.precision import autocast
from percmae.engine.weights import network_weights
from percmae.errors import DataError, UserError
from percmae.ingest.cores import usable_cores
from percmae.ingest.sources.files import endings_of
from percmae.models.classifier import vision_transformer
from percmae.models.mae import MaskedAutoencoder
from percmae.models.weights import encoder_tensors, load_strict
from percmae.progress import Progress, note, warn
from percmae.runs.record import Run
from percmae.storage import StorePath
from percmae.storage.outage import outage

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

Address = str | os.PathLike[str]
Images = Address | Image.Image | AnyDataset | Sequence[Address | Image.Image]
"""What features are computed of, see :func:`embed`."""

CHUNK = 64
"""Images of one forward pass."""
_AHEAD = 2  # chunks that are read and decoded before they are asked for


class EmbedResult(NamedTuple):
    """Features (n, D), float32, and the name of the image that each row is of."""

    keys: list[str]
    features: np.ndarray


@outage()
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
    opened = _pretraining(run)
    with distributed(opened.config) as world:
        generator = pretrained_generator(opened, world)
        dataset = _dataset(images)
        if dataset is not None:
            return _of_dataset(generator, opened, dataset, split, world)
        if split is not None:
            raise UserError(f"split {split!r}: only a dataset has splits; give its manifest")
        return _of_files(generator, opened.config, _items(images, opened.config), world)


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


def write_embedding(found: EmbedResult, to: str) -> None:
    """Write features to ``to``: ``.npz`` (arrays ``keys``, ``features``) or ``.parquet``."""
    buffer = io.BytesIO()
    if to.endswith(".npz"):
        np.savez(buffer, keys=np.array(found.keys, dtype=np.str_), features=found.features)
    else:
        import pyarrow
        import pyarrow.parquet

        width = found.features.shape[1]
        values = pyarrow.array(found.features.reshape(-1))
        features = pyarrow.FixedSizeListArray.from_arrays(values, width)
        table = pyarrow.table({"key": pyarrow.array(found.keys), "features": features})
        pyarrow.parquet.write_table(table, buffer)
    StorePath(to).write_bytes(buffer.getvalue())


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


@torch.no_grad()
def _of_dataset(
    generator: MaskedAutoencoder, run: Run, dataset: AnyDataset, split: str | None, world: World
) -> EmbedResult:
    dataset.require_formats(run.config.data.formats)
    keys, rows = [], []
    for name in SPLITS if split is None else (split,):
        chosen = dataset.split(name)
        loader = whole_loader(run.config, chosen, CHUNK, World(0, 1, world.device))
        with Progress(f"features, {name}", len(chosen), "image") as bar:
            for _, _, batch in loader.batches() if len(chosen) else ():
                rows.append(_features(generator, run.config, batch.images, world))
                bar.update(len(batch.images))
        keys += [key.decode(errors="surrogateescape") for key in chosen.keys]
    return EmbedResult(keys, _stacked(rows, generator))


@torch.no_grad()
def _of_files(
    generator: MaskedAutoencoder, config: Config, items: list[tuple[str, Any]], world: World
) -> EmbedResult:
    transform = framed_transform(config.data, False, "pretrain")
    formats = check_formats(config.data.formats)
    rows = []
    with telling(Once(warn)), Progress("features", len(items), "image") as bar:
        for pixels in _read_ahead(items, transform, formats):
            unturned = torch.zeros(len(pixels), dtype=torch.bool, device=world.device)
            images = transform.finish(pixels.to(world.device), unturned)
            rows.append(_features(generator, config, images, world))
            bar.update(len(images))
    return EmbedResult([key for key, _ in items], _stacked(rows, generator))


def _features(
    generator: MaskedAutoencoder, config: Config, images: Tensor, world: World
) -> np.ndarray:
    with autocast(config, world.device):
        found: np.ndarray = pooled(generator, images.to(world.device)).cpu().numpy()
    return found


def _stacked(rows: list[np.ndarray], generator: MaskedAutoencoder) -> np.ndarray:
    empty = np.empty((0, generator.cls_token.shape[-1]), np.float32)
    return np.concatenate([empty, *rows])


def _items(images: Any, config: Config) -> list[tuple[str, Any]]:
    """(key, image or its address) of each, in order."""
    if isinstance(images, str | os.PathLike):
        return _listed(StorePath(images), config)
    given = [images] if isinstance(images, Image.Image) else list(images)
    if not given:
        raise DataError("no image to compute features of")
    return [
        (str(number) if isinstance(item, Image.Image) else os.fspath(item), item)
        for number, item in enumerate(given)
    ]


def _listed(place: StorePath, config: Config) -> list[tuple[str, Any]]:
    """The images below a folder or prefix by their names; a file itself."""
    endings = tuple(sorted(e.decode() for e in endings_of(config.data.formats)))
    found = [
        (entry.name, entry.path)
        for entry in place.iter()
        if entry.name.lower().endswith(endings) and not is_side_file(entry.name)
    ]
    if found:
        return found
    if not place.exists():
        raise DataError(
            f"{place}: there is no image there; give a folder or prefix with files that end in "
            f"{', '.join(endings)}, or an image"
        )
    return [(place.name, place)]


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy())


def _read_ahead(
    items: list[tuple[str, Any]], transform: Framed, formats: tuple[str, ...]
) -> Iterator[Tensor]:
    """Chunks (n, H, W, 3), uint8, of the images, read and decoded by threads, a little ahead."""

    def load(item: tuple[str, Any]) -> Tensor:
        key, image = item
        if isinstance(image, Image.Image):
            try:
                return _tensor(transform.pixels_of(to_rgb(image)))
            except (ValueError, OSError) as error:
                raise DataError(f"image {key}: {error}") from None
        path = StorePath(image)
        if not path.exists():
            raise DataError(f"image {path}: there is no such file")
        data = path.read_bytes()
        return _tensor(transform.pixels(data, name=f"image {path}", formats=formats))

    waiting: deque[list[Future[Tensor]]] = deque()
    pool = ThreadPoolExecutor(usable_cores())
    try:
        for start in range(0, len(items), CHUNK):
            waiting.append([pool.submit(load, item) for item in items[start : start + CHUNK]])
            if len(waiting) > _AHEAD:
                yield torch.stack([future.result() for future in waiting.popleft()])
        while waiting:
            yield torch.stack([future.result() for future in waiting.popleft()])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
