"""``percmae gc``: what nothing refers to goes, and nothing else does."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report.folders import write_experiment
from s3_server import S3

from percmae import unused
from percmae.cli.verbs import main
from percmae.config import load_config
from percmae.data.shards import MANIFEST
from percmae.errors import DataError, StoreError
from percmae.registry.model import Version, reference
from percmae.registry.moves import add
from percmae.report import FIGURES, PAGE, report
from percmae.runs.files import DatasetIdentity
from percmae.runs.record import CHECKPOINTS, Identity, Run
from percmae.storage import StorePath

NOW = "0h"  # whatever its age: a store's files cannot be made to look old


def make_dataset(store: StorePath, name: str, sources: list[Any] | None = None) -> str:
    folder = store / "datasets" / name
    document = {"format": "percmae-dataset/2", "name": name, "sources": sources or []}
    (folder / MANIFEST).write_json(document)
    (folder / "manifests/123.json").write_json(document)
    (folder / "train/train-000000.tar").write_bytes(bytes(2000))
    return (folder / "manifests/123.json").uri


def make_run(
    store: StorePath, name: str, data: str, parent: Run | None = None, complete: bool = True
) -> Run:
    config = load_config("mae", "demo", tag=name)
    identity = Identity(name, config, data, "sha256:d", parent.uri if parent else None)
    run = Run.create((store / "runs").uri, identity, {})
    if complete:
        run.save(status="complete")
    (run.path / CHECKPOINTS / "step-00000008.pt").write_bytes(bytes(5000))
    return run


def make_version(store: StorePath, run: Run) -> None:
    data = DatasetIdentity(uri=run.record.data.uri, digest="sha256:d")
    record = run.record
    version = Version(
        version=0,
        created="2026-01-01T00:00:00+00:00",
        run=run.uri,
        key=run.key,
        stage=record.stage,
        variant=record.variant,
        seed=0,
        config_digest="sha256:c",
        parent=record.parent,
        data=data,
        evaluated_on=data,
        versions={},
        metrics={},
        folder="versions/1",
        files={},
    )
    (store / "models/clothes/versions/1/README.md").write_text("a card")
    add(reference((store / "models/clothes").uri), version)


def make_report(store: StorePath, name: str, *runs: Run) -> None:
    folder = store / "reports" / name
    told = {"format": "percmae-report/1", "runs": [{"uri": run.uri} for run in runs]}
    (folder / FIGURES).write_json(told)
    (folder / PAGE).write_text("<html>")


def filled(store: StorePath) -> StorePath:
    """Experiment a, of which a model has a version; b, which nothing refers to; and what is by
    itself: a run under way, and files of somebody else."""
    for name in "ab":
        data = make_dataset(store, name)
        parent = make_run(store, f"{name}_mae", data)
        tuned = make_run(store, f"{name}_mae_finetune", data, parent)
        make_report(store, name, parent, tuned)
        if name == "a":
            make_version(store, tuned)
    make_run(store, "d_mae", make_dataset(store, "d"), complete=False)
    (store / "others/report.json").write_json({"format": "of somebody else"})
    (store / "others/b_mae.txt").write_text("x")
    return store


@pytest.fixture
def store(tmp_path: Path) -> StorePath:
    return filled(StorePath(tmp_path / "store"))


@pytest.fixture
def bucket(s3: S3) -> StorePath:
    """A place in a bucket of its own: whatever lies in the same one is looked at."""
    place = StorePath(f"s3://percmae-gc-{secrets.token_hex(4)}/gc")
    place.prepare()
    return place


def names(store: StorePath) -> set[str]:
    return {entry.name for entry in store.iter()}


B = ["reports/b", "runs/b_mae_finetune", "runs/b_mae", "datasets/b"]


def listed(text: str, store: StorePath) -> list[str]:
    """The folders of a listing, in its order."""
    lines = [line for line in text.splitlines() if f"{store}/" in line]
    return [line.split(f"{store}/")[1] for line in lines]


@pytest.mark.parametrize("place", ["store", "bucket"])
def test_what_nothing_refers_to_is_listed_and_deleted(
    request: pytest.FixtureRequest, place: str
) -> None:
    store: StorePath = request.getfixturevalue(place)
    if place == "bucket":
        filled(store)
    before = names(store)
    found = unused.collected(store.uri, NOW)
    assert listed(found, store) == B
    assert found.endswith(": nothing refers to them; --delete removes them")
    assert names(store) == before
    assert listed(unused.collected(store.uri, NOW, delete=True), store) == B
    gone = {name for name in before if name.startswith(tuple(f"{folder}/" for folder in B))}
    assert len(gone) == 2 + 3 + 3 + 3
    assert names(store) == before - gone
    assert unused.collected(store.uri, NOW, delete=True) == "nothing to collect"


def test_what_keeps_a_thing_is_told(store: StorePath) -> None:
    rows = json.loads(unused.collected(store.uri, NOW, as_json=True))
    kept = {row["uri"].removeprefix(f"{store}/"): row["kept"] for row in rows}
    assert [folder for folder, why in kept.items() if why is None] == sorted(B)
    assert kept["models/clothes"] == "is a model"
    assert kept["runs/a_mae_finetune"] == f"model {store}/models/clothes refers to it"
    assert kept["reports/a"].startswith(f"tells of run {store}/runs/a_mae")
    assert kept["runs/d_mae"] == "may be under way"
    assert kept["datasets/d"] == f"run {store}/runs/d_mae refers to it"
    assert "others" not in kept


def keeps_by_a_report_of_another(store: StorePath) -> list[str]:
    """A report with a run of a model keeps the others that it tells of."""
    runs = [Run.open(f"{store}/runs/{name}") for name in ("a_mae", "b_mae")]
    make_report(store, "both", *runs)
    return []


def keeps_by_a_comparison(store: StorePath) -> list[str]:
    runs = [f"{store}/runs/{name}" for name in ("d_mae", "b_mae_finetune")]
    document = {"format": "percmae-compare/1", "rows": [{"variant": "mae", "runs": runs}]}
    (store / "runs/all_compare/compare.json").write_json(document)
    return []


def keeps_by_an_initial_state(store: StorePath) -> list[str]:
    """A run that began with another's weights: an address anywhere in its config."""
    run = Run.open(f"{store}/runs/d_mae")
    config = {**run.record.config, "model": {**run.record.config["model"]}}
    config["model"]["init_from"] = f"{store}/runs/b_mae/checkpoints/step-00000008.pt"
    run.save(config=config)
    return []


