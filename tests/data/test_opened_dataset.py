"""A dataset that is opened: its validation slice, and what is said of one that is damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import archive_building as ab
import numpy as np
import pytest

from percmae.data.shards import Dataset
from percmae.errors import DataError
from percmae.ingest import IngestResult, ingest
from percmae.storage import StorePath


def run(archives: ab.Archives, to: Path | str) -> IngestResult:
    return ingest(**archives.uris(), to=str(to), shard_size=12 << 10, workers=1)


def test_val_is_a_fixed_slice_of_the_training_images(sample_dataset: Dataset) -> None:
    train, val = sample_dataset.split("train"), sample_dataset.split("val")
    keys = set(train.keys.tolist()), set(val.keys.tolist())
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == len(train) + len(val) == 4000
    assert len(val) == 400
    assert np.bincount(val.labels, minlength=10).min() > 15, "every class takes part"
    again = Dataset.open(sample_dataset.uri).split("val")
    assert np.array_equal(again.keys, val.keys)
    assert len(sample_dataset.split("test")) == 1000


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "manifest.json").unlink(), "no dataset at .*run percmae ingest"),
        (lambda out: (out / "manifest.json").write_text("{"), "is not a manifest"),
        (lambda out: (out / "manifest.json").write_text('{"format": "x/2"}'), "of format percmae"),
        (
            lambda out: (out / "manifest.json").write_text('{"format": "percmae-dataset/1"}'),
            "damaged manifest",
        ),
        (
            lambda out: (out / "manifest.json").write_text(
                (out / "manifest.json").read_text().replace("thing n00000001", "thing")
            ),
            "digest does not fit",
        ),
        (lambda out: (out / "test" / "test-000000.tar").unlink(), "test-000000.tar is missing"),
        (lambda out: (out / "test" / "test-000000.npy").unlink(), "test-000000.npy is missing"),
        (
            lambda out: os.truncate(out / "train" / "train-000000.tar", 2048),
            "train-000000.tar has 2048 bytes, not the",
        ),
    ],
)
def test_a_damaged_dataset_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    out = tmp_path / "out"
    uri = run(ab.build(tmp_path / "in"), out).manifest_uri
    damage(out)
    with pytest.raises(DataError, match=message) as caught:
        Dataset.open(uri)
    assert "\n" not in str(caught.value)


def test_to_delete_is_advised_only_of_what_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    uri = run(ab.build(tmp_path / "in"), out).manifest_uri
    with monkeypatch.context() as patch:
        patch.setattr(StorePath, "iter", lambda self: iter(()))
        Dataset.open(uri)  # a listing that lacks files which are there
    os.truncate(out / "train" / "train-000000.tar", 2048)
    with pytest.raises(DataError) as caught:
        Dataset.open(uri)
    assert "delete the manifest" not in str(caught.value)
    (out / "train" / "train-000000.tar").unlink()
    with pytest.raises(DataError, match="is missing; delete the manifest and run ingest again"):
        Dataset.open(uri)


@pytest.mark.parametrize("written", ["{}//in//deeper/", "{}/./in/deeper"])
def test_an_address_has_one_normal_form(s3: Any, tmp_path: Path, written: str) -> None:
    base = s3.uri("normal")
    made = run(ab.build(tmp_path / "in"), written.format(base))
    assert made.manifest_uri == f"{base}/in/deeper/manifest.json"
    again = run(ab.build(tmp_path / "in"), f"{base}/in/deeper")
    assert again.reused
    read = Dataset.open(written.format(base).rstrip("/") + "//manifest.json")
    assert (read.uri, read.digest) == (made.manifest_uri, made.dataset.digest)


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    dataset = run(ab.build(tmp_path / "in"), tmp_path / "out").dataset
    index = tmp_path / "out" / "test" / "test-000000.npy"
    index.write_bytes(index.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"test-000000.npy: index does not have"):
        Dataset.open(dataset.uri).split("test")


def test_a_folder_or_an_unknown_split_is_named(tmp_path: Path) -> None:
    dataset = run(ab.build(tmp_path / "in"), tmp_path / "out").dataset
    with pytest.raises(DataError, match=r"give its manifest, .*out/manifest\.json"):
        Dataset.open(str(tmp_path / "out"))
    with pytest.raises(DataError, match="unknown split 'dev': choose from train, val, test"):
        dataset.split("dev")
