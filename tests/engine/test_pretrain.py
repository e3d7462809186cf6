"""Pretraining: what a run leaves behind, resuming, accumulation, errors."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from percmae.config import Config
from percmae.data.shards import Dataset
from percmae.engine import loop, teller
from percmae.engine.checkpoint import read_state
from percmae.engine.distributed import World
from percmae.engine.loaders import train_loader
from percmae.engine.pretrain import pretrain
from percmae.engine.weights import network_weights, run_state
from percmae.errors import ConfigError, DataError, PercmaeError, UserError
from percmae.losses.objective import Objective
from percmae.losses.reconstruction import MaskedPatches, MultiscaleSSIM
from percmae.progress import Progress
from percmae.runs.record import Run
from percmae.storage import StorePath

Make = Callable[..., Config]


def lines(run: str, split: str) -> list[dict[str, Any]]:
    text = (StorePath(run) / "metrics.jsonl").read_text()
    return [r for r in map(json.loads, text.splitlines()) if r["split"] == split]


def losses(run: str) -> list[float]:
    return [r["loss"] for r in lines(run, "train")]


def same_weights(a: str, b: str) -> bool:
    left, right = network_weights(a, "generator"), network_weights(b, "generator")
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_what_a_run_leaves_in_the_store(
    tiny: Make, tiny_dataset: Dataset, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERCMAE_IMAGE", "registry.example/percmae-train@sha256:ab")
    config = tiny(variant="ssim")
    to = s3.uri("runs")
    result = pretrain(config, tiny_dataset.uri, to)
    assert result.uri == f"{to}/t_ssim"
    assert not result.reused
    run = Run.open(result.uri)
    assert run.complete
    steps = 2 * (len(tiny_dataset.split("train")) // 16)
    assert run.record.step == run.record.total_steps == steps
    assert run.record.versions["image"] == "registry.example/percmae-train@sha256:ab"
    names = {e.name for e in run.path.iter()}
    assert {"config.yaml", "run.json", "metrics.jsonl", "checkpoints/latest.json"} <= names
    assert f"mae_recon_out/step-{steps:08d}.png" in names
    events = [n for n in names if n.startswith("train_outputs/tensorboard_logs/events")]
    assert events
    train = lines(result.uri, "train")
    assert [r["step"] for r in train] == list(range(1, steps + 1))
    assert {"loss", "loss/ssim", "loss/l1", "lr", "images_per_second"} <= set(train[0])
    assert [r["step"] for r in lines(result.uri, "val")] == [steps // 2, steps]
    again = pretrain(config, tiny_dataset.uri, to)
    assert again.reused
    assert again.metrics == result.metrics


def test_tensorboard_events_hold_every_figure(
    tiny: Make, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = pretrain(tiny("optim.epochs=1"), tiny_dataset.uri, str(tmp_path)).uri
    events = EventAccumulator(f"{run}/train_outputs/tensorboard_logs").Reload()
    assert {"train/loss", "train/lr", "val/loss"} <= set(events.Tags()["scalars"])
    found = [e.value for e in events.Scalars("train/loss")]
    assert found == pytest.approx(losses(run), rel=1e-6)
    assert events.Tags()["images"] == ["reconstruction"]


def test_resumed_run_equals_an_uninterrupted_one(
    tiny: Make, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("checkpoint.every_steps=2", "data.workers=1")
    whole = pretrain(config, tiny_dataset.uri, str(tmp_path / "whole"))

    original = loop.Loop._optimise

    def break_down(self: loop.Loop, *args: Any) -> bool:
        if self.step == 5:
            raise OSError("power cut")
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_optimise", break_down)
        with pytest.raises(OSError, match="power cut"):
            pretrain(config, tiny_dataset.uri, str(tmp_path / "cut"))
    stopped = Run.open(str(tmp_path / "cut" / "t_mae"))
    assert (stopped.complete, stopped.record.step) == (False, 4)
    with pytest.raises(UserError, match="--resume auto"):
        pretrain(config, tiny_dataset.uri, str(tmp_path / "cut"), resume="never")
    shown: list[Progress] = []

    def watched(*args: Any, **options: Any) -> Progress:
        shown.append(Progress(*args, **options))
        return shown[-1]

    monkeypatch.setattr(teller, "Progress", watched)
    resumed = pretrain(config, tiny_dataset.uri, str(tmp_path / "cut"))
    (bar,) = shown
    assert (bar._initial, bar.done) == (4, bar.total), "steps of before count for no rate"
    assert losses(resumed.uri) == losses(whole.uri)
    assert lines(resumed.uri, "val") == lines(whole.uri, "val")
    assert same_weights(resumed.uri, whole.uri)


def test_workers_do_not_change_the_result(
    tiny: Make, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    runs = [
        pretrain(
            tiny(f"data.workers={n}", "optim.epochs=1"), tiny_dataset.uri, str(tmp_path / str(n))
        )
        for n in (0, 2)
    ]
    assert same_weights(runs[0].uri, runs[1].uri)


def test_accumulation_equals_the_larger_batch(
    tiny: Make, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    common = ("optim.epochs=1", "optim.clip_grad=1.0")
    small = tiny("data.batch_size=8", "optim.accumulate=2", *common)
    large = tiny("data.batch_size=16", *common)
    a = pretrain(small, tiny_dataset.uri, str(tmp_path / "a"))
    b = pretrain(large, tiny_dataset.uri, str(tmp_path / "b"))
    # The masks differ (each micro-batch draws its own), the number of steps and the course do not.
    assert len(losses(a.uri)) == len(losses(b.uri))
    total = tiny("data.batch_size=8", "optim.total_batch=16", *common)
    c = pretrain(total, tiny_dataset.uri, str(tmp_path / "c"))
    assert same_weights(a.uri, c.uri)


def test_the_name_is_never_shared_by_two_experiments(
    tiny: Make, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    pretrain(tiny("optim.epochs=2"), tiny_dataset.uri, str(tmp_path))
    with pytest.raises(UserError, match=r"optim\.epochs: 2 → 1.*another --tag"):
        pretrain(tiny("optim.epochs=1"), tiny_dataset.uri, str(tmp_path))


def test_start_from_weights(tiny: Make, tiny_dataset: Dataset, tmp_path: Path) -> None:
    first = pretrain(tiny("optim.epochs=1"), tiny_dataset.uri, str(tmp_path))
    overrides = ("optim.max_steps=1", "optim.lr=1e-12", "optim.weight_decay=0", "seed=9")
    second = pretrain(
        tiny(f"model.init_from={first.uri}", *overrides, tag="u"), tiny_dataset.uri, str(tmp_path)
    )
    old = network_weights(first.uri, "generator")
    for key, tensor in network_weights(second.uri, "generator").items():
        torch.testing.assert_close(tensor, old[key], atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="the network needs"):
        pretrain(
            tiny(f"model.init_from={first.uri}", "model.encoder.width=48", tag="v"),
            tiny_dataset.uri,
            str(tmp_path),
        )


def test_max_steps_ends_the_run(tiny: Make, tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = pretrain(tiny("optim.max_steps=3"), tiny_dataset.uri, str(tmp_path)).uri
    assert Run.open(run).record.step == 3


class Exploding(MultiscaleSSIM):
    """A term that is infinite in the fourth step."""

    fatal = False

    def backward(self, images: torch.Tensor, noise: torch.Tensor, micro: Any, draws: Any) -> Any:
        self.fatal = micro.step == 3
        return super().backward(images, noise, micro, draws)

    def weighted(self, made: Any, images: torch.Tensor) -> Any:
        terms = super().weighted(made, images)
        weight, value = terms["l1"]
        return {**terms, "l1": (weight, value * (torch.inf if self.fatal else 1))}


class ExplodingGradient(MaskedPatches):
    """A finite loss whose gradient is not, in the fourth step."""

    def backward(self, images: torch.Tensor, noise: torch.Tensor, micro: Any, draws: Any) -> Any:
        terms = super().backward(images, noise, micro, draws)
        if micro.step == 3:
            assert self.generator.cls_token.grad is not None
            self.generator.cls_token.grad[0, 0, 0] = torch.nan
        return terms


def train_with(objective: type[Objective], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every pretraining from here on use that objective."""
    monkeypatch.setattr(
        "percmae.engine.pretrain.build_objective", lambda config, _: objective(config)
    )


