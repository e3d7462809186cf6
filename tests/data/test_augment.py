"""Transforms: shapes, ranges, randomness, and agreement with torchvision's own."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from percmae.config import Augment, load_config
from percmae.data.augment import build_transform
from percmae.data.seeding import private_randomness, seed_sample
from percmae.vision import torchvision

T: Any = torchvision.transforms


@pytest.fixture
def augment() -> Augment:
    return load_config().data.augment


@pytest.fixture
def photo() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((260, 180), Image.Resampling.BICUBIC)


def test_evaluation_is_resize_and_centre_crop(augment: Augment, photo: Image.Image) -> None:
    ours = build_transform(augment, 64, train=False, stage="pretrain")
    theirs = T.Compose(
        [
            T.Resize(73, interpolation=T.InterpolationMode.BICUBIC),
            T.CenterCrop(64),
            T.ToTensor(),
            T.Normalize(augment.mean, augment.std),
        ]
    )
    assert torch.allclose(ours(photo), theirs(photo), atol=1e-6)
    assert ours.min_side == 73
    assert torch.equal(ours(photo), ours(photo))


@pytest.mark.parametrize("stage", ["pretrain", "probe"])
def test_training_is_torchvision_s_crop_and_flip(
    augment: Augment, photo: Image.Image, stage: str
) -> None:
    augment = replace(augment, crop_scale=[0.3, 0.8], interpolation="bilinear")
    ours = build_transform(augment, 48, train=True, stage=stage)
    theirs = T.Compose(
        [
            T.RandomResizedCrop(48, scale=(0.3, 0.8), interpolation=T.InterpolationMode.BILINEAR),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(augment.mean, augment.std),
        ]
    )
    results = []
    for transform in (ours, theirs):
        torch.manual_seed(4)
        results.append(torch.stack([transform(photo) for _ in range(8)]))
    assert results[0].shape == (8, 3, 48, 48)
    assert torch.allclose(*results, atol=1e-6)
    assert not torch.allclose(results[0][0], results[0][1])


def test_no_cropping_and_no_flip_is_a_plain_resize(augment: Augment) -> None:
    square = Image.fromarray(np.random.default_rng(1).integers(0, 256, (28, 28, 3), dtype=np.uint8))
    augment = replace(augment, crop_scale=[1.0, 1.0], crop_aspect=[1.0, 1.0], flip=0.0)
    transform = build_transform(augment, 32, train=True, stage="pretrain")
    resized = T.Compose([T.ToTensor(), T.Normalize(augment.mean, augment.std)])(
        square.resize((32, 32), Image.Resampling.BICUBIC)
    )
    assert torch.allclose(transform(square), resized, atol=1e-6)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"color_jitter": 0.4},
        {"rand_augment": "rand-m9-mstd0.5-inc1"},
        {"erasing": 1.0},
    ],
)
def test_fine_tuning_transforms_are_fixed_by_the_sample_s_seed(
    augment: Augment, photo: Image.Image, changed: dict[str, Any]
) -> None:
    augment = replace(augment, **changed)
    transform = build_transform(augment, 40, train=True, stage="finetune")

    def one(sample: int, epoch: int = 0) -> torch.Tensor:
        with private_randomness():
            seed_sample(0, epoch, sample)
            return transform(photo)

    first = one(1)
    assert first.shape == (3, 40, 40)
    assert first.dtype == torch.float32
    random.random(), np.random.rand(), torch.rand(1)
    assert torch.equal(first, one(1))
    assert not torch.equal(first, one(2))
    assert not torch.equal(first, one(1, epoch=1))


@pytest.mark.parametrize(
    "changed", [{"color_jitter": 0.4}, {"rand_augment": "rand-m9-mstd0.5-inc1"}]
)
def test_fine_tuning_options_have_an_effect(
    augment: Augment, photo: Image.Image, changed: dict[str, Any]
) -> None:
    def mean_colour(options: dict[str, Any]) -> torch.Tensor:
        fixed = {"crop_scale": [1.0, 1.0], "crop_aspect": [1.0, 1.0], "flip": 0.0}
        transform = build_transform(replace(augment, **fixed | options), 40, True, "finetune")
        with private_randomness():
            seed_sample(0, 0, 0)
            return torch.stack([transform(photo).mean(dim=(1, 2)) for _ in range(10)])

    plain = mean_colour({})
    assert plain.std(dim=0).max() < 1e-5
    assert mean_colour(changed).std(dim=0).min() > 0.01


@pytest.mark.parametrize(
    "policy", ["rand-m10-inc1", "rand-m30-n5-mmax30-inc1", "augmix-m10", "v0-mstd0.5", "originalr"]
)
def test_policies_work_at_full_strength(policy: str, augment: Augment, photo: Image.Image) -> None:
    """Posterising then leaves no bit, a black image, which Pillow has no name for."""
    transform = build_transform(replace(augment, rand_augment=policy), 16, True, "finetune")
    small = photo.resize((24, 20))
    black = 0
    with private_randomness():
        for sample in range(400):
            seed_sample(0, 0, sample)
            black += bool((transform(small).std(dim=(1, 2)) < 1e-6).all())
    assert black or not policy.startswith("rand")


def test_erasing_and_flip_happen_as_often_as_asked(augment: Augment) -> None:
    black = Image.new("RGB", (64, 64))
    whole = {"crop_scale": [1.0, 1.0], "crop_aspect": [1.0, 1.0]}
    transform = build_transform(replace(augment, erasing=0.5, **whole), 32, True, "finetune")
    with private_randomness():
        seed_sample(0, 0, 0)
        erased = [len(torch.unique(transform(black))) > 3 for _ in range(200)]
    assert 70 < sum(erased) < 130

    halves = Image.new("RGB", (64, 64))
    halves.paste((255, 255, 255), (0, 0, 32, 64))
    for flip, low, high in ((0.0, 0, 0), (0.25, 25, 75), (1.0, 200, 200)):
        for stage in ("pretrain", "finetune"):
            chosen = replace(augment, flip=flip, **whole)
            transform = build_transform(chosen, 32, True, stage)
            with private_randomness():
                seed_sample(0, 0, 0)
                flipped = [
                    bool((x := transform(halves))[0, 0, 0] < x[0, 0, -1]) for _ in range(200)
                ]
            assert low <= sum(flipped) <= high


def test_the_smallest_crop_still_has_the_network_s_pixels(augment: Augment) -> None:
    for scale, aspect in (([0.2, 1.0], [0.75, 4 / 3]), ([0.5, 1.0], [0.5, 1.5])):
        chosen = replace(augment, crop_scale=scale, crop_aspect=aspect)
        side = build_transform(chosen, 224, train=True, stage="pretrain").min_side
        narrowest = min(
            min((scale[0] * side**2 * r) ** 0.5, (scale[0] * side**2 / r) ** 0.5) for r in aspect
        )
        assert narrowest == pytest.approx(224, rel=0.01)
