"""Transforms: from a decoded image to a network's input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from percmae.config import Augment
from percmae.vision import torchvision

transforms: Any = torchvision.transforms


class Transform:
    """A transform, and how small an image may be decoded for it without loss.

    ``min_side``: pixels both sides should keep; a JPEG may be decoded at a fraction of its size
    as long as they do (see :func:`percmae.data.decode.decode`).
    """

    def __init__(self, function: Callable[[Image.Image], Tensor], min_side: int) -> None:
        self._function = function
        self.min_side = min_side

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB image to float32 (3, image_size, image_size), normalised."""
        return self._function(image)


def build_transform(augment: Augment, image_size: int, train: bool, stage: str) -> Transform:
    """The transform of a stage (``pretrain``, ``probe``, ``finetune``) and split.

    Training: random resized crop and flip; fine-tuning adds colour jitter or RandAugment and
    erasing (timm's). Evaluation: resize, centre crop. Randomness comes from the global generators
    of random, numpy and torch.
    """
    if not train:
        resized = round(image_size / augment.eval_crop)
        steps = [
            transforms.Resize(resized, interpolation=_interpolation(augment)),
            transforms.CenterCrop(image_size),
            _Normalise(augment),
        ]
        return Transform(transforms.Compose(steps), min_side=resized)
    if stage == "finetune":
        return Transform(_finetune(augment, image_size), _min_side(augment, image_size))
    if is_fixed(augment, stage):
        return Transform(_fixed(augment, image_size), _min_side(augment, image_size))
    steps = [
        transforms.RandomResizedCrop(
            image_size,
            scale=tuple(augment.crop_scale),
            ratio=tuple(augment.crop_aspect),
            interpolation=_interpolation(augment),
        ),
        transforms.RandomHorizontalFlip(augment.flip),
        _Normalise(augment),
    ]
    return Transform(transforms.Compose(steps), _min_side(augment, image_size))


def is_fixed(augment: Augment, stage: str) -> bool:
    """Whether an image looks the same in each epoch of a stage's training."""
    whole = augment.crop_scale == [1, 1] and augment.crop_aspect == [1, 1]
    return stage != "finetune" and whole and augment.flip in (0, 1)


def _fixed(augment: Augment, image_size: int) -> Callable[[Image.Image], Tensor]:
    """What a random crop of the whole image comes to: its largest square, the middle one."""
    normalise = _Normalise(augment)

    def transform(image: Image.Image) -> Tensor:
        side = min(image.size)
        top, left = (image.height - side) // 2, (image.width - side) // 2
        size, interpolation = [image_size, image_size], _interpolation(augment)
        square = transforms.functional.resized_crop(
            image, top, left, side, side, size, interpolation
        )
        return normalise(ImageOps.mirror(square) if augment.flip else square)

    return transform


def _finetune(augment: Augment, image_size: int) -> Callable[[Image.Image], Tensor]:
    # Imported here: timm takes seconds, and only fine-tuning needs it.
    from timm.data import auto_augment, create_transform

    mean, std = augment.normalisation
    auto_augment.NAME_TO_OP.update(dict.fromkeys(_POSTERIZE, _posterize))
    transform: Callable[[Image.Image], Tensor] = create_transform(
        input_size=image_size,
        is_training=True,
        scale=(augment.crop_scale[0], augment.crop_scale[1]),
        ratio=(augment.crop_aspect[0], augment.crop_aspect[1]),
        hflip=augment.flip,
        color_jitter=augment.color_jitter,
        auto_augment=augment.rand_augment,
        interpolation=augment.interpolation,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        re_prob=augment.erasing,
        re_mode="pixel",
    )
    return transform


# timm's names of the operation, which differ in how many bits a strength leaves.
_POSTERIZE = ("Posterize", "PosterizeIncreasing", "PosterizeOriginal")


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """The image with so many bits of each channel.

    The policies' full strength leaves none, so that the image is black. timm hands that on to
    Pillow, which since version 13 knows no fewer bits than one.
    """
    if bits < 1:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


def _min_side(augment: Augment, image_size: int) -> int:
    """Sides that give the smallest, narrowest crop as many pixels as the network takes."""
    narrowest = min(augment.crop_aspect[0], 1 / augment.crop_aspect[1], 1.0)
    return math.ceil(image_size / math.sqrt(augment.crop_scale[0] * narrowest))


def _interpolation(augment: Augment) -> Any:
    return transforms.InterpolationMode(augment.interpolation)


class _Normalise:
    """Image to normalised tensor in one pass over the pixels.

    The same as torchvision's ToTensor and Normalize, in a third (32 px) to two thirds (224 px) of
    their time.
    """

    def __init__(self, augment: Augment) -> None:
        mean, std = map(torch.tensor, augment.normalisation)
        self._scale = (1 / (255 * std)).view(3, 1, 1)
        self._shift = (-mean / std).view(3, 1, 1)

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        tensor = torch.empty(pixels.shape, dtype=torch.float32).copy_(pixels)
        return tensor.mul_(self._scale).add_(self._shift)
