"""Archives that are not what they should be: one line each, and no dataset."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path
from typing import Any

import archive_building as ab
import pytest

from percmae.data.devkit import read_devkit
from percmae.errors import DataError
from percmae.ingest import ingest
from percmae.storage import StorePath


def refused(archives: ab.Archives, to: Path) -> str:
    """The message an ingest ends with; checks what every refusal owes."""
    with pytest.raises(DataError) as caught:
        ingest(**archives.uris(), to=str(to), shard_size=12 << 10)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    assert not (to / "manifest.json").exists()
    return message


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type = kind
    header.linkname = target
    return header


UNSAFE: list[tuple[tarfile.TarInfo | str, bytes]] = [
    ("../../evil.JPEG", b"x"),
    ("a/../../evil.JPEG", b"x"),
    ("/etc/evil.JPEG", b"x"),
    ("..\\evil.JPEG", b"x"),
    (special("link.JPEG", tarfile.SYMTYPE, "/etc/passwd"), b""),
    (special("link.JPEG", tarfile.LNKTYPE, "/etc/passwd"), b""),
    (special("device.JPEG", tarfile.CHRTYPE), b""),
    (special("pipe.JPEG", tarfile.FIFOTYPE), b""),
]


@pytest.mark.parametrize("entry", UNSAFE, ids=lambda e: str(getattr(e[0], "name", e[0])))
@pytest.mark.parametrize("where", ["train", "class", "val"])
def test_unsafe_entries(tmp_path: Path, entry: tuple[Any, bytes], where: str) -> None:
    parts = {}
    if where == "train":
        parts["train"] = ab.tar_bytes([*ab.class_tars().items(), entry])
    elif where == "class":
        inner = ab.tar_bytes([("ok.JPEG", ab.picture(1)), entry])
        parts["train"] = ab.tar_bytes(ab.class_tars() | {f"{ab.WNIDS[1]}.tar": inner})
    else:
        parts["val"] = ab.tar_bytes([*ab.val_files().items(), entry])
    message = refused(ab.build(tmp_path / "in", **parts), tmp_path / "out")
    assert "points outside the archive" in message or "is a link or device" in message
    name = entry[0] if isinstance(entry[0], str) else entry[0].name
    assert repr(name) in message
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../data/meta.mat", tarfile.REGTYPE, "points outside the archive"),
        ("/data/meta.mat", tarfile.REGTYPE, "points outside the archive"),
        ("kit/data/meta.mat", tarfile.SYMTYPE, "is a link or device"),
        ("kit/data/meta.mat", tarfile.CHRTYPE, "is a link or device"),
    ],
)
def test_unsafe_devkit(tmp_path: Path, name: str, kind: bytes, message: str) -> None:
    content = gzip.compress(ab.tar_bytes([(special(name, kind, "/etc/passwd"), b"")]))
    got = refused(ab.build(tmp_path / "in", devkit=content), tmp_path / "out")
    assert message in got
    assert repr(name) in got


@pytest.mark.parametrize("name", ["a b.JPEG", "\u00fc.JPEG", "n" * 90 + ".JPEG"])
def test_image_names_that_fit_no_shard(tmp_path: Path, name: str) -> None:
    inner = ab.tar_bytes({name: ab.picture(1)})
    train = ab.tar_bytes(ab.class_tars() | {f"{ab.WNIDS[1]}.tar": inner})
    message = refused(ab.build(tmp_path / "in", train=train), tmp_path / "out")
    assert f"{name!r} is no name for an image" in message


@pytest.mark.parametrize("role", ["train", "val", "devkit"])
def test_absent_archive(tmp_path: Path, role: str) -> None:
    archives = ab.build(tmp_path / "in")
    path: Path = getattr(archives, role)
    path.unlink()
    message = refused(archives, tmp_path / "out")
    assert message == f"{role} archive {path} does not exist; check the path or URI"


@pytest.mark.parametrize("role", ["train", "val"])
@pytest.mark.parametrize("left", [0, 100, 512, 1000, 1024, 0.3, 0.5, 0.9, -512, -1024, -1])
def test_truncated_archive(tmp_path: Path, role: str, left: float) -> None:
    archives = ab.build(tmp_path / "in")
    path: Path = getattr(archives, role)
    # Without the padding that tarfile adds beyond the end mark, so that every cut is a cut.
    blocks = -(-len(path.read_bytes().rstrip(b"\0")) // 512) + 2
    whole = path.read_bytes()[: blocks * 512]
    path.write_bytes(whole[: int(len(whole) * left) if isinstance(left, float) else left])
    message = refused(archives, tmp_path / "out")
    assert str(path) in message
    assert "truncated" in message or "is not a tar archive" in message
    assert "download it again" in message


def test_a_class_archive_cut_short_inside_a_whole_train_archive(tmp_path: Path) -> None:
    tars = ab.class_tars()
    name = f"{ab.WNIDS[2]}.tar"
    for left in (700, 1536, 2048, 4000):
        archives = ab.build(tmp_path / "in", train=ab.tar_bytes(tars | {name: tars[name][:left]}))
        message = refused(archives, tmp_path / "out")
        assert name in message
        assert "truncated" in message


def test_garbage_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    val = bytearray(ab.tar_bytes(ab.val_files()))
    header = val.index(b"ILSVRC2012_val_00000004.JPEG")
    val[header : header + 512] = b"\xa5" * 512
    message = refused(ab.build(tmp_path / "in", val=bytes(val)), tmp_path / "out")
    assert "ILSVRC2012_img_val.tar: truncated or damaged" in message


def test_an_archive_that_is_no_tar(tmp_path: Path) -> None:
    message = refused(ab.build(tmp_path / "in", val=b"<html>" * 1000), tmp_path / "out")
    assert "(val) is a web page or an XML message, not a plain tar; download it again" in message
    message = refused(ab.build(tmp_path / "in", val=b"\x89abc" * 1000), tmp_path / "out")
    assert "(val) is not a tar archive; download it again" in message


def test_a_class_the_devkit_does_not_know(tmp_path: Path) -> None:
    train = ab.tar_bytes(ab.class_tars() | {"n00000042.tar": ab.tar_bytes({})})
    message = refused(ab.build(tmp_path / "in", train=train), tmp_path / "out")
    assert "class n00000042 has no synset in the devkit" in message


def test_a_class_that_is_missing_or_comes_twice(tmp_path: Path) -> None:
    tars = list(ab.class_tars().items())
    message = refused(ab.build(tmp_path / "in", train=ab.tar_bytes(tars[1:])), tmp_path / "out")
    assert "lacks 1 of the devkit's 3 classes (first: n00000003)" in message
    message = refused(
        ab.build(tmp_path / "in", train=ab.tar_bytes(tars + tars[:1])), tmp_path / "out"
    )
    assert "class archive n00000003.tar comes twice" in message


def test_images_where_class_archives_should_be(tmp_path: Path) -> None:
    message = refused(
        ab.build(tmp_path / "in", train=ab.tar_bytes(ab.val_files())), tmp_path / "out"
    )
    assert "is not a class archive (n########.tar)" in message


def test_an_image_that_comes_twice(tmp_path: Path) -> None:
    inner = ab.tar_bytes([("1.JPEG", ab.picture(1)), ("1.JPEG", ab.picture(2))])
    train = ab.tar_bytes(ab.class_tars() | {f"{ab.WNIDS[0]}.tar": inner})
    message = refused(ab.build(tmp_path / "in", train=train), tmp_path / "out")
    assert "image 1.JPEG comes twice" in message
    names = [*ab.val_files()][:5] + [*ab.val_files()][:1]
    val = ab.tar_bytes([(name, ab.picture(3)) for name in names])
    message = refused(ab.build(tmp_path / "in2", val=val), tmp_path / "out2")
    assert "test archive holds ILSVRC2012_val_00000001 twice" in message


def test_val_images_and_ground_truth_must_belong_together(tmp_path: Path) -> None:
    fewer = ab.tar_bytes([*ab.val_files().items()][:4])
    message = refused(ab.build(tmp_path / "in", val=fewer), tmp_path / "out")
    assert "holds 4 images, the devkit's ground truth 6 lines" in message
    for name in ("ILSVRC2012_val_00000007.JPEG", "ILSVRC2012_val_00000000.JPEG", "cat.JPEG"):
        more = ab.tar_bytes([*ab.val_files().items(), (name, ab.picture(1))])
        message = refused(ab.build(tmp_path / "in", val=more), tmp_path / "out")
        assert f"{name} has no line in the devkit's ground truth (6 lines)" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a devkit archive"),
        (b"not a tar", "is not a devkit archive"),
        (gzip.compress(b"not a tar", mtime=0), "is not a devkit archive"),
        (ab.devkit_bytes()[:300], "is not a devkit archive"),
        (
            gzip.compress(ab.tar_bytes(ab.val_files()), mtime=0),
            "is not an ILSVRC2012 devkit: it lacks data",
        ),
        (ab.devkit_bytes(meta=b"MATLAB 5.0 nonsense"), "is not the ILSVRC2012 synset table"),
        (ab.devkit_bytes(truth=(1, 2, 4, 1, 2, 3)), "line 3: label '4' has no synset"),
        (ab.devkit_bytes(truth=(1, 2, 99)), "line 3: label '99' has no synset"),
        (ab.devkit_bytes(truth=("one",)), "line 1: label 'one' has no synset"),
        (ab.devkit_bytes(truth=()), "ground_truth.txt is empty"),
    ],
)
def test_wrong_devkit(tmp_path: Path, content: bytes, message: str) -> None:
    archives = ab.build(tmp_path / "in")
    archives.devkit.write_bytes(content)
    got = refused(archives, tmp_path / "out")
    assert message in got
    assert str(archives.devkit) in got


def test_a_huge_file_is_not_read_as_a_devkit(tmp_path: Path) -> None:
    path = tmp_path / "train.tar"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"train.tar is not a devkit archive: 1,099,511,627,776"):
        read_devkit(StorePath(path))
