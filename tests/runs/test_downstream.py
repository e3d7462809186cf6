"""What a fine-tuning takes over from its parent: the size of the encoder, and what goes with it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from percmae.config import Config, digest, load_config
from percmae.runs.downstream import downstream_config, inherited
from percmae.runs.parent import Parent, WeightsFile


@dataclass(frozen=True)
class Pretraining:
    config: Config
    uri: str = "s3://b/runs/t_mae"
    key: str = "sha256:0"


def pretraining(size: str, *overrides: str) -> Config:
    return load_config(recipe="mae", size=size, overrides=[*overrides, "seed=3"])


@pytest.mark.parametrize(
    ("size", "epochs", "drop_path"),
    [("base", 100, 0.1), ("large", 50, 0.2), ("huge", 50, 0.3)],
)
@pytest.mark.parametrize("file", [False, True])
def test_a_finetuning_has_what_the_recipe_changes_with_the_size(
    size: str, epochs: int, drop_path: float, file: bool
) -> None:
    made = pretraining(size)
    parent: Parent = Pretraining(made)
    if file:
        parent = WeightsFile("s3://b/w.pth", "0" * 64, made, inherited(made), {})
    tuned = downstream_config(parent, "finetune", "mae")
    assert (tuned.optim.epochs, tuned.classifier.drop_path) == (epochs, drop_path)
    assert tuned.model.encoder == made.model.encoder
    own = downstream_config(parent, "finetune", "mae", overrides=["optim.epochs=7"])
    assert own.optim.epochs == 7


def test_the_size_is_the_encoders_whatever_else_its_run_has() -> None:
    patches = pretraining("large", "model.patch_size=8", "model.decoder.depth=2")
    tuned = downstream_config(Pretraining(patches), "finetune")
    assert (tuned.optim.epochs, tuned.model.patch_size) == (50, 8)
    shallow = pretraining("large", "model.encoder.depth=23")
    assert downstream_config(Pretraining(shallow), "finetune").optim.epochs == 100


def test_what_the_recipe_leaves_alone_is_as_it_was() -> None:
    """So finished probes, and fine-tunings of smaller encoders, are found again."""
    for size, stage in (("large", "probe"), ("base", "finetune"), ("tiny", "finetune")):
        made = pretraining(size)
        without = load_config("mae", "mae", stage, base=inherited(made))
        assert digest(downstream_config(Pretraining(made), stage)) == digest(without)


def test_a_recipe_may_have_settings_for_a_control_alone() -> None:
    """So that a floor is not lower than it has to be, for want of a rate that fits it."""
    parent = Pretraining(load_config(recipe="demo"))
    rates = {
        features: downstream_config(parent, "probe", features=features).optim.lr
        for features in ("pretrained", "untrained", "pixels")
    }
    assert rates["pretrained"] == rates["untrained"] > rates["pixels"]
    own = downstream_config(parent, "probe", overrides=["optim.lr=3"], features="pixels")
    assert own.optim.lr == 3
