"""Pixel losses against loops by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from percmae.losses.pixel import l1_loss, multiscale_ssim_terms, pyramid, ssim_loss, ssim_map


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 8, 8, generator=generator), torch.rand(2, 3, 8, 8, generator=generator)


def ssim_at(a: torch.Tensor, b: torch.Tensor, y: int, x: int) -> float:
    """SSIM of one place of two (H, W) images, from the definition, mirrored at the borders."""
    size = a.shape[0]

    def mirror(i: int) -> int:
        return -i if i < 0 else (2 * size - 2 - i if i >= size else i)

    window = [(mirror(y + i), mirror(x + j)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    va = torch.stack([a[p] for p in window]).double()
    vb = torch.stack([b[p] for p in window]).double()
    ma, mb = va.mean(), vb.mean()
    sa, sb = ((va - ma) ** 2).mean(), ((vb - mb) ** 2).mean()
    cov = ((va - ma) * (vb - mb)).mean()
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * ma * mb + c1) * (2 * cov + c2)
    return (top / ((ma**2 + mb**2 + c1) * (sa + sb + c2))).item()


def test_ssim_by_the_definition(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = pair
    found = ssim_map(a, b)
    for y, x in ((0, 0), (0, 7), (3, 4), (7, 7)):
        assert found[1, 2, y, x].item() == pytest.approx(ssim_at(a[1, 2], b[1, 2], y, x), abs=1e-4)


def test_equal_images_have_no_loss(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, _ = pair
    assert ssim_loss(a, a).item() == pytest.approx(0, abs=1e-6)
    assert l1_loss(a, a).item() == 0
    assert ssim_loss(a, 1 - a).item() > 0.3


def test_each_level_resizes_the_full_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = pair
    levels = pyramid(a, 3)
    assert [tuple(x.shape[2:]) for x in levels] == [(8, 8), (4, 4), (2, 2)]
    direct = F.interpolate(a, (2, 2), mode="bilinear", align_corners=True)
    assert torch.equal(levels[2], direct)
    ssim, l1 = multiscale_ssim_terms(a, b, 3)
    both = list(zip(pyramid(a, 3), pyramid(b, 3), strict=True))
    assert ssim.item() == pytest.approx(sum(ssim_loss(x, y).item() for x, y in both))
    assert l1.item() == pytest.approx(sum((x - y).abs().mean().item() for x, y in both))


def test_ssim_gradient_is_right() -> None:
    generator = torch.Generator().manual_seed(3)
    a = torch.rand(1, 1, 4, 4, generator=generator, requires_grad=True)
    b = torch.rand(1, 1, 4, 4, generator=generator)
    ssim_map(a, b).sum().backward()
    step = 1e-3
    for y, x in ((0, 0), (2, 1)):
        up, down = a.detach().clone(), a.detach().clone()
        up[0, 0, y, x] += step
        down[0, 0, y, x] -= step
        slope = (ssim_map(up, b).sum() - ssim_map(down, b).sum()) / (2 * step)
        assert a.grad is not None
        assert a.grad[0, 0, y, x].item() == pytest.approx(slope.item(), rel=0.05, abs=0.02)
