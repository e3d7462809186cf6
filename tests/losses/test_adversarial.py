"""Losses on logits and penalties on gradients, by hand; Gram matrices by loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from percmae.losses.adversarial import (
    adversarial_loss,
    gradient_penalty,
    mixed,
    path_lengths,
    r1_penalty,
)
from percmae.losses.perceptual import gram, perceptual_loss, style_loss

REAL, FAKE = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.25, -3.0, 1.5])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("kind", "discriminator", "generator", "right"),
    [
        (
            "std",
            lambda r, f: (-math.log(sigmoid(r)) - math.log(1 - sigmoid(f))) / 2,
            lambda f: -math.log(sigmoid(f)),
            (2 + 1) / 6,
        ),
        (
            "ls",
            lambda r, f: 0.5 * ((r - 1) ** 2 + f**2),
            lambda f: 0.5 * (f - 1) ** 2,
            (1 + 2) / 6,  # 0.5 itself is not above the half
        ),
        ("wgan", lambda r, f: f - r + 0.001 * r**2, lambda f: -f, 2 / 3),
        (
            "stylegan2_ada",
            lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f)),
            lambda f: -math.log(sigmoid(f)),
            (2 + 1) / 6,
        ),
    ],
)
def test_losses_are_means_over_samples_of_their_formula(
    kind: str, discriminator: object, generator: object, right: float
) -> None:
    loss = adversarial_loss(kind)
    pairs = list(zip(REAL.tolist(), FAKE.tolist(), strict=True))
    expected = sum(discriminator(r, f) for r, f in pairs) / 3  # type: ignore[operator]
    assert loss.discriminator(REAL, FAKE).item() == pytest.approx(expected, rel=1e-6)
    expected = sum(generator(f) for f in FAKE.tolist()) / 3  # type: ignore[operator]
    assert loss.generator(FAKE).item() == pytest.approx(expected, rel=1e-6)
    assert loss.accuracy(REAL, FAKE)["d_accuracy"].item() == pytest.approx(right)


class Toy(nn.Module):
    """D(x) = Σ w·x² + v·y over two scales, whose gradient is (2·w·x, v)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(3, 4, 4, generator=generator, dtype=torch.float64))
        self.v = nn.Parameter(torch.randn(3, 2, 2, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.w * x**2).flatten(1).sum(1) + (self.v * y).flatten(1).sum(1)

    def squared(self, x: Tensor) -> Tensor:
        return (2 * self.w * x).square().flatten(1).sum(1) + self.v.square().sum()


@pytest.fixture
def scales() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(5, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    return x, y


def test_r1_is_half_the_squared_gradient_over_all_scales(scales: tuple[Tensor, Tensor]) -> None:
    toy = Toy()
    penalty = r1_penalty(toy(*scales), scales)
    expected = 0.5 * toy.squared(scales[0]).mean()
    torch.testing.assert_close(penalty.double(), expected, rtol=1e-6, atol=0)
    penalty.backward()
    by_hand = torch.autograd.grad(expected, toy.w)[0]
    torch.testing.assert_close(toy.w.grad, by_hand, rtol=1e-5, atol=1e-8)


def test_gradient_penalty_wants_a_norm_of_one(scales: tuple[Tensor, Tensor]) -> None:
    toy = Toy()
    penalty = gradient_penalty(toy(*scales), scales)
    expected = (toy.squared(scales[0]).sqrt() - 1).square().mean()
    torch.testing.assert_close(penalty.double(), expected, rtol=1e-6, atol=0)
    penalty.backward()
    by_hand = torch.autograd.grad(expected, toy.w)[0]
    torch.testing.assert_close(toy.w.grad, by_hand, rtol=1e-5, atol=1e-8)


def test_mixed_images_lie_between_by_the_same_share_at_every_scale() -> None:
    real, fake = (
        [torch.ones(2, 3, 4, 4), torch.ones(2, 3, 2, 2)],
        [
            torch.zeros(2, 3, 4, 4),
            torch.zeros(2, 3, 2, 2),
        ],
    )
    made = mixed(real, fake, torch.tensor([0.25, 1.0]))
    for image in made:
        assert image.requires_grad
        assert image.is_leaf
        assert image[0].unique().tolist() == [0.25]
        assert image[1].unique().tolist() == [1.0]


def test_path_length_of_a_linear_decoder() -> None:
    """images = latent · A, so the gradient at each token is A times the noise."""
    generator = torch.Generator().manual_seed(2)
    n, tokens, width, side = 3, 5, 4, 6
    a = torch.randn(tokens, width, 3 * side * side, generator=generator, dtype=torch.float64)
    a.requires_grad_()
    latent = torch.randn(n, tokens, width, generator=generator, dtype=torch.float64)
    latent.requires_grad_()
    noise = torch.randn(n, 3, side, side, generator=generator, dtype=torch.float64)
    images = torch.einsum("ntw,twp->np", latent, a).view(n, 3, side, side)
    lengths = path_lengths(images, latent, noise)
    projected = torch.einsum("twp,np->ntw", a, noise.flatten(1) / side)
    expected = projected.square().sum(2).mean(1).sqrt()
    torch.testing.assert_close(lengths.double(), expected, rtol=1e-6, atol=0)
    lengths.sum().backward()
    by_hand = torch.autograd.grad(expected.sum(), a)[0]
    torch.testing.assert_close(a.grad, by_hand, rtol=1e-5, atol=1e-8)


def test_gram_by_loops() -> None:
    features = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(3))
    found = gram(features)
    for n in range(2):
        for i in range(3):
            for j in range(3):
                product = sum(
                    features[n, i, y, x].item() * features[n, j, y, x].item()
                    for y in range(4)
                    for x in range(5)
                )
                assert found[n, i, j].item() == pytest.approx(product / (3 * 4 * 5), abs=1e-6)


def test_gram_is_float32_where_half_precision_would_overflow() -> None:
    big = torch.full((1, 2, 64, 64), 300.0, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = gram(big)
    assert found.dtype == torch.float32
    assert found[0, 0, 0].item() == pytest.approx(300.0**2 / 2)


def test_feature_losses_add_up_over_the_maps() -> None:
    generator = torch.Generator().manual_seed(4)
    made = [torch.randn(2, c, s, s, generator=generator) for c, s in ((3, 4), (5, 2))]
    target = [torch.randn(2, c, s, s, generator=generator) for c, s in ((3, 4), (5, 2))]
    pairs = list(zip(made, target, strict=True))
    assert perceptual_loss(made, target).item() == pytest.approx(
        sum((a - b).abs().mean().item() for a, b in pairs)
    )
    assert style_loss(made, target).item() == pytest.approx(
        sum((gram(a) - gram(b)).abs().mean().item() for a, b in pairs)
    )
    with pytest.raises(ValueError, match="zip"):
        perceptual_loss(made, target[:1])
