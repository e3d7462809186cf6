"""Tars and zips as sources: read as the same tree in a folder is."""

from __future__ import annotations

import gzip
import io
import random
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from source_forms import contents, opened, put, refused, rows, tar_of, told, zip_of

from percmae.data import tars
from percmae.errors import DataError
from percmae.ingest import places
from percmae.ingest.catalogue import Place
from percmae.ingest.places import read_place
from percmae.ingest.sources import files as files_module
from percmae.storage import StorePath

TREE = contents("train/a/1.jpg", "train/b/2.png", "val/a/1.jpg", "test/x.jpg")


def stored(files: dict[str, bytes]) -> bytes:
    return zip_of(files, zipfile.ZIP_STORED)


@pytest.mark.parametrize("form", [tar_of, zip_of, stored])
@pytest.mark.parametrize("alone", [True, False])
def test_an_archive_is_read_as_a_folder(tmp_store: StorePath, form: object, alone: bool) -> None:
    name = "images.tar" if form is tar_of else "images.zip"
    (tmp_store / "in" / name).write_bytes(form(TREE))  # type: ignore[operator]
    catalogue = opened(tmp_store / "in" / name if alone else tmp_store / "in")
    assert rows(catalogue) == rows(opened(put(tmp_store / "folder", TREE)))
    assert catalogue.name(0) == f"{name} → test/x.jpg"
    (source,) = catalogue.sources
    assert (source["role"], source["kind"], source["name"]) == ("images", "archive", name)
    assert source["etag"] == (tmp_store / "in" / name).stat().etag


def random_tree(seed: int) -> dict[str, bytes]:
    """A tree that is read as classes, as flat or as splits of either; some names are odd."""
    chosen = random.Random(seed)
    names: set[str] = set()
    odd = ["a b", "x.y", "ü", "100%", "_", "A", "a", "caf\u0065\u0301", "n" * 120, ".hidden"]
    for split in chosen.choice([[""], ["train/", "test/"], ["Train/", "val/", "test/"]]):
        folders = chosen.choice([[""], [f"{name}/" for name in chosen.sample(odd, 3)]])
        for _ in range(12):
            stem = chosen.choice(odd) + str(chosen.randrange(100))
            ending = chosen.choice([".jpg", ".JPEG", ".png", ".webp", ".txt", ".Jpg"])
            names.add(f"{split}{chosen.choice(folders)}{stem}{ending}")
    return contents(*chosen.sample(sorted(names), len(names)))


@pytest.mark.parametrize("seed", range(12))
def test_one_tree_in_all_forms(tmp_path: Path, seed: int) -> None:
    tree = random_tree(seed)
    root = StorePath(tmp_path)
    put(root / "folder", tree)
    (root / "a.tar").write_bytes(tar_of(tree))
    (root / "b.zip").write_bytes(zip_of(tree))
    (root / "c.zip").write_bytes(stored(tree))
    expected = rows(opened(root / "folder"))
    assert expected
    for name in ("a.tar", "b.zip", "c.zip"):
        assert rows(opened(root / name)) == expected


def test_archives_together_are_one_tree(tmp_store: StorePath) -> None:
    (tmp_store / "part-1.tar").write_bytes(tar_of(contents("a/1.jpg", "b/1.jpg")))
    (tmp_store / "x/part-2.zip").write_bytes(zip_of(contents("a/2.jpg", "c/1.jpg")))
    catalogue = opened(tmp_store)
    assert told(catalogue) == {
        "a/1_jpg": ("a", "hash"),
        "a/2_jpg": ("a", "hash"),
        "b/1_jpg": ("b", "hash"),
        "c/1_jpg": ("c", "hash"),
    }
    assert [catalogue.name(row) for row in range(4)][1] == "x/part-2.zip → a/2.jpg"
    assert len(catalogue.sources) == 2


def test_archives_named_after_splits(tmp_path: Path) -> None:
    root = StorePath(tmp_path)
    for name in ("train-1.tar", "train2.tar", "val.tar", "test/x.tar"):
        (root / name).write_bytes(tar_of(contents(f"a/{len(name)}.jpg")))
    assert told(opened(root)) == {
        "train/a/11_jpg": ("a", "train"),
        "train/a/10_jpg": ("a", "train"),
        "val/a/7_jpg": ("a", "val"),
        "test/a/10_jpg": ("a", "test"),
    }
    (root / "trained.tar").write_bytes(tar_of(contents("a/1.jpg")))
    refused(root, "is named after a split, and trained.tar is not")


