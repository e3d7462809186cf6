"""Reconstructions as a person looks at them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from percmae.config import Augment, Config
from percmae.runs.evaluation import GRID_GAP

_GREY, _WHITE = 0.5, 1.0


def denormalise(images: Tensor, augment: Augment) -> Tensor:
    """Network input (N, 3, H, W) back to [0, 1], clipped."""
    mean, std = (
        torch.tensor(x, device=images.device)[:, None, None] for x in augment.normalisation
    )
    return (images.float() * std + mean).clamp(0, 1)


def pixel_mask(mask: Tensor, size: int) -> Tensor:
    """Patch mask (N, L), 1 where removed, as (N, 1, size, size)."""
    grid = round(mask.shape[1] ** 0.5)
    return F.interpolate(mask.view(-1, 1, grid, grid).float(), size=size, mode="nearest")


def paste_visible(originals: Tensor, reconstructions: Tensor, mask: Tensor) -> Tensor:
    """Reconstructions (N, 3, H, W) with the patches that were seen taken from the originals."""
    removed = pixel_mask(mask, originals.shape[-1])
    return originals * (1 - removed) + reconstructions * removed


def reconstruction_grid(
    originals: Tensor, reconstructions: Tensor, mask: Tensor, whole: bool
) -> Tensor:
    """One picture (3, rows, columns) in [0, 1]; each image a row of four (see GRID_COLUMNS in
    percmae.runs.evaluation).

    originals, reconstructions: (N, 3, H, W) in [0, 1]; mask (N, L), 1 where a patch was removed;
    whole: whether the network has learned to make the visible patches too. Where it has not, they
    are left grey: what it says there is noise.
    """
    removed = pixel_mask(mask, originals.shape[-1])
    masked = originals * (1 - removed) + _GREY * removed
    pasted = paste_visible(originals, reconstructions, mask)
    made = reconstructions if whole else reconstructions * removed + _GREY * (1 - removed)
    return _framed([originals, masked, made, pasted])


def makes_whole_images(config: Config) -> bool:
    """Whether the loss of the variant is taken over visible patches as well as removed ones."""
    return config.variant != "mae"


def scales_grid(originals: Tensor, scales: list[Tensor]) -> Tensor:
    """One picture of what a multi-scale network makes: each image a row, the smallest scale first.

    originals (N, 3, H, W), the last column; scales: images of each size, the full one first; all
    in [0, 1]. Smaller ones are enlarged without smoothing, so that each shows its pixels.
    """
    size = originals.shape[-1]
    enlarged = [F.interpolate(image, size, mode="nearest-exact") for image in reversed(scales)]
    return _framed([*enlarged, originals])


def neighbours_grid(queries: Tensor, nearest: Tensor) -> Tensor:
    """One picture of what lies near what; each query a row, with its neighbours, nearest first.

    queries (N, 3, H, W), nearest (N, K, 3, H, W), all in [0, 1]. A wider line stands behind the
    queries.
    """
    lead = F.pad(queries, (0, 3 * GRID_GAP), value=_WHITE)
    return torch.cat([_framed([lead]), _framed(list(nearest.unbind(1)))], dim=2)


def _framed(columns: list[Tensor]) -> Tensor:
    """Columns of images (N, 3, H, W) as one picture with white lines between them."""
    pictures = torch.stack(columns, dim=1)
    framed = F.pad(pictures, (0, GRID_GAP, 0, GRID_GAP), value=_WHITE)
    n, count, channels, h, w = framed.shape
    grid = framed.permute(2, 0, 3, 1, 4).reshape(channels, n * h, count * w)
    return grid[:, :-GRID_GAP, :-GRID_GAP]
