"""What an ingest that was cut short leaves, and who may go on from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import archive_building as ab
import pytest
from test_bad_archives import refused

from percmae.data import ingest_state
from percmae.data.ingest import IngestResult, ingest
from percmae.errors import DataError, StoreAccessError


def run(archives: ab.Archives, to: Path, **more: Any) -> IngestResult:
    return ingest(*archives.uris(), str(to), shard_bytes=12 << 10, **more)


def test_mending_one_archive_keeps_the_work_on_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tars, last = ab.class_tars(per_class=40), f"{ab.WNIDS[2]}.tar"
    bad = bytearray(tars[last])
    at = bad.index(f"{ab.WNIDS[2]}_39".encode())
    bad[at : at + 512] = b"\xa5" * 512
    archives = ab.build(tmp_path / "in", train=ab.tar_bytes(tars | {last: bytes(bad)}))
    assert "truncated or damaged" in refused(archives, tmp_path / "out")
    archives.train.write_bytes(ab.tar_bytes(tars))
    capsys.readouterr()
    written = ab.interrupt_after(monkeypatch, images=10**6)
    dataset = run(archives, tmp_path / "out").dataset
    assert len(written) == 3 * 40, "the images of val are not written again"
    err = capsys.readouterr().err
    assert "of another train archive, or made with other settings; starting afresh there" in err
    assert "going on after 6 images ingested before" in err
    assert run(archives, tmp_path / "again").dataset.digest == dataset.digest


@pytest.mark.parametrize("mended", ["val", "devkit"])
def test_mending_val_or_its_labels_keeps_the_work_on_train(
    tmp_path: Path, mended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = ab.build(tmp_path / "in")
    ab.interrupt_after(monkeypatch, images=6 + 12)
    with pytest.raises(KeyboardInterrupt):
        run(archives, tmp_path / "out")
    monkeypatch.undo()
    state = json.loads((tmp_path / "out" / ingest_state.STATE).read_text())["splits"]
    kept = sum(shard["samples"] for shard in state["train"]["shards"])
    assert kept > 0
    if mended == "val":
        files = ab.val_files() | {"ILSVRC2012_val_00000003.JPEG": ab.picture(99)}
        archives.val.write_bytes(ab.tar_bytes(files))
    else:
        archives.devkit.write_bytes(ab.devkit_bytes(truth=(1, 1, 2, 1, 3, 2)))
    written = ab.interrupt_after(monkeypatch, images=10**6)
    dataset = run(archives, tmp_path / "out").dataset
    assert len(written) == 6 + 15 - kept
    assert run(archives, tmp_path / "again").dataset.digest == dataset.digest


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"\xff",
        json.dumps({"format": "percmae-ingest/1", "sources": [], "splits": {}}).encode(),
        json.dumps({"format": "percmae-ingest/3", "splits": {"train": {"x": 1}}}).encode(),
    ],
)
def test_a_state_that_is_of_no_use_is_told_and_dropped(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "out" / ingest_state.STATE
    state.parent.mkdir(parents=True)
    state.write_bytes(content)
    dataset = run(ab.build(tmp_path / "in"), tmp_path / "out").dataset
    assert (
        dataset.digest == run(ab.build(tmp_path / "plain"), tmp_path / "plain-out").dataset.digest
    )
    assert "damaged or was written by another version; starting afresh" in capsys.readouterr().err
    assert not state.exists()


def test_settings_that_change_what_shards_hold_are_part_of_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archives = ab.build(tmp_path / "in")
    ab.interrupt_after(monkeypatch, images=15)
    with pytest.raises(KeyboardInterrupt):
        run(archives, tmp_path / "out")
    monkeypatch.undo()
    dataset = run(archives, tmp_path / "out", formats=["JPEG"]).dataset
    assert capsys.readouterr().err.count("starting afresh there") == 2
    assert dataset.manifest["formats"] == ["JPEG"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    archives = ab.build(tmp_path / "in")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((StoreAccessError, DataError)) as caught:
        run(archives, tmp_path / "file" / "out")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