def test_archives_named_after_the_splits_that_are_in_them(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.zip").write_bytes(zip_of(contents(f"{name}/a/1.jpg")))
    assert told(opened(tmp_path)) == {
        "train/a/1_jpg": ("a", "hash"),
        "test/a/1_jpg": ("a", "test"),
    }


def test_a_pattern_of_archives(tmp_store: StorePath) -> None:
    for n in range(8, 12):
        (tmp_store / f"x/part-{n:03d}.zip").write_bytes(zip_of(contents(f"{n}.jpg")))
    assert [*told(opened(f"{tmp_store}/x/part-{{009..011}}.zip"))] == ["10_jpg", "11_jpg", "9_jpg"]
    (tmp_store / "y9/9.zip").write_bytes(zip_of(contents("1.jpg")))
    (tmp_store / "y10/9.zip").write_bytes(zip_of(contents("2.jpg")))
    catalogue = opened(f"{tmp_store}/y{{9..10}}/{{9..9}}.zip")
    assert [catalogue.name(row) for row in range(2)] == ["y9/9.zip → 1.jpg", "y10/9.zip → 2.jpg"]
    refused(f"{tmp_store}/x/part-{{011..013}}.zip", "part-012.zip", "does not exist")
    refused(f"{tmp_store}/x/part-{{9..8}}.zip", "stands for 0 archives")
    refused(f"{tmp_store}/x/{{1..2}}.jpg", "is no archive")
    refused(f"{tmp_store}/x/part-{{a,b}}.zip", "ranges of numbers are known")


def test_what_is_no_image_in_an_archive(tmp_path: Path) -> None:
    files = contents("a/1.jpg", "a/x.txt", "__MACOSX/a/._1.jpg", ".git/2.jpg", "x/big.json")
    for name, data in (("a.tar", tar_of(files)), ("a.zip", zip_of(files))):
        (tmp_path / name).write_bytes(data)
        catalogue = opened(tmp_path / name)
        assert [*told(catalogue)] == ["a/1_jpg"]
        notes = " ".join(catalogue.notes)
        assert "skipped 1 side file(s)" in notes
        assert "skipped 2 file(s) that by their ending are no images" in notes
        assert "skipped 1 hidden file(s) (first: .git/2.jpg)" in notes
    (tmp_path / "a.tar").write_bytes(tar_of(contents("readme.txt")))
    refused(tmp_path / "a.tar", "a.tar holds no image (skipped 1 file(s)")


def test_a_member_that_comes_twice(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of([("1.jpg", b"x"), ("1.jpg", b"y")]))
    refused(tmp_path / "a.tar", "a.tar: a.tar → 1.jpg comes twice")
    (tmp_path / "b.zip").write_bytes(zip_of(contents("1.jpg")))
    (tmp_path / "a.tar").write_bytes(tar_of([("1.jpg", b"x")]))
    refused(tmp_path, "a.tar → 1.jpg and b.zip → 1.jpg would have the same name")


# Faults of tars ---------------------------------------------------------------------------------


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, "/etc/passwd"
    return header


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("../1.jpg", "points outside the archive"),
        ("/etc/1.jpg", "points outside the archive"),
        ("a/../../1.jpg", "points outside the archive"),
        (special("1.jpg", tarfile.SYMTYPE), "is a link or device"),
        (special("1.jpg", tarfile.LNKTYPE), "is a link or device"),
        (special("1.jpg", tarfile.CHRTYPE), "is a link or device"),
    ],
)
def test_unsafe_entries_of_a_tar(tmp_path: Path, entry: str | tarfile.TarInfo, said: str) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of([("ok.jpg", b"x"), (entry, b"")]))
    refused(tmp_path / "a.tar", "a.tar: entry", "1.jpg", said)


