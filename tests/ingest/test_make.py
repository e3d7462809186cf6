"""From a list of images to a dataset: the same, whoever builds it and however often it stops."""

from __future__ import annotations

import json
import os
import signal
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from folder_source import FolderSource, picture, tree
from stored_samples import interrupt_after, stored_files

from percmae.data.shards import SPLITS, Dataset
from percmae.errors import DataError, PercmaeError, StoreError, UserError
from percmae.ingest import build, passes, pods
from percmae.ingest.make import IngestResult, Making
from percmae.ingest.settings import Settings, settings_of
from percmae.ingest.states import FOLDER
from percmae.storage import StorePath

SMALL = Settings(shard_bytes=12 << 10)  # several shards even for few images


def make(source: FolderSource, to: Path | StorePath, workers: int = 1, **more: Any) -> IngestResult:
    settings = more.pop("settings", SMALL)
    result = Making(source, StorePath(to), settings, workers, **more).run()
    assert result is not None
    return result


def everything(dataset: Dataset) -> dict[str, tuple[int, bytes]]:
    return {key: value for split in SPLITS for key, value in stored_files(dataset, split).items()}


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".percmae-")  # of who was killed
    }


def test_every_image_arrives_unchanged_with_its_label(tmp_path: Path) -> None:
    folder = tree(tmp_path / "in")
    dataset = make(FolderSource(folder), tmp_path / "out").dataset
    assert [c.wnid for c in dataset.classes] == ["cat", "dog"]
    assert everything(dataset) == {
        f"{name}/{n:03d}": (label, picture(10_000 * label + n))
        for label, name in enumerate(("cat", "dog"))
        for n in range(30)
    }
    assert [len(dataset.split(name)) for name in SPLITS] == [48, 6, 6]
    assert not list((tmp_path / "out").glob(f"{FOLDER}/*"))
    assert dataset.pixels is not None
    assert all(0.2 < mean < 0.8 for mean in dataset.pixels.mean)
    assert Dataset.open(dataset.pinned).digest == dataset.digest
    assert dataset.pinned != dataset.uri


@pytest.mark.parametrize("workers", [3])
def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path, workers: int) -> None:
    source = FolderSource(tree(tmp_path / "in"))
    make(source, tmp_path / "one" / "x")
    make(source, tmp_path / "many" / "x", workers)
    assert files(tmp_path / "one") == files(tmp_path / "many")


def test_classes_are_mixed_in_each_shard(tmp_path: Path) -> None:
    source, settings = FolderSource(tree(tmp_path / "in")), Settings(shard_bytes=50 << 10)
    dataset = make(source, tmp_path / "out", settings=settings).dataset
    assert len(dataset.shards["train"]) > 1
    for table in dataset.indexes("train", dataset.shards["train"][:-1]):
        assert set(table["label"].tolist()) == {0, 1}


def test_webdataset_reads_shards_with_and_without_labels(tmp_path: Path) -> None:
    folder = tree(tmp_path / "in")
    (folder / "loose.png").write_bytes(picture(7, "PNG"))
    deep = folder / ("n" * 120 + "\u00fc.jpg")  # ustar has no room for it
    deep.write_bytes(picture(8))
    source = FolderSource(folder, {"loose": "train", deep.stem: "train"})
    train = make(source, tmp_path / "out").dataset.split("train")
    read = list(webdataset.WebDataset([s.uri for s in train.shards], shardshuffle=False))
    assert [r["__key__"] for r in read] == [key.decode() for key in train.keys.tolist()]
    assert [int(r.get("cls", -1)) for r in read] == train.labels.tolist()
    assert {key: train.labels.tolist()[n] for n, key in enumerate(train.keys.tolist())}[
        b"loose"
    ] == -1
    for n, sample in enumerate(read):
        shard, offset, size = (int(v) for v in train.locate(n))
        image = sample.get("jpg") or sample["png"]
        assert image == train.shards[shard].read_bytes(offset, size)
        assert ("png" in sample) == (sample["__key__"] == "loose")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_torchdata_reads_shards_as_they_are(tmp_path: Path) -> None:
    from torchdata.datapipes.iter import IterableWrapper  # says that it will not be there for ever

    folder = tree(tmp_path / "in")
    (folder / "loose.png").write_bytes(picture(7, "PNG"))
    dataset = make(FolderSource(folder, {"loose": "train"}), tmp_path / "out").dataset
    train = dataset.split("train")
    shards = IterableWrapper([shard.uri for shard in train.shards])
    read = list(shards.open_files(mode="b").load_from_tar().webdataset())
    found = {}
    for sample in read:
        key = Path(sample["__key__"]).relative_to(tmp_path / "out" / "train").as_posix()
        image = sample[".png" if ".png" in sample else ".jpg"].read()
        label = sample[".cls"].read() if ".cls" in sample else b"-1"
        found[key.split(".tar/", 1)[1]] = (int(label), image)
    assert found == stored_files(dataset, "train")
    assert len(read) == len(train) > 40


