"""Adversarial losses on logits, and the penalties on gradients.

See docs/method.md, "Adversarial losses".

Every loss takes logits (N,) and returns a float32 scalar, averaged over samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class AdversarialLoss(NamedTuple):
    """discriminator(real, fake) and generator(fake): the losses of the two networks.

    threshold: the logit above which an image counts as judged real; None compares each real image
    with a generated one, for critics whose scale has no zero.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    threshold: float | None

    def accuracy(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Share of images that the discriminator tells right, ``d_accuracy``.

        Where there is a threshold also of the real and of the generated ones by themselves.
        """
        if self.threshold is None:
            return {"d_accuracy": (real > fake).float().mean()}
        of_real = (real > self.threshold).float().mean()
        of_fake = (fake <= self.threshold).float().mean()
        both = (of_real + of_fake) / 2
        return {"d_accuracy": both, "d_accuracy/real": of_real, "d_accuracy/fake": of_fake}


def _standard(real: Tensor, fake: Tensor) -> Tensor:
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def _non_saturating(fake: Tensor) -> Tensor:
    return F.softplus(-fake).mean()


def _least_squares(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def _least_squares_generator(fake: Tensor) -> Tensor:
    return 0.5 * (fake - 1).square().mean()


def _logistic(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def adversarial_loss(kind: str, drift: float = 0.001) -> AdversarialLoss:
    """std: binary cross-entropy, which on logits is softplus; ls: least squares; wgan: critic loss
    with a drift term that keeps logits near 0 (its gradient penalty is :func:`gradient_penalty`);
    stylegan2_ada: non-saturating logistic."""

    def critic(real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean() + drift * real.square().mean()

    return {
        "std": AdversarialLoss(_standard, _non_saturating, 0.0),
        "ls": AdversarialLoss(_least_squares, _least_squares_generator, 0.5),
        "wgan": AdversarialLoss(critic, lambda fake: -fake.mean(), None),
        "stylegan2_ada": AdversarialLoss(_logistic, _non_saturating, 0.0),
    }[kind]


def _squared_gradients(logits: Tensor, images: Sequence[Tensor]) -> Tensor:
    """‖∂ logit / ∂ images‖² of each sample, (N,), over all pixels of all scales."""
    gradients = torch.autograd.grad(logits.sum(), list(images), create_graph=True)
    return torch.stack([g.float().square().flatten(1).sum(1) for g in gradients]).sum(0)


def r1_penalty(logits: Tensor, images: Sequence[Tensor]) -> Tensor:
    """½ · E‖∇D(x)‖² on real images (arXiv 1801.04406); the caller weighs it by gamma.

    images: what the discriminator was given, leaves that ask for gradients.
    """
    return 0.5 * _squared_gradients(logits, images).mean()


def gradient_penalty(logits: Tensor, images: Sequence[Tensor]) -> Tensor:
    """E(‖∇D(x̃)‖ − 1)² on images between real and generated (arXiv 1704.00028)."""
    return ((_squared_gradients(logits, images) + 1e-12).sqrt() - 1).square().mean()


def mixed(real: Sequence[Tensor], fake: Sequence[Tensor], share: Tensor) -> list[Tensor]:
    """Images between real and generated ones, leaves that ask for gradients.

    share (N,): of the real image, the same at every scale of a sample.
    """
    share = share[:, None, None, None]
    return [
        torch.lerp(b.detach(), a.detach(), share).requires_grad_()
        for a, b in zip(real, fake, strict=True)
    ]


def path_lengths(images: Tensor, latent: Tensor, noise: Tensor) -> Tensor:
    """How far the image moves with the latent, (N,): a random projection of the Jacobian.

    images (N, 3, H, W) made from latent (N, T, D); noise normal, of the images' shape. The length
    is √(mean over tokens of the sum over dimensions of the squared gradient) of the noise divided
    by √(H·W) (arXiv 1912.04958, section 3.2; docs/method.md, "StyleGAN2-ADA").
    """
    scaled = noise / (images.shape[2] * images.shape[3]) ** 0.5
    (gradient,) = torch.autograd.grad((images.float() * scaled).sum(), latent, create_graph=True)
    return (gradient.float().square().sum(2).mean(1) + 1e-12).sqrt()
