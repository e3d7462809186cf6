"""A dataset's indexes."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from percmae.data.shards import Dataset
from percmae.data.slices import labelled_share, position_hashes
from percmae.storage import StorePath


def test_indexes_are_parsed_by_one_thread(
    sample_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many fetch them: CPython 3.11 cannot parse in two at a time."""
    parsed, load = [], np.load

    def watched(*args: Any, **options: Any) -> Any:
        parsed.append(threading.get_ident())
        return load(*args, **options)

    monkeypatch.setattr(np, "load", watched)
    assert len(Dataset.open(sample_dataset.uri).split("train")) > 0
    assert len(parsed) > 1
    assert set(parsed) == {threading.get_ident()}


def test_fewer_labels_are_among_more_and_of_each_class(sample_dataset: Dataset) -> None:
    train = sample_dataset.split("train")
    counts = np.bincount(train.labels)
    before: set[bytes] = set()
    for fraction in (0.0001, 0.01, 0.1, 0.5, 1.0):
        chosen = sample_dataset.labelled(fraction)
        assert np.bincount(chosen.labels).tolist() == [
            max(1, round(fraction * count)) for count in counts.tolist()
        ]
        keys = set(chosen.keys.tolist())
        assert before <= keys
        before = keys
    assert before == set(train.keys.tolist())
    again = Dataset.open(sample_dataset.uri).labelled(0.01)
    assert again.keys.tolist() == sample_dataset.labelled(0.01).keys.tolist()


def test_another_hash_gives_other_labels() -> None:
    labels = np.repeat(np.arange(3), 50)
    one, other = (
        labelled_share(labels, 0.2, position_hashes(150, f"sha256:{digit * 16}")) for digit in "1a"
    )
    assert len(one) == len(other) == 30
    assert one.tolist() != other.tolist()
    assert not np.array_equal(one, np.arange(30))


def test_images_without_a_label_are_in_no_share_of_the_labels() -> None:
    labels = np.array([-1, 1, -1, 0, 1, 0, -1])
    assert labelled_share(labels, 0.9, np.arange(7, dtype=np.uint64)).tolist() == [1, 3, 4, 5]


def former_dataset(folder: Path, images: int = 30) -> str:
    """A dataset of format 1, as it was written before datasets could grow; its manifest's URI."""
    listed, fields = {}, [("offset", "<u8"), ("size", "<u4"), ("label", "<i4"), ("key", "S4")]
    for split, count in (("train", images), ("test", 5)):
        rows = [(512 * n, 100, n % 3, f"{split[0]}{n:03d}".encode()) for n in range(count)]
        buffer = io.BytesIO()
        np.save(buffer, np.array(rows, dtype=fields))
        tar = split.encode() * 2560
        (folder / split).mkdir(parents=True)
        (folder / split / f"{split}-000000.tar").write_bytes(tar)
        (folder / split / f"{split}-000000.npy").write_bytes(buffer.getvalue())
        shard = {"name": f"{split}-000000.tar", "index": f"{split}-000000.npy", "samples": count}
        shard |= {"bytes": len(tar), "sha256": hashlib.sha256(tar).hexdigest()}
        shard["index_sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
        listed[split] = {"samples": count, "shards": [shard]}
    classes = [{"wnid": f"n{n}", "name": f"thing {n}"} for n in range(3)]
    content = {
        "format": "percmae-dataset/1",
        "classes": [[c["wnid"], c["name"]] for c in classes],
        "shards": {k: [s["sha256"] for s in v["shards"]] for k, v in listed.items()},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    manifest = {
        "format": "percmae-dataset/1",
        "digest": "sha256:" + hashlib.sha256(text.encode()).hexdigest(),
        "name": "former",
        "classes": classes,
        "splits": listed,
        "corrupt": [],
        "shard_bytes": 1,
        "sources": [],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(folder / "manifest.json")


def test_a_dataset_of_format_1_has_the_splits_it_always_had(tmp_path: Path) -> None:
    """The digest and the choices are what the version before format 2 gave for the same files."""
    dataset = Dataset.open(former_dataset(tmp_path))
    assert (
        dataset.digest == "sha256:811225d47358b74df8b780fed0e28baccc366c02311703c1e7f68aa5bb53c280"
    )
    assert dataset.split("val").keys.tolist() == [b"t007", b"t028", b"t029"]
    assert len(dataset.split("train")) == 27
    assert dataset.labelled(0.3).keys.tolist() == [
        b"t003",
        b"t006",
        b"t015",
        b"t016",
        b"t020",
        b"t022",
        b"t023",
        b"t026",
    ]
    assert len(dataset.split("test")) == 5
    assert not dataset.grows
    assert dataset.pinned == dataset.uri
    assert dataset.as_it_was(dataset.digest) is None


def test_a_pinned_manifest_reads_the_shards_beside_it(sample_dataset: Dataset) -> None:
    pinned = Dataset.open(sample_dataset.pinned)
    assert pinned.uri.endswith(f"/manifests/{sample_dataset.digest[7:19]}.json")
    assert pinned.digest == sample_dataset.digest
    assert pinned.pinned == sample_dataset.pinned
    assert pinned.split("val").shards == sample_dataset.split("val").shards
    again = sample_dataset.as_it_was(sample_dataset.digest)
    assert again is not None
    assert again.uri == pinned.uri
    assert sample_dataset.as_it_was("sha256:" + "0" * 64) is None
    assert (StorePath(pinned.uri).parent.parent / "manifest.json").exists()
