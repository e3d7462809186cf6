"""The networks of a version, from its files, on the CPU in evaluation mode."""

from __future__ import annotations

import json
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from percmae.errors import CheckpointError, DataError, UserError
from percmae.models.weights import load_strict
from percmae.registry.files import (
    ARCHITECTURE,
    CLASSIFIER,
    ENCODER,
    TIMM_CONFIG,
    WEIGHTS,
    Package,
)
from percmae.vision import load_timm


class Features(nn.Module):
    """Images (N, 3, side, side) to features (N, D).

    Of a classifier's version, what its last layer is given; of a pretraining's, the mean of the
    patch tokens behind the final norm, as :func:`percmae.engine.embed.embed` has it.
    """

    def __init__(self, encoder: Any, pooled: bool) -> None:
        super().__init__()
        self.encoder, self.pooled = encoder, pooled

    def forward(self, images: Tensor) -> Tensor:
        if self.pooled:
            found: Tensor = self.encoder(images)
            return found
        tokens: Tensor = self.encoder.forward_features(images)
        return tokens[:, 1:].mean(1)


def classifier(package: Package) -> nn.Module:
    """Images (N, 3, side, side), preprocessed, to logits (N, classes).

    Raises UserError for a version that has none, DataError and CheckpointError for damaged files.
    """
    if not package.classifies:
        raise UserError(
            f"model {package.where} is a pretraining, which tells no classes; give a probe or "
            "fine-tuning, or take its features with percmae embed"
        )
    return _transformer(package, CLASSIFIER)


def encoder(package: Package) -> Features:
    """See :class:`Features`. Raises DataError and CheckpointError for damaged files."""
    return Features(_transformer(package, ENCODER), package.classifies).eval()


def _transformer(package: Package, folder: str) -> nn.Module:
    what = f"model {package.where}: {folder}"
    # To timm a name can be an address to download from: only the one that is packed.
    try:
        described = json.loads(package.read(f"{folder}/{TIMM_CONFIG}"))
        if described["architecture"] != ARCHITECTURE:
            raise ValueError(f"architecture is {described['architecture']!r}")
        sizes = {"num_classes": described["num_classes"], **described["model_args"]}
        network: nn.Module = load_timm().create_model(ARCHITECTURE, **sizes)
    except (ValueError, LookupError, TypeError, RuntimeError) as error:
        raise DataError(f"{what}/{TIMM_CONFIG} is none that percmae writes ({error})") from None
    try:
        tensors = safetensors.torch.load(package.read(f"{folder}/{WEIGHTS}"))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{what}/{WEIGHTS} is damaged ({error})") from None
    load_strict(network, tensors, what)
    return network.eval()


def device() -> torch.device:
    """Where networks are run: on a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
