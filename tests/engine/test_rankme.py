"""Effective rank of features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from percmae.engine.rankme import rankme


def orthogonal(size: int, seed: int) -> torch.Tensor:
    random = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double()
    return torch.linalg.qr(random).Q


def with_singular_values(values: list[float], rows: int = 20) -> torch.Tensor:
    """A matrix (rows, 8) whose singular values are these."""
    middle = torch.zeros(rows, 8, dtype=torch.float64)
    middle[range(len(values)), range(len(values))] = torch.tensor(values).double()
    return orthogonal(rows, 1) @ middle @ orthogonal(8, 2)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_equal_singular_values_are_counted(count: int) -> None:
    # The paper's epsilon on each of the other values adds a little.
    assert rankme(with_singular_values([5.0] * count)) == pytest.approx(count, rel=1e-4)


def test_it_is_the_exponential_of_the_entropy() -> None:
    values = np.array([4.0, 2.0, 1.0, 0.5])
    shares = np.append(values / values.sum(), np.zeros(4)) + 1e-7
    expected = math.exp(-(shares * np.log(shares)).sum())
    features = with_singular_values(values.tolist())
    assert rankme(features) == pytest.approx(expected, rel=1e-6)
    assert rankme(7 * features) == pytest.approx(expected, rel=1e-6)
    assert rankme(features.flip(0)) == pytest.approx(expected, rel=1e-6)


def test_a_collapsed_representation_has_rank_one() -> None:
    assert rankme(torch.ones(50, 16)) == pytest.approx(1, abs=1e-3)


def test_without_a_number() -> None:
    assert rankme(torch.zeros(5, 4)) == 0
    features = torch.ones(5, 4)
    features[3, 2] = torch.nan
    assert math.isnan(rankme(features))
