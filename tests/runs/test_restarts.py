"""A pod counts its starts, for as long as they lead nowhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from faulty_proxy import FaultyProxy

from percmae.config import load_config
from percmae.errors import DataError
from percmae.runs import restarts
from percmae.runs.record import RESTARTS, Identity, Run
from percmae.runs.restarts import Restarts, TooManyRestarts
from percmae.storage import StorePath
from percmae.storage.outage import outage

if TYPE_CHECKING:
    from s3_server import S3


@pytest.fixture
def run(tmp_store: StorePath) -> StorePath:
    return tmp_store / "runs" / "t_mae"


def counted(run: StorePath) -> list[str]:
    return sorted(entry.path.name for entry in (run / RESTARTS).iter())


def test_starts_that_lead_nowhere_are_limited(run: StorePath) -> None:
    assert [Restarts(run.uri, 2, "p").begin() for _ in range(3)] == [1, 2, 3]
    Restarts(run.uri, 2, "q").begin()
    with pytest.raises(TooManyRestarts, match=r"pod p has started 3 times, .* at step 0: .*=2$"):
        Restarts(run.uri, 2, "p").begin()
    assert counted(run) == [], "the next job counts anew"
    Restarts(run.uri, 2, "p").begin()


def test_a_checkpoint_is_progress(run: StorePath) -> None:
    config = load_config("mae", "demo", tag="t")
    made = Run.create(run.parent.uri, Identity("t_mae", config, "data", "sha256:0"), {})
    for step in (1, 2, 3, 4):
        made.save(step=step)
        Restarts(run.uri, 0, "p").begin()
    with pytest.raises(TooManyRestarts, match="at step 4"):
        Restarts(run.uri, 0, "p").begin()


def test_starts_are_counted_over_runs_that_are_begun_anew(run: StorePath) -> None:
    """A run that fails before its first checkpoint leaves nothing but the counts."""
    identity = Identity("t_mae", load_config("mae", "demo", tag="t"), "data", "sha256:0")
    for _ in range(3):
        Restarts(run.uri, 2, "p").begin()
        Run.create(run.parent.uri, identity, {}).forget()
        assert [entry.name for entry in run.iter()] == ["restarts/p.json"]
    with pytest.raises(TooManyRestarts, match="pod p has started 3 times"):
        Restarts(run.uri, 2, "p").begin()


@pytest.mark.parametrize(
    ("code", "left"),
    [
        (137, ["p.json", "q.json"]),
        (138, ["p.json", "q.json"]),
        (143, ["q.json"]),
        (130, ["q.json"]),
        (140, ["q.json"]),
        (0, []),
        (1, []),
        (2, []),
    ],
)
def test_what_the_end_of_a_start_says(run: StorePath, code: int, left: list[str]) -> None:
    """Told to stop is no failure, nor is a store that was away.

    A code below 128 ends the job, for all of its pods.
    """
    one, other = (Restarts(run.uri, 3, pod) for pod in "pq")
    one.begin()
    other.begin()
    one.end(code)
    assert counted(run) == left


def test_a_damaged_count_is_told(run: StorePath) -> None:
    (run / RESTARTS / "p.json").write_text("{")
    with pytest.raises(DataError, match=r"p.json is not JSON .*; delete it$"):
        Restarts(run.uri, 3, "p").begin()


def test_a_store_that_is_away_does_not_hold_up_the_end(
    s3: S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a pod may take to end is little, and is needed for its checkpoint."""
    monkeypatch.setattr(restarts, "_END_SECONDS", 0.3)
    with FaultyProxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        here = Restarts(s3.uri("runs"), 3, "p")
        here.begin()
        with proxy.lasting("refuse"), outage(60):
            began = time.monotonic()
            here.end(143)
            assert time.monotonic() - began < 10
    assert "the starts of pod p stay counted: no usable answer" in capsys.readouterr().err
