"""What a probe or fine-tuning takes over from the run it builds upon; no torch needed for it."""

from __future__ import annotations

from typing import Any

from percmae.config import Config, load_config, to_dict
from percmae.errors import UserError
from percmae.runs.record import Run


def downstream_config(
    run: Run,
    stage: str,
    recipe: str | None = None,
    file: str | None = None,
    overrides: list[str] | tuple[str, ...] = (),
    tag: str | None = None,
) -> Config:
    """The configuration of a probe or fine-tuning of ``run``.

    Network sizes, image size and normalisation are those of the run; the recipe, tag and seed too
    where none is given. Raises UserError when it is no pretraining run, ConfigError as
    :func:`percmae.config.load_config` does.
    """
    parent = run.config
    if parent.stage != "pretrain":
        raise UserError(f"run {run.uri} is a {parent.stage} run; give a pretraining run")
    base = inherited(parent)
    return load_config(
        parent.variant, recipe or parent.recipe, stage, file, overrides, tag, base=base
    )


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
