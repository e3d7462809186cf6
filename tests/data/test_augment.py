"""Transforms: shapes, ranges, randomness, and agreement with torchvision's own."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from percmae.config import load_config
from percmae.config.schema import Data
from percmae.data.augment import Framed, build_transform, framed_transform
from percmae.data.framing import Frame
from percmae.data.seeding import private_randomness, sample_numbers, seed_sample
from percmae.vision import torchvision

T: Any = torchvision.transforms


@pytest.fixture
def settings() -> Data:
    """Those of a config, exact."""
    return changed(load_config().data, decode="exact", image_size=40)


def changed(data: Data, **values: Any) -> Data:
    """The settings with others, those of the augmentation by their bare names."""
    own = {k: values.pop(k) for k in ("decode", "image_size") if k in values}
    return replace(data, augment=replace(data.augment, **values), **own)


@pytest.fixture
def photo() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((260, 180), Image.Resampling.BICUBIC)


def numbers(transform: Framed, count: int, epoch: int = 0) -> np.ndarray:
    return sample_numbers(4, epoch, np.arange(count), transform.numbers)


def through(transform: Framed, image: Image.Image, drawn: np.ndarray | None = None) -> Tensor:
    """The image once for each row of numbers, or once, as a network takes it."""
    drawn = np.zeros((1, 0)) if drawn is None else drawn
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    pixels = [transform.pixels(buffer.getvalue(), row, formats=["PNG"]) for row in drawn.tolist()]
    stacked = torch.from_numpy(np.stack(pixels))
    return transform.finish(stacked, torch.from_numpy(transform.flips(drawn)))


def frames(transform: Framed, size: tuple[int, int], drawn: np.ndarray) -> list[Frame]:
    return [transform._frame_of(*size, row) for row in drawn.tolist()]


def test_evaluation_is_resize_and_centre_crop(settings: Data, photo: Image.Image) -> None:
    for size in ((260, 180), (181, 261), (90, 90)):
        image = photo.resize(size)
        ours = framed_transform(changed(settings, image_size=64), train=False, stage="pretrain")
        theirs = T.Compose(
            [
                T.Resize(73, interpolation=T.InterpolationMode.BICUBIC),
                T.CenterCrop(64),
                T.ToTensor(),
                T.Normalize(settings.augment.mean, settings.augment.std),
            ]
        )
        assert torch.allclose(through(ours, image)[0], theirs(image), atol=1e-6)


@pytest.mark.parametrize("stage", ["pretrain", "probe"])
def test_training_is_torchvision_s_crop_and_flip(
    settings: Data, photo: Image.Image, stage: str
) -> None:
    data = changed(settings, image_size=48, crop_scale=[0.3, 0.8], interpolation="bilinear")
    ours = framed_transform(data, train=True, stage=stage)
    drawn = numbers(ours, 40)
    images, flips = through(ours, photo, drawn), ours.flips(drawn)
    assert images.shape == (40, 3, 48, 48)
    assert 0 < flips.sum() < 40
    for image, flip, frame in zip(images, flips, frames(ours, photo.size, drawn), strict=True):
        left, top, width, height = frame.box
        theirs = T.functional.resized_crop(
            photo, top, left, height, width, [48, 48], T.InterpolationMode.BILINEAR
        )
        theirs = T.functional.hflip(theirs) if flip else theirs
        normalised = T.Normalize(data.augment.mean, data.augment.std)(
            T.functional.to_tensor(theirs)
        )
        assert torch.allclose(image, normalised, atol=1e-6)


def test_boxes_are_as_random_as_torchvision_s(settings: Data) -> None:
    """Area, aspect ratio and place: mean and deviation within five standard errors of theirs."""
    data = changed(settings, image_size=224, crop_scale=[0.3, 0.8])
    ours = framed_transform(data, train=True, stage="pretrain")
    count, size = 4000, (500, 375)
    found = np.array([f.box for f in frames(ours, size, numbers(ours, count))], float)
    blank = torch.zeros(3, size[1], size[0])
    theirs = []
    with private_randomness():
        torch.manual_seed(0)
        for _ in range(count):
            top, left, high, wide = T.RandomResizedCrop.get_params(blank, [0.3, 0.8], [0.75, 4 / 3])
            theirs.append((left, top, wide, high))
    for one, two in zip(figures(found), figures(np.array(theirs, float)), strict=True):
        error = math.sqrt((one.var() + two.var()) / count)
        assert abs(one.mean() - two.mean()) < 5 * error
        assert one.std() == pytest.approx(two.std(), rel=0.1)
    assert (found[:, 0] + found[:, 2]).max() <= 500
    assert (found[:, 1] + found[:, 3]).max() <= 375


def figures(boxes: np.ndarray) -> Sequence[np.ndarray]:
    left, top, width, height = boxes.T
    return left, top, width * height, np.log(width / height)


@pytest.mark.parametrize(
    ("size", "box"), [((900, 30), (430, 0, 40, 30)), ((30, 900), (0, 430, 30, 40))]
)
def test_an_image_that_is_too_long_gives_its_middle(
    settings: Data, size: tuple[int, int], box: tuple[int, ...]
) -> None:
    """As torchvision's, which finds no box in ten attempts."""
    data = changed(settings, crop_scale=[0.9, 1.0])
    ours = framed_transform(data, train=True, stage="pretrain")
    assert {frame.box for frame in frames(ours, size, numbers(ours, 5))} == {box}