def test_images_without_any_label(tmp_path: Path) -> None:
    for n in range(20):
        (tmp_path / f"{n}.jpg").write_bytes(picture(n))
    dataset = make(FolderSource(tmp_path), tmp_path.parent / f"{tmp_path.name}-out").dataset
    assert dataset.classes == []
    assert set(dataset.split("train").labels.tolist()) == {-1}
    with tarfile.open(dataset.split("train").shards[0].uri) as tar:
        assert all(name.endswith(".jpg") for name in tar.getnames())


def test_damaged_images_are_left_out_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tree(tmp_path / "in")
    (folder / "cat" / "002.jpg").write_bytes(picture(2)[:-200])
    (folder / "dog" / "003.jpg").write_bytes(b"<html>not found</html>")
    dataset = make(FolderSource(folder), tmp_path / "out", workers=2).dataset
    assert sorted(c["member"] for c in dataset.manifest["corrupt"]) == [
        "cat/002.jpg",
        "dog/003.jpg",
    ]
    assert len(everything(dataset)) == 58
    err = capsys.readouterr().err
    assert err.count("left out: ") == 2
    assert "left out 2 damaged image(s)" in err
    # They are not looked at again, and nothing is written.
    before = files(tmp_path / "out")
    assert make(FolderSource(folder), tmp_path / "out").reused
    assert files(tmp_path / "out") == before


def test_nothing_but_damaged_images_is_an_error(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"{n}.jpg").write_bytes(b"broken")
    out = tmp_path.parent / f"{tmp_path.name}-out"
    with pytest.raises(DataError, match="no image in it could be opened as JPEG"):
        make(FolderSource(tmp_path), out)
    assert not (out / "manifest.json").exists()


# Interruptions --------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [0, 20, 59])
def test_resuming_gives_the_dataset_of_an_uninterrupted_ingest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    source = FolderSource(tree(tmp_path / "in"))
    make(source, tmp_path / "whole" / "x")
    out = tmp_path / "out" / "x"
    interrupt_after(monkeypatch, images)
    with pytest.raises(KeyboardInterrupt):
        make(source, out)
    monkeypatch.undo()
    assert not (out / "manifest.json").exists()
    kept = sum(json.loads(p.read_text())["shard"]["samples"] for p in out.glob(f"{FOLDER}/*.json"))
    assert kept >= min(images, 59) - 14
    written = interrupt_after(monkeypatch, images=10**6)
    make(source, out)
    assert len(written) == 60 - kept, "finished shards are not made again"
    assert files(tmp_path / "whole") == files(tmp_path / "out")


def test_an_image_that_changed_meanwhile_costs_its_shard_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tree(tmp_path / "in")
    interrupt_after(monkeypatch, 55)
    with pytest.raises(KeyboardInterrupt):
        make(FolderSource(folder), tmp_path / "out" / "x")
    monkeypatch.undo()
    state = next((tmp_path / "out" / "x").glob(f"{FOLDER}/train-*.json"))
    table = np.load(tmp_path / "out" / "x" / "train" / f"{state.stem}.npy")
    image = folder / f"{table['key'][0].decode()}.jpg"
    image.write_bytes(image.read_bytes() + b"\0")  # behind its end
    image.write_bytes(image.read_bytes()[:-1])
    capsys.readouterr()
    written = interrupt_after(monkeypatch, images=10**6)
    make(FolderSource(folder), tmp_path / "out" / "x")
    err = capsys.readouterr().err
    assert f"holds {len(table)} images of another list of train images" in err
    assert "going on after" in err
    assert len(table) <= len(written) < 60
    make(FolderSource(folder), tmp_path / "again" / "x")
    assert files(tmp_path / "out") == files(tmp_path / "again")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"format": "percmae-ingest/3"}'])
