"""Transforms: from the bytes of an image to a network's input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from percmae.config import Augment
from percmae.config.schema import Data
from percmae.data.decode import Name
from percmae.data.framing import Frame, framed, framed_image, reduction_of
from percmae.vision import load_timm

_ATTEMPTS = 10  # at a random box, as torchvision has it
_NUMBERS = 3 + 2 * _ATTEMPTS

FrameOf = Callable[[int, int, Sequence[float]], Frame]
"""Width and height of an image, and its numbers in [0, 1), to the frame."""


class Framed:
    """A transform that resizes a box of an image, and may mirror it.

    Two steps: :meth:`pixels`, image by image where the bytes are, and :meth:`finish`, for a whole
    batch and on the device where it is needed, so that bytes and not floats are handed over.
    """

    def __init__(self, data: Data, frame_of: FrameOf, flip: float, numbers: int) -> None:
        """flip: probability. numbers: that each image takes in :meth:`pixels`; 0: it is fixed."""
        self.numbers, self.side = numbers, data.image_size
        self._frame_of, self._flip = frame_of, flip
        self._mode, self._interpolation = data.decode, data.augment.interpolation
        mean, std = map(torch.tensor, data.augment.normalisation)
        self._scale = (1 / (255 * std)).view(3, 1, 1)
        self._shift = (-mean / std).view(3, 1, 1)

    def pixels(
        self,
        data: bytes,
        numbers: Sequence[float] = (),
        name: Name = "image",
        formats: Sequence[str] = ("JPEG",),
    ) -> np.ndarray:
        """uint8 (side, side, 3); see :func:`percmae.data.framing.framed`.

        numbers: in [0, 1), as many as ``self.numbers``; the first is of the flip alone.
        """

        def choose(width: int, height: int) -> Frame:
            return self._frame_of(width, height, numbers)

        return framed(data, choose, self.side, self._mode, self._interpolation, name, formats)

    def pixels_of(self, image: Image.Image) -> np.ndarray:
        """The same of a decoded RGB image, by a transform that takes no numbers."""

        def choose(width: int, height: int) -> Frame:
            return self._frame_of(width, height, ())

        return framed_image(image, choose, self.side, self._mode, self._interpolation)

    def flips(self, numbers: np.ndarray) -> np.ndarray:
        """Which images (n,) are mirrored, from their numbers (n, self.numbers)."""
        if self.numbers:
            return numbers[:, 0] < self._flip
        return np.full(len(numbers), bool(self._flip))

    def finish(self, pixels: Tensor, flips: Tensor) -> Tensor:
        """Pixels (n, side, side, 3) uint8 and flips (n,) to float32 (n, 3, side, side), normalised.

        On the device that they are on.
        """
        device = pixels.device
        if self._scale.device != device:  # once: a GPU is waited for
            self._scale, self._shift = self._scale.to(device), self._shift.to(device)
        scale, shift = self._scale, self._shift
        planes = pixels.permute(0, 3, 1, 2)
        images = torch.empty(planes.shape, dtype=torch.float32, device=device)
        if device.type != "cpu":
            planes = torch.where(flips.view(-1, 1, 1, 1), planes.flip(3), planes)
            return images.copy_(planes).mul_(scale).add_(shift)
        for image, own, flip in zip(images, planes, flips.tolist(), strict=True):  # in the cache
            image.copy_(own.flip(2) if flip else own).mul_(scale).add_(shift)
        return images


class Drawn:
    """A transform of a decoded image that draws from the global generators: timm's.

    ``min_side``: pixels both sides should keep; a JPEG may be decoded at a fraction of its size as
    long as they do (see :func:`percmae.data.decode.decode`); None: it may not.
    """

    def __init__(self, function: Callable[[Image.Image], Tensor], min_side: int | None) -> None:
        self._function = function
        self.min_side = min_side

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB image to float32 (3, image_size, image_size), normalised."""
        return self._function(image)


