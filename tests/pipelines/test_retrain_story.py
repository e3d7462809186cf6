"""Retraining from the first champion to a harmful change that is refused, all of it real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from retrain_story import HARMED, MODEL, Round, Source, tell
from web_server import webhook

from percmae.registry.model import CHALLENGER, CHAMPION
from percmae.runs.record import Run
from percmae.stages.notify import WEBHOOK
from percmae.stages.placement import Placement
from percmae.storage import StorePath
from pipelines.local.run import fork_server_for

if TYPE_CHECKING:
    from s3_server import S3

pytestmark = pytest.mark.faults


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    with webhook() as (address, heard):
        monkeypatch.setenv(WEBHOOK, address)
        yield heard


def names(of: Round) -> list[str]:
    return [step.name for step in of.outcome.steps]


def test_four_rounds(s3: S3, tmp_path: Path, told: list[dict[str, Any]]) -> None:
    store = s3.uri("story")
    with fork_server_for(Placement()) as server:
        first, second, third, fourth = tell(Source(tmp_path / "images"), store, tmp_path, server)

    whole = ["check", "look", "pretrain", "finetune", "evaluate finetune", "judge"]
    assert names(first) == whole
    assert first.outcome.promoted
    assert first.outcome.why == (
        "version 1 becomes champion: there is no champion to hold it against"
    )

    assert names(second) == ["check", "look"]
    assert second.outcome.promoted is None
    assert "nothing new in" in second.outcome.why
    assert second.model == first.model

    assert names(third) == whole
    assert third.outcome.promoted
    assert third.decision is not None
    assert third.decision.images == 160  # those that came later are held back
    assert third.decision.gain == pytest.approx(third.champion - first.champion)
    assert third.model.aliases == {"latest": 2, CHALLENGER: 2, CHAMPION: 2}
    begun = Run.open(third.model.version(2).parent or "")
    assert begun.config.model.init_from == third.model.version(1).parent

    assert names(fourth) == whole
    assert fourth.outcome.promoted is False
    assert fourth.model.aliases == {"latest": 3, CHALLENGER: 3, CHAMPION: 2}
    assert f"class digit {HARMED} falls from" in fourth.outcome.why
    assert fourth.decision is not None
    assert fourth.decision.test == third.decision.test
    assert fourth.decision.differing
    page = StorePath(fourth.outcome.page or "").read_text()
    assert fourth.outcome.html is not None
    assert fourth.outcome.html.read_text() == page
    assert page.count("data:image/png") == len(fourth.decision.shown) > 0

    last = (StorePath(f"{store}/models/{MODEL}") / "rounds.json").read_json()["last"]
    assert last["began"] <= last["ended"]
    assert [each["outcome"] for each in told] == ["promote", "promote", "keep"]
    assert [each["text"] for each in told] == [
        f"{MODEL}: {each.outcome.why}" for each in (first, third, fourth)
    ]
    assert told[-1]["page"] == fourth.outcome.page
