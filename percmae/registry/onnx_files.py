"""``percmae export --format onnx``: a version as ONNX files, held against torch on real images.

The folder is a model repository as Triton reads it, which KServe's Triton runtime takes as well:
``<network>/1/model.onnx`` beside ``<network>/config.pbtxt``. Networks are ``encoder``, images to
features, and of a probe or fine-tuning ``classifier``, images to logits.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from percmae import __version__
from percmae.data.decode import decode
from percmae.data.mixture import open_data
from percmae.engine.images import Item, chunks, items_of
from percmae.errors import DataError, PercmaeError, UserError
from percmae.progress import note
from percmae.registry.files import (
    CLASSIFIER,
    ENCODER,
    LABELS,
    PREPROCESS,
    Package,
    open_package,
    require_empty,
)
from percmae.registry.network import classifier, encoder
from percmae.storage import StorePath
from percmae.storage.outage import outage

OPSET = 18
TOLERANCE = 1e-4
"""How far an output may be from torch's: absolute, and relative to it."""
IMAGES = 16
"""Images that files are checked with, at most."""
MODEL, CONFIG, SUMMARY = "1/model.onnx", "config.pbtxt", "onnx.json"
_INPUT = "images"
_OUTPUTS = {ENCODER: "features", CLASSIFIER: "logits"}
_LARGEST_BATCH = 64  # what Triton may put together; the file takes any number


class Exported(NamedTuple):
    """A file that was written: its address, and its SHA-256 in hex."""

    uri: str
    sha256: str


@outage()
def export_onnx(model: str, to: str, images: Any = None, force: bool = False) -> list[Exported]:
    """Write the networks of a version as ONNX files below ``to``, checked; what was written.

    model: as :func:`percmae.registry.files.open_package` takes it; images: what the files are
    checked with, as :func:`percmae.engine.images.items_of` takes it (default: test images of the
    dataset that the version was evaluated on), of which the first IMAGES count. Each file takes
    ``images``, float32 (N, 3, side, side) for any N, prepared as ``preprocess.json`` beside it says
    and the file's own metadata. Nothing is written unless onnxruntime's outputs are torch's, up to
    TOLERANCE.

    Raises UserError where the extra ``onnx`` is not installed and where ``to`` has files in it and
    ``force`` is not set, DataError for images that cannot be had, PercmaeError where a file does
    not give what torch gives.
    """
    _require_onnx()
    target = StorePath(to)
    require_empty(target, force)
    package = open_package(model)
    tried = _prepared(package, images)
    networks: dict[str, nn.Module] = {ENCODER: encoder(package)}
    if package.classifies:
        networks[CLASSIFIER] = classifier(package)
    written: dict[str, Exported] = {}
    with tempfile.TemporaryDirectory(prefix="percmae-onnx-") as temporary:
        below = Path(temporary)
        summary: dict[str, Any] = {**_about(package), "opset": OPSET, "networks": {}}
        for name, network in networks.items():
            width, furthest = _made(name, network, package, tried, below / name)
            summary["networks"][name] = {
                "input": [_INPUT, None, *tried.shape[1:]],
                "output": [_OUTPUTS[name], None, width],
                "images": len(tried),
                "furthest_from_torch": furthest,
            }
        for name in (PREPROCESS, *((LABELS,) if package.classifies else ())):
            (below / name).write_bytes(package.read(name))
        (target / SUMMARY).delete()  # of what is replaced
        for file in sorted(path for path in below.rglob("*") if path.is_file()):
            name = file.relative_to(below).as_posix()
            (target / name).write_file(file)
            written[name] = Exported((target / name).uri, _sha256(file))
    # Last: what says that all is there.
    files = {name: {"sha256": each.sha256} for name, each in written.items()}
    (target / SUMMARY).write_json({**summary, "files": files})
    return [*written.values()]


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--format onnx: {error.name} is not installed; pip install 'percmae[onnx]'"
        ) from None


