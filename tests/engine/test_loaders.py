"""Loaders of what is judged: the workers of training, and the same batches whoever makes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fixtures_data import TINY

from percmae.config import Config
from percmae.data.shards import Dataset
from percmae.data.stream import Loader
from percmae.data.workers import Workers
from percmae.engine.distributed import World
from percmae.engine.knn import Judge
from percmae.engine.loaders import eval_loader, train_loader, whole_loader

Make = Callable[..., Config]
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many workers were started, each time."""
    counts: list[int] = []
    start = Workers.__init__

    def count(self: Workers, number: int, *rest: object) -> None:
        counts.append(number)
        start(self, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Workers, "__init__", count)
    return counts


def test_what_is_judged_is_loaded_by_the_workers_of_training(
    tiny: Make, tiny_dataset: Dataset, started: list[int]
) -> None:
    assert "data.workers=0" in TINY
    alone, several = tiny(), tiny("data.workers=2")
    for split, batches in (("val", 2), ("test", 3)):
        here, there = (
            list(eval_loader(config, tiny_dataset, split, ALONE).batches())
            for config in (alone, several)
        )
        assert len(here) == len(there) == batches
        for (*place, one), (*other, two) in zip(here, there, strict=True):
            assert place == other
            assert all(map(torch.equal, one, two))
    assert started == [2, 2]


def test_no_more_workers_than_batches(
    tiny: Make, tiny_dataset: Dataset, started: list[int]
) -> None:
    config = tiny("data.workers=5")
    loader = whole_loader(config, tiny_dataset.split("test"), 20, ALONE)
    assert len(list(loader.batches())) == 2
    assert len(list(loader.batches(0, 1))) == 1
    assert started == [2, 1]
    assert list(loader.batches(0, 2)) == []


def test_a_loader_s_own_order(tiny: Make, tiny_dataset: Dataset) -> None:
    train = train_loader(tiny(), tiny_dataset, ALONE)
    ordered = train.in_order(100)
    ids = torch.cat([batch.ids for _, _, batch in ordered.batches()])
    assert ids.tolist() == list(range(len(train.split)))
    assert ordered.transform is train.transform
    assert (train.batch_size, train.shuffle) == (16, True), "is a loader of its own"


def test_nearest_neighbours_are_loaded_likewise(
    tiny: Make, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []
    batches = Loader.batches

    def note(self: Loader, *place: int) -> object:
        seen.append((self.split.name, self.workers, self.batch_size))
        return batches(self, *place)

    monkeypatch.setattr(Loader, "batches", note)
    splits = tiny_dataset.split("train"), tiny_dataset.split("val")
    measure = Judge(tiny("data.workers=2"), *splits, ALONE, 1000, 2048)
    for images in (measure._bank, measure._held_out):
        assert sum(len(batch.ids) for batch in images.batches()) == len(images.split)
    assert seen == [("train", 2, 64), ("val", 2, 64)]
