"""Which stage a setting of the pipeline is for."""

from __future__ import annotations

import dataclasses

import pytest

from percmae.config import TRAININGS
from percmae.errors import ConfigError
from percmae.jobs.settings import JobSettings
from percmae.stages.scope import OF_TRAININGS, job_settings_for, overrides_for

MIXED = [
    "probe.optim.epochs=5",
    "optim.epochs=3",
    "pretrain.optim.lr=1e-3",
    "finetune.classifier.mixup=0.8",
    "all.data.workers=2",
    " model.encoder.depth = 2",
    "classifier.pool=avg",
    "data={batch_size: 8, augment: {erasing: 0.1}}",
]


def test_overrides_go_to_every_stage_that_has_them_or_to_one() -> None:
    assert overrides_for("pretrain", MIXED) == [
        "optim.epochs=3",
        "data.workers=2",
        "model.encoder.depth=2",
        "data.batch_size=8",
        "optim.lr=0.001",
    ]
    assert overrides_for("probe", MIXED) == [
        "optim.epochs=3",
        "data.workers=2",
        'classifier.pool="avg"',
        "data.batch_size=8",
        "optim.epochs=5",  # the stage's own is the last, so the stronger
    ]
    assert overrides_for("finetune", MIXED) == [
        "optim.epochs=3",
        "data.workers=2",
        'classifier.pool="avg"',
        "data.batch_size=8",
        "data.augment.erasing=0.1",
        "classifier.mixup=0.8",
    ]


def test_job_settings_go_to_every_stage_that_has_them_or_to_one() -> None:
    job = ["probe.memory=4Gi", "memory=8Gi", "min_nodes=2", "labels={team: a.b=c}", "all.cpu=2"]
    common = ["memory=8Gi", "labels={team: a.b=c}", "cpu=2"]
    assert job_settings_for("evaluate", job) == common
    trainings = [common[0], "min_nodes=2", *common[1:]]
    assert job_settings_for("pretrain", job) == trainings
    assert job_settings_for("probe", job) == [*trainings, "memory=4Gi"]


@pytest.mark.parametrize("stage", TRAININGS)
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1", "agree"),
        ("tag=x", "agree"),
        ("name = x", "agree"),
        ("probe.tag=x", "agree"),
        ("all.seed=2", "agree"),
        ("optim.epoch=1", "did you mean 'optim.epochs'"),
        ("probe.optim.epoch=1", "did you mean 'optim.epochs'"),
        ("prob.optim.epochs=1", "'prob.optim.epochs'; did you mean 'optim.epochs'"),
        ("optim=3", "is a section"),
        ("optim={}", "is a section"),
        ("optim.epochs", "expected key=value"),
        ("probe.model.mask_ratio=0.5", r"'probe\.model\.mask_ratio=0\.5': .* pretrain, not of pro"),
        ("pretrain.classifier.pool=avg", "of finetune, probe, not of pretrain"),
        ("probe.model.encoder.depth=3", "is a setting of pretrain, not of probe"),
        ("evaluate.data.batch_size=3", "not of evaluate"),
    ],
)
def test_what_is_no_setting_of_a_stage_is_refused(stage: str, override: str, message: str) -> None:
    """Whatever stage asks: nothing is to be trained before it is noticed."""
    with pytest.raises(ConfigError, match=message):
        overrides_for(stage, [override])


def test_an_evaluation_is_one_pod() -> None:
    with pytest.raises(
        ConfigError, match="nodes is a setting of pretrain, finetune, probe, not of"
    ):
        job_settings_for("pretrain", ["evaluate.nodes=2"])
    assert {field.name for field in dataclasses.fields(JobSettings)} > OF_TRAININGS


def test_shares_of_the_labels_are_the_pipelines_own_parameter() -> None:
    with pytest.raises(ConfigError, match=r"data\.label_fraction: give shares .*--label-fractions"):
        overrides_for("finetune", ["finetune.data.label_fraction=0.1"])
