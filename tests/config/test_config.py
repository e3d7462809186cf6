"""Configuration: presets, overrides, errors that name the key, digest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from percmae.config import config_from_dict, digest, load_config, to_dict, to_yaml
from percmae.config.load import docs, leaves, load_layers
from percmae.config.presets import preset_names
from percmae.errors import ConfigError


def test_every_preset_gives_a_valid_config_for_every_stage() -> None:
    for recipe in preset_names("recipes"):
        for stage in ("pretrain", "finetune", "probe"):
            for size in (None, *preset_names("sizes")):
                small = size is None or recipe != "demo"
                overrides = [] if small else ["data.image_size=224"]
                config = load_config("mae", recipe, stage, overrides=overrides, size=size)
                assert (config.recipe, config.stage) == (recipe, stage)


def test_the_papers_figures() -> None:
    mae = load_config(recipe="mae")
    assert (mae.optim.lr, mae.optim.total_batch, mae.optim.betas) == (1.5e-4, 4096, [0.9, 0.95])
    assert (mae.optim.warmup_epochs, mae.optim.weight_decay) == (40, 0.05)
    assert mae.model.norm_pix_loss
    assert (mae.model.encoder.width, mae.model.decoder.width, mae.model.mask_ratio) == (
        768,
        512,
        0.75,
    )
    large = load_config(recipe="mae", stage="finetune", size="large")
    assert (large.optim.layer_decay, large.optim.epochs, large.classifier.drop_path) == (
        0.75,
        50,
        0.2,
    )
    reference = load_config(recipe="reference")
    assert (reference.optim.name, reference.optim.weight_decay, reference.data.batch_size) == (
        "adam",
        0.0,
        16,
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.encoder.dpth=2", ["model.encoder.dpth", "model.encoder.depth"]),
        ("epochs=3", ["'epochs'", "optim.epochs"]),
        ("data.batch_size=0", ["data.batch_size=0", "greater than 0"]),
        ("data.batch_size=many", ["data.batch_size", "integer"]),
        ("data.batch_size=true", ["data.batch_size", "integer"]),
        ("data.batch_size=1.5", ["data.batch_size", "integer"]),
        ("trainer.precision=fp8", ["trainer.precision", "bf16"]),
        ("model.encoder=3", ["model.encoder", "section"]),
        ("optim.lr=", ["optim.lr", "number"]),
        ("optim.lr", ["key=value"]),
        ("variant=ssim", ["--variant"]),
        ("tag=a/b", ["tag"]),
        ("data.image_size=225", ["data.image_size=225", "model.patch_size=16", "224"]),
        ("model.encoder.heads=5", ["model.encoder.width", "model.encoder.heads=5"]),
        ("model.mask_ratio=0.999", ["model.mask_ratio", "visible"]),
        ("optim.total_batch=100", ["optim.total_batch=100", "data.batch_size"]),
        ("optim.accumulate=2", ["optim.accumulate", "optim.total_batch"]),
        ("optim.betas=[0.9, 1.5]", ["optim.betas"]),
        ("optim.betas=[0.9, 1.0]", ["optim.betas", "below 1"]),
        ("data.augment.std=[0.2, 0.0, 0.2]", ["data.augment.std"]),
        ("data.augment.mean=[0.2, .nan, 0.2]", ["data.augment.mean", "finite"]),
        ("data.augment.crop_aspect=[2, 1]", ["data.augment.crop_aspect", "low to high"]),
        ("model.encoder.mlp_ratio=0.001", ["model.encoder.mlp_ratio=0.001", "no unit"]),
        ("optim.lr=.inf", ["optim.lr", "finite"]),
        ("seed=18446744073709551616", ["seed", "less than"]),
    ],
)
def test_a_bad_setting_is_one_line_that_names_it(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_impossible_combination_of_variant_and_target() -> None:
    with pytest.raises(ConfigError, match="norm_pix_loss=true cannot be used with variant ssim"):
        load_config("ssim", overrides=["model.norm_pix_loss=true"])


@pytest.mark.parametrize(
    ("stage", "overrides", "words"),
    [
        ("finetune", ["data.batch_size=7", "optim.total_batch=null"], "data.batch_size=7 is odd"),
        ("finetune", ["data.batch_size=1", "classifier.batch_norm=true"], "is odd"),
        ("probe", ["data.batch_size=1"], "data.batch_size=1 leaves classifier.batch_norm nothing"),
        ("finetune", ["data.augment.rand_augment=randy"], "rand_augment='randy' is no policy"),
        (
            "probe",
            ["optim.name=sgd", "optim.nesterov=true", "optim.momentum=0"],
            "optim.nesterov=true needs a momentum",
        ),
    ],
)
def test_what_cannot_be_trained_together(stage: str, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config("mae", "mae", stage, overrides=overrides)


@pytest.mark.parametrize(
    ("stage", "override", "words"),
    [
        ("probe", "model.init_from=a.pth", ["of pretrain", "given as --run"]),
        ("probe", "model.mask_ratio=0.75", ["of pretrain", "what is built upon has decided it"]),
        ("probe", "classifier.drop_path=0.1", ["of finetune", "`percmae finetune`"]),
        ("probe", "optim.layer_decay=0.5", ["of finetune"]),
        ("probe", "data.augment.rand_augment=rand-m9", ["of finetune"]),
        ("probe", "data.augment.erasing=0.25", ["of finetune"]),
        ("probe", "tracking.images=3", ["of pretrain"]),
        ("finetune", "loss.l1=2.0", ["of pretrain"]),
        ("finetune", "model={decoder: {depth: 2}}", ["model.decoder.depth=2", "of pretrain"]),
        ("pretrain", "classifier.pool=avg", ["of finetune, probe", "or `percmae probe`"]),
        ("pretrain", "classifier.mixup=0.8", ["of finetune;", "`percmae finetune`"]),
    ],
)
def test_a_setting_of_another_stage(
    stage: str, override: str, words: list[str], tmp_path: Path
) -> None:
    """Given by hand or in a file it would have no effect; whose it is, is said."""
    file = tmp_path / "mine.yaml"
    key, _, value = override.partition("=")
    *sections, last = key.split(".")
    indented = "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(sections))
    file.write_text(f"{indented}{'  ' * len(sections)}{last}: {value}\n")
    given = [({"overrides": [override]}, ""), ({"file": file}, f"config file {file}: ")]
    for options, where in given if override != "model.mask_ratio=0.75" else given[:1]:
        with pytest.raises(ConfigError) as caught:
            load_config("mae", "mae", stage, **options)  # type: ignore[arg-type]
        message = str(caught.value)
        assert message.startswith(where + (key if "{" not in override else "model.decoder.depth"))
        assert f"has no effect in stage {stage}" in message
        for word in words:
            assert word in message


def test_a_saved_config_has_the_settings_of_all_stages(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for stage in ("pretrain", "probe", "finetune"):
        config = load_config("mae", "mae", stage, overrides=["optim.epochs=7"])
        file.write_text(to_yaml(config))
        assert load_config("mae", "mae", stage, file=file) == config
    with pytest.raises(
        ConfigError, match=r"config\.yaml: data\.augment\.rand_augment=.* has no effect"
    ):
        load_config("mae", "mae", "pretrain", file=file)


def test_unknown_presets_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'msg_gan'"):
        load_config("msggan")
    with pytest.raises(ConfigError, match="did you mean 'reference'"):
        load_config(recipe="referenc")


def test_layers_win_in_order_and_origin_tells_which(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optim: {lr: 1e-3, epochs: 7}\n")
    layers = load_layers("ssim", "demo", file=file, overrides=["optim.epochs=3"], tag="t")
    assert layers.config.optim.lr == 1e-3
    assert layers.config.optim.epochs == 3
    assert layers.config.run_name == "t_ssim"
    origin = layers.origin
    assert origin["optim.lr"] == str(file)
    assert origin["optim.epochs"] == "command line"
    assert origin["loss.ssim_levels"] == "variant ssim"
    assert origin["loss.ssim"] == "recipe demo, variant ssim"
    assert origin["data.image_size"] == "recipe demo"
    assert origin["optim.eps"] == "default"
    assert set(origin) == set(leaves(layers.config))


def test_saved_config_reads_back(tmp_path: Path) -> None:
    config = load_config("ssim", "demo", overrides=["optim.lr=1e-3", "seed=5"], tag="x")
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load_config("ssim", "mae", file=file).optim == config.optim
    assert config_from_dict(to_dict(config)) == config


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config(file=tmp_path / "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("optim: [1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not YAML"):
        load_config(file=broken)


def test_digest_ignores_how_a_run_is_carried_out_and_nothing_else() -> None:
    base = load_config(recipe="demo")
    same = load_config(
        recipe="demo", tag="other", overrides=["data.workers=0", "trainer.threads=1"]
    )
    assert digest(base) == digest(same)
    for change in ("seed=1", "optim.lr=1e-5", "model.mask_ratio=0.6", "data.batch_size=32"):
        assert digest(load_config(recipe="demo", overrides=[change])) != digest(base)


def test_digest_is_the_same_in_another_process() -> None:
    code = "from percmae.config import *; print(digest(load_config(recipe='demo')))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == digest(load_config(recipe="demo"))


def test_every_field_is_explained() -> None:
    for key, _, text in docs():
        assert len(text) > 10, key
