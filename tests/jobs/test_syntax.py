"""Quantities and image references, read as Kubernetes reads them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from percmae.errors import ConfigError
from percmae.jobs.syntax import cores, image, memory, quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("100m", Fraction(1, 10)),
        ("+.5", Fraction(1, 2)),
        ("2.", 2),
        ("1k", 1000),
        ("1Ki", 1024),
        ("1.5Gi", 3 * 2**29),
        ("1E", 10**18),
        ("1Ei", 2**60),
        ("1e3", 1000),
        ("1E3", 1000),
        ("5e-1", Fraction(1, 2)),
        ("3n", Fraction(3, 10**9)),
        ("7u", Fraction(7, 10**6)),
    ],
)
def test_quantities_as_kubernetes_reads_them(text: str, value: Fraction | int) -> None:
    assert quantity(text, "it") == value


def test_units_of_memory_and_cores() -> None:
    assert memory("16Gi", "it") == 2**34
    assert cores("1500m", "it") == Fraction(3, 2)


@pytest.mark.parametrize("text", ["1KI", "1K", "1kib", "0x10", "1_000", "1,5Gi", "Gi", "1e", "1 "])
def test_no_quantities(text: str) -> None:
    with pytest.raises(ConfigError, match="not a quantity"):
        quantity(text, "it")


def test_image_references() -> None:
    for bad in ("a:b:c", "a/", "/a", "a//b", "a:", "a@", "a@sha256:" + "0" * 63, "a b", "a\n"):
        with pytest.raises(ConfigError, match="not an image reference"):
            image(bad, "image")
