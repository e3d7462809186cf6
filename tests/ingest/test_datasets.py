"""``percmae ingest --images`` and ``percmae datasets``, as a person gives them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from folder_source import picture, tree

from percmae.cli.verbs import main
from percmae.data.shards import SPLITS, Dataset
from percmae.storage import StorePath


def ingest(source: str | Path, to: object, *more: str) -> str:
    """The command; checks that it ends well and gives the manifest's URI."""
    assert main(["ingest", "--images", str(source), "--to", str(to), *more]) == 0
    return f"{to}/manifest.json"


def said(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    assert main(["datasets", *command]) == 0
    return capsys.readouterr().out


def test_a_folder_is_ingested_and_looked_at(
    tmp_store: StorePath, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, to = tree(tmp_path / "in"), tmp_store / "sets" / "pets"
    (folder / "dog" / "099.jpg").write_bytes(b"broken")
    uri = ingest(folder, to, "--shard-size", "12K", "--workers", "2")
    assert capsys.readouterr().out == f"{uri}\n"
    dataset = Dataset.open(uri)
    assert len(dataset.classes) == 2

    lines = said(capsys, "ls", (tmp_store / "sets").uri).splitlines()
    assert lines[0].split() == [
        *("name", "train", "val", "test", "labelled", "size", "digest", "when")
    ]
    assert lines[1].split()[:5] == ["pets", "48", "6", "6", "100%"]
    assert dataset.digest[7:19] in lines[1]
    [row] = json.loads(said(capsys, "ls", to.uri, "--json"))
    assert row["samples"] == {"train": 48, "val": 6, "test": 6}

    shown = said(capsys, "show", uri)
    assert "48 images, 48 with a label" in shown
    assert "damaged         1\n    dog/099.jpg is not an image" in shown
    facts = json.loads(said(capsys, "show", dataset.pinned, "--json"))
    assert facts["settings"]["shard_bytes"] == 12 << 10
    assert facts["classes"] == ["cat", "dog"]

    ingest(folder, to, "--shard-size", "12K")
    assert "unchanged, reused" in capsys.readouterr().err


def test_what_two_datasets_do_not_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, to = tree(tmp_path / "in"), tmp_path / "out"
    ingest(folder, to)
    before = Dataset.open(f"{to}/manifest.json").pinned
    (folder / "cat" / "001.jpg").unlink()
    (folder / "cat" / "002.jpg").write_bytes(picture(999))
    for n in range(30, 35):
        (folder / "dog" / f"{n:03d}.jpg").write_bytes(picture(20_000 + n))
    ingest(folder, to, "--grow-held-out")
    facts = json.loads(said(capsys, "diff", before, f"{to}/manifest.json", "--json"))
    whole = Dataset.open(before)
    keys = [k.decode() for name in SPLITS for k in whole.split(name).keys.tolist()]
    gone, other = (next(k for k in keys if k.startswith(f"cat/{n}")) for n in ("001", "002"))
    assert {kind: of["images"] for kind, of in facts.items()} == {
        "added": 5,
        "removed": 1,
        "changed": 1,
        "moved": 0,
    }
    assert facts["removed"]["first"] == [gone]
    assert facts["changed"]["first"] == [other]
    text = said(capsys, "diff", before, f"{to}/manifest.json")
    assert text.startswith("added             5\n    dog/03")


def test_files_that_nobody_refers_to_are_collected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, to = tree(tmp_path / "in", 10), tmp_path / "out"
    ingest(folder, to)
    assert said(capsys, "gc", str(to)) == "nothing to collect\n"
    left = [to / "train" / "train-000007.tar", to / ".ingest" / "train-000007.json"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 2048)
    listed = said(capsys, "gc", str(to))
    assert "2.0 KiB  train/train-000007.tar" in listed
    assert "2 files, 4.0 KiB: nothing refers to them; --delete removes them" in listed
    assert all(path.exists() for path in left)
    assert main(["datasets", "gc", str(to), "--delete"]) == 2
    assert "is less than a day old: an ingest may be under way" in capsys.readouterr().err
    for path in left:
        os.utime(path, (time.time() - 90_000,) * 2)
    assert "2 files, 4.0 KiB: deleted" in said(capsys, "gc", str(to), "--delete")
    assert not any(path.exists() for path in left)
    left[0].write_bytes(b"x")
    assert "deleted" in said(capsys, "gc", str(to), "--delete", "--force")
    assert len(Dataset.open(f"{to}/manifest.json").split("train")) == 16


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["ls", "{}"], "no dataset below {}: run percmae ingest first"),
        (["show", "{}/manifest.json"], "no dataset at {}/manifest.json"),
        (["diff", "{}/a", "{}/b"], "no dataset at {}/a"),
        (["gc", "{}"], "{} is no dataset's folder: it has no manifest.json"),
    ],
)
def test_places_without_a_dataset(
    tmp_path: Path, command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["datasets", *(part.format(tmp_path) for part in command)]) == 2
    err = capsys.readouterr().err
    assert message.format(tmp_path) in err
    assert err.count("\n") == 1


def test_options_that_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ingest", "--images", "x", "--train", "y", "--to", str(tmp_path)]) == 2
    assert "give --images, or else the three ILSVRC archives" in capsys.readouterr().err
    assert main(["ingest", "--images", "x", "--of", "2", "--to", str(tmp_path)]) == 2
    assert "JOB_COMPLETION_INDEX is not set" in capsys.readouterr().err
