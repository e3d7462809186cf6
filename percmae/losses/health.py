"""How a generator and its discriminator get on: figures for a step that is logged.

They cost passes of their own and change nothing; what they come to stays on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from percmae.losses.objective import Terms, Weighted


def image_gradients(terms: Weighted, images: Sequence[Tensor]) -> Terms:
    """Norm of each weighted term's gradient at the generated images, ``image_gradient/<term>``.

    images: (N, 3, H, W) of each scale, in the terms' graph, which is kept. Of each image by itself,
    over the pixels of all scales, and averaged over the images: a term is a mean over N images, so
    that its gradient at one of them is multiplied by N.
    """
    found = {}
    for name, (weight, value) in terms.items():
        gradients = torch.autograd.grad(value, list(images), retain_graph=True, allow_unused=True)
        squares = [g.float().square().flatten(1).sum(1) for g in gradients if g is not None]
        if squares:
            norms = torch.stack(squares).sum(0).sqrt() * (weight * len(images[0]))
            found[f"image_gradient/{name}"] = norms.mean()
    return found


def map_distances(maps: Sequence[Tensor], target: Sequence[Tensor]) -> Terms:
    """How far the feature maps (N, C, H, W) of generated images are from those of the real ones.

    ``map_distance/<place>``: mean absolute difference over mean absolute value, of each image by
    itself and averaged over the images, from the image up; 0 where they are equal, about 1 where
    they have nothing to do with each other.
    """
    found = {}
    for place, (made, real) in enumerate(zip(maps, target, strict=True)):
        made, real = made.detach().float(), real.detach().float()
        apart, size = ((m.abs().flatten(1).mean(1)) for m in (made - real, real))
        found[f"map_distance/{place}"] = (apart / (size + 1e-12)).mean()
    return found
