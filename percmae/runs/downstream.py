"""What a probe or fine-tuning takes over from the run it builds upon; no torch needed for it."""

from __future__ import annotations

from typing import Any

from percmae.config import Config, to_dict
from percmae.config.load import load_layers
from percmae.config.naming import Features
from percmae.config.presets import size_of
from percmae.errors import ConfigError, UserError
from percmae.runs.parent import Parent, WeightsFile


def downstream_config(
    parent: Parent,
    stage: str,
    recipe: str | None = None,
    file: str | None = None,
    overrides: list[str] | tuple[str, ...] = (),
    tag: str | None = None,
    features: Features = "pretrained",
) -> Config:
    """The configuration of a probe or fine-tuning of ``parent``.

    Network sizes, image size and normalisation are those of the parent, and so is what the recipe
    changes with the size or has for these ``features`` alone; of a run the recipe, tag and seed too
    where none is given. From scratch (features ``untrained``) all layers learn at one rate unless
    another ``optim.layer_decay`` is given: the recipe's spares what has been learned before.

    Raises UserError when it is no pretraining run, ConfigError where the heads of a file's encoder
    are not known, and as :func:`percmae.config.load_config` does.
    """
    config = parent.config
    if config.stage != "pretrain":
        raise UserError(f"run {parent.uri} is a {config.stage} run; give a pretraining run")
    base = inherited(config)
    if isinstance(parent, WeightsFile):
        # A name is stronger than a tag; the file's stands only where there is no tag.
        base = {**parent.base, **({"name": None} if tag is not None else {})}
    if stage == "finetune" and features == "untrained":
        base = {**base, "optim": {"layer_decay": 1.0}}
    recipe = recipe or config.recipe
    # No tensor tells the heads.
    own = ["model.encoder.heads"] if isinstance(parent, WeightsFile) else []
    size = size_of(config.model.encoder)
    layers = load_layers(
        config.variant, recipe, stage, file, overrides, tag, size, base, own, features
    )
    told = "heads" in base["model"]["encoder"]
    if not told and layers.origin["model.encoder.heads"] not in ("command line", str(file)):
        raise ConfigError(
            f"{parent.uri}: how many attention heads its encoder has leaves no trace in weights, "
            f"and width {layers.config.model.encoder.width} is not that of a size preset; give it "
            "as model.encoder.heads=…"
        )
    return layers.config


def without_own_settings(
    parent: Parent, stage: str, recipe: str, features: Features = "pretrained"
) -> Config:
    """What :func:`downstream_config` gives where no setting is given.

    For heads that nothing tells there is one for each dimension, which nobody would ask for.
    """
    heads = f"model.encoder.heads={parent.config.model.encoder.width}"
    asked = isinstance(parent, WeightsFile) and "heads" not in parent.base["model"]["encoder"]
    given = [heads] if asked else []
    return downstream_config(parent, stage, recipe, overrides=given, features=features)


def inherited(parent: Config) -> dict[str, Any]:
    """What stages that build upon a pretraining of this config take from it."""
    values = to_dict(parent)
    augment = values["data"]["augment"]
    model = {k: v for k, v in values["model"].items() if k not in ("init_from", "norm_pix_loss")}
    return {
        "seed": parent.seed,
        "tag": parent.tag,
        "name": parent.name,
        "data": {
            "image_size": parent.data.image_size,
            "augment": {"mean": augment["mean"], "std": augment["std"]},
        },
        "model": model,
    }
