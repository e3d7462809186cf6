"""What no training could be started with, refused before one is, here or in a cluster.

The first step of a run in a cluster asks the same, and says the same, as whoever submits one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from percmae.config import TRAININGS, Config, load_config
from percmae.config.presets import size_of
from percmae.errors import ConfigError, UserError
from percmae.runs.downstream import inherited
from percmae.stages.placement import LOCAL, Placement
from percmae.stages.scope import STAGES, overrides_for


def pretrain_config(
    variant: str, recipe: str, size: str, tag: str, overrides: Iterable[str], seed: int
) -> Config:
    """The configuration of one seed's pretraining; empty strings stand for what is not given."""
    chosen = [*overrides_for("pretrain", overrides), f"seed={seed}"]
    return load_config(
        variant, recipe, "pretrain", overrides=chosen, tag=tag or None, size=size or None
    )


def check_training(
    variant: str,
    tag: str,
    recipe: str,
    size: str,
    seeds: Sequence[int],
    overrides: Sequence[str],
    label_fractions: Sequence[float] = (1.0,),
) -> str:
    """The name of the pretraining runs.

    Raises UserError for seeds and shares of the labels, and ConfigError for settings, that some
    stage could not take.
    """
    if not all(_is_whole(seed) for seed in seeds):
        raise ConfigError(f"parameter seeds={seeds}: should be whole numbers such as [0, 1]")
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"seeds {list(seeds)}: give one or more different whole numbers")
    _check_fractions(label_fractions)
    _check_texts("overrides", overrides, "optim.epochs=3")
    config = pretrain_config(variant, recipe, size, tag, overrides, int(seeds[0]))
    known = size_of(config.model.encoder)
    for stage in TRAININGS[1:]:
        chosen = overrides_for(stage, overrides)
        load_config(variant, recipe, stage, overrides=chosen, size=known, base=inherited(config))
    return config.run_name


def check_placement(placement: Placement, store: str | None) -> None:
    """Raises ConfigError for a launcher or job settings that could not work, UserError for a store
    (None: the embedded one) that jobs could not reach."""
    _check_texts("job", placement.job, "memory=64Gi")
    for stage in STAGES:
        placement.settings(stage)
    if placement.launcher != LOCAL and store is None:
        raise UserError(
            f"--launcher {placement.launcher} needs --store: pods cannot reach the embedded store "
            "of this machine; give an s3:// prefix, with AWS_ENDPOINT_URL and keys for it here"
        )


def _is_whole(value: Any) -> bool:
    """Whether it is a whole number; JSON, as a form in KFP gives it, has one kind of number."""
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def _check_fractions(fractions: Sequence[Any]) -> None:
    numbers = [x for x in fractions if isinstance(x, (int, float)) and not isinstance(x, bool)]
    fine = numbers == list(fractions) and all(0 < number <= 1 for number in numbers)
    if not fine or not numbers or len(set(numbers)) != len(numbers):
        raise UserError(
            f"label fractions {list(fractions)}: give one or more different numbers above 0, up to "
            "1 for all labels"
        )


def _check_texts(name: str, values: Sequence[Any], example: str) -> None:
    if not all(isinstance(value, str) for value in values):
        raise ConfigError(f"parameter {name}={values}: should be texts such as [{example}]")