def keeps_by_a_dataset(store: StorePath) -> list[str]:
    """A dataset that was made of another's shards keeps that one, not its runs."""
    make_dataset(store, "d", [{"images": f"{store}/datasets/b/train"}])
    return [folder for folder in B if folder != "datasets/b"]


@pytest.mark.parametrize(
    "change",
    [
        keeps_by_a_report_of_another,
        keeps_by_a_comparison,
        keeps_by_an_initial_state,
        keeps_by_a_dataset,
    ],
)
def test_whatever_refers_keeps(store: StorePath, change: Callable[[StorePath], list[str]]) -> None:
    expected = change(store)
    assert listed(unused.collected(store.uri, NOW), store) == expected


def test_addresses_from_outside_keep(store: StorePath) -> None:
    given = [f"{store}/datasets/b/manifest.json"]
    assert listed(unused.collected(store.uri, NOW, keep=given), store) == B[:-1]
    given = [f"{store}/runs/b_mae"]
    assert listed(unused.collected(store.uri, NOW, keep=given), store) == []


def test_what_begins_to_refer_after_the_look_keeps(
    store: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(store, "z_mae", make_dataset(store, "z"))
    before = names(store)
    end = unused.collect

    def later(*args: Any, **options: Any) -> str:
        make_run(store, "new_mae_probe", "s3://b/m.json", Run.open(f"{store}/runs/b_mae"), False)
        return end(*args, **options)

    monkeypatch.setattr(unused, "collect", later)
    done = unused.collected(store.uri, NOW, delete=True)
    assert listed(done, store) == ["runs/z_mae", "datasets/z"]
    gone = {name for name in before if name.startswith(("runs/z_mae/", "datasets/z/"))}
    assert before - gone <= names(store)
    assert not gone & names(store)


def test_what_is_left_midway_goes_the_next_time(
    store: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete, done = StorePath.delete, []

    def deleted(self: StorePath, missing_ok: bool = True) -> None:
        if len(done) == 4:  # the report's two, and two of the run's three
            raise StoreError("the store is away")
        done.append(self.uri)
        delete(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(StorePath, "delete", deleted)
        with pytest.raises(StoreError, match="is away"):
            unused.collected(store.uri, NOW, delete=True)
    assert "runs/b_mae_finetune/run.json" in names(store)
    assert listed(unused.collected(store.uri, NOW, delete=True), store) == B[1:]
    assert not any(name.startswith(tuple(B)) for name in names(store))


def test_of_a_bucket_all_that_refers_counts(bucket: StorePath) -> None:
    """What is below the prefix alone is looked through; what lies beside it keeps."""
    store = bucket
    data = make_dataset(store, "a")
    tuned = make_run(store, "a_mae", data)
    make_version(store, tuned)
    make_run(store, "b_mae", data)
    runs = f"{store}/runs"
    assert listed(unused.collected(runs, NOW), store) == ["runs/b_mae"]
    assert listed(unused.collected(f"{store}/datasets", NOW), store) == []
    alone = unused.collected(runs, NOW, also=[f"{store}/datasets"])
    assert listed(alone, store) == ["runs/a_mae", "runs/b_mae"]


def age(folder: Path, days: float) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - days * 86400,) * 2)


def test_age_and_reports_as_they_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, data = StorePath(tmp_path), make_dataset(StorePath(tmp_path), "a")
    runs = write_experiment(tmp_path / "runs", 1, data={"uri": data, "digest": "sha256:d"})
    report(runs, str(tmp_path / "reports/a"))
    assert main(["gc", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out == "nothing to collect\n"
    assert "looked at 4 runs, 1 dataset, 1 report, 0 comparisons, 0 models; 6 of them" in said.err
    assert "no model was found; if there are some elsewhere, name their folder" in said.err
    # A new report keeps old runs, and these their dataset.
    age(tmp_path / "runs", 40)
    age(tmp_path / "datasets", 40)
    assert main(["gc", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "nothing to collect\n"
    age(tmp_path / "reports", 31)
    assert main(["gc", str(tmp_path), "--older-than", "5w"]) == 0
    assert capsys.readouterr().out == "nothing to collect\n"
    os.utime(tmp_path / "runs/seed-0/try1_mae/metrics.jsonl")
    assert main(["gc", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "nothing to collect\n"
    age(tmp_path, 31)
    assert main(["gc", str(tmp_path), "--delete"]) == 0
    folders = listed(capsys.readouterr().out, store)
    assert (folders[0], len(folders)) == ("reports/a", 6)
    assert folders[-2:] == ["runs/seed-0/try1_mae", "datasets/a"]
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"datasets", "reports", "runs", "runs/seed-0"}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["{}/none"], "no run, dataset, report or model below {}/none; check the URI"),
        (["{}", "--older-than", "30"], "--older-than 30: give hours, days or weeks, such as 12h"),
        (["{}", "--json", "--delete"], "--json lists what there is"),
    ],
)
def test_what_is_refused_in_one_line(
    tmp_path: Path, options: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gc", *(part.format(tmp_path) for part in options)]) == 2
    err = capsys.readouterr().err
    assert line.format(tmp_path) in err
    assert err.count("\n") == 1


def test_where_it_cannot_be_told_what_refers_nothing_goes(store: StorePath) -> None:
    file = store / "models/clothes/model.json"
    text = file.read_text()
    file.write_text(text[:-30])
    before = names(store)
    with pytest.raises(DataError, match=r"clothes/model\.json is damaged .*nothing was deleted"):
        unused.collected(store.uri, NOW, delete=True)
    assert names(store) == before
