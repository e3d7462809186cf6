"""Hugging Face's ViTMAE with our weights: an independent masked autoencoder to compare with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from percmae.config import Config
from percmae.models.layers import NORM_EPS
from percmae.vision import load_torchvision

if TYPE_CHECKING:
    from transformers import ViTMAEForPreTraining

_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_ENDS = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    **{
        name: f"decoder.{name}"
        for name in (
            "mask_token", "decoder_pos_embed", "decoder_embed", "decoder_norm", "decoder_pred",
        )
    },
}  # fmt: skip


def hf_model(config: Config, state_dict: Mapping[str, Tensor]) -> ViTMAEForPreTraining:
    """``transformers``' ViTMAEForPreTraining of the config's sizes with a generator's tensors.

    ``model(images, noise=noise)`` returns loss, logits (N, L, p²·3) and mask (N, L) as our forward
    pass does. Raises RuntimeError when a tensor finds no place.
    """
    load_torchvision()  # which transformers imports
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    encoder, decoder = config.model.encoder, config.model.decoder
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=config.data.image_size,
            patch_size=config.model.patch_size,
            hidden_size=encoder.width,
            num_hidden_layers=encoder.depth,
            num_attention_heads=encoder.heads,
            intermediate_size=int(encoder.width * encoder.mlp_ratio),
            decoder_hidden_size=decoder.width,
            decoder_num_hidden_layers=decoder.depth,
            decoder_num_attention_heads=decoder.heads,
            decoder_intermediate_size=int(decoder.width * decoder.mlp_ratio),
            layer_norm_eps=NORM_EPS,
            mask_ratio=config.model.mask_ratio,
            norm_pix_loss=config.model.norm_pix_loss,
        )
    )
    mapped: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        mapped.update(_renamed(key, tensor))
    model.load_state_dict(mapped, strict=True)
    return model


def _renamed(key: str, tensor: Tensor) -> dict[str, Tensor]:
    found = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)\.(weight|bias)", key)
    if found is None:
        name, dot, kind = key.rpartition(".")
        return {_ENDS[key]: tensor} if not dot else {f"{_ENDS[name]}.{kind}": tensor}
    decoder, number, part, kind = found.groups()
    block = f"decoder.decoder_layers.{number}" if decoder else f"vit.layers.{number}"
    if part != "attn.qkv":
        return {f"{block}.{_BLOCK[part]}.{kind}": tensor}
    parts = zip("qkv", tensor.chunk(3), strict=True)
    return {f"{block}.attention.{name}_proj.{kind}": piece for name, piece in parts}
