"""Adaptive augmentation: the transformations, and the heuristic that moves their strength."""

from __future__ import annotations

import math

import pytest
import torch

from percmae.config.variants import StyleGAN2ADASettings
from percmae.losses.ada import (
    COLOUR_DRAWS,
    DRAWS,
    PLANE_DRAWS,
    AdaptiveAugmentation,
    augment,
    colour_maps,
    plane_maps,
)


def draws(n: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, columns, generator=generator, dtype=dtype)


def photo(n: int = 2, side: int = 16, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(n, 3, side, side, generator=generator, dtype=dtype) * 2 - 1


def test_strength_zero_changes_nothing() -> None:
    plane, colour = plane_maps(draws(6, PLANE_DRAWS), 0.0), colour_maps(draws(6, COLOUR_DRAWS), 0.0)
    assert torch.allclose(plane, torch.eye(2, 3).expand(6, -1, -1), atol=1e-6)
    assert torch.allclose(colour, torch.eye(3, 4).expand(6, -1, -1), atol=1e-6)
    images = photo(6)
    torch.testing.assert_close(augment([images], plane, colour)[0], images, atol=1e-5, rtol=0)


def test_strength_one_changes_every_sample() -> None:
    images = photo(8)
    plane, colour = plane_maps(draws(8, PLANE_DRAWS), 1.0), colour_maps(draws(8, COLOUR_DRAWS), 1.0)
    made = augment([images], plane, colour)[0]
    assert (made - images).abs().flatten(1).mean(1).min() > 0.05
    assert torch.isfinite(made).all()


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_maps_can_be_undone(p: float) -> None:
    plane = plane_maps(draws(64, PLANE_DRAWS, 1, torch.float64), p)
    colour = colour_maps(draws(64, COLOUR_DRAWS, 1, torch.float64), p)
    for maps in (plane[:, :, :2], colour[:, :, :3]):
        inverse = torch.linalg.inv(maps)
        eye = torch.eye(maps.shape[1], dtype=torch.float64).expand_as(inverse)
        torch.testing.assert_close(inverse @ maps, eye, atol=1e-8, rtol=0)


def test_mirror_and_quarter_turns_move_pixels_exactly() -> None:
    images = photo(1, 8)
    none = torch.full((1, PLANE_DRAWS), 0.999)
    eye = torch.eye(3, 4)[None]
    mirror = none.clone()
    mirror[0, 0], mirror[0, 1] = 0.0, 0.7
    made = augment([images], plane_maps(mirror, 0.5), eye)[0]
    torch.testing.assert_close(made, images.flip(3), atol=1e-5, rtol=0)
    turn = none.clone()
    turn[0, 2], turn[0, 3] = 0.0, 0.3
    made = augment([images], plane_maps(turn, 0.5), eye)[0]
    torch.testing.assert_close(made, images.rot90(1, (2, 3)), atol=1e-5, rtol=0)


def test_a_samples_scales_go_through_the_same_map() -> None:
    """A smooth image, mapped and then shrunk, is the shrunk image mapped."""
    ramp = torch.linspace(-1, 1, 64)
    image = (0.5 * ramp[:, None] + 0.3 * ramp[None, :]).expand(1, 3, 64, 64)
    small = torch.nn.functional.avg_pool2d(image, 4)
    move = torch.full((1, PLANE_DRAWS), 0.999)
    move[0, 4:7] = torch.tensor([0.0, 0.6, 0.45])  # a shift
    move[0, 7:9] = torch.tensor([0.0, 0.6])  # a scaling
    plane = plane_maps(move, 0.5)
    colour = colour_maps(draws(1, COLOUR_DRAWS, 2), 1.0)
    big, little = augment([image, small], plane, colour)
    shrunk = torch.nn.functional.avg_pool2d(big, 4)
    torch.testing.assert_close(shrunk[..., 2:-2, 2:-2], little[..., 2:-2, 2:-2], atol=0.02, rtol=0)


def test_hue_and_mirrored_luma_keep_what_they_should() -> None:
    turn = torch.full((1, COLOUR_DRAWS), 0.999, dtype=torch.float64)
    turn[0, 6], turn[0, 7] = 0.0, 0.8
    matrix = colour_maps(turn, 0.5)[0, :, :3]
    grey = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(matrix @ grey, grey)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3, dtype=torch.float64))
    assert not torch.allclose(matrix, torch.eye(3, dtype=torch.float64))
    flip = torch.full((1, COLOUR_DRAWS), 0.999, dtype=torch.float64)
    flip[0, 4], flip[0, 5] = 0.0, 0.8
    torch.testing.assert_close(colour_maps(flip, 0.5)[0, :, :3] @ grey, -grey)