def test_a_state_that_is_of_no_use_is_told_and_dropped(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "out" / FOLDER / "train-000000.json"
    state.parent.mkdir(parents=True)
    state.write_bytes(content)
    make(FolderSource(tree(tmp_path / "in", 5)), tmp_path / "out")
    assert "damaged or was written by another version; starting afresh" in capsys.readouterr().err
    assert not state.exists()


def dying(monkeypatch: pytest.MonkeyPatch, key: str, token: Path | None) -> None:
    """A worker that comes to ``key`` kills itself; with a token, only the one that takes it."""
    checked = build.checked

    def deadly(data: bytes, name: str, settings: Settings) -> Any:
        if name == key and (token is None or token.exists()):
            if token:
                token.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return checked(data, name, settings)

    monkeypatch.setattr(build, "checked", deadly)


def test_the_shard_of_a_dead_worker_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = FolderSource(tree(tmp_path / "in"))
    make(source, tmp_path / "whole" / "x")
    token = tmp_path / "token"
    token.touch()
    dying(monkeypatch, "cat/007.jpg", token)
    make(source, tmp_path / "out" / "x", workers=2)
    assert not token.exists()
    assert "a worker ended by signal SIGKILL at " in capsys.readouterr().err
    assert files(tmp_path / "whole") == files(tmp_path / "out")


def test_a_shard_that_kills_twice_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FolderSource(tree(tmp_path / "in"))
    dying(monkeypatch, "cat/007.jpg", None)
    with pytest.raises(PercmaeError, match=r"2 workers ended while they built (train|val|test)/"):
        make(source, tmp_path / "out", workers=2)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_error_of_a_worker_is_the_ingest_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> bytes:
        raise StoreError("the store is on fire")

    monkeypatch.setattr(build, "read_place", broken)
    with pytest.raises(StoreError, match="on fire"):
        make(FolderSource(tree(tmp_path / "in")), tmp_path / "out", workers=2)
    monkeypatch.setattr(passes, "built_and_noted", lambda *args: 1 / 0)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        make(FolderSource(tree(tmp_path / "in")), tmp_path / "out", workers=2)


# Pods -----------------------------------------------------------------------------------------


def test_pods_share_the_shards(tmp_store: StorePath, tmp_path: Path) -> None:
    source = FolderSource(tree(tmp_path / "in"))
    make(source, tmp_path / "whole" / "x")
    making = Making(source, tmp_store / "x", SMALL, 1)
    assert making.run(pods.Pods(2, 3)) is None
    assert making.run(pods.Pods(1, 3)) is None
    built = [entry.name for entry in (tmp_store / "x").iter() if entry.name.endswith(".tar")]
    assert 0 < len(built) < len(list((tmp_path / "whole").rglob("*.tar")))
    result = making.run(pods.Pods(0, 3))
    assert result is not None
    local = files(tmp_path / "whole" / "x")
    assert {entry.name: entry.path.read_bytes() for entry in (tmp_store / "x").iter()} == local
    late = making.run(pods.Pods(1, 3))
    assert late is not None
    assert late.reused


def test_pods_that_never_come_are_done_without(
    tmp_store: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods, "_PATIENCE", -1.0)
    source = FolderSource(tree(tmp_path / "in"))
    make(source, tmp_path / "whole" / "x")
    assert Making(source, tmp_store / "x", SMALL, 1).run(pods.Pods(0, 3)) is not None
    local = files(tmp_path / "whole" / "x")
    assert {entry.name: entry.path.read_bytes() for entry in (tmp_store / "x").iter()} == local


def test_the_error_of_a_pod_ends_the_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FolderSource(tree(tmp_path / "in"))
    making = Making(source, StorePath(tmp_path / "out"), SMALL, 1)

    def failed(*args: object) -> bytes:
        raise StoreError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(build, "read_place", failed)
        with pytest.raises(StoreError):
            making.run(pods.Pods(1, 2))
    word = next((tmp_path / "out" / FOLDER).glob("pod-*"))
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        """The other pod fails anew while this one waits: what was there before is no news."""
        slept.append(seconds)
        word.write_text(json.dumps({"error": "disk full again", "attempt": "2"}))

    monkeypatch.setattr(pods.time, "sleep", sleep)
    with pytest.raises(PercmaeError, match=r"another pod \(pod-1\) failed: disk full again"):
        making.run(pods.Pods(0, 2))
    assert len(slept) == 1


def test_pods_outside_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(pods.INDEX, raising=False)
    with pytest.raises(UserError, match="JOB_COMPLETION_INDEX is not set"):
        pods.pods_of(3)
    monkeypatch.setenv(pods.INDEX, "3")
    with pytest.raises(UserError, match="is beyond"):
        pods.pods_of(3)
    assert pods.pods_of(4) == pods.Pods(3, 4)
    assert pods.pods_of(None) is None


# Settings -------------------------------------------------------------------------------------


def test_larger_images_are_made_smaller(tmp_path: Path) -> None:
    folder = tree(tmp_path / "in", 10)
    (folder / "cat" / "large.png").write_bytes(picture(5, "PNG", (300, 150)))
    settings = settings_of(12 << 10, short_side=64, quality=80)
    dataset = make(FolderSource(folder), tmp_path / "out", settings=settings).dataset
    found = everything(dataset)
    with_pillow = _opened(found["cat/large"][1])
    assert (with_pillow.format, with_pillow.size) == ("JPEG", (128, 64))
    assert found["dog/003"][1] == picture(10_003), "what is small enough keeps its bytes"
    assert (dataset.manifest["short_side"], dataset.manifest["quality"]) == (64, 80)
    (folder / "cat" / "large.png").touch()
    assert make(FolderSource(folder), tmp_path / "out", settings=settings).reused
    with pytest.raises(DataError, match="or with other settings"):
        make(FolderSource(folder), tmp_path / "out")


def _opened(data: bytes) -> Any:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shard_size": "12Q"}, "--shard-size 12Q: give bytes"),
        ({"shard_size": 0}, "--shard-size 0"),
        ({"quality": 80}, "give both"),
        ({"short_side": 1}, "--short-side 1: give 8 to"),
        ({"short_side": 64, "quality": 0}, "--quality 0: give 1 to 95"),
        ({"formats": ["SVG"]}, "image formats SVG: choose from"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings_of(**given)


def test_sizes_of_shards() -> None:
    assert [settings_of(s).shard_bytes for s in ("128M", "1g", "64KiB", 5000)] == [
        128 << 20,
        1 << 30,
        64 << 10,
        5000,
    ]
