"""What is refused before a pipeline is started, and what is not."""

from __future__ import annotations

import pytest

from percmae.errors import ConfigError, UserError
from percmae.stages.check import check_placement, check_training
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
