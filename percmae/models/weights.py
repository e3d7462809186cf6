"""Weights between formats, strictly: every key finds its place or the load is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from percmae.errors import CheckpointError
from percmae.vision import load_timm

# Names of the official MAE code and of timm's Vision Transformers; what a generator has beside
# them (decoder, compression layers, heads …) is not encoder.
ENCODER_KEYS = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
OUR_SIZES = (
    "the sizes in the config (model.*, data.image_size) must be those the weights were trained with"
)

Tensors = Mapping[str, Tensor]


def check_fit(
    own: Tensors,
    tensors: Tensors,
    what: str,
    fresh: tuple[str, ...] = (),
    sizes: str = OUR_SIZES,
) -> None:
    """Whether tensors are, key by key, what a network with the state dict ``own`` takes.

    Only the keys in ``fresh`` may be absent. ``own`` may lie on the meta device: names, shapes and
    kinds of number are compared. Raises CheckpointError naming the first key that finds no place,
    is missing, or has another shape (``sizes`` says what to do then) or kind.
    """
    for key, tensor in tensors.items():
        if key not in own:
            raise CheckpointError(
                f"{what}: key {key} has no place in the network{_count(tensors, own)}"
            )
        if tensor.shape != own[key].shape:
            raise CheckpointError(
                f"{what}: {key} is {tuple(tensor.shape)}, the network needs "
                f"{tuple(own[key].shape)}; {sizes}"
            )
        if tensor.is_floating_point() != own[key].is_floating_point():
            raise CheckpointError(
                f"{what}: {key} holds {tensor.dtype}, the network needs {own[key].dtype}; "
                "store the weights as floating-point numbers"
            )
    missing = [key for key in own if key not in tensors and key not in fresh]
    if missing:
        raise CheckpointError(
            f"{what}: {missing[0]} is missing ({len(missing)} of {len(own)} keys are); these are "
            "not the weights of this network"
        )


def _count(tensors: Tensors, own: Tensors) -> str:
    lost = sum(key not in own for key in tensors)
    return f" ({lost} of {len(tensors)} keys have none); these are not the weights of this network"


def load_strict(
    module: nn.Module, tensors: Tensors, what: str, fresh: tuple[str, ...] = ()
) -> None:
    """Load tensors into a module; only the keys in ``fresh`` may be absent.

    Raises CheckpointError as :func:`check_fit` does, before anything is changed.
    """
    check_fit(module.state_dict(), tensors, what, fresh)
    with torch.no_grad():
        module.load_state_dict(dict(tensors), strict=False)


def load_generator(generator: nn.Module, tensors: Tensors, what: str) -> bool:
    """Load a generator's weights, or those of its encoder alone, strictly.

    Official pretraining releases and timm's MAE models hold the encoder only. Such a file (no key
    that is not the encoder's) leaves the decoder as it was initialised, and True is returned; of
    any other file every key must be there. Raises CheckpointError.
    """
    own = generator.state_dict()
    decoder = tuple(key for key in own if not key.startswith(ENCODER_KEYS))
    encoder_only = is_encoder_only(tensors)
    load_strict(generator, tensors, what, decoder if encoder_only else ())
    return encoder_only


def is_encoder_only(tensors: Tensors) -> bool:
    """Whether no key belongs to anything but an encoder."""
    return all(key.startswith(ENCODER_KEYS) for key in tensors)


def encoder_tensors(generator: Tensors) -> dict[str, Tensor]:
    """The encoder's part of a generator's state dict, by the known names of an encoder."""
    return {k: v for k, v in generator.items() if k.startswith(ENCODER_KEYS)}


def on_grid(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings (1, 1 + g², D) for grid² patches, (1, 1 + grid², D), as timm makes them.

    Interpolated bicubically with antialiasing; the class token's row stays. Fixed sin-cos ones,
    which are in no way special here, are treated alike, as the official code does. What is no
    square grid of patches is returned as it is, for whoever checks.
    """
    rows = positions.shape[1] - 1 if positions.ndim == 3 else -1
    if rows == grid**2 or rows < 1 or math.isqrt(rows) ** 2 != rows:
        return positions
    resampled: Tensor = load_timm().layers.resample_abs_pos_embed(
        positions, [grid, grid], num_prefix_tokens=1
    )
    return resampled


def split_encoder(tensors: Tensors) -> tuple[dict[str, Tensor], list[str]]:
    """An encoder's weights without what may lie beside them in a file.

    The parts of an autoencoder that only pretraining uses go; so does a classifier's head, whose
    keys are returned too. Any other key stays, for whoever checks.
    """
    kept = {k: v for k, v in tensors.items() if not k.startswith((*_PRETRAINING, *_HEADS))}
    return kept, [key for key in tensors if key.startswith(_HEADS)]


# Of the masked and the multi-scale autoencoder.
_PRETRAINING = ("mask_token", "decoder_", "compress.", "heads.")
# As timm, torchvision and Hugging Face call a classifier's last layers.
_HEADS = ("head.", "fc.", "classifier.", "pooler.")


def classifier_tensors(generator: Tensors, pool: str, grid: int) -> dict[str, Tensor]:
    """A pretrained encoder under the names of a timm VisionTransformer without its head.

    With average pooling timm normalises after the pooling (``fc_norm``): the encoder's final norm
    goes there, so no tensor is left over. grid: patches along a side of the images it will see; for
    another number than it was trained with the position embeddings are interpolated.
    """
    tensors = encoder_tensors(generator)
    if "pos_embed" in tensors:
        tensors["pos_embed"] = on_grid(tensors["pos_embed"], grid)
    if pool == "avg":
        for name in ("weight", "bias"):
            tensors[f"fc_norm.{name}"] = tensors.pop(f"norm.{name}")
    return tensors