@pytest.mark.parametrize("left", [0, 100, 512, 1024, 1800, 3072, -512])
def test_a_tar_cut_short(tmp_path: Path, left: int) -> None:
    whole = tar_of({f"{n}.jpg": bytes([n + 1]) * 700 for n in range(4)})
    whole = whole[: -(-len(whole.rstrip(b"\0")) // 512) * 512 + 1024]
    (tmp_path / "a.tar").write_bytes(whole[:left])
    message = refused(tmp_path / "a.tar", "a.tar", "download it again")
    assert "truncated" in message or "is not a tar archive" in message


def test_a_tar_with_garbage_in_it(tmp_path: Path) -> None:
    whole = bytearray(tar_of(contents("1.jpg", "2.jpg", "3.jpg")))
    whole[1024:1536] = b"\xa5" * 512
    (tmp_path / "a.tar").write_bytes(whole)
    refused(tmp_path / "a.tar", "a.tar: truncated or damaged")


def test_joined_tars(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(contents("1.jpg")) + tar_of(contents("2.jpg")))
    catalogue = opened(tmp_path / "a.tar")
    assert [*told(catalogue)] == ["1_jpg", "2_jpg"]
    assert "is several archives, one behind the other" in catalogue.notes[0]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_compressed_tar(tmp_path: Path, name: str, alone: bool) -> None:
    (tmp_path / name).write_bytes(gzip.compress(tar_of(contents("1.jpg"))))
    refused(tmp_path / name if alone else tmp_path, name, "is compressed", "gunzip")


def test_a_sparse_member(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of([(special("1.jpg", tarfile.GNUTYPE_SPARSE), b"")]))
    refused(tmp_path / "a.tar", "'1.jpg' is stored with holes", "without --sparse")


def test_long_and_odd_names_in_a_tar(tmp_path: Path) -> None:
    names = ["./a/1.jpg", "a/" + "x" * 180 + ".jpg", "./a/ü/../x.jpg"]
    (tmp_path / "a.tar").write_bytes(tar_of(contents(*names[:2])))
    assert [*told(opened(tmp_path / "a.tar"))] == ["a/1_jpg", "a/" + "x" * 180 + "_jpg"]
    (tmp_path / "a.tar").write_bytes(tar_of(contents(*names)))
    refused(tmp_path / "a.tar", "points outside the archive")


# Faults of zips ---------------------------------------------------------------------------------


def patched(data: bytes, place: int, value: int, local: int | None = None) -> bytes:
    """A zip of one member with another 16-bit number in its directory (and header)."""
    content = bytearray(data)
    at = content.rindex(b"PK\x01\x02") + place
    content[at : at + 2] = struct.pack("<H", value)
    if local is not None:
        content[local : local + 2] = struct.pack("<H", value)
    return bytes(content)


def test_an_encrypted_zip(tmp_path: Path) -> None:
    data = patched(zip_of(contents("1.jpg")), 8, 0x1, local=6)
    (tmp_path / "a.zip").write_bytes(data)
    refused(tmp_path / "a.zip", "a.zip: entry '1.jpg' is encrypted; unpack it")


@pytest.mark.parametrize(("method", "name"), [(12, "bzip2"), (9, "deflate64"), (77, "method 77")])
def test_a_zip_of_another_method(tmp_path: Path, method: int, name: str) -> None:
    (tmp_path / "a.zip").write_bytes(patched(zip_of(contents("1.jpg")), 10, method, local=8))
    refused(tmp_path / "a.zip", f"'1.jpg' is compressed by {name}", "pack it again")


def test_a_zip_of_windows_with_backslashes(tmp_path: Path) -> None:
    files = contents("cats\\1.jpg", "dogs\\2.jpg") | {"cats\\": b""}
    (tmp_path / "a.zip").write_bytes(zip_of(files))
    found = told(opened(tmp_path / "a.zip"))
    assert found == {"cats/1_jpg": ("cats", "hash"), "dogs/2_jpg": ("dogs", "hash")}


def test_names_of_a_zip_in_utf8_that_does_not_say_so(tmp_path: Path) -> None:
    data = zip_of(contents("ü/1.jpg"))
    data = patched(data, 8, 0, local=6)
    (tmp_path / "a.zip").write_bytes(data)
    assert [*told(opened(tmp_path / "a.zip"))] == ["ü/1_jpg"]
    (tmp_path / "b.zip").write_bytes(data.replace("ü".encode(), b"\x81a"))  # of DOS
    assert [*told(opened(tmp_path / "b.zip"))] == ["üa/1_jpg"]


@pytest.mark.parametrize("name", ["../1.jpg", "/1.jpg", "..\\1.jpg", "a/../../1.jpg"])
def test_unsafe_entries_of_a_zip(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of(contents("ok.jpg", name)))
    refused(tmp_path / "a.zip", "a.zip: entry", "points outside the archive")


def test_a_link_in_a_zip(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("1.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    (tmp_path / "a.zip").write_bytes(buffer.getvalue())
    refused(tmp_path / "a.zip", "entry '1.jpg' is a link or device")


@pytest.mark.parametrize("left", [0, 10, 200, -1, -30])
def test_a_zip_cut_short(tmp_path: Path, left: int) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of(contents("1.jpg", "2.jpg", "3.jpg"))[:left])
    refused(tmp_path / "a.zip", "a.zip is not a readable zip", "download it again")


def test_what_bears_the_name_of_a_zip_and_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"<!doctype html><html>" * 20)
    refused(tmp_path / "a.zip", "a.zip is a web page or an XML message, not a zip")


def test_a_zip_whose_members_overlap(tmp_path: Path) -> None:
    """As a small file is made that unpacks to a huge one: many entries of the same bytes."""
    files = contents("1.jpg", "2.jpg")
    data = bytearray(zip_of(files))
    first = data.index(b"PK\x01\x02")
    data[first + 20 : first + 24] = struct.pack("<I", 500)  # compressed size of the first
    (tmp_path / "a.zip").write_bytes(data)
    refused(tmp_path / "a.zip", "entry '1.jpg' reaches into what follows it")


def test_a_zip_whose_directory_is_wrong(tmp_path: Path) -> None:
    data = zip_of(contents("1.jpg"))
    (tmp_path / "a.zip").write_bytes(data.replace(b"PK\x03\x04", b"PK\x03\x05", 1))
    refused(tmp_path / "a.zip", "entry '1.jpg' is not where the directory has it")


# Sizes, and what changes under a catalogue -------------------------------------------------------


def test_members_too_large_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "LARGEST_IMAGE", 1 << 20)
    big = {"big.jpg": bytes((1 << 20) + 1)}
    (tmp_path / "a.tar").write_bytes(tar_of(big))
    (tmp_path / "a.zip").write_bytes(zip_of(big))
    for name in ("a.tar", "a.zip"):
        refused(tmp_path / name, f"{name} → big.jpg has 1,048,577 bytes")


def test_a_member_that_inflates_to_more_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "LARGEST_IMAGE", 1 << 20)
    data = bytearray(zip_of({"bomb.jpg": bytes(8 << 20)}))
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = struct.pack("<I", 100)
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.zip, from byte 38 on, has more than 1 MiB"):
        read_place(opened(tmp_path / "a.zip").place(0))


