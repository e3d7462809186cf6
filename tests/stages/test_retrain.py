"""What surrounds a retraining: rounds that overlap or were missed, a webhook, what is new."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_pipeline import TINY, write_images
from web_server import webhook

from percmae.data.shards import Dataset
from percmae.errors import ConfigError, DataError
from percmae.registry.model import Version, now
from percmae.registry.moves import add, promote
from percmae.runs.files import DatasetIdentity
from percmae.stages.challenge import DECISIONS
from percmae.stages.notify import WEBHOOK, notify
from percmae.stages.placement import Placement
from percmae.stages.retrain import NOTHING_NEW, Look, look, model_of
from percmae.stages.rounds import begin, check_schedule, end, missed
from percmae.storage import StorePath

Said = pytest.CaptureFixture[str]


def test_a_round_beside_another_is_said(tmp_store: StorePath, capsys: Said) -> None:
    model = tmp_store / "models/m"
    begin(model, "one", "")
    begin(model, "one", "")  # the same step, started again
    assert capsys.readouterr().err == ""
    begin(model, "two", "")
    assert "has not ended: it failed, or goes on beside this one" in capsys.readouterr().err
    end(model, "one")  # which is not the last one any more
    begin(model, "three", "")
    assert "has not ended" in capsys.readouterr().err
    end(model, "three")
    begin(model, "four", "")
    assert capsys.readouterr().err == ""
    (model / "rounds.json").write_text("{")
    with pytest.raises(DataError, match=r"rounds\.json is not JSON .*; delete it"):
        begin(model, "five", "")


def test_missed_starts_are_said(tmp_path: Path, capsys: Said) -> None:
    model = StorePath(tmp_path)
    end(model, "old")
    file = model / "rounds.json"
    content = file.read_json()
    content["last"]["began"] = "2026-01-01T03:00:07+00:00"
    file.write_json(content)
    begin(model, "new", "0 3 * * *")
    said = capsys.readouterr().err
    assert "start(s) of schedule '0 3 * * *' since 2026-01-01T03:00:07+00:00 did not take" in said


@pytest.mark.parametrize(
    ("schedule", "until", "count"),
    [
        ("0 3 * * *", datetime(2026, 1, 1, 12, 0), 0),  # by hand, between two starts
        ("0 3 * * *", datetime(2026, 1, 2, 3, 1), 0),
        ("0 3 * * *", datetime(2026, 1, 4, 3, 1), 2),
        ("CRON_TZ=Europe/Berlin 0 3 * * *", datetime(2026, 1, 3, 2, 1), 1),
    ],
)
def test_starts_between_two_rounds(schedule: str, until: datetime, count: int) -> None:
    began = datetime(2026, 1, 1, 3, 0, 7, tzinfo=UTC)
    assert missed(schedule, began, until.replace(tzinfo=UTC)) == count


@pytest.mark.parametrize("schedule", ["0 3 * *", "CRON_TZ=Mars/Base 0 3 * * *"])
def test_no_schedule(schedule: str) -> None:
    with pytest.raises(ConfigError):
        check_schedule(schedule)


def test_a_webhook_is_told_what_slack_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    notify("nobody is told", {})
    with webhook() as (address, told):
        monkeypatch.setenv(WEBHOOK, address)
        notify("better", {"outcome": "promote"})
    assert told == [{"text": "better", "outcome": "promote"}]


def test_a_webhook_that_fails_is_only_said(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{free.getsockname()[1]}/secret"
    with webhook(500) as (failing, _):
        for address, why in (
            (gone, "refused"),
            (failing, "500"),
            ("ftp://host/secret", "it is no http:// or https:// address"),
            ("http://[secret", "Invalid IPv6 URL"),
        ):
            monkeypatch.setenv(WEBHOOK, address)
            notify("better", {})
            (said,) = capsys.readouterr().err.splitlines()
            assert why in said
            assert "could not be told" in said
            assert "secret" not in said


def seen(images: Path, store: StorePath, **changes: Any) -> tuple[Look, dict[str, Any]]:
    """What the step says, and the metadata of its dataset."""
    artifact = SimpleNamespace(path=str(images.parent / "artifact"), metadata={})
    given: dict[str, Any] = {
        "images": str(images),
        "labels": "auto",
        "store": store.uri,
        "name": "d",
        "model": "m",
        "start": "champion",
        "rule": [],
        "variant": "mae",
        "recipe": "demo",
        "size": "",
        "tag": "t",
        "seed": 0,
        "overrides": TINY,
        "schedule": "",
        "placement": Placement(pipeline_run="run"),
        "dataset": artifact,
    }
    return look(**{**given, **changes}), artifact.metadata


def trained(store: StorePath, data: Dataset, key: str) -> Version:
    """A version of a run on a dataset, as far as a listing goes."""
    identity = DatasetIdentity(uri=data.pinned, digest=data.digest)
    version = Version(
        version=0, created=now(), run=f"runs/{key}", key=key, stage="finetune", variant="mae",
        seed=0, config_digest="", parent=f"runs/{key}-parent", data=identity,
        evaluated_on=identity, versions={}, metrics={}, folder="", files={},
    )  # fmt: skip
    return add(model_of(store.uri, "m"), version)


def test_what_is_new(tmp_path: Path, tmp_store: StorePath) -> None:
    """New are images that the newest version does not know, or that it was not judged on yet."""
    images = tmp_path / "images"
    images.mkdir()
    write_images(images, "a", "b", "c")
    first, metadata = seen(images, tmp_store)
    assert first.new
    assert first.overrides == TINY
    data = Dataset.open(metadata["uri"])
    reference = model_of(tmp_store.uri, "m")
    trained(tmp_store, data, "k")
    assert seen(images, tmp_store)[0] == first, "not judged yet: the same round goes on"
    decision = {"when": now(), "model": "m", "alias": "champion", "champion": None}
    decision |= {"challenger": {"version": 1, "run": "runs/k", "share": None}, "rule": {}}
    decision |= {"outcome": "promote", "why": "", "data": {"uri": "", "digest": ""}}
    (reference.path / DECISIONS / "1-against-none.json").write_json(decision)
    promote(reference._replace(which="1"))
    again, metadata = seen(images, tmp_store)
    assert not again.new
    assert metadata[NOTHING_NEW] == f"nothing new in {images} since version 1 of m was trained"
    # What goes from the test images is nothing to learn from; what goes from the others is.
    (images / "a" / "00.png").unlink()
    assert not seen(images, tmp_store)[0].new
    for number in range(1, 10):
        (images / "a" / f"{number:02}.png").unlink()
    after, _ = seen(images, tmp_store)
    assert after.new
    assert after.tag.endswith("-from1")
    assert after.tag.removesuffix("-from1") != first.tag
    assert after.overrides[-1] == "pretrain.model.init_from=runs/k-parent"
    afresh, _ = seen(images, tmp_store, start="afresh")
    assert (afresh.tag, afresh.overrides) == (after.tag.removesuffix("-from1"), TINY)


def test_images_without_labels_are_refused(tmp_path: Path, capsys: Said) -> None:
    images = tmp_path / "images"
    images.mkdir()
    write_images(images, "a")
    with pytest.raises(SystemExit) as ended:
        seen(images, StorePath(tmp_path / "store"), labels="none")
    assert ended.value.code == 2
    assert "no training image has a label" in capsys.readouterr().err
