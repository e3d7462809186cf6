"""Random numbers from counters: the right hash, the right distribution, a row's own."""

from __future__ import annotations

import math

import numpy as np
import torch

from percmae.counters import STEP, numbers, splitmix64
from percmae.losses.draws import Draws

CPU = torch.device("cpu")


def draws(rows: range, seed: int = 0, index: int = 3) -> Draws:
    return Draws(seed, index, rows, CPU)


def test_the_hash_is_splitmix64() -> None:
    """The first outputs for seed 1234567, as published with its reference implementation."""
    published = [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ]  # fmt: skip
    for counts in (torch.arange(1, 6), np.arange(1, 6)):
        found = splitmix64(1234567 + counts * STEP)
        assert [word % 2**64 for word in found.tolist()] == published


def test_arrays_and_tensors_have_the_same_numbers() -> None:
    ours = numbers(-(2**62), np.arange(5, 9), np.arange(100))
    theirs = numbers(-(2**62), torch.arange(5, 9), torch.arange(100))
    assert np.array_equal(ours, theirs.numpy())
    assert ours.shape == (4, 100)


def test_a_rows_numbers_are_its_own() -> None:
    whole, part = draws(range(64)), draws(range(40, 64))
    assert torch.equal(part.uniform(1, 5), whole.uniform(1, 5)[40:])
    assert torch.equal(part.normal(1, 3, 7, 7), whole.normal(1, 3, 7, 7)[40:])
    assert part.uniform(1).shape == (24,)


def test_other_seeds_places_and_purposes_give_other_numbers() -> None:
    given = draws(range(8)).uniform(0, 100)
    others = [
        draws(range(8)).uniform(1, 100),
        draws(range(8), seed=1).uniform(0, 100),
        draws(range(8), index=4).uniform(0, 100),
        draws(range(8, 16)).uniform(0, 100),
    ]
    for other in others:
        assert not bool((other == given).any())
    correlation = torch.corrcoef(torch.stack([x.flatten() for x in [given, *others]]))
    assert bool(((correlation - torch.eye(5)).abs() < 0.15).all())


def test_uniform_and_normal_are_what_they_are_called() -> None:
    """A million numbers: moments within five standard errors, tails as often as they should be."""
    n = 1_000_000
    uniform = draws(range(1000)).uniform(0, 1000)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    counts = torch.histc(uniform, 100, 0, 1)
    assert float((counts - n / 100).abs().max()) < 5 * math.sqrt(n / 100)
    normal = draws(range(1000)).normal(0, 1000).double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = abs(float((normal**power).mean()) - moment)
        assert error < 5 * math.sqrt(variance / n), power
    beyond = float((normal.abs() > 3).double().mean())
    assert abs(beyond - 0.0027) < 5 * math.sqrt(0.0027 / n)
    assert 4 < float(normal.abs().max()) < 5.5
