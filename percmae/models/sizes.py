"""The sizes of a masked autoencoder or of its encoder, read from the shapes of its weights."""

from __future__ import annotations

import math
from typing import Any

import torch

from percmae.config import Config, Decoder, Encoder, Model
from percmae.config.schema import Data
from percmae.errors import CheckpointError
from percmae.models.mae import MaskedAutoencoder
from percmae.models.weights import Tensors, check_fit, encoder_tensors


def check_autoencoder(tensors: Tensors, what: str) -> bool:
    """Check that tensors are those of one masked autoencoder, whatever its sizes; True when they
    are its encoder alone. Raises CheckpointError."""
    config, encoder_only = _read(tensors, what)
    own = plain_autoencoder(config)
    _check(encoder_tensors(own) if encoder_only else own, tensors, config, what)
    return encoder_only


def encoder_config(encoder: Tensors, what: str) -> Config:
    """The configuration of a masked autoencoder whose encoder has these tensors and no other.

    Attention heads leave no trace in weights: there is one in it, which stands for any number.
    Raises CheckpointError when they are not all the tensors of one encoder.
    """
    config, _ = _read(encoder, what)
    _check(encoder_tensors(plain_autoencoder(config)), encoder, config, what)
    return config


def plain_autoencoder(config: Config) -> Tensors:
    """Names and shapes of the masked autoencoder of a config's sizes, whatever its variant."""
    with torch.device("meta"):
        return MaskedAutoencoder(config).state_dict()


def _read(tensors: Tensors, what: str) -> tuple[Config, bool]:
    """A config of the sizes, and whether there is no decoder."""
    encoder_only = not any(key.startswith(("mask_token", "decoder_")) for key in tensors)
    patch = _size(tensors, "patch_embed.proj.weight", 3, what)
    grid = max(1, math.isqrt(_size(tensors, "pos_embed", 1, what) - 1))
    encoder = Encoder(**_tower(tensors, "cls_token", "blocks", what))
    decoder = Decoder(width=4, depth=1, heads=1)
    if not encoder_only:
        decoder = Decoder(**_tower(tensors, "mask_token", "decoder_blocks", what))
    model = Model(patch_size=patch, encoder=encoder, decoder=decoder)
    return Config(data=Data(image_size=patch * grid), model=model), encoder_only


def _check(own: Tensors, tensors: Tensors, config: Config, what: str) -> None:
    encoder = config.model.encoder
    sizes = (
        f"these are not the weights of one masked autoencoder (width {encoder.width}, "
        f"{encoder.depth} blocks, {config.model.patch_size} px patches, "
        f"{config.data.image_size} px images)"
    )
    check_fit(own, tensors, what, sizes=sizes)


def _tower(tensors: Tensors, token: str, blocks: str, what: str) -> dict[str, Any]:
    """Sizes of an encoder or decoder."""
    width = _size(tensors, token, 2, what)
    hidden = _size(tensors, f"{blocks}.0.mlp.fc1.weight", 0, what)
    depth = len({key.split(".")[1] for key in tensors if key.startswith(f"{blocks}.")})
    ratio = hidden / width
    if int(width * ratio) != hidden:  # the network cuts off to a whole number
        ratio = (hidden + 0.5) / width
    return {"width": width, "depth": depth, "heads": 1, "mlp_ratio": ratio}


def _size(tensors: Tensors, key: str, axis: int, what: str) -> int:
    tensor = tensors.get(key)
    if tensor is None:
        raise CheckpointError(f"{what}: {key} is missing; these are not a masked autoencoder's")
    if tensor.ndim <= axis or 0 in tensor.shape:
        raise CheckpointError(
            f"{what}: {key} is {tuple(tensor.shape)}; these are not a masked autoencoder's"
        )
    return tensor.shape[axis]
