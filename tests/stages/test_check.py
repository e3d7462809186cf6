"""What is refused before a pipeline is started, and what is not."""

from __future__ import annotations

import pytest

from percmae.config import load_config
from percmae.config.load import leaves
from percmae.errors import ConfigError, UserError
from percmae.stages.check import check_placement, check_training
from percmae.stages.few_labels import settings_for
from percmae.stages.placement import Placement


@pytest.mark.parametrize("override", ["data.image_size=224", "pretrain.data.image_size=224"])
def test_stages_take_their_sizes_from_the_pretraining(override: str) -> None:
    """A probe of the demo's own 32 px images could not have patches of 14 px."""
    assert check_training("mae", "t", "demo", "huge", [0], [override]) == "t_mae"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("probe.classifier.mixup=0.8", "a setting of finetune, not of probe"),
        ("finetune.optim.epochs=0", "greater than 0"),
        ("finetune.model.patch_size=4", "a setting of pretrain, not of finetune"),
    ],
)
def test_settings_that_a_later_stage_would_refuse(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_training("mae", "", "demo", "", [0], [override])


def test_settings_of_jobs_that_train_are_none_of_the_evaluation() -> None:
    check_placement(Placement("pytorchjob", job=["nodes=4", "min_nodes=2"]), "s3://bucket")
    with pytest.raises(ConfigError, match=r"'evaluate\.min_nodes=2'"):
        check_placement(Placement("pytorchjob", job=["evaluate.min_nodes=2"]), "s3://bucket")
    with pytest.raises(UserError, match="needs --store"):
        check_placement(Placement("pytorchjob"), None)


@pytest.mark.parametrize("fractions", [[], [0], [1.5], [-0.1], [0.1, 0.1], ["0.1"], [True]])
def test_shares_of_the_labels_that_there_are_not(fractions: list[float]) -> None:
    with pytest.raises(UserError, match="numbers above 0, up to 1 for all labels"):
        check_training("mae", "t", "demo", "", [0], [], fractions)


@pytest.mark.parametrize(
    ("fraction", "epochs", "warmup"), [(1.0, 4, 1.0), (0.25, 8, 2.0), (0.01, 40, 10.0)]
)
def test_fewer_labels_are_seen_more_often(fraction: float, epochs: int, warmup: float) -> None:
    usual = ["optim.epochs=4", "optim.warmup_epochs=1", "trainer.val_interval=2"]
    config = load_config("mae", "demo", "finetune", overrides=usual)
    few = load_config(
        "mae", "demo", "finetune", overrides=[*usual, *settings_for(config, fraction)]
    )
    assert few.data.label_fraction == fraction
    assert (few.optim.epochs, few.optim.warmup_epochs) == (epochs, warmup)
    assert few.trainer.val_interval == 2 * warmup
    settings = leaves(few)
    changed = {key for key, value in leaves(config).items() if settings[key] != value}
    assert len(changed) == (0 if fraction == 1 else 5)
