"""Figures about generator and discriminator: what they are, and that they change nothing."""

from __future__ import annotations

import pytest
import torch

from percmae.losses.adversarial import adversarial_loss
from percmae.losses.health import image_gradients, map_distances
from percmae.losses.objective import Draws, Micro, Terms

from .variants import ADVERSARIAL, batch, config_of, gradients, objective_of


def test_gradients_are_of_the_weighted_term_and_of_each_image() -> None:
    images = torch.randn(4, 3, 5, 5, requires_grad=True)
    small = torch.randn(4, 3, 2, 2, requires_grad=True)
    energy = (images.square().sum((1, 2, 3)) + small.square().sum((1, 2, 3))).mean() / 2
    found = image_gradients({"energy": (3.0, energy), "none": (1.0, small.sum())}, [images])
    assert found.keys() == {"image_gradient/energy"}
    expected = 3 * images.detach().flatten(1).norm(dim=1).mean()
    assert found["image_gradient/energy"].item() == pytest.approx(expected.item())
    both = image_gradients({"energy": (1.0, energy)}, [images, small])["image_gradient/energy"]
    whole = torch.cat([images.detach().flatten(1), small.detach().flatten(1)], 1)
    assert both.item() == pytest.approx(whole.norm(dim=1).mean().item())


def test_distances_of_maps_are_relative() -> None:
    real = [torch.full((2, 3, 4, 4), 2.0), torch.full((2, 5, 2, 2), -4.0)]
    made = [torch.full((2, 3, 4, 4), 1.0), torch.full((2, 5, 2, 2), -4.0)]
    found = {name: value.item() for name, value in map_distances(made, real).items()}
    assert found == pytest.approx({"map_distance/0": 0.5, "map_distance/1": 0.0})


def test_accuracy_of_real_and_generated_images() -> None:
    real, fake = torch.tensor([0.9, 0.6, 0.4, -1.0]), torch.tensor([0.6, 0.2, -0.1, -2.0])
    shares = {"std": (0.75, 0.5), "ls": (0.5, 0.75), "stylegan2_ada": (0.75, 0.5)}
    for kind, (of_real, of_fake) in shares.items():
        told = adversarial_loss(kind).accuracy(real, fake)
        assert told["d_accuracy/real"].item() == of_real
        assert told["d_accuracy/fake"].item() == of_fake
        assert told["d_accuracy"].item() == (of_real + of_fake) / 2
    assert adversarial_loss("wgan").accuracy(real, fake).keys() == {"d_accuracy"}


@pytest.mark.parametrize("variant", ADVERSARIAL)
def test_a_logged_step_computes_the_same(variant: str) -> None:
    found = []
    for logged in (False, True):
        objective = objective_of(config_of(variant, "adversarial.refresh_epochs=2"))
        images, noise = batch(objective, 4)
        terms: Terms = {}
        for epoch in (0, 1):  # with the frozen copy just refreshed, and as it was
            micro = Micro(epoch, epoch, epoch, 1.0, logged=logged)
            draws = Draws(0, epoch, range(4), torch.device("cpu"))
            terms = objective.backward(images, noise, micro, draws)
        networks = objective.networks.items()
        found.append((terms, {n: gradients(network) for n, network in networks}))
    (plain, before), (told, after) = found
    for name, parameters in before.items():
        for key, gradient in parameters.items():
            assert gradient is None or torch.equal(gradient, after[name][key]), f"{name} {key}"
    more = told.keys() - plain.keys()
    terms_shown = {"gan", "perceptual", "style", "l1"}
    assert {f"image_gradient/{term}" for term in terms_shown} <= more
    assert {name for name in more if name.startswith("map_distance/")}
    assert all(told[name].isfinite() and told[name] > 0 for name in more)