@pytest.mark.parametrize(
    ("objective", "variant", "named"),
    [
        (Exploding, "ssim", "loss/l1"),
        (ExplodingGradient, "mae", "gradient of generator"),
    ],
)
def test_what_is_not_finite_stops_the_run_before_it_touches_the_weights(
    tiny: Make,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: type[Objective],
    variant: str,
    named: str,
) -> None:
    train_with(objective, monkeypatch)
    two = ("data.batch_size=8", "optim.accumulate=2")
    config = tiny("checkpoint.every_steps=1", *two, variant=variant)
    with pytest.raises(PercmaeError, match=f"not finite at step 4: .*{named}"):
        pretrain(config, tiny_dataset.uri, str(tmp_path))
    folder = tmp_path / f"t_{variant}"
    assert Run.open(str(folder)).record.step == 3
    saved = read_state(StorePath(folder / "checkpoints" / "diagnostic-step-00000004.pt"))
    assert saved["diagnosis"]["step"] == 4
    assert saved["diagnosis"]["not_finite"] == [named]
    assert len(saved["diagnosis"]["samples"][0]) == 16
    before = network_weights(str(folder), "generator")
    after = saved["networks"]["generator"]
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    skipping = tiny("trainer.exit_on_nan_losses=false", tag="u", variant=variant)
    run = Run.open(pretrain(skipping, tiny_dataset.uri, str(tmp_path)).uri)
    assert run.complete
    weights = network_weights(run.uri, "generator").values()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights)


