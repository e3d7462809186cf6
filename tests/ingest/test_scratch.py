"""Archives in a store, read in pieces and shuffled on a disk: the shards are the same."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_source import picture
from source_forms import opened, tar_of, zip_of

from percmae.data import tars
from percmae.errors import DataError, PercmaeError, UserError
from percmae.ingest import scratch as scratch_module
from percmae.ingest.build import Work
from percmae.ingest.catalogue import Catalogue, Spans
from percmae.ingest.make import Making
from percmae.ingest.plan import Part, PlannedShard, plan
from percmae.ingest.scratch import Piece, Scratch, Space, scratches
from percmae.ingest.settings import Settings
from percmae.storage import StorePath
from percmae.storage.stream import NEAR

SMALL = Settings(shard_bytes=12 << 10)
IMAGES = 60


def pictures() -> dict[str, bytes]:
    """Two classes, and among them what is no image and an image that is damaged."""
    files = {f"{'ab'[n % 2]}/{n:03d}.jpg": picture(n) for n in range(IMAGES)}
    files |= {"a/notes.txt": b"x" * 3000, "b/cut.jpg": picture(7)[:-200]}
    names = list(files)
    random.Random(0).shuffle(names)
    return {name: files[name] for name in names}


@pytest.fixture(scope="module")
def archives(s3: Any) -> StorePath:
    """A folder with a tar and a deflated zip, which are one tree together."""
    root = StorePath(s3.uri("archives"))
    files = list(pictures().items())
    (root / "1.tar").write_bytes(tar_of(dict(files[:40])))
    (root / "2.zip").write_bytes(zip_of(dict(files[40:])))
    return root


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several requests, and several pieces for workers to share."""
    monkeypatch.setattr(scratch_module, "_RUN", 20 << 10)
    monkeypatch.setattr(scratch_module, "_PIECE", 25 << 10)


def make(source: StorePath, to: str, workers: int, space: Space) -> dict[str, bytes]:
    """All files of a dataset made of the archives."""
    folder = StorePath(to) / "x"
    made = Making(opened(source), folder, SMALL, workers, space=space).run()
    assert made is not None
    return {entry.name: entry.path.read_bytes() for entry in folder.iter()}


def shards_of(catalogue: Catalogue) -> list[PlannedShard]:
    columns = catalogue.columns
    part = Part("train", np.arange(len(columns.keys)))
    return plan(columns, columns.labels, [part], {}, SMALL)


# The same shards --------------------------------------------------------------------------------


def test_the_dataset_is_the_same_by_any_way(
    s3: Any, archives: StorePath, tmp_path: Path, small_pieces: None
) -> None:
    one_by_one = make(archives, s3.uri("one"), 1, Space(tmp_path, 0))
    assert sum(name.endswith(".tar") for name in one_by_one) > 4
    for workers, size in ((1, None), (3, None), (1, 25 << 10), (2, 25 << 10)):
        assert make(archives, s3.uri("many"), workers, Space(tmp_path, size)) == one_by_one
    assert not list(tmp_path.iterdir())


