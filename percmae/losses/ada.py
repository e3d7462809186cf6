"""Adaptive discriminator augmentation (StyleGAN2-ADA, arXiv 2006.06676, section 3 and appendix B).

Every transformation is applied with probability p, which moves by the sign of an overfitting
heuristic. A sample's transformation is one affine map of the plane, in units of the image, and one
of the colours, so it is the same at every scale; both are differentiable. Compared with the paper's
pipeline, resampling is bilinear, with mirrored borders and without its wavelet filter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from percmae.config.variants import StyleGAN2ADASettings

PLANE_DRAWS, COLOUR_DRAWS = 18, 10
DRAWS = PLANE_DRAWS + COLOUR_DRAWS  # uniform numbers a sample's transformation is made from

Columns = Iterator[Tensor]
Strength = float | Tensor  # a probability; as a tensor (), the host need not know it


def _normal(draw: Tensor, std: float) -> Tensor:
    return std * math.sqrt(2) * torch.erfinv((2 * draw - 1).clamp(-0.999999, 0.999999))


def _angle(draw: Tensor) -> Tensor:
    return math.pi * (2 * draw - 1)


def _maybe(draw: Tensor, p: Strength, value: Tensor, neutral: float) -> Tensor:
    """The value where the draw is below p, elsewhere what changes nothing."""
    return torch.where(draw < p, value, torch.full_like(value, neutral))


def _matrix(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Matrices (N, R, C) from their entries (N,)."""
    return torch.stack([torch.stack(list(row), dim=-1) for row in rows], dim=-2)


def plane_maps(uniform: Tensor, p: Strength) -> Tensor:
    """Affine maps (N, 2, 3) from places of the result to places of the original, in [−1, 1].

    uniform: (N, PLANE_DRAWS) in [0, 1). Mirror, quarter turn, shift by up to an eighth of the side;
    scaling, rotation, stretching, rotation, shift.
    """
    u: Columns = iter(uniform.unbind(1))
    zero, one = torch.zeros_like(uniform[:, 0]), torch.ones_like(uniform[:, 0])

    def scaled(x: Tensor, y: Tensor) -> Tensor:
        return _matrix([[x, zero, zero], [zero, y, zero], [zero, zero, one]])

    def turned(angle: Tensor) -> Tensor:
        cos, sin = angle.cos(), angle.sin()
        return _matrix([[cos, -sin, zero], [sin, cos, zero], [zero, zero, one]])

    def moved(draw: Tensor, x: Tensor, y: Tensor) -> Tensor:
        x, y = _maybe(draw, p, x, 0.0), _maybe(draw, p, y, 0.0)
        return _matrix([[one, zero, x], [zero, one, y], [zero, zero, one]])

    # One of the two rotations happens with probability p, not each of them.
    p_turn = 1 - (1 - p) ** 0.5
    matrix = scaled(_maybe(next(u), p, 1 - 2 * (2 * next(u)).floor(), 1.0), one)
    matrix = matrix @ turned(_maybe(next(u), p, (4 * next(u)).floor(), 0.0) * (math.pi / 2))
    matrix = matrix @ moved(next(u), next(u) / 2 - 0.25, next(u) / 2 - 0.25)
    size = torch.exp2(_maybe(next(u), p, _normal(next(u), 0.2), 0.0))
    matrix = matrix @ scaled(size, size)
    matrix = matrix @ turned(_maybe(next(u), p_turn, _angle(next(u)), 0.0))
    stretch = torch.exp2(_maybe(next(u), p, _normal(next(u), 0.2), 0.0))
    matrix = matrix @ scaled(stretch, 1 / stretch)
    matrix = matrix @ turned(_maybe(next(u), p_turn, _angle(next(u)), 0.0))
    matrix = matrix @ moved(next(u), _normal(next(u), 0.25), _normal(next(u), 0.25))
    return matrix[:, :2]


