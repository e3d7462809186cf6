"""The masked autoencoder (arXiv 2111.06377; docs/method.md, "Masked autoencoder")."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percmae.config import Config
from percmae.errors import UserError
from percmae.models.layers import (
    NORM_EPS,
    Block,
    PatchEmbed,
    init_linear,
    sincos_positions,
    take,
)

CHANNELS = 3


class MaskedOutput(NamedTuple):
    """What one forward pass returns.

    loss: scalar; prediction: (N, L, p²·3) patches; mask: (N, L), 1 where the patch was removed.
    """

    loss: Tensor
    prediction: Tensor
    mask: Tensor


class Masking(NamedTuple):
    """Which patches are seen.

    keep: (N, K) and removed: (N, L − K), positions of the visible and the removed patches, in
    shuffled order; restore: (N, L) place of each patch in the shuffled sequence; mask: (N, L)
    float, 1 where removed.
    """

    keep: Tensor
    removed: Tensor
    restore: Tensor
    mask: Tensor


class Generated(NamedTuple):
    """The whole image as the network makes it, for losses that compare whole images.

    images: (N, 3, H, W) float32 in the input's normalisation, from the full size down (that size
    alone but for multi-scale networks); latent: (N, 1 + K, D), the encoder's output.
    """

    images: list[Tensor]
    latent: Tensor
    masking: Masking


class MaskedAutoencoder(nn.Module):
    """ViT encoder on the visible patches, light decoder on all places.

    ``forward(images, noise=None)`` takes (N, 3, H, W) normalised images and, to fix the mask,
    (N, L) uniform noise. State-dict keys are those of the official MAE code.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        model, encoder, decoder = config.model, config.model.encoder, config.model.decoder
        self.image_size = config.data.image_size
        self.patch_size = model.patch_size
        self.grid = self.image_size // self.patch_size
        self.mask_ratio = model.mask_ratio
        self.norm_pix_loss = model.norm_pix_loss

        self.patch_embed = PatchEmbed(self.patch_size, CHANNELS, encoder.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, encoder.width))
        # Parameters, so that they travel in state dicts as in the official checkpoints; fixed.
        self.pos_embed = nn.Parameter(
            sincos_positions(encoder.width, self.grid), requires_grad=False
        )
        self.blocks = nn.ModuleList(
            Block(encoder.width, encoder.heads, encoder.mlp_ratio) for _ in range(encoder.depth)
        )
        self.norm = nn.LayerNorm(encoder.width, eps=NORM_EPS)

        self.decoder_embed = nn.Linear(encoder.width, decoder.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder.width))
        self.decoder_pos_embed = nn.Parameter(
            sincos_positions(decoder.width, self.grid), requires_grad=False
        )
        self.decoder_blocks = nn.ModuleList(
            Block(decoder.width, decoder.heads, decoder.mlp_ratio) for _ in range(decoder.depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder.width, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(decoder.width, self.patch_size**2 * CHANNELS)
        self._init_weights()

    def _init_weights(self) -> None:
        self.apply(init_linear)
        # As a linear layer on flattened patches: fan-in p²·3, fan-out the width.
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        nn.init.zeros_(self.patch_embed.proj.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    @property
    def patches(self) -> int:
        """Number of patches L in an image."""
        return self.grid**2

    def patchify(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, L, p²·3), each patch in (row, column, channel) order."""
        n, g, p = images.shape[0], self.grid, self.patch_size
        x = images.reshape(n, CHANNELS, g, p, g, p)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(n, g * g, p * p * CHANNELS)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(N, L, p²·3) to (N, 3, H, W); the inverse of :meth:`patchify`."""
        return patches_to_image(patches, self.patch_size)

    def masking(self, noise: Tensor) -> Masking:
        """Keep the int(L·(1 − ratio)) patches with the smallest noise (N, L) of each image.

        Raises UserError for noise of another shape.
        """
        if noise.shape[1:] != (self.patches,):
            raise UserError(f"noise is {tuple(noise.shape)}; expected (N, {self.patches})")
        kept = int(self.patches * (1 - self.mask_ratio))
        shuffle = noise.argsort(dim=1, stable=True)
        restore = shuffle.argsort(dim=1)
        mask = (restore >= kept).to(noise.dtype)
        return Masking(shuffle[:, :kept], shuffle[:, kept:], restore, mask)

    def encode(self, patches: Tensor, keep: Tensor) -> Tensor:
        """Latent (N, 1 + K, D) of the patches (N, L, p²·3) at the places keep (N, K)."""
        x = self._embed(patches, keep)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def _embed(self, patches: Tensor, keep: Tensor) -> Tensor:
        """Encoder tokens (N, 1 + K, D): the class token and the visible patches."""
        x = self.patch_embed(take(patches, keep)) + self.pos_embed[0, 1:][keep]
        token = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        return torch.cat([token.to(x.dtype), x], dim=1)

    def _unmask(self, latent: Tensor, restore: Tensor) -> Tensor:
        """Decoder tokens (N, 1 + L, d): latent tokens in their places, mask tokens elsewhere."""
        x = self.decoder_embed(latent)
        n, visible, d = x.shape
        removed = self.mask_token.to(x.dtype).expand(n, self.patches - (visible - 1), -1)
        tokens = torch.cat([x[:, 1:], removed], dim=1)
        tokens = tokens.gather(1, restore[:, :, None].expand(-1, -1, d))
        return torch.cat([x[:, :1], tokens], dim=1) + self.decoder_pos_embed

    def decode(self, latent: Tensor, restore: Tensor) -> Tensor:
        """Prediction (N, L, p²·3) from a latent (N, 1 + K, D) and the places restore (N, L)."""
        x = self._unmask(latent, restore)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x[:, 1:]))

    def generate(self, images: Tensor, noise: Tensor) -> Generated:
        """The whole image from its visible patches; images (N, 3, H, W), noise (N, L)."""
        patches = self.patchify(self._checked(images))
        masking = self.masking(noise)
        latent = self.encode(patches, masking.keep)
        image = self.unpatchify(self.decode(latent, masking.restore).float())
        return Generated([image], latent, masking)

    def generate_and_encode(self, images: Tensor, noise: Tensor) -> tuple[Generated, Tensor]:
        """Like :meth:`generate`, with the latent of the image it made, seen at the same places."""
        generated = self.generate(images, noise)
        patches = self.patchify(generated.images[0])
        return generated, self.encode(patches, generated.masking.keep)

    def removed_loss(self, images: Tensor, noise: Tensor) -> Tensor:
        """The loss of :meth:`forward`, predicting only the patches it is taken over."""
        patches = self.patchify(self._checked(images))
        masking = self.masking(noise)
        x = self._decode_removed(self.encode(patches, masking.keep), masking)
        prediction = self.decoder_pred(self.decoder_norm(x))
        target = self.target_of(take(patches, masking.removed)).float()
        return (prediction.float() - target).square().mean()

    def _decode_removed(self, latent: Tensor, masking: Masking) -> Tensor:
        """Decoder outputs (N, L − K, d) at the removed places, in the order of masking.removed.

        To attention the order of tokens means nothing, so they stay shuffled: the visible ones,
        then the removed ones, which begin as the same mask token in all images.
        """
        position = self.decoder_pos_embed[0]
        seen = torch.cat([position[:1].expand(len(latent), 1, -1), position[1:][masking.keep]], 1)
        seen = self.decoder_embed(latent) + seen
        blank = self.mask_token[0].to(seen.dtype) + position[1:]
        *blocks, last = self.decoder_blocks
        if blocks:
            first, *blocks = blocks
            x = cast("Block", first).forward_shared(seen, blank, masking.removed)
        else:
            x = torch.cat([seen, F.embedding(masking.removed, blank)], dim=1)
        for block in blocks:
            x = block(x)
        return last(x, masking.removed.shape[1])

    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One pass without a loss: (prediction (N, L, p²·3), mask (N, L))."""
        patches = self.patchify(self._checked(images))
        masking = self.masking(noise)
        return self.decode(self.encode(patches, masking.keep), masking.restore), masking.mask

    def forward(self, images: Tensor, noise: Tensor | None = None) -> MaskedOutput:
        """Masked reconstruction of images (N, 3, H, W); noise (N, L) fixes the mask.

        Raises UserError when the images are not of the size the network was built for.
        """
        if noise is None:
            noise = torch.rand(images.shape[0], self.patches, device=images.device)
        prediction, mask = self.reconstruct(images, noise)
        return MaskedOutput(self.masked_loss(images, prediction, mask), prediction, mask)

    def masked_loss(self, images: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error of each patch, averaged over the removed ones (float32 scalar)."""
        target = self.target_of(self.patchify(images)).float()
        error = (prediction.float() - target).square().mean(dim=-1)
        return (error * mask).sum() / mask.sum()

    def target_of(self, patches: Tensor) -> Tensor:
        """What the prediction of original patches (N, M, p²·3) is compared with."""
        if not self.norm_pix_loss:
            return patches
        mean, std = patch_statistics(patches)
        return (patches - mean) / std

    def reconstructions(self, images: Tensor, noise: Tensor) -> tuple[list[Tensor], Tensor]:
        """What the network makes of images, in their normalisation, and the mask (N, L).

        The images are (N, 3, H, W) float32, from the full size down; see :meth:`to_images`.
        """
        prediction, mask = self.reconstruct(images, noise)
        return [self.to_images(prediction.float(), images)], mask

    def to_images(self, prediction: Tensor, images: Tensor) -> Tensor:
        """A prediction (N, L, p²·3) as images (N, 3, H, W) in the input's own range.

        With norm_pix_loss the network predicts patches without their brightness and contrast;
        these are then taken from the original images, as the MAE authors do for their figures.
        """
        if self.norm_pix_loss:
            mean, std = patch_statistics(self.patchify(images))
            prediction = prediction * std + mean
        return self.unpatchify(prediction)

    def _checked(self, images: Tensor) -> Tensor:
        expected = (CHANNELS, self.image_size, self.image_size)
        if tuple(images.shape[1:]) != expected:
            raise UserError(
                f"model input is {tuple(images.shape)}; expected (N, {expected[0]}, {expected[1]}, "
                f"{expected[2]}); change data.image_size or resize the images"
            )
        return images


def patches_to_image(patches: Tensor, patch_size: int) -> Tensor:
    """Patches (N, g², p²·3), each in (row, column, channel) order, as images (N, 3, g·p, g·p).

    In memory channels come last, as they do in the patches: convolutions are quicker that way.
    """
    n, p = patches.shape[0], patch_size
    g = math.isqrt(patches.shape[1])
    x = patches.reshape(n, g, g, p, p, CHANNELS)
    return x.transpose(2, 3).reshape(n, g * p, g * p, CHANNELS).permute(0, 3, 1, 2)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, (N, L, 1): unbiased variance + 1e-6."""
    mean = patches.mean(dim=-1, keepdim=True)
    return mean, (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
