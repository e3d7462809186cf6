"""Images that look alike: the hash, the search, and what an ingest says of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from folder_source import FolderSource, picture, tree
from PIL import Image
from test_make import make

from percmae.ingest import duplicates
from percmae.ingest.duplicates import DISTANCE, PLAIN, difference_hash, near_duplicates


def photo(seed: int) -> Image.Image:
    return Image.open(io.BytesIO(picture(seed, "PNG", (320, 240))))


def bits(one: int, other: int) -> int:
    return (one ^ other).bit_count()


@pytest.mark.parametrize("seed", range(5))
def test_a_copy_in_another_size_format_or_quality_has_nearly_the_same_hash(seed: int) -> None:
    image = photo(seed)
    buffer = io.BytesIO()
    image.resize((150, 113)).save(buffer, "JPEG", quality=50)
    assert bits(difference_hash(image), difference_hash(Image.open(buffer))) <= DISTANCE
    assert bits(difference_hash(image), difference_hash(photo(seed + 50))) > 10


def test_the_hash_is_of_neighbours_in_a_row() -> None:
    ramp = np.tile(np.arange(9, dtype=np.uint8) * 10, (8, 1))
    assert difference_hash(Image.fromarray(ramp)) == 2**64 - 1
    ramp[0] = ramp[0][::-1]
    assert difference_hash(Image.fromarray(ramp)) == 2**64 - 2**8
    assert difference_hash(Image.new("RGB", (50, 40), "teal")) == PLAIN


@pytest.mark.parametrize("pairs", [1 << 20, 7])
def test_the_search_finds_what_comparing_all_finds(
    pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_PAIRS", pairs)
    rng = np.random.default_rng(0)
    trained = rng.integers(1, 2**64, 300, dtype=np.uint64)
    trained[100:150] = trained[50:100]  # some twice
    held_out = rng.integers(1, 2**64, 200, dtype=np.uint64)
    for n in range(150):  # 0 to 4 bits from one of them
        flips = rng.choice(64, n % 5, replace=False).tolist()
        held_out[n] = int(trained[n]) ^ sum(1 << flip for flip in flips)
    held_out[199] = trained[299] = PLAIN
    expected = []
    for row, one in enumerate(held_out.tolist()):
        close = [n for n, two in enumerate(trained.tolist()) if bits(one, two) <= DISTANCE]
        if close and one != PLAIN:
            expected.append((row, close[0]))
    assert [tuple(pair) for pair in near_duplicates(held_out, trained)] == expected
    assert len(expected) == 90
    assert near_duplicates(held_out[:0], trained) == near_duplicates(held_out, trained[:0]) == []


def test_an_ingest_tells_of_test_images_that_are_in_training_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tree(tmp_path / "in", 10)
    buffer = io.BytesIO()
    Image.open(folder / "cat" / "003.jpg").resize((80, 60)).save(buffer, "JPEG", quality=80)
    (folder / "copy.jpg").write_bytes(buffer.getvalue())
    declared = {"copy": "test", "cat/003": "train"}
    dataset = make(FolderSource(folder, declared), tmp_path / "out").dataset
    found = dataset.manifest["near_duplicates"]
    assert found == {
        "distance": DISTANCE,
        "val": 0,
        "test": 1,
        "first": [["test", "copy", "cat/003"]],
    }
    assert "0 val and 1 test images look nearly like one for training" in capsys.readouterr().err
