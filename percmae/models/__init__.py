"""Networks: the masked autoencoder, the classifier built on its encoder, weights in and out."""

from percmae.config import Config
from percmae.config.scales import MULTI_SCALE
from percmae.models.mae import MaskedAutoencoder
from percmae.models.msg import MultiScaleAutoencoder


def build_model(config: Config) -> MaskedAutoencoder:
    """The generator that ``config`` describes, freshly initialised from torch's global generator.

    Raises ConfigError when a multi-scale network cannot be built for these sizes.
    """
    return (MultiScaleAutoencoder if config.variant in MULTI_SCALE else MaskedAutoencoder)(config)
