"""Names of an autoencoder's weights from elsewhere, turned into ours.

Ours are those of the official MAE code and of timm's Vision Transformers. Other names come from
what a network was wrapped in when it was saved (DistributedDataParallel, torch.compile, a training
framework's module), and from Hugging Face's ViT and ViTMAE.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from percmae.errors import CheckpointError
from percmae.models.weights import Tensors


class Named(NamedTuple):
    """Tensors by our names, and what there is to say of how they were found."""

    tensors: dict[str, Tensor]
    remarks: list[str]


def unwrapped(tensors: Tensors, what: str) -> Named:
    """The same without the names of wrappers that no network has in its own.

    ``module.`` and ``model.`` go where all keys begin with them. Raises CheckpointError where two
    keys would have one name.
    """
    named = {_INNER.sub("", key): value for key, value in tensors.items()}
    taken = sorted({name for key in tensors for name in _INNER.findall(key)})
    while prefix := next((p for p in _OUTER if all(key.startswith(p) for key in named)), None):
        named = {key.removeprefix(prefix): value for key, value in named.items()}
        taken.append(prefix)
        if not named:
            break
    if len(named) < len(tensors):
        raise CheckpointError(f"{what}: two keys have the same name without {', '.join(taken)}")
    return Named(named, [f"{' '.join(taken)} taken off the names"] if taken else [])


# torch.compile, FSDP and activation checkpointing may wrap a part of a network as well as it all.
_INNER = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
_OUTER = ("module.", "model.")


def autoencoder_names(tensors: Tensors, what: str) -> Named:
    """An autoencoder's or encoder's weights by our names, whatever it was a part of.

    Where its keys have a prefix (``backbone.``, ``encoder.`` …) those without it are left out, as
    the remarks say. Raises CheckpointError where there are several encoders.
    """
    tensors, remarks = unwrapped(tensors, what)
    prefixes = {
        key.removesuffix(end)
        for end in _PATCHES
        for key in tensors
        if key == end or key.endswith(f".{end}")
    }
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{what}: holds several encoders ({', '.join(sorted(prefixes))}); save the one that is "
            "meant in a file of its own"
        )
    for prefix in prefixes:
        theirs = prefix + _PATCHES[1] in tensors
        outer = prefix.removesuffix("vit.") if theirs else prefix
        if outer:
            left = [key for key in tensors if not key.startswith(outer)]
            tensors = {
                key.removeprefix(outer): value
                for key, value in tensors.items()
                if key.startswith(outer)
            }
            remarks.append(f"{outer} taken off the names")
            if left:
                remarks.append(left_out(left))
        if theirs:
            tensors = _from_hugging_face(tensors)
            remarks.append("Hugging Face's names turned into ours")
    return Named(dict(tensors), remarks)


# What only an encoder has: the patch embedding, by our name and by Hugging Face's.
_PATCHES = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")


def left_out(keys: list[str]) -> str:
    """The remark about keys that are not used."""
    more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
    return f"left out {', '.join(keys[:2])}{more}"


_BLOCK = re.compile(
    r"(?:vit\.)?(?P<decoder>decoder\.)?"
    r"(?:encoder\.layer|layers|decoder_layers|decoder_encoder\.layer)\.(?P<number>\d+)\.(?P<rest>.+)"
)
# As published, and as version 5 of transformers calls its modules.
_IN_BLOCK = {
    **{f"attention.attention.{name}": f"attn.{name}" for name in ("query", "key", "value")},
    "attention.q_proj": "attn.query",
    "attention.k_proj": "attn.key",
    "attention.v_proj": "attn.value",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}


def _from_hugging_face(tensors: Tensors) -> dict[str, Tensor]:
    """Our names for those of Hugging Face's ViT and ViTMAE; queries, keys and values become one."""
    named = {_our_name(key): value for key, value in tensors.items()}
    for key in [key for key in named if ".attn.query." in key]:
        parts = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in named for part in parts):
            joined = torch.cat([named.pop(part) for part in parts])
            named[key.replace(".query.", ".qkv.")] = joined
    return named


def _our_name(key: str) -> str:
    path, _, leaf = key.rpartition(".")
    if block := _BLOCK.fullmatch(path):
        inside = _IN_BLOCK.get(block["rest"], block["rest"])
        kind = "decoder_blocks" if block["decoder"] else "blocks"
        return f"{kind}.{block['number']}.{inside}.{leaf}"
    own = key.removeprefix("vit.").removeprefix("decoder.")
    if own in _OUTSIDE:
        return _OUTSIDE[own]
    path, _, leaf = own.rpartition(".")
    return f"{_OUTSIDE[path]}.{leaf}" if path in _OUTSIDE else own
