"""The share of the time that training waits for images, by a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from percmae.config import load_config
from percmae.engine.waiting import LoaderWait


class Clock:
    """Seconds, as many as steps and their images are said to take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def train(waits: LoaderWait, clock: Clock, steps: int, loading: float, working: float) -> None:
    def images() -> Iterator[int]:
        clock.now += 1000  # until the loader has started
        for number in range(steps + 1):
            yield number
            clock.now += loading

    taken = []
    for step in waits.over(images()):
        if step == 0:
            waits.share()  # from here on
        clock.now += working
        taken.append(step)
        if step == steps:
            break
    assert taken == list(range(steps + 1))


@pytest.mark.parametrize(("loading", "working", "share"), [(0.0, 2.0, 0), (1.0, 3.0, 0.25)])
def test_share_of_a_window(loading: float, working: float, share: float) -> None:
    clock = Clock()
    waits = LoaderWait(torch.device("cpu"), clock)
    steps = 400
    train(waits, clock, steps, loading, working)
    assert waits.share() == pytest.approx(share, rel=0.01)
    clock.now += 100
    assert waits.share() == 0, "of what came since"


def test_a_person_is_told_once_what_to_change() -> None:
    data = replace(load_config().data, workers=3)
    clock = Clock()
    waits = LoaderWait(torch.device("cpu"), clock)
    train(waits, clock, 40, 1.0, 3.0)
    waits.share()
    assert waits.remark(data) is None, "too few steps to judge"
    train(waits, clock, 40, 1.0, 3.0)
    waits.share()
    told = waits.remark(data)
    assert told is not None
    assert "waits for images 2" in told
    assert told.endswith(
        "raise data.workers (now 3) or choose data.decode=fastest or keep what is read of a store "
        "in data.cache"
    )
    assert waits.remark(data) is None
    idle = LoaderWait(torch.device("cpu"), clock)
    train(idle, clock, 100, 0.04, 1.0)
    idle.share()
    assert idle.remark(data) is None
    slow = LoaderWait(torch.device("cpu"), clock)
    train(slow, clock, 100, 0.06, 1.0)
    slow.share()
    told = slow.remark(replace(data, decode="fastest", cache="/scratch"))
    assert told is not None
    assert told.endswith("6% of the time: raise data.workers (now 3)")


class Event:
    """What torch.cuda.Event is to the class: a time on the device, once it has come there."""

    device = 0.0
    reached = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.device

    def query(self) -> bool:
        return self.at <= Event.reached

    def elapsed_time(self, later: Event) -> float:
        return 1000 * (later.at - self.at)


def test_on_a_gpu_only_its_own_idle_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = Clock()
    waits = LoaderWait(torch.device("cuda"), clock)
    Event.device, Event.reached = 0.0, -1.0

    def images() -> Iterator[int]:
        for number in range(600):
            yield number
            clock.now += 1.0  # the host waits for each, the device for each third
            Event.device += 0.5 if number % 3 == 0 else 0.0

    for number in waits.over(images()):
        Event.device += 1.0
        if number == 598:
            break
    assert waits._waited == 0, "nothing was read that the device had not come to"
    Event.reached = Event.device
    assert waits.share() == pytest.approx(200 * 0.5 / clock.now, rel=0.02)
    assert not waits._events
