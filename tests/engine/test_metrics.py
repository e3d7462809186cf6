"""Figures of merit against definitions written out."""

from __future__ import annotations

import math

import pytest
import torch

from percmae.config import load_config
from percmae.engine.distributed import World
from percmae.engine.metrics import ClassifierScores, psnr, ssim
from percmae.engine.pictures import denormalise, pixel_mask, reconstruction_grid

HERE = World(0, 1, torch.device("cpu"))


def test_scores_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 7, generator=generator)
    labels = torch.randint(7, (200,), generator=generator)
    scores = ClassifierScores(7, HERE.device)
    for part in (slice(0, 90), slice(90, 200)):
        scores.add(logits[part], labels[part])
    scores = scores.gathered(HERE)
    ranked = logits.argsort(1, descending=True)
    pairs = list(zip(ranked.tolist(), labels.tolist(), strict=True))
    assert scores.top(1) == sum(r[0] == y for r, y in pairs) / 200
    assert scores.top(5) == sum(y in r[:5] for r, y in pairs) / 200
    assert scores.loss == pytest.approx(
        torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5
    )
    for true in range(7):
        for predicted in range(7):
            count = sum(r[0] == predicted and y == true for r, y in pairs)
            assert scores.confusion[true, predicted] == count
    confidence = logits.softmax(1).max(1).values.tolist()
    error = 0.0
    for b in range(15):
        inside = [i for i, c in enumerate(confidence) if min(int(c * 15), 14) == b]
        if inside:
            right = sum(pairs[i][0][0] == pairs[i][1] for i in inside)
            error += abs(right - sum(confidence[i] for i in inside)) / 200
    assert scores.calibration_error == pytest.approx(error, abs=1e-6)
    counts = [n for n, _ in scores.per_class()]
    assert counts == torch.bincount(labels, minlength=7).tolist()


def test_a_class_without_images_has_no_accuracy() -> None:
    scores = ClassifierScores(3, HERE.device)
    scores.add(torch.eye(3)[:2], torch.tensor([0, 0]))
    assert scores.per_class() == [(2, 0.5), (0, None), (0, None)]


def test_psnr_and_ssim() -> None:
    a = torch.full((1, 3, 8, 8), 0.5)
    assert psnr(a, a + 0.1).item() == pytest.approx(20.0, abs=1e-4)
    assert math.isfinite(psnr(a, a).item())
    assert ssim(a, a).item() == pytest.approx(1.0)


def test_picture_shows_what_was_seen() -> None:
    config = load_config()
    images = torch.rand(2, 3, 8, 8)
    made = torch.zeros(2, 3, 8, 8)
    mask = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    removed = pixel_mask(mask, 8)
    assert removed[0, 0, :4, :4].all()
    assert removed.sum() == 32
    grid = reconstruction_grid(images, made, mask, whole=True)
    assert grid.shape == (3, 8 * 2 + 2, 8 * 4 + 3 * 2)
    assert torch.equal(grid[:, :8, :8], images[0])
    assert (grid[:, :4, 10:14] == 0.5).all()  # masked column: grey where removed
    pasted = grid[:, :8, 30:38]
    assert torch.equal(pasted[:, :, 4:], images[0][:, :, 4:])
    assert (pasted[:, :4, :4] == 0).all()
    assert (grid[:, :8, 20:28] == 0).all()
    removed_only = reconstruction_grid(images, made, mask, whole=False)[:, :8, 20:28]
    assert (removed_only[:, :4, :4] == 0).all()
    assert (removed_only[:, :, 4:] == 0.5).all(), "noise where the network was asked for nothing"
    std = torch.tensor(config.data.augment.std)[:, None, None]
    mean = torch.tensor(config.data.augment.mean)[:, None, None]
    back = denormalise((images - mean) / std, config.data.augment)
    torch.testing.assert_close(back, images)
