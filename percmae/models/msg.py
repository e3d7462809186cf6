"""MSG-MAE: a masked autoencoder that paints the image at several scales (docs/method.md).

Encoder maps are handed on to the decoder as in a U-Net, and the decoder's inner blocks each yield a
smaller image, so that a multi-scale discriminator (arXiv 1903.06048) sends gradients to each depth.

How the network follows from other sizes is said in ``percmae.config.scales``: of S scales, the full
image comes from the last decoder block and the others from the S − 1 blocks before it, the earliest
of these making the largest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percmae.config import Config
from percmae.config.scales import scales
from percmae.models.layers import init_linear
from percmae.models.mae import CHANNELS, Generated, MaskedAutoencoder, patches_to_image


class ScaleHead(nn.Module):
    """Tokens (N, L, d) to an image (N, 3, H / factor, W / factor).

    A linear layer to patches, laid out as an image; average pooling to twice the wanted size and a
    strided convolution for the last halving.
    """

    def __init__(self, width: int, patch_size: int, factor: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.patches = nn.Linear(width, patch_size**2 * CHANNELS)
        self.pool = factor // 2
        kernel = 3 if self.pool == 1 else 5
        self.to_rgb = nn.Conv2d(CHANNELS, CHANNELS, kernel, stride=2, padding=kernel // 2)

    def forward(self, tokens: Tensor) -> Tensor:
        image = patches_to_image(self.patches(tokens), self.patch_size)
        return self.to_rgb(F.avg_pool2d(image, self.pool) if self.pool > 1 else image)


class MultiScaleAutoencoder(MaskedAutoencoder):
    """The masked autoencoder with skip connections and a head for each smaller scale.

    State-dict keys are those of the masked autoencoder plus ``compress.N`` (for decoder block
    N + 1) and ``heads.N`` (from the largest of the smaller images down).
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width, depth = config.model.decoder.width, config.model.decoder.depth
        self.sizes = scales(config)
        self.compress = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth - 1))
        self.heads = nn.ModuleList(
            ScaleHead(width, self.patch_size, 2**level) for level in range(1, len(self.sizes))
        )
        self.compress.apply(init_linear)
        self.heads.apply(init_linear)

    def _encode_maps(self, patches: Tensor, keep: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The latent, and the outputs of the blocks before the last one, latest first."""
        x = self._embed(patches, keep)
        maps: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return self.norm(x), maps[-2::-1][: len(self.compress)]

    def _decode_images(self, latent: Tensor, maps: list[Tensor], restore: Tensor) -> list[Tensor]:
        x = self._unmask(latent, restore)
        first_head = len(self.decoder_blocks) - 1 - len(self.heads)
        smaller: list[Tensor] = []
        for index, block in enumerate(self.decoder_blocks):
            if index:
                skip = self._unmask(maps[index - 1], restore)
                x = self.compress[index - 1](torch.cat([x, skip], dim=2))
            x = block(x)
            if 0 <= index - first_head < len(self.heads):
                smaller.append(self.heads[index - first_head](x[:, 1:]))
        full = self.unpatchify(self.decoder_pred(self.decoder_norm(x[:, 1:])))
        return [image.float() for image in (full, *smaller)]

    def generate(self, images: Tensor, noise: Tensor) -> Generated:
        """The image at every scale from its visible patches, the full size first."""
        patches = self.patchify(self._checked(images))
        masking = self.masking(noise)
        latent, maps = self._encode_maps(patches, masking.keep)
        return Generated(self._decode_images(latent, maps, masking.restore), latent, masking)

    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        generated = self.generate(images, noise)
        return self.patchify(generated.images[0]), generated.masking.mask

    def reconstructions(self, images: Tensor, noise: Tensor) -> tuple[list[Tensor], Tensor]:
        generated = self.generate(images, noise)
        return generated.images, generated.masking.mask
