"""Weights between formats, strictly: every key finds its place or the load is refused."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from percmae.errors import CheckpointError

DECODER_KEYS = ("mask_token", "decoder_")

Tensors = Mapping[str, Tensor]


def load_strict(
    module: nn.Module, tensors: Tensors, what: str, fresh: tuple[str, ...] = ()
) -> None:
    """Load tensors into a module; only keys starting with one of ``fresh`` may be absent.

    Raises CheckpointError naming the first key that finds no place, is missing or has another
    shape, before anything is changed.
    """
    own = module.state_dict()
    for key, tensor in tensors.items():
        if key not in own:
            raise CheckpointError(
                f"{what}: key {key} has no place in the network{_count(tensors, own)}"
            )
        if tensor.shape != own[key].shape:
            raise CheckpointError(
                f"{what}: {key} is {tuple(tensor.shape)}, the network needs "
                f"{tuple(own[key].shape)}; the sizes in the config (model.*, data.image_size) must "
                "be those the weights were trained with"
            )
    missing = [key for key in own if key not in tensors and not key.startswith(fresh or ("\0",))]
    if missing:
        raise CheckpointError(
            f"{what}: {missing[0]} is missing ({len(missing)} of {len(own)} keys are); these are "
            "not the weights of this network"
        )
    with torch.no_grad():
        module.load_state_dict(dict(tensors), strict=False)


def _count(tensors: Tensors, own: Tensors) -> str:
    lost = sum(key not in own for key in tensors)
    return f" ({lost} of {len(tensors)} keys have none); these are not the weights of this network"


def encoder_tensors(generator: Tensors) -> dict[str, Tensor]:
    """The encoder's part of a masked autoencoder's state dict: everything but the decoder."""
    return {k: v for k, v in generator.items() if not k.startswith(DECODER_KEYS)}


def classifier_tensors(generator: Tensors, pool: str) -> dict[str, Tensor]:
    """A pretrained encoder under the names of a timm VisionTransformer without its head.

    With average pooling timm normalises after the pooling (``fc_norm``): the encoder's final norm
    goes there, so no tensor is left over.
    """
    tensors = encoder_tensors(generator)
    if pool == "avg":
        for name in ("weight", "bias"):
            tensors[f"fc_norm.{name}"] = tensors.pop(f"norm.{name}")
    return tensors
