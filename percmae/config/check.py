"""Combinations of settings that cannot work, refused before anything is started."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit

from percmae.config.scales import MULTI_SCALE, scales
from percmae.config.schema import Config
from percmae.errors import ConfigError


def check(config: Config) -> None:
    """Raise ConfigError, naming the keys and a way out, for the first impossible combination."""
    for rule in _RULES:
        rule(config)


def _patches(config: Config) -> None:
    size, patch = config.data.image_size, config.model.patch_size
    if size % patch:
        raise ConfigError(
            f"data.image_size={size} is not a multiple of model.patch_size={patch}; "
            f"use {size // patch * patch or patch} or {(size // patch + 1) * patch}"
        )
    patches = (size // patch) ** 2
    if int(patches * (1 - config.model.mask_ratio)) < 1:
        raise ConfigError(
            f"model.mask_ratio={config.model.mask_ratio} leaves none of {patches} patches visible; "
            "lower it or make patches smaller"
        )


def _transformers(config: Config) -> None:
    for name, sizes in (("encoder", config.model.encoder), ("decoder", config.model.decoder)):
        if sizes.width % sizes.heads:
            raise ConfigError(
                f"model.{name}.width={sizes.width} is not a multiple of "
                f"model.{name}.heads={sizes.heads}"
            )
        if sizes.width % 4:
            raise ConfigError(
                f"model.{name}.width={sizes.width} is not a multiple of 4, which the 2-D sin-cos "
                "positions need"
            )
        if int(sizes.width * sizes.mlp_ratio) < 1:
            raise ConfigError(
                f"model.{name}.mlp_ratio={sizes.mlp_ratio} leaves the MLP no unit at "
                f"model.{name}.width={sizes.width}; raise it"
            )


def _pixels(config: Config) -> None:
    if config.stage == "pretrain" and config.model.norm_pix_loss and config.variant != "mae":
        raise ConfigError(
            f"model.norm_pix_loss=true cannot be used with variant {config.variant}: it compares "
            "whole images, so predictions must be pixels; set model.norm_pix_loss=false"
        )
    if config.variant == "ssim":
        smallest = config.data.image_size // 2 ** (config.loss.ssim_levels - 1)
        if smallest < 2:
            raise ConfigError(
                f"loss.ssim_levels={config.loss.ssim_levels} shrinks {config.data.image_size} px "
                "images below 2 px, too small for a 3×3 window; use fewer levels"
            )


def _adversarial(config: Config) -> None:
    if config.stage != "pretrain":
        return
    if config.variant in MULTI_SCALE:
        scales(config)
    if config.variant in ADVERSARIAL and config.trainer.compile and _differentiates_twice(config):
        raise ConfigError(
            "trainer.compile=true cannot be used with stylegan.path_length above 0: the gradient "
            "of a gradient does not pass through compiled code; set stylegan.path_length=0 or "
            "trainer.compile=false"
        )


def _differentiates_twice(config: Config) -> bool:
    """Whether a loss takes the gradient of a gradient through the generator."""
    return config.adversarial.kind == "stylegan2_ada" and config.stylegan.path_length > 0


def _ranges(config: Config) -> None:
    augment = config.data.augment
    for key, (low, high), least, most in (
        ("crop_scale", augment.crop_scale, 1e-4, 1.0),
        ("crop_aspect", augment.crop_aspect, 0.01, 100.0),
    ):
        if not least <= low <= high <= most:
            raise ConfigError(
                f"data.augment.{key}={[low, high]}: expected two numbers from {least} to {most:g}, "
                "low to high"
            )
    if augment.std is not None and min(augment.std) < 1e-6:
        raise ConfigError(f"data.augment.std={augment.std}: every value must be 1e-6 or more")


def _augmentation(config: Config) -> None:
    policy = config.data.augment.rand_augment
    if policy is not None and not _POLICY.fullmatch(policy):
        raise ConfigError(
            f"data.augment.rand_augment={policy!r} is no policy of timm's; write rand and what "
            "differs from its defaults, as in rand-m9-n2-mstd0.5-inc1 (strength, operations an "
            "image up to 10, spread of the strength, stronger with it), or null"
        )


_SPREAD = r"mstd\d{1,3}(\.\d+)?"
# RandAugment, AutoAugment, AugMix. Weighted operations are drawn without replacement: 10 at most.
_POLICY = re.compile(
    rf"rand(-(m\d{{1,3}}|n(\d|10)|p(0?\.\d+|[01])|{_SPREAD}|mmax\d{{1,3}}|inc[01]|t(weights|3aw?)))*"
    rf"|(originalr?|v0r?|3a)(-{_SPREAD})?"
    rf"|augmix(-(m\d{{1,2}}|w[1-9]|d\d|b[01]|{_SPREAD}))*"
)


def _optimiser(config: Config) -> None:
    optim = config.optim
    if not all(0 <= beta < 1 for beta in optim.betas):
        raise ConfigError(f"optim.betas={optim.betas}: expected two numbers from 0 to below 1")
    if optim.name == "sgd" and optim.nesterov and not optim.momentum:
        raise ConfigError(
            "optim.nesterov=true needs a momentum; raise optim.momentum or set optim.nesterov=false"
        )


def _batches(config: Config) -> None:
    total, batch = config.optim.total_batch, config.data.batch_size
    if total is not None and total % batch:
        raise ConfigError(f"optim.total_batch={total} is not a multiple of data.batch_size={batch}")
    if total is not None and config.optim.accumulate != 1:
        raise ConfigError(
            f"optim.accumulate={config.optim.accumulate} and optim.total_batch={total} both set "
            "the accumulation; set optim.total_batch=null to use optim.accumulate"
        )


def _classifier(config: Config) -> None:
    settings, batch = config.classifier, config.data.batch_size
    mixes = settings.mixup or settings.cutmix
    if config.stage == "probe" and mixes:
        raise ConfigError(
            "classifier.mixup and classifier.cutmix are for fine-tuning; a probe takes neither"
        )
    if config.stage == "finetune" and mixes and batch % 2:
        raise ConfigError(
            f"data.batch_size={batch} is odd, but classifier.mixup and classifier.cutmix mix the "
            "images of a batch in pairs; use an even one, or classifier.mixup=0 classifier.cutmix=0"
        )
    if config.stage != "pretrain" and settings.batch_norm and batch < 2:
        raise ConfigError(
            "data.batch_size=1 leaves classifier.batch_norm nothing to normalise over; raise it, "
            "or set classifier.batch_norm=false"
        )


ADVERSARIAL = ("ls_gan", "msg_gan", "stylegan2_ada")  # variants


def _mlflow(config: Config) -> None:
    server = config.tracking.mlflow
    if server is None:
        return
    try:
        parts = urlsplit(server)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname)
        login = parts.username is not None or parts.password is not None
    except ValueError:  # such as a bracket that is not closed
        fits = login = False
    if login:
        raise ConfigError(
            "tracking.mlflow: an address without user and password, for configs are kept; give "
            "those as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        )
    if not fits:
        raise ConfigError(
            f"tracking.mlflow={server}: the address of a server, such as https://mlflow.example.com"
        )


_RULES: tuple[Callable[[Config], None], ...] = (
    _patches,
    _transformers,
    _pixels,
    _adversarial,
    _ranges,
    _augmentation,
    _optimiser,
    _batches,
    _classifier,
    _mlflow,
)
