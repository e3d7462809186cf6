"""From archives to shards: what comes out, what is refused, what survives an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import archive_building as ab
import pytest
import webdataset
from stored_samples import stored_files
from test_shards import former_dataset

from percmae.data.sample import SampleArchives
from percmae.data.shards import Dataset
from percmae.errors import DataError, StoreAccessError, UserError
from percmae.ingest import IngestResult, ingest, verb
from percmae.ingest.build import Work
from percmae.ingest.sources.ilsvrc import identity
from percmae.ingest.states import FOLDER
from percmae.storage import StorePath

SMALL = 12 << 10  # bytes a shard: several shards even for the small archives


def run(archives: ab.Archives, to: Path | str, shard_bytes: int = SMALL) -> IngestResult:
    return ingest(**archives.uris(), to=str(to), shard_size=shard_bytes, workers=1)


def test_every_image_arrives_unchanged_with_its_label(tmp_path: Path) -> None:
    dataset = run(ab.build(tmp_path / "in"), tmp_path / "out").dataset
    assert [c.wnid for c in dataset.classes] == sorted(ab.WNIDS)
    assert dataset.classes[0].name == "thing n00000001"
    label = {wnid: sorted(ab.WNIDS).index(wnid) for wnid in ab.WNIDS}

    train = stored_files(dataset, "train") | stored_files(dataset, "val")
    assert train == {
        f"{wnid}_{n}": (label[wnid], ab.picture(1000 * k + n))
        for k, wnid in enumerate(ab.WNIDS)
        for n in range(5)
    }
    test = stored_files(dataset, "test")
    assert test == {
        f"ILSVRC2012_val_{n:08d}": (label[ab.WNIDS[id_ - 1]], ab.picture(n))
        for n, id_ in enumerate(ab.TRUTH, start=1)
    }
    assert list((tmp_path / "out").glob(f"{FOLDER}/*")) == []


def test_shards_are_read_by_webdataset(sample_dataset: Dataset) -> None:
    test = sample_dataset.split("test")
    assert len(test.shards) > 1
    read = list(webdataset.WebDataset([s.uri for s in test.shards], shardshuffle=False))
    assert [r["__key__"].encode() for r in read] == test.keys.tolist()
    assert [int(r["cls"]) for r in read] == test.labels.tolist()
    n = len(read) - 1
    shard, offset, size = (int(v) for v in test.locate(n))
    assert read[n]["jpg"] == test.shards[shard].read_bytes(offset, size)


def test_same_archives_again_are_reused_without_reading_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = ab.build(tmp_path / "in")
    first = run(archives, tmp_path / "out")
    assert not first.reused
    monkeypatch.setattr(Work, "build", None)
    with monkeypatch.context() as patch:
        patch.setattr(verb, "open_ilsvrc", None)
        again = run(archives, tmp_path / "out")
    assert again.reused
    assert again.dataset.digest == first.dataset.digest

    copied = ab.build(tmp_path / "copy")  # other inodes and times, same bytes
    assert run(copied, tmp_path / "out").reused


def test_a_dataset_of_format_1_is_reused_and_does_not_grow(tmp_path: Path) -> None:
    archives, out = ab.build(tmp_path / "in"), tmp_path / "out"
    manifest = Path(former_dataset(out))
    content = json.loads(manifest.read_text()) | {"shard_bytes": SMALL}
    for role, path in vars(archives).items():
        stored = StorePath(path)
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        content["sources"].append({"md5": md5} | identity(role, stored, stored.stat()))
    manifest.write_text(json.dumps(content))
    again = run(archives, out)
    assert (again.reused, again.dataset.digest) == (True, content["digest"])
    os.utime(archives.val, (1, 1))
    with pytest.raises(DataError, match="of format percmae-dataset/1, which cannot grow; give ano"):
        run(archives, out)


def test_a_dataset_made_from_other_archives_is_not_overwritten(tmp_path: Path) -> None:
    run(ab.build(tmp_path / "in"), tmp_path / "out")
    others = {
        f"{wnid}.tar": ab.tar_bytes({f"x{n}.JPEG": ab.picture(n) for n in range(5)})
        for wnid in ab.WNIDS
    }
    other = ab.build(tmp_path / "other", train=ab.tar_bytes(others))
    with pytest.raises(DataError, match=r"a dataset of 21 images, of which .* 15: more"):
        run(other, tmp_path / "out")
    with pytest.raises(DataError, match="made from other archives, or with other settings"):
        run(ab.build(tmp_path / "in"), tmp_path / "out", shard_bytes=SMALL * 2)
    for n in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{n}.jpg").write_bytes(ab.picture(n))
    with pytest.raises(DataError, match="already holds a dataset made from other archives"):
        ingest(images=str(tmp_path / "images"), to=str(tmp_path / "out"), shard_size=SMALL)


def test_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    one = run(ab.build(tmp_path / "a"), tmp_path / "x").dataset
    two = run(ab.build(tmp_path / "b"), tmp_path / "elsewhere" / "y").dataset
    assert one.digest == two.digest
    relabelled = ab.build(tmp_path / "c", devkit=ab.devkit_bytes(truth=(1, 1, 2, 1, 3, 2)))
    assert run(relabelled, tmp_path / "z").dataset.digest != one.digest


# Corrupt images -------------------------------------------------------------------------------


def test_corrupt_images_are_left_out_and_listed(tmp_path: Path) -> None:
    whole = ab.picture(1, size=(300, 200))
    wnid = ab.WNIDS[0]
    files = {
        f"{wnid}_1.JPEG": whole,
        f"{wnid}_2.JPEG": whole[: len(whole) // 2],
        f"{wnid}_3.JPEG": whole[:-2],  # just the end-of-image mark is gone
        f"{wnid}_4.JPEG": b"<html>not found</html>",
        f"{wnid}_5.JPEG": b"",
        f"{wnid}_6.JPEG": ab.picture(2, "PNG"),  # as in ImageNet: a PNG of that name is fine
    }
    train = ab.class_tars() | {f"{wnid}.tar": ab.tar_bytes(files)}
    archives = ab.build(tmp_path / "in", train=ab.tar_bytes(train))
    dataset = run(archives, tmp_path / "out").dataset
    corrupt = dataset.manifest["corrupt"]
    assert [c["member"] for c in corrupt] == [f"{wnid}.tar/{wnid}_{n}.JPEG" for n in (2, 3, 4, 5)]
    assert all(c["split"] == "train" and c["reason"] for c in corrupt)
    train_files = stored_files(dataset, "train") | stored_files(dataset, "val")
    kept = {key for key in train_files if key.startswith(wnid)}
    assert kept == {f"{wnid}_1", f"{wnid}_6"}
    assert train_files[f"{wnid}_6"][1] == ab.picture(2, "PNG")


def test_nothing_but_corrupt_images_is_an_error(tmp_path: Path) -> None:
    broken = dict.fromkeys(ab.val_files(), b"broken")
    archives = ab.build(tmp_path / "in", val=ab.tar_bytes(broken))
    with pytest.raises(DataError, match="no image in it could be opened as JPEG"):
        run(archives, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


# Checksums ------------------------------------------------------------------------------------


def test_a_published_md5_is_compared_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = ab.build(tmp_path / "in")
    given: Any = archives.uris()
    with pytest.raises(DataError, match="has not the name and size of an ILSVRC2012 archive"):
        ingest(**given, to=str(tmp_path / "out"), md5=True)
    right = {
        (path.name, path.stat().st_size): hashlib.md5(path.read_bytes()).hexdigest()
        for path in (archives.train, archives.val)
    }
    monkeypatch.setattr(verb, "PUBLISHED", dict.fromkeys(right, "0" * 32))
    wanted = rf"ILSVRC2012_img_train.tar .* MD5 {next(iter(right.values()))}, not 0000"
    with pytest.raises(DataError, match=wanted):
        ingest(**given, to=str(tmp_path / "out"), md5=True)
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(verb, "PUBLISHED", right)
    assert not ingest(**given, to=str(tmp_path / "out"), md5=True).reused


def test_an_archive_of_another_size_than_published_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archives = ab.build(tmp_path / "in")
    monkeypatch.setattr(verb, "_CLASSES", 3)
    run(archives, tmp_path / "out")
    err = capsys.readouterr().err
    assert f"{archives.train.stat().st_size:,} bytes, the published archive 147,897,477,120" in err
    ingest(**archives.uris(), to=str(tmp_path / "part"), subset=True)
    assert "published" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "got neither"),
        ({"images": "x", "train": "y"}, "got --images --train"),
        ({"train": "x", "val": "y"}, "got --train --val"),
        ({"images": "x", "subset": True}, "--subset goes with the ILSVRC archives"),
        ({"images": "x", "md5": True}, "--md5 goes with the ILSVRC archives"),
        (
            {"train": "x", "val": "y", "devkit": "z", "labels": "none"},
            "--labels goes with --images",
        ),
        ({"images": "x", "workers": 0}, "--workers 0"),
    ],
)
def test_sources_that_do_not_go_together(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ingest(**given, to=str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_real_archives_are_known_by_name_and_size() -> None:
    names = {name: md5 for (name, _), md5 in verb.PUBLISHED.items()}
    assert names == {
        "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
        "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
    }
    sizes = {name: round(size / 2**30, 1) for name, size in verb.PUBLISHED}
    assert sizes == {"ILSVRC2012_img_train.tar": 137.7, "ILSVRC2012_img_val.tar": 6.3}


# Interruptions --------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [0, 7, 15, 20])
def test_resuming_gives_the_dataset_of_an_uninterrupted_ingest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    archives = ab.build(tmp_path / "in")
    whole = run(archives, tmp_path / "whole").dataset
    out = tmp_path / "out"
    ab.interrupt_after(monkeypatch, images)
    with pytest.raises(KeyboardInterrupt):
        run(archives, out)
    monkeypatch.undo()
    assert not (out / "manifest.json").exists()
    states = [json.loads(path.read_text()) for path in out.glob(f"{FOLDER}/*.json")]
    kept = sum(state["shard"]["samples"] for state in states)
    written = ab.interrupt_after(monkeypatch, images=10**6)
    resumed = run(archives, out).dataset
    assert len(written) == 15 + 6 - kept, "finished shards are not made again"
    assert resumed.digest == whole.digest
    assert resumed.manifest["splits"] == whole.manifest["splits"]


@pytest.mark.parametrize("mended", ["val", "devkit", "train"])
def test_mending_one_archive_keeps_the_work_on_the_other(
    tmp_path: Path, mended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = ab.build(tmp_path / "in")
    ab.interrupt_after(monkeypatch, images=18)
    with pytest.raises(KeyboardInterrupt):
        run(archives, tmp_path / "out")
    monkeypatch.undo()
    states = {path.stem: json.loads(path.read_text()) for path in tmp_path.rglob(f"{FOLDER}/*")}
    kept = {stem: state["shard"]["samples"] for stem, state in states.items()}
    if mended == "train":
        archives.train.write_bytes(ab.tar_bytes(dict(reversed(ab.class_tars().items()))))
        left = {stem: samples for stem, samples in kept.items() if stem.startswith("test")}
    else:
        left = {stem: samples for stem, samples in kept.items() if not stem.startswith("test")}
    if mended == "val":
        files = ab.val_files() | {"ILSVRC2012_val_00000003.JPEG": ab.picture(99)}
        archives.val.write_bytes(ab.tar_bytes(files))
    elif mended == "devkit":
        archives.devkit.write_bytes(ab.devkit_bytes(truth=(1, 1, 2, 1, 3, 2)))
    assert left
    written = ab.interrupt_after(monkeypatch, images=10**6)
    dataset = run(archives, tmp_path / "out").dataset
    assert 15 + 6 - sum(kept.values()) < len(written) <= 15 + 6 - sum(left.values())
    assert run(archives, tmp_path / "again").dataset.digest == dataset.digest


KILLED = """
import os, signal, sys
from percmae.data.shard_writer import ShardWriter
from percmae.ingest import ingest
add, count = ShardWriter.add, 0
def dying(self, *args):
    global count
    count += 1
    if count == 2500:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, *args)
