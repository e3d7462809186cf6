"""What no training could be started with, refused before a pipeline is: here or in a cluster."""

from __future__ import annotations

from collections.abc import Sequence

from percmae.config import TRAININGS
from percmae.errors import UserError
from percmae.stages.placement import LOCAL, Placement
from percmae.stages.scope import STAGES, overrides_for
from percmae.stages.steps import pretrain_config


def check_training(
    variant: str,
    tag: str,
    recipe: str,
    size: str,
    seeds: Sequence[int],
    overrides: Sequence[str],
) -> str:
    """The name of the pretraining runs.

    Raises UserError for seeds, and ConfigError for settings, that some stage could not take.
    """
    from percmae.config import load_config  # pydantic: for start-up time
    from percmae.runs.downstream import inherited

    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"seeds {list(seeds)}: give one or more different whole numbers")
    config = pretrain_config(variant, recipe, size, tag, overrides, seeds[0])
    for stage in TRAININGS[1:]:
        chosen = overrides_for(stage, overrides)
        load_config(variant, recipe, stage, overrides=chosen, base=inherited(config))
    return config.run_name


def check_placement(placement: Placement, store: str | None) -> None:
    """Raises ConfigError for a launcher or job settings that could not work, UserError for a store
    (None: the embedded one) that jobs could not reach."""
    for stage in STAGES:
        placement.settings(stage)
    if placement.launcher != LOCAL and store is None:
        raise UserError(
            f"--launcher {placement.launcher} needs --store: pods cannot reach the embedded store "
            "of this machine; give an s3:// prefix, with AWS_ENDPOINT_URL and keys for it here"
        )
