"""A source that changed is ingested again: what is kept, what is new, who still sees the old."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures_data import TINY
from folder_source import FolderSource, picture, tree
from stored_samples import stored_files
from test_make import everything, files, make

from percmae.config import load_config
from percmae.data.shards import SPLITS, Dataset
from percmae.engine.pretrain import pretrain
from percmae.errors import DataError, UserError
from percmae.ingest.build import Work
from percmae.ingest.leftovers import leftovers
from percmae.runs.record import Run, identity_of
from percmae.storage import StorePath


def split_of(dataset: Dataset) -> dict[bytes, str]:
    return {key: name for name in SPLITS for key in dataset.split(name).keys.tolist()}


def test_nothing_new_reads_no_image_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tree(tmp_path / "in"), tmp_path / "out"
    first = make(FolderSource(folder), out)
    before = files(out)
    monkeypatch.setattr(Work, "read", None)
    again = make(FolderSource(folder), out)
    assert (again.reused, again.dataset.digest) == (True, first.dataset.digest)
    assert files(out) == before
    assert "nothing new in " in capsys.readouterr().err


def test_what_was_touched_and_is_the_same_is_kept(tmp_path: Path) -> None:
    folder, out = tree(tmp_path / "in", 5), tmp_path / "out"
    make(FolderSource(folder), out)
    before = files(out)
    for path in folder.rglob("*.jpg"):
        os.utime(path, (1, 1))
    assert make(FolderSource(folder), out).reused
    assert files(out) == before


def test_new_images_are_added_and_held_out_ones_held_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tree(tmp_path / "in"), tmp_path / "out"
    first = make(FolderSource(folder), out).dataset
    before = files(out)
    make(FolderSource(tree(folder, 60, ("cat", "dog", "ant"))), out, workers=2)
    err = capsys.readouterr().err
    grown = Dataset.open(first.uri)
    assert "new images, 1 new classes" in err
    assert "belong to val or test, which stay as they are: held back; --grow-held-out" in err
    # What is there keeps its label; a new class comes behind, whatever its name.
    assert [c.wnid for c in grown.classes] == ["cat", "dog", "ant"]
    for name in ("val", "test"):
        assert stored_files(grown, name) == stored_files(first, name)
    labels = {"cat": 0, "dog": 1, "ant": 2}
    for key, (label, _) in everything(grown).items():
        assert label == labels[key.split("/")[0]]
    assert set(stored_files(first, "train")) < set(stored_files(grown, "train"))
    held = sum(info.samples for infos in grown.held_back.values() for info in infos)
    assert len(everything(grown)) + held == 180
    assert held > 10
    # The shards of before are as they were, and whoever has the old manifest sees the old.
    after = files(out)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    assert everything(Dataset.open(first.pinned)) == everything(first)

    whole = make(FolderSource(folder), out, grow_held_out=True).dataset
    assert len(everything(whole)) == 180
    assert not any(whole.held_back.values())
    assert {key: split_of(whole)[key] for key in split_of(first)} == split_of(first)
    assert len(whole.split("val")) > len(first.split("val"))
    assert make(FolderSource(folder), out).reused
    assert leftovers(StorePath(out)) == []


def test_growth_moves_no_image_to_another_split_than_a_larger_bound_would(tmp_path: Path) -> None:
    """Bounds are those of the first ingest: of many more images the same share is held out."""
    folder, out = tree(tmp_path / "in"), tmp_path / "out"
    bounds = make(FolderSource(folder), out).dataset.manifest["bounds"]
    grown = make(FolderSource(tree(folder, 90)), out, grow_held_out=True).dataset
    assert grown.manifest["bounds"] == bounds
    assert 8 <= len(grown.split("val")) <= 32


def test_what_goes_is_marked_and_what_changes_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tree(tmp_path / "in"), tmp_path / "out"
    first = make(FolderSource(folder), out).dataset
    shutil.rmtree(out / "manifests")  # as where the dataset was copied without them
    kind = split_of(first)
    (folder / "cat" / "001.jpg").unlink()
    (folder / "cat" / "002.jpg").write_bytes(picture(999))
    held_out = next(key.decode() for key, name in kind.items() if name == "val")
    (folder / f"{held_out}.jpg").write_bytes(picture(998))
    grown = make(FolderSource(folder), out).dataset
    assert "0 new images, 2 changed, 1 gone" in capsys.readouterr().err
    found, before = everything(grown), everything(first)
    assert found["cat/002"][1] == picture(999)
    assert found[held_out][1] == picture(998)
    assert before.keys() - found.keys() == {"cat/001"}
    assert split_of(grown) == {k: v for k, v in kind.items() if k != b"cat/001"}
    removed = sum(len(info.removed) for of in grown.shards.values() for info in of)
    assert removed == 3
    counts = [grown.manifest["splits"][name]["samples"] for name in SPLITS]
    assert counts == [len(grown.split(name)) for name in SPLITS]
    earlier = grown.as_it_was(first.digest)
    assert earlier is not None
    assert everything(earlier) == before
    assert make(FolderSource(folder), out).reused


def test_the_old_manifest_stays_valid_while_new_shards_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tree(tmp_path / "in"), tmp_path / "out"
    first = make(FolderSource(folder), out).dataset
    tree(folder, 60)
    build, seen = Work.build, []

    def watched(self: Work, *args: Any) -> Any:
        built = build(self, *args)
        seen.append(everything(Dataset.open(first.uri)) == everything(first))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return built

    monkeypatch.setattr(Work, "build", watched)
    with pytest.raises(KeyboardInterrupt):
        make(FolderSource(folder), out)
    assert seen == [True] * 3
    monkeypatch.undo()
    grown = make(FolderSource(folder), out).dataset
    assert grown.digest == make(FolderSource(folder), _grown_alone(tmp_path, 30)).dataset.digest


def _grown_alone(tmp_path: Path, per_class: int) -> Path:
    """The dataset of the first images, somewhere else, uninterrupted."""
    out = tmp_path / "alone"
    source = FolderSource(tmp_path / "in")
    few = [n for n, key in enumerate(source.columns.keys.tolist()) if int(key[-3:]) < per_class]
    columns = source.columns
    source.columns = type(columns)(*(getattr(columns, f)[few] for f in vars(columns)))
    source._keys = [source._keys[n] for n in few]
    make(source, out)
    return out


def test_a_source_that_lacks_most_images_is_refused(tmp_path: Path) -> None:
    folder, out = tree(tmp_path / "in"), tmp_path / "out"
    make(FolderSource(folder), out)
    before = files(out)
    with pytest.raises(DataError, match=r"a dataset of 60 images, of which .* lacks 60: more than"):
        make(FolderSource(tree(tmp_path / "other", 30, ("pig", "rat"))), out)
    assert files(out) == before


def test_a_deleted_manifest_starts_anew_and_leaves_the_old_one_its_shards(tmp_path: Path) -> None:
    folder, out = tree(tmp_path / "in"), tmp_path / "out"
    first = make(FolderSource(folder), out).dataset
    old = everything(first)
    (out / "manifest.json").unlink()
    make(FolderSource(tree(tmp_path / "other", 30, ("pig", "rat"))), out)
    assert everything(Dataset.open(first.pinned)) == old


# Runs -----------------------------------------------------------------------------------------


def test_a_run_goes_on_with_the_dataset_it_began_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out, to = tree(tmp_path / "in", 40), tmp_path / "out", str(tmp_path / "runs")
    first = make(FolderSource(folder), out).dataset
    config = load_config("mae", "demo", overrides=[*TINY, "optim.epochs=1"], tag="grown")
    Run.create(to, identity_of(config, first), {})  # begun, and stopped before its first step
    make(FolderSource(tree(folder, 60)), out)
    capsys.readouterr()
    result = pretrain(config, first.uri, to)
    assert "its dataset has grown since it began; it goes on with " in capsys.readouterr().err
    assert result.run.record.data.digest == first.digest
    assert result.run.record.data.uri == first.pinned
    assert result.run.complete
    assert pretrain(config, first.uri, to).reused
    other = make(FolderSource(tree(tmp_path / "in2", 40, ("a", "b"))), tmp_path / "out2").dataset
    with pytest.raises(UserError, match="exists with another dataset"):
        pretrain(config, other.uri, to)
