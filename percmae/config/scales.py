"""The one rule that fits the multi-scale networks to any image size (docs/method.md,
"Other image sizes").

Scales are the full image and its exact halvings down to at least 4 pixels, at most
``discriminator.depth`` of them and at most one a decoder block: six at 224 pixels with the default
sizes (224, 112, 56, 28, 14, 7).
"""

from __future__ import annotations

from percmae.config.schema import Config
from percmae.errors import ConfigError

SMALLEST = 4  # pixels
MULTI_SCALE = ("msg_gan", "stylegan2_ada")  # variants


def scales(config: Config) -> list[int]:
    """Sides in pixels of the images of one sample, the full size first.

    Raises ConfigError when the sizes leave no second scale, or the decoder has more blocks than
    the encoder (whose maps it takes, one a block).
    """
    decoder, encoder = config.model.decoder.depth, config.model.encoder.depth
    if decoder > encoder:
        raise ConfigError(
            f"model.decoder.depth={decoder} is above model.encoder.depth={encoder}: variant "
            f"{config.variant} gives each decoder block the map of an encoder block; lower it"
        )
    sizes = [config.data.image_size]
    while sizes[-1] % 2 == 0 and sizes[-1] // 2 >= SMALLEST:
        sizes.append(sizes[-1] // 2)
    sizes = sizes[: min(config.discriminator.depth, decoder)]
    if len(sizes) < 2:
        raise ConfigError(
            f"variant {config.variant} needs images at two scales or more: data.image_size="
            f"{config.data.image_size} must halve to at least {SMALLEST} px, and "
            f"model.decoder.depth={decoder} and discriminator.depth={config.discriminator.depth} "
            "must be 2 or more"
        )
    return sizes
