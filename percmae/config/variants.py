"""Configuration of the perceptual and adversarial variants (docs/method.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass

SETTINGS = ConfigDict(
    extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
)
"""How the dataclasses of all settings are read: nothing unknown, nothing converted, no infinity."""


@dataclass(config=SETTINGS)
class PerceptualSettings:
    """The frozen feature network of variant perceptual."""

    extractor: Literal["vgg16", "dalle", "efficientnet_lite0"] = "vgg16"
    """Feature network: torchvision's VGG16, the DALL-E dVAE encoder, or EfficientNet-Lite0, whose
    ImageNet weights come in a package (for demonstrations without internet; not in the paper)."""
    weights: str | None = None
    """Its weights (path or s3:// URI of what percmae import wrote, or of a state dict); null
    downloads vgg16's from torchvision and finds efficientnet_lite0's in its package."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Expected checksum of the weights' file."""


@dataclass(config=SETTINGS)
class AdversarialSettings:
    """The adversarial loss."""

    kind: Literal["std", "ls", "wgan", "stylegan2_ada"] = "ls"
    """std: BCE on logits; ls: least squares; wgan: critic with gradient penalty;
    stylegan2_ada: non-saturating logistic."""
    features: bool = True
    """Match discriminator features too (perceptual and style terms)."""
    refresh_epochs: PositiveInt = 5
    """The frozen copy used for feature matching is refreshed in epochs divisible by this."""
    gradient_penalty: NonNegativeFloat = 10.0
    """Weight of wgan's gradient penalty."""
    drift: NonNegativeFloat = 0.001
    """Weight of wgan's drift term."""


@dataclass(config=SETTINGS)
class DiscriminatorSettings:
    """Discriminator sizes."""

    depth: Annotated[int, Field(ge=1)] = 6
    """Most scales of the multi-scale networks; image size and decoder depth may allow fewer."""
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 512
    """Channels of its deepest convolutions; the others have a half, a quarter, an eighth."""
    layer: Literal["conv", "equalized"] = "conv"
    """Convolution type; equalized scales weights at run time (equalised learning rate)."""
    group: PositiveInt = 4
    """Samples over which the multi-scale discriminator takes its minibatch standard deviation."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the discriminator; null uses the generator's."""


@dataclass(config=SETTINGS)
class StyleGAN2ADASettings:
    """Regularisers and augmentation of variant stylegan2_ada (arXiv 2006.06676)."""

    r1_gamma: NonNegativeFloat = 10.0
    """Weight of R1."""
    r1_interval: PositiveInt = 16
    """Steps between R1 terms (lazy regularisation)."""
    path_length: NonNegativeFloat = 2.0
    """Weight of path-length regularisation."""
    path_interval: PositiveInt = 4
    """Steps between path-length terms."""
    path_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Decay of the running mean of path lengths."""
    latent: NonNegativeFloat = 1.0
    """Weight of latent reconstruction."""
    ada_target: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.6
    """Target of the overfitting heuristic, the mean sign of D(real)."""
    ada_interval: PositiveInt = 4
    """Steps between adjustments of the augmentation strength."""
    ada_kimg: Annotated[float, Field(gt=0)] = 500.0
    """Thousands of images in which the augmentation strength can go from 0 to 1."""
