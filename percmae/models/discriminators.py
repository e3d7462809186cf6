"""Discriminators: DCGAN for one scale, MSG for all scales of the multi-scale generator.

Both take the images of every scale, the full size first, and return a logit a sample with the
feature maps that perceptual and style terms compare (docs/method.md).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percmae.config import Config
from percmae.config.scales import MULTI_SCALE, SMALLEST, scales
from percmae.models.mae import CHANNELS
from percmae.models.norm import BatchNorm2d

SLOPE = 0.2  # of LeakyReLU
# Losses with a gradient penalty ask how one sample's logit depends on that sample: batch
# normalisation, which mixes samples, is left out then (arXiv 1704.00028, section 4).
PER_SAMPLE = ("wgan", "stylegan2_ada")


class Judged(NamedTuple):
    """logits: (N,); maps: feature maps, the largest first."""

    logits: Tensor
    maps: list[Tensor]


class Discriminator(nn.Module):
    """A network that judges the images of a sample."""

    @abstractmethod
    def forward(self, images: Sequence[Tensor]) -> Judged:
        """Judge images [(N, 3, H, W), …], the full size first."""

    @property
    def same_in_evaluation(self) -> bool:
        """Whether training and evaluation mode compute the same."""
        return not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.modules())


class EqualizedConv2d(nn.Conv2d):
    """A convolution whose weights are drawn from normal(0, 1) and scaled by √(2 / fan-in) when
    used, so that every layer learns at the same relative rate (arXiv 1710.10196, section 4.1)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, padding: int = 0) -> None:
        super().__init__(inputs, outputs, kernel, padding=padding)
        nn.init.normal_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)
        self.scale = math.sqrt(2 / (inputs * kernel * kernel))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


def _plain_conv(inputs: int, outputs: int, kernel: int, padding: int = 0) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=padding)


Conv = Callable[..., nn.Conv2d]
LAYERS: dict[str, Conv] = {"conv": _plain_conv, "equalized": EqualizedConv2d}


class DCGAN(Discriminator):
    """Strided convolutions on the full image; the maps of the first four are matched.

    At 224 pixels: 7×7 s2, 5×5 s2, 5×5 s2, 3×3 s2, 3×3 s2, 3×3, then a linear layer. At smaller
    sizes a convolution whose stride would bring the map below 4 pixels keeps its size instead.
    """

    # kernel, stride, padding and share of the width, of all but the last convolution
    PLAN = ((7, 2, 1, 8), (5, 2, 1, 4), (5, 2, 0, 2), (3, 2, 0, 1), (3, 2, 1, 1))
    MATCHED = 4

    def __init__(self, size: int, width: int, batch_norm: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        channels = CHANNELS
        for index, (kernel, stride, padding, share) in enumerate(self.PLAN):
            smaller = (size + 2 * padding - kernel) // stride + 1
            if smaller < SMALLEST:
                stride, padding, smaller = 1, kernel // 2, size
            normed = batch_norm and index > 0
            layers: list[nn.Module] = [
                nn.Conv2d(channels, width // share, kernel, stride, padding, bias=not normed)
            ]
            if normed:
                layers.append(BatchNorm2d(width // share))
            layers.append(nn.LeakyReLU(SLOPE, inplace=True))
            self.blocks.append(nn.Sequential(*layers))
            channels, size = width // share, smaller
        self.last = nn.Conv2d(channels, 1, 3)
        self.linear = nn.Linear((size - 2) ** 2, 1)

    def forward(self, images: Sequence[Tensor]) -> Judged:
        x, maps = images[0], []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return Judged(self.linear(self.last(x).flatten(1))[:, 0], maps[: self.MATCHED])


class DownBlock(nn.Module):
    """Two 3×3 convolutions with LeakyReLU, and average pooling by 2."""

    def __init__(self, conv: Conv, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, inputs, 3, padding=1)
        self.conv2 = conv(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(x), SLOPE, inplace=True)
        x = F.leaky_relu(self.conv2(x), SLOPE, inplace=True)
        return F.avg_pool2d(x, 2)


def minibatch_deviation(x: Tensor, group: int) -> Tensor:
    """x (N, C, H, W) with one more channel: how much the samples of a group differ.

    The standard deviation over a group of consecutive samples, averaged over channels and places
    (arXiv 1710.10196, section 3). Groups have the largest size up to ``group`` that divides N, so
    that a sample's group does not depend on how many processes share the batch.
    """
    n, _, h, w = x.shape
    size = next(g for g in range(min(group, n), 0, -1) if n % g == 0)
    grouped = x.float().unflatten(0, (n // size, size))
    deviation = (grouped.var(1, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    channel = deviation.repeat_interleave(size)[:, None, None, None].expand(n, 1, h, w)
    return torch.cat([x, channel.to(x.dtype)], dim=1)


class MSGDiscriminator(Discriminator):
    """The discriminator of MSG-GAN: each scale's image joins where the features have its size.

    From the full image down; the maps after each block (one less than there are scales) are
    matched. With width 512 and six scales the blocks have 64, 128, 256, 512 → 256 and 512 → 256
    channels, and the final block 512.
    """

    def __init__(self, sizes: Sequence[int], width: int, layer: str, group: int) -> None:
        super().__init__()
        conv = LAYERS[layer]
        self.group = group
        steps = len(sizes) - 1
        # Channels that enter each block; half come from the image of its scale, all at the top.
        widths = [width // 2 ** max(0, steps - 2 - place) for place in range(steps)]
        self.from_rgb = nn.ModuleList([conv(CHANNELS, widths[0], 1)])
        self.blocks = nn.ModuleList()
        for wide, after in zip(widths, [*widths[1:], width], strict=True):
            self.blocks.append(DownBlock(conv, wide, after // 2))
            self.from_rgb.append(conv(CHANNELS, after // 2, 1))
        self.conv1 = conv(width + 1, width, 3, padding=1)
        self.conv2 = conv(width, width, 4)
        self.conv3 = conv(width, 1, 1)
        self.linear = nn.Linear((sizes[-1] - 3) ** 2, 1)

    def forward(self, images: Sequence[Tensor]) -> Judged:
        if len(images) != len(self.from_rgb):
            raise ValueError(f"{len(images)} images; this network judges {len(self.from_rgb)}")
        x, maps = self.from_rgb[0](images[0]), []
        for block, from_rgb, image in zip(
            self.blocks, list(self.from_rgb)[1:], images[1:], strict=True
        ):
            x = block(x)
            maps.append(x)
            x = torch.cat([from_rgb(image), x], dim=1)
        x = F.leaky_relu(self.conv1(minibatch_deviation(x, self.group)), SLOPE, inplace=True)
        x = F.leaky_relu(self.conv2(x), SLOPE, inplace=True)
        return Judged(self.linear(self.conv3(x).flatten(1))[:, 0], maps)


def build_discriminator(config: Config) -> Discriminator:
    """The discriminator of ``config.variant``, freshly initialised."""
    settings = config.discriminator
    if config.variant in MULTI_SCALE:
        return MSGDiscriminator(scales(config), settings.width, settings.layer, settings.group)
    return DCGAN(config.data.image_size, settings.width, config.adversarial.kind not in PER_SAMPLE)
