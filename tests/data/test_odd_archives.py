"""Archives as people's machines leave them: side files, joined, packed, with images missing."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import archive_building as ab
import numpy as np
import pytest
from test_bad_archives import refused

from percmae.data import devkit as devkit_module
from percmae.data.devkit import Devkit, read_devkit
from percmae.ingest import IngestResult, ingest
from percmae.ingest.build import Work
from percmae.storage import StorePath

SMALL = 12 << 10
WNID = ab.WNIDS[0]


def run(archives: ab.Archives, to: Path, **more: Any) -> IngestResult:
    return ingest(**archives.uris(), to=str(to), shard_size=SMALL, **more)


def plain(tmp_path: Path) -> IngestResult:
    return run(ab.build(tmp_path / "plain"), tmp_path / "plain-out")


# Side files -------------------------------------------------------------------------------------

SIDE_FILES = [
    *("._{}", "x/._{}", "./._{}", ".DS_Store", "__MACOSX/{}", "__MACOSX/x/._{}", "x/.DS_Store"),
    *("Thumbs.db", "desktop.ini", "@eaDir/{}", ".AppleDouble/{}", "x/Desktop.ini"),
]


@pytest.mark.parametrize("where", ["train", "class", "val"])
def test_side_files_are_skipped_counted_and_said_once(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inner, val = ab.class_tars(), ab.val_files()
    files = {"train": inner, "val": val}.get(where) or {
        f"{WNID}_{n}.JPEG": ab.picture(n) for n in range(5)
    }
    names = [name.format(next(iter(files))) for name in SIDE_FILES]
    # Before, between and behind the real ones.
    around = dict.fromkeys(names[:6], b"Mac OS X") | files | dict.fromkeys(names[6:], b"\0\5\x16\7")
    if where == "class":
        inner[f"{WNID}.tar"] = ab.tar_bytes(around)
    train, test = (
        around if where == kind else kept for kind, kept in (("train", inner), ("val", val))
    )
    archives = ab.build(tmp_path / "in", train=ab.tar_bytes(train), val=ab.tar_bytes(test))
    result = run(archives, tmp_path / "out")
    assert result.dataset.digest == plain(tmp_path).dataset.digest
    said = [line for line in capsys.readouterr().err.splitlines() if "side file" in line]
    assert len(said) == 1
    assert f"skipped {len(SIDE_FILES)} side file(s) of macOS, Windows or a NAS (first: " in said[0]
    assert said[0].endswith(f" → {names[0]})")


def test_a_side_file_that_is_unsafe_is_still_refused(tmp_path: Path) -> None:
    files = [*ab.val_files().items(), ("../._x", b"")]
    message = refused(ab.build(tmp_path / "in", val=ab.tar_bytes(files)), tmp_path / "out")
    assert "points outside the archive" in message


# Archives behind archives -----------------------------------------------------------------------


def halves(files: dict[str, bytes]) -> bytes:
    """Two tars, one behind the other, as cat makes it."""
    items = list(files.items())
    return ab.tar_bytes(items[: len(items) // 2]) + ab.tar_bytes(items[len(items) // 2 :])


@pytest.mark.parametrize("where", ["train", "class", "val"])
def test_archives_that_were_joined_are_read_whole(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inner, parts = ab.class_tars(), {}
    if where == "val":
        parts["val"] = halves(ab.val_files())
    elif where == "train":
        parts["train"] = halves(inner)
    else:
        inner[f"{WNID}.tar"] = halves({f"{WNID}_{n}.JPEG": ab.picture(n) for n in range(5)})
        parts["train"] = ab.tar_bytes(inner)
    result = run(ab.build(tmp_path / "in", **parts), tmp_path / "out")
    assert result.dataset.digest == plain(tmp_path).dataset.digest
    said = [line for line in capsys.readouterr().err.splitlines() if "behind the other" in line]
    assert len(said) == 1
    assert "is several archives, one behind the other: all read" in said[0]


@pytest.mark.parametrize("images", [1, 3, 8, 13])
def test_resuming_within_joined_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    inner = ab.class_tars()
    for k, wnid in enumerate(ab.WNIDS):
        files = {f"{wnid}_{n}.JPEG": ab.picture(1000 * k + n) for n in range(5)}
        inner[f"{wnid}.tar"] = halves(files)
    archives = ab.build(tmp_path / "in", train=halves(inner), val=halves(ab.val_files()))
    ab.interrupt_after(monkeypatch, images)
    with pytest.raises(KeyboardInterrupt):
        run(archives, tmp_path / "out", workers=1)
    monkeypatch.undo()
    assert run(archives, tmp_path / "out").dataset.digest == plain(tmp_path).dataset.digest


@pytest.mark.parametrize("where", ["train", "class", "val"])
@pytest.mark.parametrize(
    "more", [b"garbage " * 64, b"garbage " * 64 + bytes(1024), b"\n", b"x" * 512 + bytes(10240)]
)
def test_what_follows_an_archive_and_is_none_is_refused(
    tmp_path: Path, where: str, more: bytes
) -> None:
    inner, parts = ab.class_tars(), {}
    if where == "class":
        inner[f"{WNID}.tar"] += more
        parts["train"] = ab.tar_bytes(inner)
    else:
        parts[where] = ab.tar_bytes(inner if where == "train" else ab.val_files()) + more
    message = refused(ab.build(tmp_path / "in", **parts), tmp_path / "out")
    assert (
        "what follows the end of the archive is not another one" in message
        or "or something follows its end" in message
    )


def test_the_image_of_one_class_in_the_archive_of_another(tmp_path: Path) -> None:
    """As when cat joins the archives of two classes: they would all get the first one's label."""
    tars = ab.class_tars()
    tars[f"{WNID}.tar"] += tars[f"{ab.WNIDS[1]}.tar"]
    message = refused(ab.build(tmp_path / "in", train=ab.tar_bytes(tars)), tmp_path / "out")
    assert f"image {ab.WNIDS[1]}_0.JPEG is named as one of class {ab.WNIDS[1]}" in message


