"""``percmae export`` and ``percmae import``: weights to the files of other tools, and from them."""

from __future__ import annotations

import hashlib
import json
import shlex
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from percmae.config import Config, digest
from percmae.engine.checkpoint import archive
from percmae.engine.features import network_tensors
from percmae.engine.weights import initial_weights, network_weights
from percmae.errors import CheckpointError, UserError
from percmae.models.features import EXTRACTORS, feature_tensors
from percmae.models.sizes import check_autoencoder, plain_autoencoder
from percmae.models.weights import Tensors, check_fit, encoder_tensors
from percmae.progress import note
from percmae.runs.record import Run
from percmae.storage import StorePath

FORMATS = ("mae", "timm", "safetensors")


class Written(NamedTuple):
    """A file of weights: where it is, its SHA-256, and the settings that use it (imports)."""

    uri: str
    sha256: str
    settings: str = ""


def export_weights(run: str, to: str, format: str, force: bool = False) -> Written:
    """Write the generator of a pretraining run's newest checkpoint to one file.

    format: ``mae``, a checkpoint as the official MAE code writes it (torch, the state dict under
    ``model``); ``timm``, the encoder as the torch state dict of timm's Vision Transformer without a
    head; ``safetensors``, every tensor, with variant, config digest, image and patch size as
    metadata. Raises UserError when ``to`` exists and ``force`` is not set, DataError when there is
    no such run, and CheckpointError when its weights cannot be had in that format.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; one of: {', '.join(FORMATS)}")
    target = new_file(to, force)
    source = Run.open(run)
    config = source.config
    if config.stage != "pretrain":
        raise UserError(f"run {run} is a {config.stage} run; give the pretraining run")
    tensors = network_weights(source.uri, "generator")
    if not source.complete:
        note(f"run {run} is not complete; exporting its checkpoint of step {source.record.step}")
    if format == "mae":
        return _write(target, archive({"model": _official(config, tensors, f"run {run}")}))
    if format == "timm":
        encoder = encoder_tensors(tensors)
        check_fit(encoder_tensors(plain_autoencoder(config)), encoder, f"run {run}")
        return _write(target, archive(_owned(encoder)))
    metadata = {
        "variant": config.variant,
        "config_digest": digest(config),
        "image_size": str(config.data.image_size),
        "patch_size": str(config.model.patch_size),
    }
    return _write(target, safetensors_bytes(tensors, metadata))


def import_weights(weights: str, to: str, kind: str = "mae", force: bool = False) -> Written:
    """Check a file of weights key by key and write its tensors to a safetensors file.

    kind: ``mae``, a masked autoencoder or its encoder alone, from whatever ``model.init_from``
    takes; or the name of a feature network, of which only the layers used are kept. No code in the
    file is run. Raises UserError when ``to`` exists and ``force`` is not set, and CheckpointError
    when the file cannot be read or is not exactly such weights.
    """
    if kind != "mae" and kind not in EXTRACTORS:
        raise UserError(f"unknown kind {kind!r}; one of: mae, {', '.join(EXTRACTORS)}")
    target = new_file(to, force)
    if kind == "mae":
        tensors = initial_weights(weights)
        if check_autoencoder(tensors, weights):
            note(f"{weights}: holds the encoder only; a decoder will start fresh")
        keys = {"model.init_from": target.uri}
    else:
        tensors = feature_tensors(kind, network_tensors(kind, weights, weights), weights)
        keys = {"perceptual.extractor": kind, "perceptual.weights": target.uri}
    written = _write(target, safetensors_bytes(tensors, {"kind": kind}))
    if kind != "mae":
        keys["perceptual.sha256"] = written.sha256
    settings = " ".join(shlex.quote(f"{key}={value}") for key, value in keys.items())
    return written._replace(settings=settings)


def new_file(to: str, force: bool) -> StorePath:
    """The file to write. Raises UserError where it exists and ``force`` is not set."""
    path = StorePath(to)
    if path.exists() and not force:
        raise UserError(f"--to {path} exists; add --force to replace it, or choose another name")
    return path


def _write(path: StorePath, data: bytes) -> Written:
    path.write_bytes(data)
    return Written(path.uri, hashlib.sha256(data).hexdigest())


def _owned(tensors: Tensors) -> dict[str, Tensor]:
    """Each tensor on its own, contiguous storage, so that a file holds it and nothing more."""
    return {
        key: tensor.detach().clone(memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }


def safetensors_bytes(tensors: Tensors, metadata: dict[str, str]) -> bytes:
    """A safetensors file; of the same tensors and metadata always the same bytes."""
    data = safetensors.torch.save(_owned(tensors), {"format": "pt", **metadata})
    # The library writes metadata in an order that changes from process to process; the same
    # weights must give the same SHA-256. The header is padded to keep tensors aligned.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def _official(config: Config, tensors: Tensors, what: str) -> dict[str, Tensor]:
    """All tensors of a plain masked autoencoder in the order of the official state dicts."""
    plain = plain_autoencoder(config)
    extra = [key for key in tensors if key not in plain]
    if extra:
        raise CheckpointError(
            f"{what}: variant {config.variant} has parameters that no MAE checkpoint has "
            f"({len(extra)}, the first {extra[0]}); export its encoder with --format timm, or all "
            "of it with --format safetensors"
        )
    check_fit(plain, tensors, what)
    return _owned({key: tensors[key] for key in plain})