def colour_maps(uniform: Tensor, p: Strength) -> Tensor:
    """Affine maps of colour (N, 3, 4), for images in [−1, 1].

    uniform: (N, COLOUR_DRAWS) in [0, 1). Brightness, contrast, mirrored luma, hue, saturation.
    """
    u: Columns = iter(uniform.unbind(1))
    eye = torch.eye(3, dtype=uniform.dtype, device=uniform.device)
    luma = torch.full_like(eye, 1 / 3)  # projection onto the grey axis (1, 1, 1) / √3
    offset = _maybe(next(u), p, _normal(next(u), 0.2), 0.0)[:, None, None].expand(-1, 3, 1)
    contrast = torch.exp2(_maybe(next(u), p, _normal(next(u), 0.5), 0.0))[:, None, None]
    flip = _maybe(next(u), p, (2 * next(u)).floor(), 0.0)[:, None, None]
    hue = _maybe(next(u), p, _angle(next(u)), 0.0)[:, None, None]
    saturation = torch.exp2(_maybe(next(u), p, _normal(next(u), 1.0), 0.0))[:, None, None]
    # Rotation about the grey axis (Rodrigues); cross is its vector product matrix.
    # From rolled rows of the unit matrix: numbers from the host would have to be waited for.
    cross = (eye.roll(1, 0) - eye.roll(-1, 0)) / math.sqrt(3)
    turned = hue.cos() * (eye - luma) + hue.sin() * cross + luma
    linear = (luma + saturation * (eye - luma)) @ turned @ (eye - 2 * flip * luma) * contrast
    return torch.cat([linear, linear @ offset], dim=2)


def augment(images: Sequence[Tensor], plane: Tensor, colour: Tensor) -> list[Tensor]:
    """Images [(N, 3, H, W), …] of several scales in [−1, 1], a sample's all by the same map."""
    augmented = []
    for image in images:
        grid = F.affine_grid(plane.to(image.dtype), list(image.shape), align_corners=False)
        moved = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
        linear, offset = colour.to(image.dtype).split([3, 1], dim=2)
        augmented.append((linear @ moved.flatten(2) + offset).view_as(image))
    return augmented


class AdaptiveAugmentation:
    """The strength p and the heuristic that moves it.

    r = mean sign(D(real)) since the last adjustment, over all processes; p rises where r is above
    the target, else it falls, at a rate that takes ``ada_kimg`` thousand images from 0 to 1.
    All of it stays on the device, so that training does not wait for it.
    mean, std: of the normalisation the images are in.
    """

    def __init__(
        self, settings: StyleGAN2ADASettings, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.settings = settings
        self._mean = torch.tensor(mean)[:, None, None]
        self._std = torch.tensor(std)[:, None, None]
        self.p = torch.zeros((), dtype=torch.float64)
        self._signs = torch.zeros(2, dtype=torch.float64)  # sum of signs, number of images

    def to(self, device: torch.device) -> None:
        """Augment and count on that device."""
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        self.p, self._signs = self.p.to(device), self._signs.to(device)

    def __call__(self, images: Sequence[Tensor], uniform: Tensor) -> list[Tensor]:
        """Augment images (each (N, 3, H, W), normalised); uniform (N, DRAWS) decides how."""
        mean, std = self._mean, self._std
        centred = [(x.float() * std + mean) * 2 - 1 for x in images]
        plane, colour = uniform.split([PLANE_DRAWS, COLOUR_DRAWS], dim=1)
        moved = augment(centred, plane_maps(plane, self.p), colour_maps(colour, self.p))
        return [((x + 1) / 2 - mean) / std for x in moved]

    def observe(self, real_logits: Tensor) -> None:
        """Count the discriminator's judgement (N,) of real images, those of all processes."""
        signs = real_logits.detach().sign().sum().double()
        counted = torch.stack([signs, torch.full_like(signs, len(real_logits))])
        if dist.is_initialized():
            dist.all_reduce(counted)
        self._signs = self._signs + counted

    def adjust(self) -> None:
        """Move p by what was counted, and count anew."""
        signs, images = self._signs.unbind()
        above = signs / images.clamp(min=1) - self.settings.ada_target
        move = above.sign() * images / (self.settings.ada_kimg * 1000)
        self.p = (self.p + move).clamp(0, 1)
        self._signs = torch.zeros_like(self._signs)

    def state_dict(self) -> dict[str, Any]:
        """p and the counts since its last adjustment."""
        return {"p": float(self.p), "signs": self._signs.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.p = torch.full_like(self.p, state["p"])
        self._signs = state["signs"].to(self._signs.device, copy=True)