def test_a_header_of_a_link_behind_an_archive(tmp_path: Path) -> None:
    link = tarfile.TarInfo("link.JPEG")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    val = ab.tar_bytes(ab.val_files()) + ab.tar_bytes([(link, b"")])
    assert "is a link or device" in refused(ab.build(tmp_path / "in", val=val), tmp_path / "out")


# Numbers of images ------------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the small devkit for the real one: three classes of five images."""
    monkeypatch.setattr(devkit_module, "_ILSVRC", (3, 15))


def lacking(tmp_path: Path, images: int) -> ab.Archives:
    files = {f"{WNID}_{n}.JPEG": ab.picture(n) for n in range(images)}
    tars = ab.class_tars() | {f"{WNID}.tar": ab.tar_bytes(files)}
    return ab.build(tmp_path / f"in-{images}", train=ab.tar_bytes(tars))


@pytest.mark.parametrize("images", [0, 3, 9])
def test_another_number_of_images_is_said_and_recorded(
    tmp_path: Path, images: int, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = run(lacking(tmp_path, images), tmp_path / "out").dataset
    assert dataset.manifest["miscounted"] == [{"wnid": WNID, "images": images, "devkit": 5}]
    assert (
        "1 of 3 classes hold another number of training images than the devkit says (first: "
        f"{WNID}, {images} instead of 5)"
    ) in capsys.readouterr().err
    fine = plain(tmp_path).dataset.manifest
    assert "miscounted" not in fine
    assert "another number" not in capsys.readouterr().err


def test_damaged_images_are_there_and_not_missing(tmp_path: Path) -> None:
    files = {f"{WNID}_{n}.JPEG": ab.picture(n) for n in range(4)} | {f"{WNID}_9.JPEG": b"broken"}
    tars = ab.class_tars() | {f"{WNID}.tar": ab.tar_bytes(files)}
    dataset = run(ab.build(tmp_path / "in", train=ab.tar_bytes(tars)), tmp_path / "out").dataset
    assert len(dataset.manifest["corrupt"]) == 1
    assert "miscounted" not in dataset.manifest


@pytest.mark.parametrize("images", [0, 3, 4, 6])
def test_in_the_real_data_set_it_is_an_error(
    tmp_path: Path, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted(monkeypatch)
    archives = lacking(tmp_path, images)
    message = refused(archives, tmp_path / "out")
    assert f"{WNID}.tar holds {images} images, the devkit says 5; download it again, or" in message
    dataset = run(archives, tmp_path / "out", subset=True).dataset
    assert dataset.manifest["miscounted"] == [{"wnid": WNID, "images": images, "devkit": 5}]


def test_a_class_without_an_image_shows_before_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted(monkeypatch)
    monkeypatch.setattr(Work, "build", None)
    assert "holds 0 images" in refused(lacking(tmp_path, 0), tmp_path / "out")


def test_what_tells_the_real_devkit(tmp_path: Path, sample_archives: Any) -> None:
    small = read_devkit(StorePath(ab.build(tmp_path / "in").devkit))
    assert small.train_images.tolist() == [5, 5, 5]
    assert not small.is_ilsvrc
    assert not read_devkit(StorePath(sample_archives.devkit)).is_ilsvrc
    published = [1300] * 895 + [1120] * 104 + [1_281_167 - 895 * 1300 - 104 * 1120]
    many = small.classes[:1] * 1000
    assert Devkit(many, small.val_labels, np.array(published)).is_ilsvrc


# Other files under the name ---------------------------------------------------------------------

PACKED: list[tuple[Callable[[bytes], bytes], str]] = [
    (gzip.compress, "is compressed with gzip, not a plain tar; unpack it with gunzip"),
    (bz2.compress, "is compressed with bzip2, not a plain tar; unpack it with bunzip2"),
    (lzma.compress, "is compressed with xz, not a plain tar; unpack it with unxz"),
    (lambda data: b"\x28\xb5\x2f\xfd" + data, "is compressed with zstd, not a plain tar; unpack"),
    (lambda data: b"PK\x03\x04" + data, "is a zip archive, not a plain tar; make a tar of its"),
    (
        lambda data: b"version https://git-lfs.github.com/spec/v1\n".ljust(512),
        "is a Git-LFS pointer, not a plain tar; fetch the file itself with git lfs pull",
    ),
    (lambda data: b"\n<!DOCTYPE html>" + data, "is a web page or an XML message, not a plain tar"),
]


@pytest.mark.parametrize(("pack", "message"), PACKED, ids=[m[:25] for _, m in PACKED])
@pytest.mark.parametrize("where", ["train", "class", "val"])
def test_what_bears_the_name_of_a_tar_and_is_none(
    tmp_path: Path, where: str, pack: Callable[[bytes], bytes], message: str
) -> None:
    inner, parts = ab.class_tars(), {}
    if where == "class":
        inner[f"{WNID}.tar"] = pack(inner[f"{WNID}.tar"])
        parts["train"] = ab.tar_bytes(inner)
    else:
        parts[where] = pack(ab.tar_bytes(inner if where == "train" else ab.val_files()))
    got = refused(ab.build(tmp_path / "in", **parts), tmp_path / "out")
    assert message in got
    assert (f"{WNID}.tar is" if where == "class" else f"({where}) is") in got


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress, bytes], ids=["bz2", "xz", "plain"])
def test_a_devkit_may_be_compressed_otherwise(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    content = pack(gzip.decompress(ab.devkit_bytes()))
    run(ab.build(tmp_path / "in", devkit=content), tmp_path / "out")


def test_a_devkit_that_is_a_web_page(tmp_path: Path) -> None:
    message = refused(ab.build(tmp_path / "in", devkit=b"<!doctype html>"), tmp_path / "out")
    assert "is a web page or an XML message, not a devkit archive; download it again" in message


def test_a_folder_in_the_place_of_an_archive(tmp_path: Path) -> None:
    archives = ab.build(tmp_path / "in")
    archives.val.unlink()
    archives.val.mkdir()
    assert "is a folder; give the archive" in refused(archives, tmp_path / "out")


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG", "JPEG", "png"])
def test_val_takes_the_endings_that_train_takes(tmp_path: Path, suffix: str) -> None:
    format = "PNG" if suffix == "png" else "JPEG"
    val = {f"{name[:-4]}{suffix}": ab.picture(n, format) for n, name in enumerate(ab.val_files())}
    train = {
        f"{wnid}.tar": ab.tar_bytes(
            {f"{wnid}_{n}.{suffix}": ab.picture(n, format) for n in range(5)}
        )
        for wnid in ab.WNIDS
    }
    archives = ab.build(tmp_path / "in", train=ab.tar_bytes(train), val=ab.tar_bytes(val))
    dataset = run(archives, tmp_path / "out").dataset
    assert dataset.manifest["corrupt"] == []
    assert [len(dataset.split(name)) for name in ("train", "val", "test")] == [14, 1, 6]
    ending = {"JPG": "jpg", "JPEG": "jpg", "jpeg": "jpg"}.get(suffix, suffix)
    with tarfile.open(dataset.split("test").shards[0].uri) as tar:
        assert tar.getnames()[0].endswith(f".{ending}")


# What is looked at first ------------------------------------------------------------------------

LATE = {
    "another kind of val archive": {"val": ab.tar_bytes(ab.class_tars())},
    "a strange image in val": {"val": ab.tar_bytes({"cat.JPEG": b""} | ab.val_files())},
    "a class cut short": {
        "train": ab.tar_bytes(
            ab.class_tars() | {f"{ab.WNIDS[2]}.tar": ab.class_tars()[f"{ab.WNIDS[2]}.tar"][:5000]}
        )
    },
    "a class packed": {
        "train": ab.tar_bytes(
            ab.class_tars()
            | {f"{ab.WNIDS[2]}.tar": gzip.compress(ab.class_tars()[f"{ab.WNIDS[2]}.tar"])}
        )
    },
    "a strange first image": {
        "train": ab.tar_bytes(ab.class_tars() | {f"{WNID}.tar": ab.tar_bytes({"a b.JPEG": b""})})
    },
    "another devkit": {"devkit": ab.devkit_bytes(truth=(1, 2))},
}


@pytest.mark.parametrize("fault", LATE)
def test_faults_that_show_before_images_are_read(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Work, "build", None)
    refused(ab.build(tmp_path / "in", **LATE[fault]), tmp_path / "out")


def test_the_val_archive_is_read_before_the_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = ab.interrupt_after(monkeypatch, images=10**6)
    run(ab.build(tmp_path / "in"), tmp_path / "out", workers=1)
    assert all(key.startswith("ILSVRC2012_val") for key in written[: len(ab.TRUTH)])
