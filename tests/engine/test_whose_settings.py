"""Settings of a stage (``stages_of``) change its weights, those of other stages not a bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from percmae.config import load_config
from percmae.config.load import TRAININGS, stages_of
from percmae.data.shards import Dataset
from percmae.engine.finetune import finetune, probe
from percmae.engine.pretrain import pretrain
from percmae.engine.weights import network_weights
from percmae.runs.downstream import downstream_config
from percmae.runs.record import Run

from .conftest import TINY, changed

# One of each section, and all that are settings of some stages only. Sizes are left out: a network
# of other sizes cannot take the run's weights.
CHANGED = {
    "model.decoder.depth": "2",
    "model.mask_ratio": "0.5",
    "model.norm_pix_loss": "false",
    "loss.l1": "3.0",
    "perceptual.extractor": "efficientnet_lite0",
    "adversarial.kind": "std",
    "discriminator.width": "16",
    "stylegan.latent": "5.0",
    "tracking.images": "1",
    "tracking.knn_samples": "7",
    "data.augment.color_jitter": "0.9",
    "data.augment.rand_augment": "rand-m9-mstd0.5-inc1",
    "data.augment.erasing": "1.0",
    "optim.layer_decay": "0.1",
    "classifier.drop_path": "0.9",
    "classifier.mixup": "0.8",
    "classifier.cutmix": "0.8",
    "classifier.pool": "token",
    "classifier.dropout": "0.5",
    "classifier.label_smoothing": "0.3",
    "classifier.batch_norm": "false",
}
REFUSED = {"probe": {"classifier.mixup", "classifier.cutmix"}}
SHORT = ["data.workers=0", "trainer.threads=1", "optim.max_steps=3", "data.batch_size=16"]


@pytest.fixture(scope="module")
def parent(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    config = load_config("mae", "demo", overrides=[*TINY, *SHORT])
    return pretrain(config, tiny_dataset.uri, str(tmp_path_factory.mktemp("runs"))).uri


def trained(stage: str, overrides: list[str], parent: str, data: str, to: Path) -> list[Tensor]:
    """The weights that a few steps of a stage end with."""
    if stage == "pretrain":
        config = changed(load_config("mae", "demo", overrides=[*TINY, *SHORT]), *overrides)
        return list(network_weights(pretrain(config, data, str(to)).uri, "generator").values())
    run = Run.open(parent)
    config = changed(downstream_config(run, stage, overrides=SHORT), *overrides)
    train = probe if stage == "probe" else finetune
    return list(network_weights(train(config, run, data, str(to)).uri, "classifier").values())


@pytest.mark.parametrize("stage", TRAININGS)
def test_settings_of_other_stages_change_no_bit(
    stage: str, parent: str, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    changes = {
        whose: [
            f"{key}={value}"
            for key, value in CHANGED.items()
            if (stage in stages_of(key)) is whose and key not in REFUSED.get(stage, ())
        ]
        for whose in (True, False)
    }
    assert len(changes[True]) > 3
    assert len(changes[False]) > 8
    plain, own, others = (
        trained(stage, overrides, parent, tiny_dataset.uri, tmp_path / name)
        for name, overrides in (("plain", []), ("own", changes[True]), ("others", changes[False]))
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, others, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain, own, strict=False))
