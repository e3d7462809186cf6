"""Mean and deviation of a dataset's pixels: from ingest to a run's config."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from percmae.config import load_config
from percmae.data.decode import decode
from percmae.data.shards import Dataset, Pixels
from percmae.errors import DataError
from percmae.runs.record import identity_of


def test_mean_and_deviation_of_the_training_images(tiny_dataset: Dataset) -> None:
    pixels, split = [], tiny_dataset.split("train")
    for shard, offset, size in zip(*split.locate(np.arange(len(split))), strict=True):
        data = split.shards[shard].read_bytes(int(offset), int(size))
        pixels.append(np.asarray(decode(data), np.float64) / 255)
    whole = np.stack(pixels)
    assert tiny_dataset.pixels is not None
    assert tiny_dataset.pixels.mean == pytest.approx(whole.mean((0, 1, 2)), abs=6e-5)
    assert tiny_dataset.pixels.std == pytest.approx(whole.std((0, 1, 2)), abs=6e-5)


def test_a_manifest_without_mean_and_deviation_opens(tiny_dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(Path(tiny_dataset.uri).parent, tmp_path / "old")
    file = tmp_path / "old" / "manifest.json"
    content = json.loads(file.read_text())
    del content["pixels"]
    file.write_text(json.dumps(content))
    old = Dataset.open(str(file))
    assert old.pixels is None
    assert old.digest == tiny_dataset.digest
    for damaged in ({"mean": [0.1], "std": [0.1, 0.1, 0.1]}, {"mean": "x"}, 3):
        file.write_text(json.dumps(content | {"pixels": damaged}))
        with pytest.raises(DataError, match="damaged manifest"):
            Dataset.open(str(file))


def test_what_the_config_leaves_to_the_dataset_is_in_the_runs_identity() -> None:
    def dataset(pixels: Pixels | None) -> Any:
        return SimpleNamespace(
            uri="data", pinned="data", digest="sha256:0", pixels=pixels, classes=[0, 1]
        )

    config = load_config(overrides=["data.augment.mean=null", "data.augment.std=[0.2, 0.2, 0.2]"])
    known = dataset(Pixels([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    identity = identity_of(config, known)
    assert identity.config.data.augment.mean == [0.1, 0.2, 0.3]
    assert identity.config.data.augment.std == [0.2, 0.2, 0.2]
    given = load_config(
        overrides=["data.augment.mean=[0.1,0.2,0.3]", "data.augment.std=[0.2,0.2,0.2]"]
    )
    assert identity.key == identity_of(given, known).key
    with pytest.raises(DataError, match="without mean and deviation"):
        identity_of(config, dataset(None))
    assert identity_of(given, dataset(None)).key == identity.key
