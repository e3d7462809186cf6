"""The loader benchmark: that it measures what it says. No timing is asserted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from s3_server import S3
from skimage import data as skimage_data

from percmae.bench import loader, loading
from percmae.bench.loader import _row, table
from percmae.bench.photos import crops, photographs
from percmae.cli.verbs import main
from percmae.errors import UserError


def test_photographs_of_a_size(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(skimage_data.coffee()).save(tmp_path / "a" / "b.JPEG")
    (own,) = photographs(str(tmp_path))
    made = list(crops([own], (50, 37)))
    assert len(set(made)) == len(made)
    assert made == list(crops([own], (50, 37)))
    assert len(photographs(None)) == 4
    with pytest.raises(UserError, match=r"--photos .*/a/x: no file there"):
        photographs(str(tmp_path / "a" / "x"))


def test_each_goes_through_the_images_once(s3: S3, tmp_path: Path) -> None:
    """In this process; mosaicml-streaming needs an environment of its own."""
    from percmae.bench.photos import prepare

    images = photographs(None)
    files, manifest = prepare(images, (64, 48), 70, tmp_path / "in", s3.uri("bench"))
    sources = loading.Sources(manifest, str(files), "")
    train = len(loading._split(sources))
    for contender in loading.CONTENDERS:
        if contender.package in (None, "webdataset") and contender.installed:
            epoch = contender.build(sources, 0, tmp_path)
            expected = 70 if contender.name == "imagefolder" else train
            assert sum(epoch()) == sum(epoch()) == expected, contender.name


def test_rows_and_table() -> None:
    results: list[dict[str, Any]] = [
        {
            "images_per_cpu_second": rate,
            "images_per_second": rate / 2,
            "first_batch_seconds": 1.0,
            "memory": [rate, rate, rate],
        }
        for rate in (100.0, 300.0, 200.0)
    ]
    row = _row("webdataset", 1, results)
    assert row["images_per_cpu_second"] == 200
    assert row["peak_memory_mib"] == [300] * 3
    document = {
        "images": 10, "batch": 64, "processor": "P", "cpu_capability": "AVX2", "torch": "2",
        "rounds": 3, "absent": ["mosaicml-streaming"],
        "sizes": [{"size": "500x375", "mean_bytes": 5000, "rows": [{**row, "ratio": 1.0}]}],
    }  # fmt: skip
    text = table(document)
    assert "webdataset" in text
    assert "not installed: mosaicml-streaming" in text


def test_what_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--only", "ours"], "--only ours: choose from percmae fast"),
        (["--rounds", "0"], "whole numbers from 1"),
        (["--cores", "0"], "whole numbers from 1"),
        (["--images", "5"], "--images: from 64"),
    ):
        assert main(["bench", "loader", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_measurement_is_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--images", "64", "--rounds", "1", "--cores", "1", "--only", "percmae fast"]
    assert main(["bench", "loader", "--json", *words]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == loader.FORMAT
    for size in document["sizes"]:
        (row,) = size["rows"]
        assert row["ratio"] is None
        assert row["images_per_cpu_second"] > 0
        assert len(row["peak_memory_mib"]) == loader.EPOCHS
