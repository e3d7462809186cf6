"""k-NN accuracy: the vote, the features, the choice of images, one process and two."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.multiprocessing import start_processes

from percmae.config import Config
from percmae.data.augment import build_transform
from percmae.data.shards import Dataset
from percmae.data.stream import Loader
from percmae.engine import knn
from percmae.engine.distributed import World
from percmae.engine.knn import Judge, build_judge, pooled, spread_out, vote
from percmae.engine.pretrain import pretrain
from percmae.engine.weights import network_weights
from percmae.models import build_model
from percmae.models.mae import MaskedAutoencoder
from percmae.runs.record import Run
from percmae.storage import StorePath

Make = Callable[..., Config]
ALONE = World(0, 1, torch.device("cpu"))


def unit(*angles: float) -> torch.Tensor:
    """Directions in the plane, by their angle from the first axis in degrees."""
    radians = torch.tensor(angles) * math.pi / 180
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_near_neighbours_count_more_than_many() -> None:
    query, labels = unit(0), torch.tensor([1, 0, 0, 2])
    # cos 0, 40, 40 degrees: exp(1 / .07) against 2 exp(.766 / .07), which is 14 times less.
    far = unit(0, 40, -40, 180)
    assert vote(query, far, labels, 3).tolist() == [1]
    # cos 10 degrees is .985: exp(.985 / .07) twice is more than exp(1 / .07).
    near = unit(0, 10, -10, 180)
    assert vote(query, near, labels, 3).tolist() == [0]
    assert vote(query, near, labels, 1).tolist() == [1]
    # More neighbours than there are: all of them vote.
    assert vote(query, near, labels, 1000).tolist() == [0]


def slow_vote(
    query: list[float], bank: list[list[float]], labels: list[int], neighbours: int
) -> int:
    cosines = [sum(a * b for a, b in zip(query, row, strict=True)) for row in bank]
    nearest = sorted(range(len(bank)), key=lambda i: -cosines[i])[:neighbours]
    votes: dict[int, float] = {}
    for i in nearest:
        votes[labels[i]] = votes.get(labels[i], 0.0) + math.exp(cosines[i] / 0.07)
    return max(votes, key=lambda label: votes[label])


def test_vote_equals_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    bank = F.normalize(torch.randn(60, 5, generator=generator), dim=1)
    queries = F.normalize(torch.randn(40, 5, generator=generator), dim=1)
    labels = torch.randint(0, 7, (60,), generator=generator)
    for neighbours in (1, 5, 20, 60):
        expected = [
            slow_vote(q, bank.tolist(), labels.tolist(), neighbours) for q in queries.tolist()
        ]
        assert len(set(expected)) > 3
        assert vote(queries, bank, labels, neighbours).tolist() == expected


def network(config: Config) -> MaskedAutoencoder:
    torch.manual_seed(7)
    return build_model(config)


def features(model: MaskedAutoencoder, images: torch.Tensor) -> torch.Tensor:
    """Those of k-NN: of length 1."""
    return F.normalize(pooled(model, images), dim=1)


def test_features_are_of_the_whole_image(tiny: Make) -> None:
    model = network(tiny())
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = features(model, image)
        patches = model.patchify(image)
        shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(1))[None]
        mean = model.encode(patches, shuffled)[:, 1:].mean(dim=1)
        torch.testing.assert_close(found, mean / mean.norm(), atol=1e-6, rtol=1e-5)
        for patch in range(16):
            changed = patches.clone()
            changed[:, patch] += 1
            assert not torch.allclose(features(model, model.unpatchify(changed)), found, atol=1e-5)
    assert found.dtype == torch.float32
    assert found.norm() == pytest.approx(1)


def test_choice_is_even_over_the_classes_and_always_the_same() -> None:
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    chosen = spread_out(labels, 33)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert np.bincount(labels[chosen]).tolist() == [15, 3, 15]
    assert np.bincount(labels[spread_out(labels, 32)]).tolist() == [15, 3, 14]
    assert spread_out(labels, 1000).tolist() == list(range(103))
    assert spread_out(labels, 33).tolist() == chosen.tolist()
    # Drawn from the whole class, not its first images.
    assert chosen[:15].max() >= 25
    # A larger choice holds the smaller one.
    assert set(chosen.tolist()) <= set(spread_out(labels, 60).tolist())


def accuracy(config: Config, dataset: Dataset, world: World) -> float:
    measure = build_judge(config, dataset, dataset.split("val"), world)
    assert measure is not None
    return measure(network(config))["knn_top1"]


def by_hand(config: Config, dataset: Dataset) -> float:
    """The same figure from whole splits and the plain loop."""
    model, made = network(config), {}
    for name in ("train", "val"):
        loader = Loader(
            dataset.split(name),
            build_transform(config.data, False, "pretrain"),
            batch_size=7,
            seed=0,
            shuffle=False,
            drop_last=False,
        )
        with torch.no_grad():
            rows = [(features(model, b.images), b.labels) for _, _, b in loader.batches()]
        made[name] = tuple(torch.cat(parts).tolist() for parts in zip(*rows, strict=True))
    bank, labels = made["train"]
    found = [slow_vote(query, bank, labels, 20) for query in made["val"][0]]
    return sum(a == b for a, b in zip(found, made["val"][1], strict=True)) / len(found)


def test_figure_equals_the_plain_loop(tiny: Make, tiny_dataset: Dataset) -> None:
    config = tiny()
    found = accuracy(config, tiny_dataset, ALONE)
    assert found == by_hand(config, tiny_dataset)
    assert 0.25 < found < 1


def _process(rank: int, config: Config, uri: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    dataset = Dataset.open(uri)
    measure = build_judge(
        config, dataset, dataset.split("val"), World(rank, 2, torch.device("cpu"))
    )
    assert measure is not None
    found = measure(network(config))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(
    tiny: Make, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    # 24 held-out images are one chunk: the second process has none of them to look at.
    config = tiny()
    given = (config, tiny_dataset.uri, str(tmp_path))
    start_processes(_process, given, nprocs=2, start_method="forkserver")
    both = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    alone = build_judge(config, tiny_dataset, tiny_dataset.split("val"), ALONE)
    assert alone is not None
    found = alone(network(config))
    assert set(found) == {"rankme", "knn_top1"}
    assert both == [pytest.approx(found, rel=1e-9)] * 2
    assert both[0]["knn_top1"] == found["knn_top1"]


def test_images_are_decoded_once_when_they_are_few(
    tiny: Make, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, loads = tiny(), []
    original = Loader.load

    def load(self: Loader, *args: Any) -> Any:
        loads.append(self.split.name)
        return original(self, *args)

    monkeypatch.setattr(Loader, "load", load)
    model = network(config)
    splits = tiny_dataset.split("train"), tiny_dataset.split("val")
    kept = Judge(config, *splits, ALONE, 1000, 2048)
    first = kept(model)
    once = len(loads)
    assert kept(model) == first
    assert len(loads) == once == 5
    with monkeypatch.context() as patch:
        patch.setattr(knn, "CACHE_BYTES", 1000)
        read_again = Judge(config, *splits, ALONE, 1000, 2048)
    assert [read_again(model), read_again(model)] == [first, first]
    assert len(loads) == 3 * once


def test_limits_and_mode(tiny: Make, tiny_dataset: Dataset) -> None:
    config = tiny("tracking.knn_samples=10", "tracking.knn_neighbours=3")
    measure = build_judge(config, tiny_dataset, tiny_dataset.split("val"), ALONE)
    assert measure is not None
    model = network(config).train()
    before = torch.get_rng_state()
    found = measure(model)
    assert found["knn_top1"] in [n / 10 for n in range(11)]  # there are ten queries
    assert 1 <= found["rankme"] <= 24  # there are as many held-out images, and dimensions
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
    assert measure(model.eval()) == found
    assert not model.training
    rank = build_judge(
        tiny("tracking.knn_samples=0"), tiny_dataset, tiny_dataset.split("val"), ALONE
    )
    assert rank is not None
    assert rank(model) == {"rankme": pytest.approx(found["rankme"], rel=1e-6)}
    none = tiny("tracking.knn_samples=0", "tracking.rankme_samples=0")
    assert build_judge(none, tiny_dataset, tiny_dataset.split("val"), ALONE) is None


def val_lines(run: str) -> list[dict[str, Any]]:
    text = (StorePath(run) / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["split"] == "val"]


def test_a_run_logs_it_and_trains_the_same_without_it(
    tiny: Make, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with_it = pretrain(tiny(), tiny_dataset.uri, str(tmp_path / "with"))
    off = tiny("tracking.knn_samples=0", "tracking.rankme_samples=0")
    without = pretrain(off, tiny_dataset.uri, str(tmp_path / "without"))
    logged = [line.pop("knn_top1") for line in val_lines(with_it.uri)]
    assert len(logged) == 2
    assert Run.open(with_it.uri).record.metrics["val/knn_top1"] == logged[-1]
    events = EventAccumulator(f"{with_it.uri}/train_outputs/tensorboard_logs").Reload()
    assert [e.value for e in events.Scalars("val/knn_top1")] == pytest.approx(logged)
    assert not any({"knn_top1", "rankme"} & line.keys() for line in val_lines(without.uri))
    assert "val/knn_top1" not in Run.open(without.uri).record.metrics
    assert Run.open(without.uri).key == Run.open(with_it.uri).key
    left, right = (network_weights(run.uri, "generator") for run in (with_it, without))
    assert all(torch.equal(left[key], right[key]) for key in right)
    half = pretrain(tiny("trainer.precision=bf16", tag="h"), tiny_dataset.uri, str(tmp_path))
    assert half.metrics["val/knn_top1"] == pytest.approx(logged[-1], abs=0.2)
