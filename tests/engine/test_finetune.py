"""Fine-tuning, probing, evaluating: strict weights, what trains and what must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_data import TINY

from percmae.config import Config
from percmae.data.augment import build_transform
from percmae.data.shards import Dataset
from percmae.data.stream import Loader
from percmae.engine import loop
from percmae.engine.evaluate import evaluate, reconstruct
from percmae.engine.finetune import finetune, probe, trained_classifier
from percmae.engine.pretrain import pretrain
from percmae.engine.weights import network_weights
from percmae.errors import CheckpointError, ConfigError, DataError, PercmaeError, UserError
from percmae.models import build_model
from percmae.runs.downstream import downstream_config
from percmae.runs.evaluation import (
    ClassifierEvaluation,
    EvaluationResult,
    RandomGuess,
    ReconstructionEvaluation,
)
from percmae.runs.record import Run

from .conftest import changed

Make = Callable[..., Config]
SHORT = ["data.workers=0", "trainer.threads=1", "optim.epochs=2", "data.batch_size=16"]


@pytest.fixture(scope="module")
def parent(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    from percmae.config import load_config

    config = load_config("mae", "demo", overrides=TINY, tag="p")
    return pretrain(config, tiny_dataset.uri, str(tmp_path_factory.mktemp("runs"))).run


def encoder_of(run: str) -> dict[str, torch.Tensor]:
    weights = network_weights(run, "classifier")
    return {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}


def test_probe_trains_the_head_and_nothing_else(
    parent: Run, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    config = downstream_config(parent, "probe", overrides=SHORT)
    result = probe(config, parent, tiny_dataset.uri, str(tmp_path))
    assert result.uri == str(tmp_path / "p_mae_probe")
    trained = encoder_of(result.uri)
    generator = network_weights(parent.uri, "generator")
    for name in ("cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc2.bias"):
        assert torch.equal(trained[name], generator[name]), name
    head = network_weights(result.uri, "classifier")["head.linear.bias"]
    assert head.abs().sum() > 0  # it started at zero


def test_frozen_encoder_stays_in_evaluation_mode(parent: Run) -> None:
    from percmae.models.classifier import Classifier

    config = downstream_config(parent, "probe", overrides=[*SHORT, "classifier.dropout=0.5"])
    model = Classifier(changed(config, "classifier.drop_path=0.5"), 4).train()
    assert model.head.training
    assert not any(m.training for m in model.encoder.modules())
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "head.linear.weight",
        "head.linear.bias",
    ]


def test_untrained_control_uses_the_weights_pretraining_started_from(
    parent: Run, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    config = downstream_config(parent, "probe", overrides=SHORT)
    result = probe(config, parent, tiny_dataset.uri, str(tmp_path), features="untrained")
    assert result.uri.endswith("p_mae_probe_untrained")
    torch.manual_seed(parent.config.seed)
    start = build_model(parent.config).state_dict()
    assert torch.equal(
        encoder_of(result.uri)["blocks.0.mlp.fc1.weight"], start["blocks.0.mlp.fc1.weight"]
    )
    trained = network_weights(parent.uri, "generator")
    assert not torch.equal(trained["blocks.0.mlp.fc1.weight"], start["blocks.0.mlp.fc1.weight"])
    assert Run.open(result.uri).record.baseline is True


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_finetune_moves_the_encoder(
    parent: Run, tiny_dataset: Dataset, tmp_path: Path, mixup: float
) -> None:
    config = downstream_config(parent, "finetune", overrides=[*SHORT, f"classifier.mixup={mixup}"])
    result = finetune(config, parent, tiny_dataset.uri, str(tmp_path))
    trained = encoder_of(result.uri)
    generator = network_weights(parent.uri, "generator")
    name = "blocks.0.attn.qkv.weight"
    assert not torch.equal(trained[name], generator[name])
    assert (trained[name] - generator[name]).abs().max() < 0.1
    assert {"val/loss", "val/top1", "val/top5"} <= set(result.metrics)
    assert finetune(config, parent, tiny_dataset.uri, str(tmp_path)).reused


def test_weights_that_do_not_fit_are_an_error(
    parent: Run, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    for override, words in (
        ("model.encoder.width=48", "the network needs"),
        ("model.encoder.depth=3", r"blocks\.1\.\S+ is missing"),
    ):
        config = changed(downstream_config(parent, "probe", overrides=SHORT), override)
        with pytest.raises(CheckpointError, match=words):
            probe(config, parent, tiny_dataset.uri, str(tmp_path / override))


def test_class_count_mismatch(parent: Run, tiny_dataset: Dataset, tmp_path: Path) -> None:
    config = downstream_config(parent, "probe", overrides=[*SHORT, "classifier.classes=7"])
    with pytest.raises(ConfigError, match=r"classifier\.classes=7, but .* has 4 classes"):
        probe(config, parent, tiny_dataset.uri, str(tmp_path))
    assert not (tmp_path / "p_mae_probe").exists()


def test_evaluation_agrees_with_predictions_made_by_hand(
    parent: Run, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    config = downstream_config(parent, "finetune", overrides=[*SHORT, "optim.epochs=8"])
    run = finetune(config, parent, tiny_dataset.uri, str(tmp_path)).run
    found, reused = evaluate(run.uri, tiny_dataset.uri)
    assert not reused
    assert isinstance(found, ClassifierEvaluation)
    model = trained_classifier(run)
    transform = build_transform(config.data, False, "finetune")
    split = tiny_dataset.split("test")
    loader = Loader(split, transform, batch_size=7, seed=0, shuffle=False, drop_last=False)
    with torch.no_grad():
        answers = [model(b.images).argmax(1) for _, _, b in loader.batches()]
    right = torch.cat(answers).numpy() == split.labels
    assert found.top1 == pytest.approx(right.mean())
    assert found.samples.test == len(split) == 40
    confusion = np.array(found.confusion)
    assert confusion.sum() == 40
    assert confusion.trace() == right.sum()
    assert found.random_guess == RandomGuess(top1=0.25, top5=1.0)
    assert found.top5 == 1.0
    assert (Path(run.uri) / "evaluation.json").exists()
    assert evaluate(run.uri, tiny_dataset.uri) == EvaluationResult(found, reused=True)


def test_reconstruction_figures_and_pictures(
    parent: Run, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    from PIL import Image

    found = evaluate(parent.uri, tiny_dataset.uri).evaluation
    assert isinstance(found, ReconstructionEvaluation)
    figures = found.reconstruction
    assert figures.psnr is not None
    assert figures.ssim is not None
    assert 5 < figures.psnr < 40
    assert -1 <= figures.ssim <= 1
    assert figures.distance is not None
    assert 0.1 < figures.distance < 4
    assert figures.samples == 40
    picture = Image.open(Path(parent.uri) / "mae_recon_out" / "evaluation.png")
    assert picture.size == (4 * 32 + 3 * 2, 8 * 32 + 7 * 2)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (50, 40), "red").save(photo)
    to = tmp_path / "out.png"
    reconstruct(parent.uri, [str(photo), str(photo)], str(to))
    assert Image.open(to).size == (4 * 32 + 3 * 2, 2 * 32 + 2)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    for name in ("broken.jpg", "absent.jpg"):
        with pytest.raises(DataError, match=name):
            reconstruct(parent.uri, [str(tmp_path / name)], str(to))


@pytest.mark.parametrize("saved", [0, 3])
def test_a_run_that_fails(
    parent: Run,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saved: int,
) -> None:
    """It is not evaluated; without a checkpoint to go on from it leaves its name free."""
    optimise = loop.Loop._optimise

    def fail(self: loop.Loop, *args: Any) -> bool:
        if self.step == saved:
            raise OSError("power cut")
        return optimise(self, *args)

    config = downstream_config(
        parent, "probe", overrides=[*SHORT, "checkpoint.every_steps=3", "optim.max_steps=4"]
    )
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_optimise", fail)
        with pytest.raises(OSError, match="power cut"):
            probe(config, parent, tiny_dataset.uri, str(tmp_path))
    run = str(tmp_path / "p_mae_probe")
    if saved:
        with pytest.raises(UserError, match="stopped at step 3"):
            evaluate(run, tiny_dataset.uri)
        return
    with pytest.raises(DataError, match="is not a run"):
        evaluate(run, tiny_dataset.uri)
    other = downstream_config(parent, "probe", overrides=[*SHORT, "optim.max_steps=1"])
    assert probe(other, parent, tiny_dataset.uri, str(tmp_path), "never").uri == run


def test_validation_that_is_not_finite(
    parent: Run, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step's own figures are finite, and what it makes of the weights is not."""
    far = [*SHORT, "optim.lr=1e30", "optim.weight_decay=1e30", "optim.max_steps=1"]
    config = downstream_config(parent, "probe", overrides=far)
    with pytest.raises(PercmaeError, match=r"not finite in the validation after step 1: loss"):
        probe(config, parent, tiny_dataset.uri, str(tmp_path))
    on = downstream_config(
        parent, "probe", overrides=[*far, "trainer.exit_on_nan_losses=false"], tag="on"
    )
    figures = probe(on, parent, tiny_dataset.uri, str(tmp_path)).metrics
    assert figures["val/loss"] is None
    assert figures["val/top1"] is not None
    assert "not finite in the validation after step 1: loss" in capsys.readouterr().err
