"""Configuration: dataclasses, presets as YAML, ``key=value`` overrides."""

from percmae.config.load import (
    TRAININGS,
    Layers,
    config_from_dict,
    digest,
    load_config,
    to_dict,
    to_yaml,
)
from percmae.config.schema import FORMATS, Augment, Config, Decoder, Encoder, Model, Optim

__all__ = [
    "FORMATS",
    "TRAININGS",
    "Augment",
    "Config",
    "Decoder",
    "Encoder",
    "Layers",
    "Model",
    "Optim",
    "config_from_dict",
    "digest",
    "load_config",
    "to_dict",
    "to_yaml",
]