def build_transform(data: Data, train: bool, stage: str) -> Framed | Drawn:
    """The transform of a stage (``pretrain``, ``probe``, ``finetune``) and split.

    Training: random resized crop and flip; fine-tuning adds colour jitter or RandAugment and
    erasing (timm's). Evaluation: resize, centre crop.
    """
    augment = data.augment
    if train and stage == "finetune":
        side = None if data.decode == "exact" else _min_side(augment, data.image_size)
        return Drawn(_finetune(augment, data.image_size), side)
    return framed_transform(data, train, stage)


def framed_transform(data: Data, train: bool, stage: str) -> Framed:
    """As :func:`build_transform`, where it is no training of the stage ``finetune``."""
    augment, side = data.augment, data.image_size
    if not train:
        return Framed(data, _evaluated(side, round(side / augment.eval_crop)), 0.0, 0)
    if is_fixed(augment, stage):
        return Framed(data, _largest_square(side), augment.flip, 0)
    return Framed(data, _random_box(augment, side), augment.flip, _NUMBERS)


def is_fixed(augment: Augment, stage: str) -> bool:
    """Whether an image looks the same in each epoch of a stage's training."""
    whole = augment.crop_scale == [1, 1] and augment.crop_aspect == [1, 1]
    return stage != "finetune" and whole and augment.flip in (0, 1)


def _evaluated(side: int, shorter: int) -> FrameOf:
    """The whole image, its shorter side resized to so many pixels."""

    def frame(width: int, height: int, numbers: Sequence[float]) -> Frame:
        if width <= height:
            return Frame((0, 0, width, height), (shorter, int(shorter * height / width)))
        return Frame((0, 0, width, height), (int(shorter * width / height), shorter))

    return frame


def _largest_square(side: int) -> FrameOf:
    """What a random box of the whole image comes to: its largest square, the middle one."""

    def frame(width: int, height: int, numbers: Sequence[float]) -> Frame:
        square = min(width, height)
        return _on_grid((width - square) // 2, (height - square) // 2, square, square, side)

    return frame


def _random_box(augment: Augment, side: int) -> FrameOf:
    """A box of random area and aspect ratio at a random place: torchvision's RandomResizedCrop."""
    smallest, largest = augment.crop_scale
    narrowest, widest = augment.crop_aspect
    log_narrowest, log_widest = math.log(narrowest), math.log(widest)

    def frame(width: int, height: int, numbers: Sequence[float]) -> Frame:
        _, across, down, *shapes = numbers
        for area, aspect in zip(shapes[::2], shapes[1::2], strict=True):
            pixels = width * height * (smallest + (largest - smallest) * area)
            ratio = math.exp(log_narrowest + (log_widest - log_narrowest) * aspect)
            wide, high = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if 0 < wide <= width and 0 < high <= height:
                left, top = int(across * (width - wide + 1)), int(down * (height - high + 1))
                return _on_grid(left, top, wide, high, side)
        # The largest box in the middle that is not too narrow and not too wide.
        wide = min(width, round(height * widest))
        high = min(height, round(width / narrowest))
        return _on_grid((width - wide) // 2, (height - high) // 2, wide, high, side)

    return frame


def _on_grid(left: int, top: int, width: int, height: int, side: int) -> Frame:
    """The frame of a box; where it may be reduced by r, it begins and ends at multiples of r.

    So that it is the same part of the image whether the image is then reduced or not.
    """
    r = reduction_of(width, height, (side, side))
    box = (left - left % r, top - top % r, width - width % r, height - height % r)
    return Frame(box, (side, side))


def _finetune(augment: Augment, image_size: int) -> Callable[[Image.Image], Tensor]:
    timm_data = load_timm().data
    mean, std = augment.normalisation
    timm_data.auto_augment.NAME_TO_OP.update(dict.fromkeys(_POSTERIZE, _posterize))
    transform: Callable[[Image.Image], Tensor] = timm_data.create_transform(
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
