"""Probes: features computed once, controls, and a share of the labels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_data import TINY
from PIL import Image

from percmae.config import Config, load_config
from percmae.data.augment import framed_transform, is_fixed
from percmae.data.shards import Dataset
from percmae.data.stream import Loader
from percmae.engine import frozen
from percmae.engine.evaluate import evaluate
from percmae.engine.finetune import finetune, probe
from percmae.engine.plan import Plan, with_smaller_steps
from percmae.engine.pretrain import pretrain
from percmae.engine.weights import network_weights
from percmae.errors import Interrupted, UserError
from percmae.runs.downstream import downstream_config
from percmae.runs.evaluation import ClassifierEvaluation
from percmae.runs.record import Run
from percmae.vision import torchvision

from .conftest import changed
from .forked import percmae

transforms: Any = torchvision.transforms
FIXED = ["data.augment.crop_scale=[1,1]", "data.augment.crop_aspect=[1,1]"]
SHORT = ["data.workers=0", "trainer.threads=1", "optim.epochs=3", "data.batch_size=16"]


@pytest.fixture(scope="module")
def parent(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = load_config("mae", "demo", overrides=[*TINY, "optim.max_steps=2"], tag="p")
    return pretrain(config, tiny_dataset.uri, str(tmp_path_factory.mktemp("runs"))).run


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that loaders decode from now on, a number a batch."""
    seen: list[int] = []
    load = Loader.load

    def count(self: Loader, epoch: int, ids: np.ndarray, blobs: dict[int, bytes]) -> object:
        seen.append(len(ids))
        return load(self, epoch, ids, blobs)

    monkeypatch.setattr(Loader, "load", count)
    return seen


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_features_computed_once_train_the_same_probe(
    parent: Run,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    passes: list[int],
    dropout: float,
) -> None:
    config = downstream_config(
        parent, "probe", overrides=[*SHORT, *FIXED, f"classifier.dropout={dropout}"]
    )
    train, val = (len(tiny_dataset.split(name)) for name in ("train", "val"))
    quick = probe(config, parent, tiny_dataset.uri, str(tmp_path / "quick"))
    assert sum(passes) == train + val
    passes.clear()
    monkeypatch.setattr(frozen, "HELD_BYTES", 0)
    slow = probe(config, parent, tiny_dataset.uri, str(tmp_path / "slow"))
    assert sum(passes) > 2 * train
    ours, theirs = (network_weights(run.uri, "classifier") for run in (quick, slow))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    assert quick.metrics["val/loss"] == pytest.approx(slow.metrics["val/loss"], rel=1e-4)
    assert quick.run.key == slow.run.key