def test_images_are_fetched_many_at_a_time_and_each_once_in_a_pass(
    archives: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, asked = opened(archives), list[tuple[str, int, int]]()
    shards, read = shards_of(catalogue), StorePath.read_bytes

    def noting(path: StorePath, start: int = 0, length: int | None = None) -> bytes:
        asked.append((path.name, start, start + (length or 0)))
        return read(path, start, length)

    monkeypatch.setattr(StorePath, "read_bytes", noting)
    for space, passes in ((Space(tmp_path), 1), (Space(tmp_path, 25 << 10), 3)):
        asked.clear()
        groups = list(scratches(catalogue, shards, space))
        assert len(groups) == passes
        assert [shard for group, _ in groups for shard in group] == shards
        for _, scratch in groups:
            assert scratch is not None
            with scratch:
                for piece in scratch.pieces():
                    scratch.fetch(piece, lambda count, fault: None)
        assert sorted(name for name, _, _ in asked) == ["1.tar"] * passes + ["2.zip"] * passes


def test_what_has_happened_to_an_archive_is_told_as_of_a_single_image(
    s3: Any, tmp_path: Path, small_pieces: None
) -> None:
    root = StorePath(s3.uri("cut"))
    tar, packed = tar_of(pictures()), zip_of(pictures())
    for name, data in (("1.tar", tar), ("1.zip", packed)):
        (root / name).write_bytes(data)
        catalogue = opened(root / name)
        damaged = bytearray(data[: len(data) * 3 // 4])
        damaged[5000:9000] = bytes(4000)
        (root / name).write_bytes(bytes(damaged))
        rows = np.arange(len(catalogue.columns.keys))
        np.random.default_rng(0).shuffle(rows)
        spans = catalogue.spans(rows)
        assert spans is not None
        work = Work(catalogue, catalogue.columns.labels, SMALL, root)
        with Scratch(spans, rows, Space(tmp_path)) as scratch:
            for piece in scratch.pieces():
                scratch.fetch(piece, lambda count, fault: None)
            found = replace(work, scratch=scratch).read(rows.tolist())
        assert found == work.read(rows.tolist())
        faults = [seen.fault for seen in found if seen.fault]
        assert any("was cut short" in fault for fault in faults)
        assert any("damaged" in fault for fault in faults)
        assert len(faults) < 40


def test_what_no_image_has_is_not_fetched(
    archives: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = opened(archives / "1.tar")
    rows = np.arange(len(catalogue.columns.keys))
    spans = catalogue.spans(rows)
    assert spans is not None
    huge = spans.lengths.copy()
    huge[3] = tars.LARGEST_IMAGE + 1
    with Scratch(spans._replace(lengths=huge), rows, Space(tmp_path, 1 << 20)) as scratch:
        for piece in scratch.pieces():
            scratch.fetch(piece, lambda count, fault: None)
        sizes = [len(data) for data in scratch.read(rows.tolist())]
    assert sizes == [*spans.lengths[:3], 0, *spans.lengths[4:]]


@pytest.mark.parametrize("seed", range(20))
def test_runs_cover_all_images_within_their_bounds(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(seed)
    run = int(draw.integers(1, 40)) << 16
    monkeypatch.setattr(scratch_module, "_RUN", run)
    count = int(draw.integers(1, 400))
    lengths = draw.integers(1, 1 << 18, count)
    gaps = draw.choice([0, 700, NEAR, NEAR + 1, 1 << 21], count)
    archive = np.sort(draw.integers(0, 3, count)).astype(np.int32)
    offsets = np.cumsum(lengths + gaps) - lengths
    mixed = draw.permutation(count)
    spans = Spans((), archive[mixed], offsets[mixed], lengths[mixed])
    order, runs = scratch_module._runs(spans, spans.lengths)
    assert (mixed[order] == np.arange(count)).all(), "all of them, as they lie"
    assert runs[0] == 0
    assert runs[-1] == count
    for first, last in zip(runs[:-1].tolist(), runs[1:].tolist(), strict=True):
        assert last > first
        assert len(set(archive[first:last].tolist())) == 1
        ends = offsets[first:last] + lengths[first:last]
        assert (offsets[first + 1 : last] - ends[:-1] <= NEAR).all()
        assert last == first + 1 or ends[-1] - offsets[first] <= run


# Room -------------------------------------------------------------------------------------------


def test_a_scratch_that_is_too_small_is_said_and_done_without(
    s3: Any, archives: StorePath, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_by_one = make(archives, s3.uri("one"), 1, Space(tmp_path, 0))
    assert "scratch" not in capsys.readouterr().err
    assert make(archives, s3.uri("small"), 2, Space(tmp_path, 100)) == one_by_one
    err = capsys.readouterr().err
    assert err.count("holds less than a shard at a time") == 1
    assert "--scratch-size more bytes" in err


def test_images_too_far_apart_are_fetched_one_by_one(
    s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = StorePath(s3.uri("far")) / "1.tar"
    files = {f"a/{n:03d}.jpg": picture(n) for n in range(12)}
    apart = {f"a/{n:03d}.txt": bytes(NEAR + 1) for n in range(12)}
    names = sorted(files | apart)
    far.write_bytes(tar_of({name: (files | apart)[name] for name in names}))
    catalogue = opened(far)
    ((group, scratch),) = scratches(catalogue, shards_of(catalogue), Space(tmp_path))
    assert scratch is None
    assert sum(len(shard.rows) for shard in group) == 12
    # It is for lack of room where they would be near one another with more of it.
    list(scratches(catalogue, shards_of(catalogue), Space(tmp_path, 5 << 10)))
    err = capsys.readouterr().err
    assert err.count("too far apart") == 1


def test_images_that_are_files_and_archives_on_a_disk_are_read_in_place(tmp_path: Path) -> None:
    root = StorePath(tmp_path)
    (root / "1.tar").write_bytes(tar_of(pictures()))
    (root / "in" / "a" / "1.jpg").write_bytes(picture(1))
    for source in (root / "1.tar", root / "in"):
        catalogue = opened(source)
        assert [found for _, found in scratches(catalogue, shards_of(catalogue), Space())] == [None]


def test_a_disk_without_room_and_a_folder_that_is_not_there(
    archives: StorePath, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"has no room for .* --scratch-size"):
        Space(tmp_path).file(1 << 60)
    assert Space(tmp_path, 1 << 60).room() == Space(tmp_path).room() < 1 << 60
    assert Space(tmp_path, 1 << 10).room() == 1 << 10
    for space in (Space(tmp_path / "absent"), Space(tmp_path / "absent", 1 << 20)):
        with pytest.raises(UserError, match=r"--scratch .*absent: No such file"):
            Making(opened(archives), StorePath(tmp_path / "out"), SMALL, 1, space=space).run()
    assert not list((tmp_path / "out").rglob("*.tar"))


# Processes that die -----------------------------------------------------------------------------


def deadly(monkeypatch: pytest.MonkeyPatch, token: Path | None) -> None:
    """Who fetches kills itself after its first piece; with a token, only the one that takes it."""
    fetch = Scratch.fetch

    def dying(self: Scratch, piece: Piece, told: Callable[[int, str | None], None]) -> None:
        fetch(self, piece, told)
        if token is None or token.exists():
            if token:
                token.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Scratch, "fetch", dying)


def test_the_piece_of_a_dead_worker_is_fetched_again(
    s3: Any,
    archives: StorePath,
    tmp_path: Path,
    small_pieces: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = make(archives, s3.uri("whole"), 1, Space(tmp_path))
    token = tmp_path / "token"
    token.touch()
    deadly(monkeypatch, token)
    assert make(archives, s3.uri("again"), 2, Space(tmp_path)) == whole
    assert "a worker ended by signal SIGKILL at s3://" in capsys.readouterr().err
    deadly(monkeypatch, None)
    with pytest.raises(PercmaeError, match=r"2 workers ended while they read s3://.* from byte"):
        make(archives, s3.uri("never"), 2, Space(tmp_path))


def test_an_ingest_that_is_killed_leaves_nothing_on_the_disk(
    s3: Any,
    archives: StorePath,
    tmp_path: Path,
    small_pieces: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = make(archives, s3.uri("whole"), 1, Space(tmp_path))
    to, space = s3.uri("killed"), Space(tmp_path, 25 << 10)
    with monkeypatch.context() as patch:
        pieces = Scratch.pieces
        seen: list[int] = []

        def second_pass(self: Scratch) -> list[Piece]:
            seen.append(1)
            if len(seen) == 2:
                deadly(patch, None)
            return pieces(self)

        patch.setattr(Scratch, "pieces", second_pass)
        child = multiprocessing.get_context("fork").Process(
            target=make, args=(archives, to, 1, space)
        )
        child.start()
        child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())
    there = {entry.name for entry in (StorePath(to) / "x").iter()}
    assert "manifest.json" not in there
    assert any(name.endswith(".tar") for name in there), "those of the first pass are done"
    assert make(archives, to, 2, space) == whole


def test_a_store_that_lacks_the_archive_ends_the_ingest(s3: Any, tmp_path: Path) -> None:
    root = StorePath(s3.uri("gone")) / "1.tar"
    root.write_bytes(tar_of(pictures()))
    catalogue = opened(root)
    root.delete()
    for workers in (1, 2):
        with pytest.raises(PercmaeError, match=r"1\.tar does not exist") as caught:
            Making(catalogue, StorePath(tmp_path / "out"), SMALL, workers).run()
        assert not isinstance(caught.value, DataError)
