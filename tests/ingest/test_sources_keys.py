"""Keys of images: of their own path alone, each another."""

from __future__ import annotations

import random
import unicodedata

import pytest

from percmae.ingest.sources.files import endings_of
from percmae.ingest.sources.keys import LONGEST_KEY, escaped, key_of

ENDINGS = endings_of(["JPEG", "PNG"])


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("cats/1.jpg", "cats/1_jpg"),
        ("cats/1.JPG", "cats/1_JPG"),
        ("cats/1.png", "cats/1_png"),
        ("cats/1_jpg.png", "cats/1_jpg_png"),
        ("a.b/c.d.jpg", "a%2Eb/c%2Ed_jpg"),
        ("100%/a%2Eb.jpg", "100%25/a%252Eb_jpg"),
        ("a\nb\x7f.jpg", "a%0Ab%7F_jpg"),
        ("a b/ü.jpg", "a b/ü_jpg"),
        (unicodedata.normalize("NFD", "ü.jpg"), "ü_jpg"),
        ("other/ending.bin", "other/ending%2Ebin"),
        ("noending", "noending"),
    ],
)
def test_keys(path: str, key: str) -> None:
    assert key_of(path.encode(), ENDINGS).decode() == key


def test_bytes_that_are_not_utf8() -> None:
    assert key_of(b"a\xff/\xe9.jpg", ENDINGS) == b"a%FF/%E9_jpg"


def test_long_names_are_cut_and_stay_different() -> None:
    stem = "ä" * 200
    one, other = (key_of(f"{stem}{n}.jpg".encode(), ENDINGS) for n in (1, 2))
    assert one != other
    assert max(len(one), len(other)) <= LONGEST_KEY
    assert one.decode().startswith("ä" * 100)
    exact = b"a" * (LONGEST_KEY - 4) + b".jpg"
    assert key_of(exact, ENDINGS) == exact.replace(b".", b"_")
    assert len(escaped(b"." * 200)) <= LONGEST_KEY


def test_different_paths_have_different_keys() -> None:
    chosen = random.Random(5)
    alphabet = ["a", "_", ".", "%", "2E", "jpg", "/", "-", "é", " ", "\x01"]
    paths = {
        "".join(chosen.choices(alphabet, k=chosen.randint(1, 6))) + chosen.choice([".jpg", ".png"])
        for _ in range(20_000)
    }
    keys = {key_of(path.encode(), ENDINGS) for path in paths}
    assert len(keys) == len(paths)
    assert not any(b"." in key for key in keys)