def test_no_cropping_and_no_flip_is_a_plain_resize(settings: Data) -> None:
    square = Image.fromarray(np.random.default_rng(1).integers(0, 256, (28, 28, 3), dtype=np.uint8))
    data = changed(settings, image_size=32, crop_scale=[1.0, 1.0], crop_aspect=[1.0, 1.0], flip=0.0)
    resized = T.Compose([T.ToTensor(), T.Normalize(data.augment.mean, data.augment.std)])(
        square.resize((32, 32), Image.Resampling.BICUBIC)
    )
    transform = framed_transform(data, train=True, stage="pretrain")
    assert torch.allclose(through(transform, square)[0], resized, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"color_jitter": 0.4},
        {"rand_augment": "rand-m9-mstd0.5-inc1"},
        {"erasing": 1.0},
    ],
)
def test_fine_tuning_transforms_are_fixed_by_the_sample_s_seed(
    settings: Data, photo: Image.Image, options: dict[str, Any]
) -> None:
    transform: Any = build_transform(changed(settings, **options), train=True, stage="finetune")

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
    "options", [{"color_jitter": 0.4}, {"rand_augment": "rand-m9-mstd0.5-inc1"}]
)
def test_fine_tuning_options_have_an_effect(
    settings: Data, photo: Image.Image, options: dict[str, Any]
) -> None:
    def mean_colour(options: dict[str, Any]) -> torch.Tensor:
        fixed = {"crop_scale": [1.0, 1.0], "crop_aspect": [1.0, 1.0], "flip": 0.0}
        transform: Any = build_transform(changed(settings, **fixed | options), True, "finetune")
        with private_randomness():
            seed_sample(0, 0, 0)
            return torch.stack([transform(photo).mean(dim=(1, 2)) for _ in range(10)])

    plain = mean_colour({})
    assert plain.std(dim=0).max() < 1e-5
    assert mean_colour(options).std(dim=0).min() > 0.01


@pytest.mark.parametrize(
    "policy", ["rand-m10-inc1", "rand-m30-n5-mmax30-inc1", "augmix-m10", "v0-mstd0.5", "originalr"]
)
def test_policies_work_at_full_strength(policy: str, settings: Data, photo: Image.Image) -> None:
    """Posterising then leaves no bit, a black image, which Pillow has no name for."""
    data = changed(settings, image_size=16, rand_augment=policy)
    transform: Any = build_transform(data, True, "finetune")
    small = photo.resize((24, 20))
    black = 0
    with private_randomness():
        for sample in range(400):
            seed_sample(0, 0, sample)
            black += bool((transform(small).std(dim=(1, 2)) < 1e-6).all())
    assert black or not policy.startswith("rand")


def test_erasing_and_flip_happen_as_often_as_asked(settings: Data) -> None:
    black = Image.new("RGB", (64, 64))
    whole = {"crop_scale": [1.0, 1.0], "crop_aspect": [1.0, 1.0]}
    erasing: Any = build_transform(changed(settings, erasing=0.5, **whole), True, "finetune")
    with private_randomness():
        seed_sample(0, 0, 0)
        erased = [len(torch.unique(erasing(black))) > 3 for _ in range(200)]
    assert 70 < sum(erased) < 130

    halves = Image.new("RGB", (64, 64))
    halves.paste((255, 255, 255), (0, 0, 32, 64))
    for flip, low, high in ((0.0, 0, 0), (0.25, 25, 75), (1.0, 200, 200)):
        data = changed(settings, flip=flip, **whole)
        drawing: Any = build_transform(data, True, "finetune")
        with private_randomness():
            seed_sample(0, 0, 0)
            images = torch.stack([drawing(halves) for _ in range(200)])
        framed = framed_transform(data, True, "pretrain")
        for made in (images, through(framed, halves, numbers(framed, 200))):
            flipped = made[:, 0, 0, 0] < made[:, 0, 0, -1]
            assert low <= int(flipped.sum()) <= high


def test_the_smallest_crop_still_has_the_network_s_pixels(settings: Data) -> None:
    for scale, aspect in (([0.2, 1.0], [0.75, 4 / 3]), ([0.5, 1.0], [0.5, 1.5])):
        data = changed(
            settings, decode="fast", image_size=224, crop_scale=scale, crop_aspect=aspect
        )
        transform: Any = build_transform(data, train=True, stage="finetune")
        narrowest = min(
            min((scale[0] * side**2 * r) ** 0.5, (scale[0] * side**2 / r) ** 0.5)
            for r in aspect
            for side in [transform.min_side]
        )
        assert narrowest == pytest.approx(224, rel=0.01)
    exact: Any = build_transform(settings, train=True, stage="finetune")
    assert exact.min_side is None
