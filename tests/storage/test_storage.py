"""What StorePath promises, on a local folder and on a real S3 server alike."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from percmae.errors import DataError, StoreAccessError, UserError
from percmae.storage import Entry, StorePath, StoreSettings

if TYPE_CHECKING:
    from s3_server import S3


def some_bytes(count: int) -> bytes:
    """Bytes in which every position can be told from every other."""
    return np.arange(count // 4 + 1, dtype=">u4").tobytes()[:count]


def names(path: StorePath) -> list[str]:
    return [entry.name for entry in path.iter()]


def test_round_trips(tmp_store: StorePath) -> None:
    file = tmp_store / "a/b/file.json"
    assert not file.exists()
    file.write_json({"ü": [1, None, "☃"]})
    assert file.exists()
    assert file.read_json() == {"ü": [1, None, "☃"]}
    file.write_text("grüße")
    assert file.read_text() == "grüße"
    assert file.read_bytes() == "grüße".encode()
    file.delete()
    assert not file.exists()


def test_stat(tmp_store: StorePath, tmp_path: Path) -> None:
    file = tmp_store / "file"
    file.write_bytes(b"12345")
    first = file.stat()
    assert first.size == 5
    clock = tmp_path / "now"
    clock.touch()
    assert abs(first.modified - clock.stat().st_mtime) < 60
    file.write_bytes(b"54321")
    assert file.stat().etag != first.etag


def test_ranges(tmp_store: StorePath) -> None:
    file = tmp_store / "file"
    file.write_bytes(b"0123456789")
    assert file.read_bytes(3, 4) == b"3456"
    assert file.read_bytes(7) == b"789"
    assert file.read_bytes(8, 100) == b"89"
    assert file.read_bytes(10, 5) == b""
    assert file.read_bytes(500) == b""
    assert file.read_bytes(2, 0) == b""
    with pytest.raises(ValueError, match="negative"):
        file.read_bytes(-1, 2)


def test_empty_object(tmp_store: StorePath) -> None:
    file = tmp_store / "empty"
    with file.create():
        pass
    assert file.stat().size == 0
    assert file.read_bytes() == b""
    assert file.read_bytes(0, 10) == b""
    assert file.open().read() == b""
    assert [entry.size for entry in tmp_store.iter()] == [0]


@pytest.mark.parametrize(
    "key",
    ["with space", "ümläut/ß", "emoji😀", "per%20cent+plus", "q?x=1&y#f", "x" * 200, ".hidden"],
)
def test_keys_of_all_kinds(tmp_store: StorePath, key: str) -> None:
    (tmp_store / key).write_text(key)
    assert (tmp_store / key).read_text() == key
    assert names(tmp_store) == [key]


def test_listing_is_recursive_and_sorted_by_name(tmp_store: StorePath) -> None:
    expected = ["A", "a b", "a-b", "a.b", "a/b", "a/c/d", "z", "é"]
    for number, name in enumerate(reversed(expected)):
        (tmp_store / "in" / name).write_bytes(b"x" * number)
    (tmp_store / "inside").write_bytes(b"a neighbour whose name begins alike")
    entries = list((tmp_store / "in").iter())
    assert [entry.name for entry in entries] == expected
    stat = (tmp_store / "in/A").stat()
    assert entries[0] == Entry(tmp_store / "in/A", "A", 7, stat.etag, entries[0].modified)
    assert entries[0].modified == pytest.approx(stat.modified, abs=1)  # HTTP has whole seconds
    assert all(entry.path.stat().size == entry.size for entry in entries)
    assert names(tmp_store / "absent") == []
    assert names(tmp_store / "inside") == []


def test_what_is_absent_says_so(tmp_store: StorePath, tmp_path: Path) -> None:
    tmp_store.prepare()
    absent = tmp_store / "no/such"
    actions = [
        absent.read_bytes,
        lambda: absent.read_bytes(5, 0 if absent.is_s3 else 1),
        absent.open,
        absent.stat,
        lambda: absent.delete(missing_ok=False),
        lambda: absent.read_file(tmp_path / "copy"),
    ]
    for action in actions:
        with pytest.raises(StoreAccessError) as error:
            action()
        assert absent.uri in str(error.value)
        assert "does not exist" in str(error.value)
        assert error.value.exit_code == 2
    absent.delete()
    assert not (tmp_path / "copy").exists()


def test_an_exception_leaves_the_old_content_and_nothing_else(
    tmp_store: StorePath, part_bytes: int
) -> None:
    file = tmp_store / "file"
    file.write_text("old")
    for count in (10, part_bytes + 10):
        with contextlib.suppress(KeyboardInterrupt), file.create() as stream:
            stream.write(bytes(count))
            raise KeyboardInterrupt
        assert file.read_text() == "old"
        assert names(tmp_store) == ["file"]
    if not file.is_s3:
        assert os.listdir(tmp_store.uri) == ["file"]


def test_a_reader_during_writes_sees_old_or_new(tmp_store: StorePath) -> None:
    file = tmp_store / "file"
    versions = [bytes([letter]) * size for letter, size in ((65, 3_000_000), (66, 2_000_000))]
    file.write_bytes(versions[0])
    done = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(file.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(6):
        file.write_bytes(versions[turn % 2])
    done.set()
    reader.join()
    assert seen
    assert seen <= set(versions)


def test_invisible_until_the_block_ends(tmp_store: StorePath) -> None:
    file = tmp_store / "file"
    with file.create() as stream:
        stream.write(b"half")
        assert stream.tell() == 4
        assert not file.exists()
        assert names(tmp_store) == []
    assert file.read_bytes() == b"half"
    with pytest.raises(ValueError, match="closed"):
        stream.write(b"late")


def test_large_content_and_whole_files(tmp_store: StorePath, tmp_path: Path) -> None:
    content = some_bytes(20 << 20)
    original, copy = tmp_path / "original", tmp_path / "made/on/the/way/copy"
    original.write_bytes(content)
    file = tmp_store / "large"
    file.write_file(original)
    assert file.stat().size == len(content)
    assert file.read_bytes() == content
    assert file.read_bytes((16 << 20) - 2, 4) == content[(16 << 20) - 2 :][:4]
    file.read_file(copy)
    assert copy.read_bytes() == content


@pytest.mark.parametrize(("parts", "more"), [(1, -1), (1, 0), (1, 1), (2, 0)])
def test_sizes_around_a_part(s3: S3, part_bytes: int, parts: int, more: int) -> None:
    size = parts * part_bytes + more
    file = StorePath(s3.uri("parts")) / "file"
    content = some_bytes(size)
    with file.create() as stream:
        for at in range(0, size, 3_000_001):
            stream.write(memoryview(content)[at : at + 3_000_001])
    assert file.read_bytes() == content


def test_the_stream_reads_and_seeks_like_a_file(tmp_store: StorePath) -> None:
    content = some_bytes(1_000_000)
    (tmp_store / "file").write_bytes(content)
    expected = io.BytesIO(content)
    with (tmp_store / "file").open() as stream:
        assert stream.seekable()
        for offset, whence in ((0, 0), (999_990, 0), (10, 0), (-5, 2), (500_000, 0), (70_000, 1)):
            assert stream.seek(offset, whence) == expected.seek(offset, whence)
            assert stream.read(100_000) == expected.read(100_000)
            assert stream.tell() == expected.tell()
        stream.seek(2_000_000)
        assert stream.read() == b""
        stream.seek(0)
        assert stream.read() == content


def test_tar_written_and_read_through_streams(tmp_store: StorePath) -> None:
    file = tmp_store / "archive.tar"
    with file.create() as stream, tarfile.open(fileobj=stream, mode="w:") as archive:
        for number in range(5):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = 1000 + number
            archive.addfile(member, io.BytesIO(bytes([number]) * member.size))
    with file.open() as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        for number, found in enumerate(archive):
            content = archive.extractfile(found)
            assert content is not None
            assert content.read() == bytes([number]) * (1000 + number)


def test_bad_text_and_json_name_the_file(tmp_store: StorePath) -> None:
    file = tmp_store / "file.json"
    file.write_text('{"a": 1,\n oops')
    with pytest.raises(DataError, match=r"file\.json is not valid JSON: .*line 2"):
        file.read_json()
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"file\.json is not UTF-8"):
        file.read_text()
    with pytest.raises(ValueError, match="JSON"):
        file.write_json({"loss": float("nan")})
    assert file.read_bytes() == b"\xff\xfe"


def read_in_child(path: StorePath, results: multiprocessing.SimpleQueue[bytes]) -> None:
    results.put(path.read_bytes())


def test_pickles_and_works_on_both_sides_of_a_fork(tmp_store: StorePath) -> None:
    file = tmp_store / "file"
    file.write_bytes(b"shared")
    copy = pickle.loads(pickle.dumps(file))
    assert copy == file
    assert hash(copy) == hash(file)
    assert copy.read_bytes() == b"shared"
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    children = [context.Process(target=read_in_child, args=(file, results)) for _ in range(3)]
    for child in children:
        child.start()
    for _ in range(20):  # while the children use their own connections
        assert file.read_bytes() == b"shared"
    assert [results.get() for _ in children] == [b"shared"] * 3
    for child in children:
        child.join(10)
        assert child.exitcode == 0


def test_paths() -> None:
    path = StorePath("s3://bucket/a/b.tar/")
    assert path.uri == str(path) == "s3://bucket/a/b.tar"
    assert (path.name, path.is_s3) == ("b.tar", True)
    assert path.parent == StorePath("s3://bucket/a")
    assert path.parent.parent.uri == path.parent.parent.parent.uri == "s3://bucket"
    assert (path.parent.parent / "x//y/").uri == "s3://bucket/x/y"
    assert StorePath(path) == path


@pytest.mark.parametrize(
    "uri", ["s3://bucket/a//c", "s3://bucket//a/c", "s3://bucket/./a/./c/.", "s3://bucket/a/c///"]
)
def test_uris_have_one_normal_form(uri: str) -> None:
    assert StorePath(uri).uri == "s3://bucket/a/c"
    assert StorePath(uri) == StorePath("s3://bucket/a/c") == StorePath("s3://bucket") / "a//./c/"
    assert StorePath("s3://bucket//") == StorePath("s3://bucket/.") == StorePath("s3://bucket")


def test_what_is_written_by_one_form_is_read_by_another(tmp_store: StorePath) -> None:
    def path(below: str) -> StorePath:
        return StorePath(f"{tmp_store.uri}{below}", tmp_store._settings)

    path("//a//file").write_text("x")
    assert path("/a/file/").read_text() == "x"
    assert [entry.path.uri for entry in path("//./a/").iter()] == [f"{tmp_store}/a/file"]


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert StorePath("x/../y/./z").uri == str(tmp_path / "y/z")
    assert StorePath("~/data").uri == str(tmp_path / "home/data")
    assert StorePath(Path("rel")).uri == str(tmp_path / "rel")
    path = StorePath("y") / "z/w"
    assert (path.name, path.is_s3, path.parent.uri) == ("w", False, str(tmp_path / "y/z"))
    assert StorePath("/").parent.uri == "/"
    assert StorePath("//a//x/.").uri == "/a/x"
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match=r"'x': .*No such file"):
        StorePath("x")


@pytest.mark.parametrize(
    "uri",
    ["", "s3://", "s3:///key", "s3:/bucket/key", "s3://UPPER/key", "s3://b/x", "gs://bucket/key",
     "http://host/key", "s3://bucket/a/../b", "s3://bucket/" + "k" * 1025, "nul\0",
     "s3://bucket/\udcff", "s3://bucket/..", Path("s3://b/k")],
)  # fmt: skip
def test_bad_uris(uri: str | Path) -> None:
    with pytest.raises(UserError):
        StorePath(uri)


@pytest.mark.parametrize("below", ["..", "a/../../b", "/etc/passwd", "", "."])
def test_a_join_only_leads_below(below: str, tmp_path: Path) -> None:
    for base in (StorePath(tmp_path), StorePath("s3://bucket/key")):
        with pytest.raises(UserError, match="not a path below"):
            base / below


def test_importing_loads_nothing_that_takes_long() -> None:
    code = (
        "import sys, percmae.storage;"
        "assert not {'minio', 'urllib3', 'torch', 'yaml'} & set(sys.modules), 'loaded eagerly'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_travel_with_the_path() -> None:
    settings = StoreSettings("http://localhost:1", "key", "secret")
    path = StorePath("s3://bucket/key", settings)
    for other in (path / "x", path.parent, StorePath(path), pickle.loads(pickle.dumps(path))):
        assert other._settings == settings
    assert "secret" not in repr(path) + repr(settings)
