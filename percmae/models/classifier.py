"""Fine-tuning and linear probing: a timm Vision Transformer that takes a pretrained encoder."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from percmae.config import Config
from percmae.config.naming import Features
from percmae.models.layers import NORM_EPS, init_linear, sincos_positions
from percmae.models.mae import CHANNELS
from percmae.models.weights import Tensors, classifier_tensors, load_strict
from percmae.vision import load_timm

HEAD_STD = {
    "finetune": 2e-5,
    "probe": 0.01,
}  # of the new head's weights, as in the MAE paper's code


class Head(nn.Module):
    """Affine-free BatchNorm (optional) and one linear layer, (N, D) to (N, classes)."""

    def __init__(self, width: int, classes: int, batch_norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6) if batch_norm else nn.Identity()
        self.linear = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features))


def vision_transformer(config: Config, pool: str, drop_path: float = 0.0) -> Any:
    """timm's VisionTransformer of a config's sizes, without a head, its weights not initialised.

    pool: ``token`` or ``avg``, as timm has it; drop_path: rate of its stochastic depth.
    """
    model = config.model
    return load_timm().models.vision_transformer.VisionTransformer(
        img_size=config.data.image_size,
        patch_size=model.patch_size,
        num_classes=0,
        global_pool=pool,
        embed_dim=model.encoder.width,
        depth=model.encoder.depth,
        num_heads=model.encoder.heads,
        mlp_ratio=model.encoder.mlp_ratio,
        qkv_bias=True,
        drop_path_rate=drop_path,
        norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),
        weight_init="skip",
    )


class Classifier(nn.Module):
    """Features and head: (N, 3, H, W) to logits (N, classes).

    Under ``probe`` the encoder is frozen and stays in evaluation mode whatever mode the classifier
    is put in; the head trains. features ``pixels`` puts the flattened image in the place of an
    encoder: the probe is then a logistic regression.
    """

    def __init__(self, config: Config, classes: int, features: Features = "pretrained") -> None:
        super().__init__()
        model, settings = config.model, config.classifier
        self.probe = config.stage == "probe"
        self.grid = config.data.image_size // model.patch_size
        self.encoder: nn.Module
        if features == "pixels":
            self.encoder, width = nn.Flatten(), CHANNELS * config.data.image_size**2
        else:
            self.encoder, width = self._vit(config), model.encoder.width
        self.dropout = nn.Dropout(settings.dropout)
        self.head = Head(width, classes, settings.batch_norm and features != "pixels")
        nn.init.trunc_normal_(self.head.linear.weight, std=HEAD_STD[config.stage])
        nn.init.zeros_(self.head.linear.bias)
        if self.probe:
            self.encoder.requires_grad_(False)
            self.encoder.eval()

    def _vit(self, config: Config) -> nn.Module:
        model, settings = config.model, config.classifier
        encoder = vision_transformer(config, settings.pool, settings.drop_path)
        # The initialisation the masked autoencoder has.
        encoder.apply(init_linear)
        state = encoder.state_dict()
        nn.init.xavier_uniform_(state["patch_embed.proj.weight"].flatten(1))
        nn.init.zeros_(state["patch_embed.proj.bias"])
        nn.init.normal_(state["cls_token"], std=0.02)
        state["pos_embed"].copy_(sincos_positions(model.encoder.width, self.grid))
        return encoder

    def load_encoder(self, generator: Tensors, pool: str, what: str) -> None:
        """Take the encoder from a masked autoencoder's state dict, strictly.

        Its position embeddings are interpolated where it was trained on images of another size.
        """
        load_strict(self.encoder, classifier_tensors(generator, pool, self.grid), what)

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if self.probe:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.probe):
            features = self.encoder(images)
        return self.classify(features)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (N, classes) of features (N, D) that the encoder has given."""
        return self.head(self.dropout(features))

    def layer_of(self, name: str) -> int:
        """Layer of a parameter for layer-wise rate decay: 0 embedding … depth + 1 norm and head."""
        if name.startswith(("encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed")):
            return 0
        if name.startswith("encoder.blocks."):
            return int(name.split(".")[2]) + 1
        return self.layers

    @property
    def layers(self) -> int:
        """Index of the topmost layer, depth + 1."""
        return len(getattr(self.encoder, "blocks", ())) + 1