def test_it_goes_on_from_a_checkpoint_bit_by_bit(
    parent: Run, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = downstream_config(
        parent, "probe", overrides=[*SHORT, *FIXED, "checkpoint.every_steps=5"]
    )
    whole = probe(config, parent, tiny_dataset.uri, str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        steps = frozen.FeatureSource.batches

        def interrupted(self: frozen.FeatureSource, *place: object, **more: object) -> object:
            for number, item in enumerate(steps(self, *place, **more)):  # type: ignore[arg-type]
                if number == 7 and self._loader.shuffle:
                    raise Interrupted(15, "stopped")
                yield item

        patch.setattr(frozen.FeatureSource, "batches", interrupted)
        with pytest.raises(Interrupted):
            probe(config, parent, tiny_dataset.uri, str(tmp_path / "cut"))
    assert Run.open(str(tmp_path / "cut" / "p_mae_probe")).record.step == 5
    again = probe(config, parent, tiny_dataset.uri, str(tmp_path / "cut"))
    ours, theirs = (network_weights(run.uri, "classifier") for run in (whole, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_images_that_change_are_looked_at_in_each_epoch(
    parent: Run, tiny_dataset: Dataset, tmp_path: Path, passes: list[int]
) -> None:
    config = downstream_config(parent, "probe", overrides=[*SHORT, "data.augment.flip=0.5"])
    assert not is_fixed(config.data.augment, "probe")
    probe(config, parent, tiny_dataset.uri, str(tmp_path))
    assert sum(passes) > 2 * len(tiny_dataset.split("train"))


@pytest.mark.parametrize("size", [(40, 40), (60, 33), (33, 60)])
def test_a_crop_of_the_whole_image_is_what_a_random_one_comes_to(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    data = load_config("mae", "demo", overrides=[*TINY, *FIXED, "data.decode=exact"]).data
    random = transforms.RandomResizedCrop(
        32, scale=(1, 1), ratio=(1, 1), interpolation=transforms.InterpolationMode.BICUBIC
    )
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    ours = framed_transform(data, True, "probe").pixels(buffer.getvalue(), formats=["PNG"])
    assert np.array_equal(ours, np.asarray(random(image)))


def test_a_probe_of_pixels_is_a_logistic_regression_on_them(
    parent: Run, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    config = downstream_config(parent, "probe", overrides=[*SHORT, *FIXED, "optim.lr=1e-3"])
    run = probe(config, parent, tiny_dataset.uri, str(tmp_path), features="pixels").run
    assert (run.record.name, run.record.baseline) == ("p_mae_probe_pixels", True)
    assert (run.record.features, str(run.record.kind)) == ("pixels", "probe_pixels")
    weights = network_weights(run.uri, "classifier")
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        "head.linear.weight": (4, 3 * 32 * 32),
        "head.linear.bias": (4,),
    }
    found = evaluate(run.uri, tiny_dataset.uri).evaluation
    assert isinstance(found, ClassifierEvaluation)
    assert found.top1 > 0.5  # four digits
    with pytest.raises(UserError, match="no encoder to fine-tune"):
        finetune(config, parent, tiny_dataset.uri, str(tmp_path), features="pixels")


def test_few_labels_from_scratch(parent: Run, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Fewer images than a step takes: steps of all of them, in as many passes as asked for."""
    few = ["data.label_fraction=0.05", "data.batch_size=32"]
    config = downstream_config(parent, "finetune", overrides=[*SHORT, *few], features="untrained")
    assert config.optim.layer_decay == 1, "there is nothing learned to be spared"
    run = finetune(config, parent, tiny_dataset.uri, str(tmp_path), features="untrained").run
    assert run.record.name == "p_mae_finetune_labels-5pct_untrained"
    images = len(tiny_dataset.labelled(0.05))
    assert 4 <= images < 16
    assert (run.record.total_steps, run.record.epochs) == (3, 3)
    assert run.config.data.batch_size == 32


@pytest.mark.parametrize(
    ("overrides", "samples", "processes", "step"),
    [
        (["data.batch_size=32"], 32, 1, 32),
        (["data.batch_size=32"], 31, 1, 30),
        (["data.batch_size=32", "optim.accumulate=4"], 100, 1, 96),
        (["data.batch_size=32", "optim.total_batch=128"], 100, 1, 96),
        (["data.batch_size=32", "optim.total_batch=128"], 100, 2, 64),
        (["data.batch_size=32"], 9, 2, 8),
    ],
)
def test_steps_of_few_labels(overrides: list[str], samples: int, processes: int, step: int) -> None:
    few = [*overrides, "data.label_fraction=0.1"]
    config: Config = load_config("mae", "demo", "finetune", overrides=few)
    smaller = with_smaller_steps(config, samples, processes)
    plan = Plan.make(smaller, samples, processes)
    assert (plan.batch, plan.epoch) == (step, samples // step)
    all_of_them = changed(config, "data.label_fraction=1.0")
    assert with_smaller_steps(all_of_them, samples, processes) is all_of_them


def test_one_label_is_too_few_for_a_step() -> None:
    config = load_config("mae", "demo", "finetune", overrides=["data.label_fraction=0.1"])
    with pytest.raises(UserError, match="the training set has 1"):
        Plan.make(with_smaller_steps(config, 1, 1), 1, 1)


def test_two_processes_share_the_features(
    parent: Run, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """And learn what one process would with the doubled batch."""
    losses = []
    for size, batch in ((1, 16), (2, 8)):
        to = tmp_path / str(size)
        command = ["probe", "--run", parent.uri, "--data", tiny_dataset.uri, "--to", str(to)]
        # Each process normalises its own batch.
        own = [f"data.batch_size={batch}", "classifier.batch_norm=false"]
        done = percmae([*command, *SHORT, *FIXED, *own], to, size=size)
        assert [one.returncode for one in done] == [0] * size, [one.stderr for one in done]
        record = Run.open(str(to / "p_mae_probe")).record
        losses.append((record.metrics["train/loss"], record.metrics["val/loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