def test_share_of_samples_changed_is_the_strength() -> None:
    plane = plane_maps(draws(4000, PLANE_DRAWS, 3), 0.2)
    scaled_or_turned = (plane[:, :, :2] - torch.eye(2)).abs().amax((1, 2)) > 1e-6
    # A mirror (half of them mirror), a quarter turn (three of four turn), size, rotation, stretch.
    kept = (1 - 0.1) * (1 - 0.15) * (1 - 0.2) * (1 - 0.2) * (1 - 0.2)
    assert scaled_or_turned.float().mean().item() == pytest.approx(1 - kept, abs=0.03)


def test_gradients_of_the_augmentation() -> None:
    image = photo(1, 5, torch.float64).requires_grad_()
    plane = plane_maps(draws(1, PLANE_DRAWS, 4, torch.float64), 1.0)
    colour = colour_maps(draws(1, COLOUR_DRAWS, 4, torch.float64), 1.0)
    assert torch.autograd.gradcheck(lambda x: augment([x], plane, colour)[0], (image,))


def heuristic(signs: list[float], target: float, images: int, kimg: float, p: float) -> float:
    """Section 3 of the paper: p moves by sign(r − target), images / (kimg · 1000) at a time."""
    r = sum(signs) / len(signs)
    direction = math.copysign(1, r - target) if r != target else 0
    return min(max(p + direction * images / (kimg * 1000), 0), 1)


def test_strength_follows_the_sign_of_the_heuristic() -> None:
    ada = AdaptiveAugmentation(
        StyleGAN2ADASettings(ada_target=0.6, ada_kimg=0.1), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    )
    expected = 0.0
    for logits in (
        [[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, -1.0]],  # r = 0.75: up
        [[5.0] * 8],  # r = 1: up
        [[1.0, 1.0, -1.0, 1.0], [-1.0, 1.0, 1.0, -1.0]],  # r = 0.25: down
        [[9.0] * 200],  # up, by more than there is room for
    ):
        flat = [x for batch in logits for x in batch]
        for batch in logits:
            ada.observe(torch.tensor(batch))
        ada.adjust()
        expected = heuristic([math.copysign(1, x) for x in flat], 0.6, len(flat), 0.1, expected)
        assert ada.p == pytest.approx(expected)
    assert ada.p == 1.0
    ada.adjust()  # nothing was counted since
    assert ada.p == 1.0


def test_state_goes_on_where_it_was() -> None:
    settings = StyleGAN2ADASettings(ada_kimg=0.1)
    one = AdaptiveAugmentation(settings, (0.5,) * 3, (0.5,) * 3)
    one.observe(torch.ones(5))
    one.adjust()
    one.observe(torch.ones(3))
    two = AdaptiveAugmentation(settings, (0.5,) * 3, (0.5,) * 3)
    state = one.state_dict()
    assert isinstance(state["p"], float), "as checkpoints have had it all along"
    two.load_state_dict(state)
    for ada in (one, two):
        ada.adjust()
    assert one.p == two.p == pytest.approx(0.08)


def test_images_keep_their_normalisation() -> None:
    ada = AdaptiveAugmentation(StyleGAN2ADASettings(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(ada([images], draws(3, DRAWS))[0], images, atol=1e-5, rtol=1e-5)
