"""The picture of features: neighbours stay neighbours."""

from __future__ import annotations

import pytest
import torch

from percmae.engine import tsne as module
from percmae.engine.tsne import _affinities, principal_components, tsne


def groups(each: int = 40, apart: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = apart * torch.eye(3, 10)
    points = centres.repeat_interleave(each, 0) + torch.randn(3 * each, 10, generator=generator)
    return points, torch.arange(3).repeat_interleave(each)


def test_groups_stay_together_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEPS", 250)
    points, labels = groups()
    places = tsne(points)
    assert places.shape == (120, 2)
    assert bool(torch.isfinite(places).all())
    distances = torch.cdist(places, places).fill_diagonal_(torch.inf)
    nearest = distances.topk(5, largest=False).indices
    assert (labels[nearest] == labels[:, None]).double().mean() > 0.95
    assert torch.equal(places, tsne(points))


def test_as_true_to_the_neighbours_as_scikit_learns() -> None:
    manifold = pytest.importorskip("sklearn.manifold")
    points, _ = groups(apart=2.0)
    theirs = manifold.TSNE(init="pca", random_state=0).fit_transform(points.numpy())
    ours = tsne(points).numpy()
    assert manifold.trustworthiness(points, ours) > manifold.trustworthiness(points, theirs) - 0.02


def test_each_point_has_as_many_neighbours_as_asked_for() -> None:
    points, _ = groups()
    joint = _affinities(torch.cdist(points.double(), points.double()).square(), 20.0)
    assert float(joint.sum()) == pytest.approx(1)
    assert torch.equal(joint, joint.T)
    # Each row before it was made symmetric had the perplexity asked for; the whole is near it.
    rows = joint / joint.sum(1, keepdim=True)
    entropy = -(rows * rows.clamp(min=1e-12).log()).sum(1)
    assert float(entropy.exp().mean()) == pytest.approx(20, rel=0.25)


@pytest.mark.parametrize("points", [torch.zeros(6, 3), torch.ones(2, 1), torch.zeros(1, 4)])
def test_points_that_cannot_be_told_apart(points: torch.Tensor) -> None:
    places = tsne(points)
    assert places.shape == (len(points), 2)
    assert bool(torch.isfinite(places).all())


def test_principal_components_are_those_of_numpys_covariance() -> None:
    points, _ = groups()
    values, vectors = torch.linalg.eigh(torch.cov(points.T))
    ours = principal_components(points)
    theirs = (points - points.mean(0)) @ vectors[:, [-1, -2]]
    torch.testing.assert_close(ours.abs(), theirs.abs(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.var(0), values[[-1, -2]], rtol=1e-3, atol=1e-3)