ShardWriter.add = dying
train, val, devkit, to = sys.argv[1:]
ingest(train=train, val=val, devkit=devkit, to=to, shard_size=2**20, workers=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["local", "s3"])
def test_kill_9_in_mid_ingest_then_resume(
    tmp_path: Path,
    place: str,
    sample_archives: SampleArchives,
    sample_dataset: Dataset,
    request: pytest.FixtureRequest,
) -> None:
    to = str(tmp_path / "out")
    if place == "s3":
        to = request.getfixturevalue("s3").uri("killed")
    a = sample_archives
    sources = list(a.uris().values())
    killed = subprocess.run([sys.executable, "-c", KILLED, *sources, to], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (StorePath(to) / "manifest.json").exists()
    states = [entry.path.read_json() for entry in (StorePath(to) / FOLDER).iter()]
    done = sum(state["shard"]["samples"] for state in states)
    assert 1000 <= done < 2500, "the shard in the making is lost, no more"
    result = ingest(**a.uris(), to=to, shard_size=2**20)
    assert result.dataset.digest == sample_dataset.digest
    assert result.dataset.manifest["splits"] == sample_dataset.manifest["splits"]
    assert result.dataset.pixels == sample_dataset.pixels


def test_from_store_to_store(s3: Any, tmp_path: Path) -> None:
    archives = ab.build(tmp_path / "in")
    source = StorePath(s3.uri("archives"))
    given = {}
    for role, path in vars(archives).items():
        (source / path.name).write_file(path)
        given[role] = (source / path.name).uri
    result = ingest(**given, to=s3.uri("dataset"), shard_size=SMALL)
    assert result.manifest_uri.startswith("s3://")
    local = run(archives, tmp_path / "out").dataset
    assert result.dataset.digest == local.digest
    assert stored_files(result.dataset, "test") == stored_files(local, "test")
    to = StorePath(result.manifest_uri).parent.uri
    assert ingest(**given, to=to, shard_size=SMALL).reused
    (source / archives.val.name).delete()
    with pytest.raises(DataError, match=r"val archive s3://.* does not exist"):
        ingest(**given, to=s3.uri("dataset"))
    new_bucket = "s3://percmae-new-bucket/dataset"
    given["val"] = str(archives.val)
    assert ingest(**given, to=new_bucket, shard_size=SMALL).dataset.digest == local.digest
    given["train"] = "s3://no-such-bucket/x.tar"
    with pytest.raises(StoreAccessError, match="no-such-bucket"):
        ingest(**given, to=s3.uri("dataset"))


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    archives = ab.build(tmp_path / "in")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((StoreAccessError, DataError)) as caught:
        run(archives, tmp_path / "file" / "out")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
