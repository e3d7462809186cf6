"""WebDataset's shards as sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import webdataset
from source_forms import contents, opened, refused, rows, tar_of, told

from percmae.storage import StorePath


def sample(key: str, label: object = None, ending: str = "jpg", **json_fields: Any) -> list[Any]:
    """Members of one sample: an image, ``.cls`` where there is a label, ``.json`` with fields."""
    found: list[Any] = [(f"{key}.{ending}", f"image {key}".encode())]
    if label is not None:
        found.append((f"{key}.cls", str(label).encode()))
    if json_fields:
        found.append((f"{key}.json", json.dumps(json_fields).encode()))
    return found


def shard(path: StorePath, *samples: list[Any]) -> None:
    path.write_bytes(tar_of([member for one in samples for member in one]))


def test_labels_by_number(tmp_store: StorePath) -> None:
    shard(tmp_store / "a-0.tar", sample("x", 3), sample("y", 0, "png"), [("y.txt", b"a caption")])
    shard(tmp_store / "a-1.tar", sample("d/x", 1, "webp"), sample("z"))
    catalogue = opened(tmp_store)
    assert [c.name for c in catalogue.classes] == ["0", "1", "2", "3"]
    assert rows(catalogue) == {
        "a-0/x": ("3", "hash", b"image x"),
        "a-0/y": ("0", "hash", b"image y"),
        "a-1/d/x": ("1", "hash", b"image d/x"),
        "a-1/z": ("", "hash", b"image z"),
    }
    assert catalogue.name(2) == "a-1.tar → d/x.webp"
    assert catalogue.notes == [
        "skipped 1 file(s) that by their ending are no images (first: y.txt)",
        "1 of 4 images have no label",
    ]


def test_more_than_ten_classes_are_sorted_by_number_and_by_text(tmp_path: Path) -> None:
    shard(StorePath(tmp_path / "a.tar"), *(sample(f"{n:02d}", n) for n in (11, 2, 10)))
    catalogue = opened(tmp_path)
    assert [c.name for c in catalogue.classes] == [str(n) for n in range(12)]
    assert {key: label for key, (label, _) in told(catalogue).items()} == {
        "a/02": "2",
        "a/10": "10",
        "a/11": "11",
    }


def test_labels_in_json(tmp_path: Path) -> None:
    shard(
        StorePath(tmp_path / "a.tar"),
        sample("1", label=None, caption="x"),
        [*sample("2"), ("2.json", b'{"label": "dog"}')],
        [("3.json", b'{"label": "cat"}'), *sample("3")],  # before its image
    )
    catalogue = opened(tmp_path / "a.tar")
    assert [c.wnid for c in catalogue.classes] == ["cat", "dog"]
    assert told(catalogue) == {
        "a/1": ("", "hash"),
        "a/2": ("dog", "hash"),
        "a/3": ("cat", "hash"),
    }


def test_cls_goes_before_json(tmp_path: Path) -> None:
    beside = ("1.json", b'{"label": 7}')
    shard(StorePath(tmp_path / "a.tar"), [beside, *sample("1", 1)], [*sample("2", 2)])
    assert {label for label, _ in told(opened(tmp_path)).values()} == {"1", "2"}


def test_shards_named_after_splits(tmp_path: Path) -> None:
    for name in ("train-000000", "train-000001", "val-000000", "test-000000"):
        shard(StorePath(tmp_path / f"{name}.tar"), sample("same", 0))
    assert told(opened(tmp_path)) == {
        "train-000000/same": ("0", "train"),
        "train-000001/same": ("0", "train"),
        "val-000000/same": ("0", "val"),
        "test-000000/same": ("0", "test"),
    }
    found = told(opened(f"{tmp_path}/train-{{000000..000001}}.tar"))
    assert found == {"train-000000/same": ("0", "hash"), "train-000001/same": ("0", "hash")}


@pytest.mark.parametrize("name", ["classes.txt", "classnames.txt"])
def test_a_list_of_classes_beside_the_shards(tmp_store: StorePath, name: str) -> None:
    shard(tmp_store / "a-0.tar", sample("x", 1), sample("y", 0))
    (tmp_store / name).write_text("tench\ngreat white shark\ncrane\n\n")
    catalogue = opened(tmp_store)
    assert [c.name for c in catalogue.classes] == ["tench", "great white shark", "crane"]
    assert told(catalogue)["a-0/x"] == ("great white shark", "hash")
    (tmp_store / name).write_text("tench\n")
    refused(tmp_store, "there is a label 1, and its list of classes has 1 lines")


def test_labels_none_and_folders(tmp_path: Path) -> None:
    shard(
        StorePath(tmp_path / "a.tar"),
        sample("cats/1", 1),
        [*sample("cats/2"), ("cats/2.cls", b"?")],
    )
    refused(tmp_path, "a.tar → cats/2.cls: '?' is no class")
    assert told(opened(tmp_path, labels="none")) == {
        "a/cats/1": ("", "hash"),
        "a/cats/2": ("", "hash"),
    }
    assert told(opened(tmp_path, labels="folders")) == {
        "cats/1_jpg": ("cats", "hash"),
        "cats/2_jpg": ("cats", "hash"),
    }


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.cls", b"", "'' is no class: a whole number from 0 on is due"),
        ("x.cls", b"-1", "'-1' is no class"),
        ("x.cls", b"1.5", "'1.5' is no class"),
        ("x.json", b"{", "x.json is not JSON"),
        ("x.json", b"\xff\xfe\xff", "x.json is not JSON"),
        ("x.json", b'{"label": 1.5}', "1.5 is no label: a word or a whole number"),
        ("x.json", b'{"label": true}', "True is no label"),
        ("x.json", b'{"label": [1]}', "[1] is no label"),
        ("x.json", b'{"label": "' + b"x" * (1 << 20) + b'"}', "too many for a label"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_labels_that_are_none(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    shard(StorePath(tmp_path / "a.tar"), sample("ok", 1), [*sample("x"), (name, content)])
    refused(tmp_path, "a.tar", said)


def test_a_label_that_is_no_place_in_a_list_of_classes(tmp_path: Path) -> None:
    shard(StorePath(tmp_path / "a.tar"), sample("x", 9999999))
    refused(tmp_path, "would have 10,000,000 classes, and 100,000 are the most", "--labels none")


def test_what_belongs_to_no_image_is_no_fault(tmp_path: Path) -> None:
    more = [("alone.cls", b"?"), ("broken.json", b"{"), ("notes.json", b"x" * (2 << 20))]
    shard(StorePath(tmp_path / "a.tar"), sample("x", 1), more)
    catalogue = opened(tmp_path)
    assert told(catalogue) == {"a/x": ("1", "hash")}
    assert "skipped 3 file(s) that by their ending are no images (first: alone.cls)" in (
        catalogue.notes
    )


def test_a_sample_with_two_images(tmp_path: Path) -> None:
    shard(StorePath(tmp_path / "a.tar"), sample("x", 1), sample("x", None, "seg.png"))
    refused(tmp_path, "a.tar → x.jpg and a.tar → x.seg.png are of one sample")


def test_what_webdataset_writes(tmp_path: Path) -> None:
    with webdataset.ShardWriter(f"{tmp_path}/s-%02d.tar", maxcount=3, verbose=0) as writer:
        for n in range(7):
            writer.write({"__key__": f"{n:04d}", "jpg": b"image %d" % n, "cls": n % 3})
    catalogue = opened(f"{tmp_path}/s-{{00..02}}.tar")
    assert {key: (label, data) for key, (label, _, data) in rows(catalogue).items()} == {
        f"s-{n // 3:02d}/{n:04d}": (str(n % 3), b"image %d" % n) for n in range(7)
    }


def test_shards_without_a_label_are_a_tree(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(contents("1.jpg", "1.txt", "2.jpg")))
    assert told(opened(tmp_path)) == {"1_jpg": ("", "hash"), "2_jpg": ("", "hash")}
