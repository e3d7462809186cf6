"""The files of a version: what a run has learned, in the forms that other tools open.

``encoder/`` and, of a probe or fine-tuning, ``classifier/`` are folders as timm writes them for the
Hugging Face hub: ``timm.create_model("local-dir:…/classifier", pretrained=True)`` opens one, with
nothing of percmae installed. The classifier's logits are the run's own: a probe's BatchNorm, which
is affine-free and constant once it is trained, is folded into its linear layer. Beside them
``preprocess.json`` says what is done to an image, ``labels.json`` what each output means, and
``README.md``, the model card, says it all in words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from percmae.config import Config
from percmae.engine.embed import encoder
from percmae.engine.finetune import trained_classifier
from percmae.engine.formats import safetensors_bytes
from percmae.errors import UserError
from percmae.models.classifier import Head
from percmae.registry.card import card
from percmae.registry.files import (
    ARCHITECTURE,
    CARD,
    CLASSIFIER,
    ENCODER,
    LABELS,
    PREPROCESS,
    TIMM_CONFIG,
    WEIGHTS,
    Label,
    Preprocess,
)
from percmae.registry.mlflow import tell_of_version
from percmae.registry.model import VERSIONS, File, Reference, Version, now
from percmae.registry.moves import add
from percmae.runs.evaluation import (
    EVALUATION,
    ClassifierEvaluation,
    Evaluation,
    figures,
    read_evaluation,
)
from percmae.runs.record import Run


def register(run: str, reference: Reference) -> Version:
    """Make a version of a model from a finished, evaluated run; the one it has of it already.

    Raises DataError where there is no such run, UserError for one that is not finished, not
    evaluated, or a probe of pixels, which has no encoder.
    """
    opened = Run.open(run)
    evaluation = _evaluated(opened)
    folder = f"{VERSIONS}/{opened.key.removeprefix('sha256:')[:16]}"
    files: dict[str, File] = {}
    for name, data in _packed(opened, evaluation, reference.name):
        (reference.path / folder / name).write_bytes(data)
        files[name] = File(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    record = opened.record
    version = Version(
        version=0,
        created=now(),
        run=opened.uri,
        key=opened.key,
        stage=record.stage,
        variant=record.variant,
        seed=record.seed,
        config_digest=record.config_digest,
        parent=record.parent,
        data=record.data,
        evaluated_on=evaluation.data,
        versions=record.versions,
        metrics=figures(evaluation),
        folder=folder,
        files=files,
        mlflow=opened.config.tracking.mlflow,
    )
    added = add(reference, version)
    tell_of_version(opened, reference, added)
    return added


def _evaluated(run: Run) -> Evaluation:
    run.require_complete()
    if run.record.built_on == "pixels":
        raise UserError(f"run {run.uri} is a probe of pixels: a control, and no model to use")
    evaluation = read_evaluation(run.path, run.record)
    if evaluation is None:
        raise UserError(
            f"run {run.uri} has no test figures, by which models are chosen; first: percmae "
            f"evaluate --run {run.uri} --data {run.record.data.uri}"
        )
    return evaluation


def _packed(run: Run, evaluation: Evaluation, name: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file."""
    config = run.config
    if isinstance(evaluation, ClassifierEvaluation):
        classifier = trained_classifier(run)
        tensors = dict(classifier.encoder.state_dict())
        settings = (config, config.classifier.pool)
        yield from _timm(ENCODER, tensors, *settings, classes=0)
        assert isinstance(classifier.head, Head), "no other kind is built"
        yield from _timm(
            CLASSIFIER,
            {**tensors, **_folded(classifier.head)},
            *settings,
            classes=len(evaluation.classes),
            labels=[item.name for item in evaluation.classes],
        )
        labels = [Label(id=item.wnid, name=item.name) for item in evaluation.classes]
        yield LABELS, _json([label.model_dump() for label in labels])
    else:
        yield from _timm(ENCODER, dict(encoder(run).state_dict()), config, "token", classes=0)
    preprocess = Preprocess.of(config.data)
    yield PREPROCESS, _json(preprocess.model_dump())
    yield EVALUATION, _json(evaluation.model_dump(mode="json"))
    yield CARD, card(name, run, evaluation, preprocess).encode()


def _timm(
    folder: str,
    tensors: dict[str, Tensor],
    config: Config,
    pool: str,
    classes: int,
    labels: list[str] | None = None,
) -> Iterator[tuple[str, bytes]]:
    """A Vision Transformer's folder as timm opens it."""
    model, augment = config.model, config.data.augment
    mean, std = augment.normalisation
    side = config.data.image_size
    described: dict[str, Any] = {
        "architecture": ARCHITECTURE,
        "num_classes": classes,
        "num_features": model.encoder.width,
        "global_pool": pool,
        **({"label_names": labels} if labels else {}),
        "model_args": {
            "img_size": side,
            "patch_size": model.patch_size,
            "embed_dim": model.encoder.width,
            "depth": model.encoder.depth,
            "num_heads": model.encoder.heads,
            "mlp_ratio": model.encoder.mlp_ratio,
            "global_pool": pool,
        },
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "interpolation": augment.interpolation,
            "crop_pct": augment.eval_crop,
            "crop_mode": "center",
            "mean": mean,
            "std": std,
            "num_classes": classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    yield f"{folder}/{TIMM_CONFIG}", _json(described)
    yield f"{folder}/{WEIGHTS}", safetensors_bytes(tensors, {})


@torch.no_grad()
def _folded(head: Head) -> dict[str, Tensor]:
    """A head as one linear layer: W (x − μ) / σ + b = (W / σ) x + (b − W μ / σ)."""
    weight, bias = head.linear.weight.double(), head.linear.bias.double()
    if isinstance(head.norm, torch.nn.BatchNorm1d):
        mean, variance = head.norm.running_mean, head.norm.running_var
        assert mean is not None, "it keeps them"
        assert variance is not None, "it keeps them"
        scaled = weight / (variance.double() + head.norm.eps).sqrt()
        weight, bias = scaled, bias - scaled @ mean.double()
    return {"head.weight": weight.float(), "head.bias": bias.float()}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