def _about(package: Package) -> dict[str, Any]:
    """Where a file comes from."""
    version = package.version
    told = {} if version is None else {"version": version.version, "run": version.run}
    return {"model": package.where, **told, "percmae": __version__}


def _prepared(package: Package, images: Any) -> Tensor:
    """Some images as the network takes them, float32 (n, 3, side, side)."""
    data = package.preprocess.data
    items = _of_dataset(package) if images is None else items_of(images, data.formats)
    found = chunks(items[:IMAGES], data, torch.device("cpu"), "images to check with")
    return torch.cat([chunk.images for chunk in found])


def _of_dataset(package: Package) -> list[Item]:
    uri = package.evaluated_on
    try:
        split = open_data(uri).split("test")
        shards, starts, sizes = split.locate(np.arange(min(IMAGES, len(split))))
        found: list[Item] = [
            (str(n), decode(split.shards[shard].read_bytes(start, size)))
            for n, (shard, start, size) in enumerate(
                zip(shards.tolist(), starts.tolist(), sizes.tolist(), strict=True)
            )
        ]
    except PercmaeError as error:
        raise DataError(f"{error}; --images names others to check the files with") from None
    if not found:
        raise DataError(f"{uri} has no test image; --images names some to check the files with")
    return found


def _made(
    name: str, network: nn.Module, package: Package, tried: Tensor, folder: Path
) -> tuple[int, float]:
    """Write a network and Triton's word on it; its output's width, how far from torch's it is."""
    file = folder / MODEL
    file.parent.mkdir(parents=True)
    with _quiet():
        program: Any = torch.onnx.export(
            network,
            (tried[:2].repeat(2, 1, 1, 1)[:2],),  # of one image the number would be taken for fixed
            dynamo=True,
            input_names=[_INPUT],
            output_names=[_OUTPUTS[name]],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            verbose=False,
        )
        made = program.model
        for node in made.graph:  # where in this machine's files each line of code is
            node.metadata_props.clear()
        made.metadata_props.clear()
        made.metadata_props.update({key: str(value) for key, value in _about(package).items()})
        made.metadata_props["preprocess"] = package.read(PREPROCESS).decode()
        if name == CLASSIFIER:
            made.metadata_props["labels"] = package.read(LABELS).decode()
        program.save(file)
    with torch.no_grad():
        expected = network(tried).numpy()
    furthest = _checked(name, file, tried.numpy(), expected)
    note(f"{name}: of {len(tried)} images at most {furthest:.1e} from torch")
    side, width = tried.shape[-1], expected.shape[1]
    (folder / CONFIG).write_text(_triton(name, side, width), encoding="utf-8")
    return width, furthest


def _checked(name: str, file: Path, images: np.ndarray, expected: np.ndarray) -> float:
    """How far onnxruntime's outputs are from torch's, of all images at once and of one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    furthest = 0.0
    for part in (slice(None), slice(0, 1)):
        found = session.run([_OUTPUTS[name]], {_INPUT: images[part]})[0]
        if not np.allclose(found, expected[part], rtol=TOLERANCE, atol=TOLERANCE):
            raise PercmaeError(
                f"{name}: what ONNX gives is up to {np.abs(found - expected[part]).max():.1e} from "
                "what torch gives, so nothing is written; try another version of onnxruntime"
            )
        furthest = max(furthest, float(np.abs(found - expected[part]).max()))
    return furthest


def _triton(name: str, side: int, width: int) -> str:
    """Triton's model configuration; without the number of images, which it puts in front."""
    return f"""\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {_LARGEST_BATCH}
input [ {{ name: "{_INPUT}" data_type: TYPE_FP32 dims: [ 3, {side}, {side} ] }} ]
output [ {{ name: "{_OUTPUTS[name]}" data_type: TYPE_FP32 dims: [ {width} ] }} ]
dynamic_batching {{ }}
"""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
