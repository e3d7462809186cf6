"""Variants side by side as pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import write_experiment, write_run
from PIL import Image

from percmae.engine.pictures import reconstruction_grid
from percmae.engine.tracking import png
from percmae.report.compare import Compared, compare
from percmae.report.compare_pictures import learning_figure, side_by_side
from percmae.report.read import StoredPicture

SIDE = 32


def grid(red: float, removed: int = 3, originals: float = 0.2) -> StoredPicture:
    """Two grey images of four patches, and a reconstruction that is red where they were removed."""
    images = torch.full((2, 3, SIDE, SIDE), originals)
    made = torch.zeros(2, 3, SIDE, SIDE)
    made[:, 0] = red
    mask = torch.tensor([[0.0, 0.0, 0.0, 0.0]] * 2)
    mask[:, removed] = 1.0
    data = png(reconstruction_grid(images, made, mask, whole=True))
    return StoredPicture("it", data, 0, 0)


def columns(data: bytes | None) -> list[tuple[int, int, int]]:
    """The colour of each column's first image, in the middle of its last patch."""
    assert data is not None
    page = Image.open(io.BytesIO(data))
    step = 96 + 6
    return [
        page.getpixel((left + 72, 26 + 72))  # type: ignore[misc]
        for left in range(0, page.width, step)
    ]


def test_one_row_an_image_one_column_a_variant() -> None:
    found = columns(side_by_side([("mae", grid(1.0)), ("ssim", grid(0.6))]))
    assert found == [(51, 51, 51), (128, 128, 128), (255, 0, 0), (153, 0, 0)]


def test_another_mask_is_shown_too() -> None:
    pictures = [("mae", grid(1.0)), ("ssim", grid(1.0, removed=0)), ("ls_gan", grid(1.0, 0))]
    found = columns(side_by_side(pictures))
    grey, masked, red = (51, 51, 51), (128, 128, 128), (255, 0, 0)
    assert found == [grey, masked, red, grey, grey, grey]


def test_other_images_are_not_put_side_by_side() -> None:
    assert side_by_side([("mae", grid(1.0)), ("ssim", grid(1.0, originals=0.3))]) is None


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("learning")
    entries = [
        Compared(variant, write_experiment(root / variant, 2, variant=variant))
        for variant in ("mae", "ssim")
    ]
    return compare(entries, str(root / "out"))


def test_curves_are_the_validations(document: dict[str, Any]) -> None:
    points = document["rows"][0]["learning"]
    assert [point["epoch"] for point in points] == list(range(1, 11))
    assert points[0]["images"] == 3600
    # 83.4 + seed seconds for 10 epochs
    assert points[4]["seconds"]["values"] == pytest.approx([41.7, 42.2])
    assert points[-1]["knn_top1"]["values"][1] == document["rows"][0]["knn"]["values"][1]
    figure = learning_figure(document)
    assert figure is not None
    by_epoch, by_time = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == ["epochs", "seconds of training"]
    assert len(by_epoch.containers) == len(by_time.containers) == 2


def test_files(document: dict[str, Any]) -> None:
    names = {key: Path(uri).name for key, uri in document["files"].items()}
    assert names == {
        "json": "compare.json",
        "picture": "compare.png",
        "learning": "learning.png",
        "reconstructions": "reconstructions.png",
        "markdown": "compare.md",
    }
    for uri in document["files"].values():
        assert Path(uri).stat().st_size > 100
    text = Path(document["files"]["markdown"]).read_text()
    assert text.count("![") == 3


def test_without_an_evaluation_there_are_no_reconstructions(tmp_path: Path) -> None:
    document = compare([Compared("mae", [write_run(tmp_path, accuracy=None)])], str(tmp_path / "o"))
    assert "reconstructions" not in document["files"]
    assert "learning" in document["files"]