@pytest.mark.parametrize(
    ("objective", "variant"), [(Exploding, "ssim"), (ExplodingGradient, "mae")]
)
def test_what_is_noticed_later_has_changed_nothing_either(
    tiny: Make,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: type[Objective],
    variant: str,
) -> None:
    """Logged every 6 steps, the fourth is noticed at the sixth; the fifth must not be taken."""
    three = pretrain(tiny("optim.max_steps=3", variant=variant), tiny_dataset.uri, str(tmp_path))
    train_with(objective, monkeypatch)
    common = ("trainer.log_interval=6", "checkpoint.every_steps=6")
    config = tiny(*common, "optim.max_steps=12", variant=variant, tag="u")
    with pytest.raises(PercmaeError, match="not finite at step 4: "):
        pretrain(config, tiny_dataset.uri, str(tmp_path))
    folder = StorePath(tmp_path / f"u_{variant}")
    assert not (folder / "metrics.jsonl").exists()
    saved = read_state(folder / "checkpoints" / "diagnostic-step-00000004.pt")
    assert (saved["step"], saved["diagnosis"]["step"]) == (3, 4)
    before = network_weights(three.uri, "generator")
    assert all(torch.equal(t, saved["networks"]["generator"][k]) for k, t in before.items())
    expected = run_state(three.uri)["optimizers"]["generator"]["state"]
    for key, state in saved["optimizers"]["generator"]["state"].items():
        assert all(torch.equal(t, expected[key][k]) for k, t in state.items())
    samples = [b.ids.tolist() for _, _, b in _four_batches(tiny_dataset, config)][3]
    assert saved["diagnosis"]["samples"] == [samples]


def _four_batches(dataset: Dataset, config: Config) -> Any:
    with contextlib.closing(
        train_loader(config, dataset, World(0, 1, torch.device("cpu"))).batches(0)
    ) as batches:
        return list(itertools.islice(batches, 4))


def test_a_skipped_step_is_told_and_left_out_of_the_means(
    tiny: Make,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ("optim.max_steps=5", "trainer.exit_on_nan_losses=false", "checkpoint.every_steps=5")
    train_with(Exploding, monkeypatch)
    run = pretrain(
        tiny(*common, "trainer.log_interval=5", variant="ssim"), tiny_dataset.uri, str(tmp_path)
    )
    assert "step 4: not finite: loss/l1; step skipped" in capsys.readouterr().err
    each = pretrain(tiny(*common, variant="ssim", tag="u"), tiny_dataset.uri, str(tmp_path))
    found = [line["loss"] for line in lines(each.uri, "train") if "loss" in line]
    assert losses(run.uri) == pytest.approx([sum(found) / 4])
    told = ["loss" in line for line in lines(each.uri, "train")]
    assert told == [True, True, True, False, True]


def test_bad_input_is_refused_before_anything_is_written(
    tiny: Make, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    for config, error, words in (
        (tiny("data.batch_size=4096"), UserError, "has 216 samples"),
        (
            tiny("optim.accumulate=50"),
            UserError,
            "one step takes 800 images, the training set has 216",
        ),
        (tiny("trainer.num_nodes=3"), ConfigError, "trainer.num_nodes=3"),
        (tiny("trainer.devices=5"), ConfigError, "trainer.devices=5"),
    ):
        with pytest.raises(error, match=words):
            pretrain(config, tiny_dataset.uri, str(tmp_path / "runs"))
    with pytest.raises(DataError):
        pretrain(tiny(), str(tmp_path / "nothing.json"), str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_bf16_autocast_trains(tiny: Make, tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = pretrain(tiny("trainer.precision=bf16"), tiny_dataset.uri, str(tmp_path)).uri
    full = pretrain(tiny(tag="u"), tiny_dataset.uri, str(tmp_path)).uri
    assert losses(run) == pytest.approx(losses(full), rel=0.05)
    assert losses(run) != losses(full)


def test_config_is_not_changed(tiny: Make, tiny_dataset: Dataset, tmp_path: Path) -> None:
    config = tiny("optim.max_steps=1")
    before = dataclasses.asdict(config)
    pretrain(config, tiny_dataset.uri, str(tmp_path))
    assert dataclasses.asdict(config) == before