def test_places_that_hold_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = StorePath(tmp_path / "1.jpg")
    with (tmp_path / "1.jpg").open("wb") as file:
        file.truncate(tars.LARGEST_IMAGE + 1)
    with pytest.raises(DataError, match=r"1\.jpg, from byte 5 on, has more than 256 MiB"):
        read_place(Place(path, 5, tars.LARGEST_IMAGE + 1))
    monkeypatch.setattr(places, "LARGEST_IMAGE", 1000)
    with pytest.raises(DataError, match=r"1\.jpg has more than"):
        read_place(Place(path))
    path.write_bytes(b"x" * 1000)
    assert read_place(Place(path)) == b"x" * 1000


def test_an_archive_that_has_become_shorter_or_other(tmp_store: StorePath) -> None:
    (tmp_store / "a.tar").write_bytes(tar_of(contents("1.jpg", "2.jpg")))
    (tmp_store / "b.zip").write_bytes(zip_of(contents("1.jpg")))
    members = [opened(tmp_store / name) for name in ("a.tar", "b.zip")]
    (tmp_store / "a.tar").write_bytes(b"x" * 1540)
    with pytest.raises(DataError, match=r"a\.tar has 4 of the 16 bytes .* from byte 1,536 on"):
        read_place(members[0].place(1))
    data = bytearray((tmp_store / "b.zip").read_bytes())
    data[35:50] = b"\xff" * 15
    (tmp_store / "b.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"b\.zip: the member at byte 35 is damaged"):
        read_place(members[1].place(0))
    cut = Place(tmp_store / "c", 0, 10, deflated=True)
    (tmp_store / "c").write_bytes(zip_of({"1.jpg": random.Random(1).randbytes(500)})[35:45])
    with pytest.raises(DataError, match="its end is missing"):
        read_place(cut)


def test_stamps_are_of_the_archive_and_the_place(tmp_store: StorePath) -> None:
    (tmp_store / "a.tar").write_bytes(tar_of(contents("1.jpg", "2.jpg")))
    before = opened(tmp_store / "a.tar").columns.stamps.tolist()
    assert opened(tmp_store / "a.tar").columns.stamps.tolist() == before
    assert before[0] != before[1]
    (tmp_store / "a.tar").write_bytes(tar_of(contents("1.jpg", "2.jpg", "3.jpg")))
    after = opened(tmp_store / "a.tar").columns.stamps.tolist()
    assert not set(after) & set(before)
