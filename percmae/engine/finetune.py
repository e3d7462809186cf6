"""Fine-tuning and linear probing of a pretrained encoder (docs/method.md, "Recipes")."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percmae.config import Config
from percmae.config.naming import Features
from percmae.data.batch import Batch
from percmae.data.mixture import open_one
from percmae.data.shards import Dataset
from percmae.data.stream import Loader, Source
from percmae.engine.calls import training_call
from percmae.engine.carry_out import carry_out
from percmae.engine.distributed import World, distributed
from percmae.engine.frozen import FeatureSource, frozen_features
from percmae.engine.learner import Learner
from percmae.engine.loaders import eval_loader
from percmae.engine.metrics import ClassifierScores
from percmae.engine.optim import build_optimizer, parameter_groups
from percmae.engine.precision import autocast
from percmae.engine.signals import together
from percmae.engine.weights import network_weights
from percmae.errors import UserError
from percmae.losses.objective import Micro, Terms
from percmae.models import build_model
from percmae.models.classifier import Classifier
from percmae.models.weights import Tensors
from percmae.progress import note
from percmae.runs.parent import Parent, WeightsFile
from percmae.runs.record import Run, RunResult, begun, identity_of
from percmae.storage.outage import outage
from percmae.vision import load_timm


class ClassifyLearner(Learner):
    """A classifier under the loop."""

    def __init__(self, config: Config, model: Classifier, world: World, val: Loader) -> None:
        self.config, self.model, self.world, self.val = config, model, world, val
        self.classes = model.head.linear.out_features
        model.to(world.device)
        self.networks: dict[str, nn.Module] = {"classifier": model}
        self.calls: dict[str, nn.Module] = {
            "classifier": training_call(model, config, world, compiled=True)
        }
        groups = parameter_groups(model, config.optim, model.layer_of, model.layers)
        self.optimizers = {"classifier": build_optimizer(config.optim, groups)}
        self._mixup = self._build_mixup()
        self._val: Source = val

    def source(self, loader: Loader) -> Source:
        """The loader, or the features of its images where a frozen encoder gives them for good."""
        features = None
        if self.model.probe:
            features = frozen_features(self.model, self.config, loader, self.world)
        if features is None:
            return loader
        self._val = frozen_features(self.model, self.config, self.val, self.world) or self.val
        head = _OnFeatures(self.model)
        self.calls["classifier"] = training_call(head, self.config, self.world, compiled=True)
        return features

    def _build_mixup(self) -> Any:
        settings = self.config.classifier
        if not (settings.mixup or settings.cutmix):
            return None
        return load_timm().data.Mixup(
            mixup_alpha=settings.mixup,
            cutmix_alpha=settings.cutmix,
            label_smoothing=settings.label_smoothing,
            num_classes=self.classes,
        )

    def backward(self, batch: Batch, micro: Micro) -> Terms:
        images, targets = batch.images, batch.labels
        smoothing = self.config.classifier.label_smoothing
        if self._mixup is not None:
            images, targets = self._mixup(images, targets)
            smoothing = 0.0  # already in the mixed targets
        with autocast(self.config, self.world.device):
            logits = self.calls["classifier"](images)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        (loss * micro.weight).backward()
        terms = {"loss": loss.detach()}
        if self._mixup is None:
            terms["top1"] = (logits.argmax(1) == targets).float().mean()
        return terms

    def validate(self) -> dict[str, float]:
        scores = score(self.model, self.config, self._val, self.world)
        return {"loss": scores.loss, "top1": scores.top(1), "top5": scores.top(5)}

    def train(self, mode: bool) -> None:
        self.model.train(mode)


class _OnFeatures(nn.Module):
    """A classifier that is called with features (N, D) instead of images."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Tensor:
        return self.model.classify(features)


@torch.no_grad()
def score(
    model: Classifier,
    config: Config,
    source: Source,
    world: World,
    answers: Tensor | None = None,
) -> ClassifierScores:
    """Predictions of a model in evaluation mode over a source, gathered over the processes.

    answers: zeros (n,) int64 for the n images of the source, to which the first answer of each is
    added.
    """
    scores = ClassifierScores(model.head.linear.out_features, world.device)
    call = model.classify if isinstance(source, FeatureSource) else model
    for _, _, batch in together(source.batches(), world):
        with autocast(config, world.device):
            logits = call(batch.images)
        predicted = scores.add(logits.float(), batch.labels)
        if answers is not None:
            answers[batch.ids] += predicted
    if answers is not None:
        world.sum(answers)  # an image is one process's alone
    return scores.gathered(world)


@outage()
def finetune(
    config: Config,
    parent: Parent,
    data: str,
    to: str,
    resume: str = "auto",
    features: Features = "pretrained",
) -> RunResult:
    """Fine-tune the whole network from ``parent``'s encoder on the dataset of manifest ``data``.

    parent: a pretraining run, or a file of weights. Where ``data.image_size`` is not its own, the
    position embeddings are interpolated. features: ``untrained`` is the control, training from
    scratch: the network as it was before pretraining, namely a run's own initial weights, from its
    seed; of a file, an encoder of its sizes drawn from this run's seed. Writes
    ``<to>/<name>_finetune/``. Of images only some of which are labelled, those count. Raises
    UserError for bad input (no labels, a run without a checkpoint, a class count that is not the
    dataset's, sizes that do not fit the weights, pixels to be fine-tuned).
    """
    if features == "pixels":
        raise UserError("pixels have no encoder to fine-tune; give them to a probe")
    return _train(config, parent, data, to, resume, features)


@outage()
def probe(
    config: Config,
    parent: Parent,
    data: str,
    to: str,
    resume: str = "auto",
    features: Features = "pretrained",
) -> RunResult:
    """Train a linear head on ``parent``'s frozen encoder; see :func:`finetune`.

    features: or on those of a control, ``untrained`` or the ``pixels`` of the image, normalised, in
    which case the probe is a logistic regression and nothing of ``parent`` is used but its
    settings.
    """
    return _train(config, parent, data, to, resume, features)


def _train(
    config: Config, parent: Parent, data: str, to: str, resume: str, features: Features
) -> RunResult:
    with distributed(config) as world:
        name = config.name_on(features)
        run, dataset = world.first(lambda: begun(to, name, open_one(data, config.stage)))
        identity = identity_of(config, dataset, parent, features)
        config = identity.config

        def learner(fresh: bool) -> ClassifyLearner:
            if world.main:
                _tell_of_labels(dataset)
            model = _model(config, parent, dataset, features, world)
            val = eval_loader(config, dataset, "val", world)
            return ClassifyLearner(config, model, world, val)

        return carry_out(identity, dataset, to, run, resume, world, learner)


def _tell_of_labels(dataset: Dataset) -> None:
    images, labelled = len(dataset.split("train")), dataset.labelled_images
    if labelled < images:
        note(f"{dataset.uri}: {labelled:,} of {images:,} training images have a label; these count")


def _model(
    config: Config, parent: Parent, dataset: Dataset, features: Features, world: World
) -> Classifier:
    torch.manual_seed(config.seed)
    model = Classifier(config, len(dataset.classes), features)
    if features == "pixels":
        return model
    file = parent if isinstance(parent, WeightsFile) else None
    weights: Tensors
    if features == "untrained":
        weights = before_pretraining(parent.config, config.seed if file else parent.config.seed)
    else:
        weights = file.encoder if file else network_weights(parent.uri, "generator")
    what = f"encoder of {'file' if file else 'run'} {parent.uri}"
    own, other = config.data.image_size, parent.config.data.image_size
    if own != other and world.main:
        note(f"{what}: position embeddings interpolated from {other} to {own} px images")
    model.load_encoder(weights, config.classifier.pool, what)
    return model


def before_pretraining(config: Config, seed: int) -> Tensors:
    """What a pretraining started from: the generator's weights drawn from the seed."""
    torch.manual_seed(seed)
    weights: Tensors = build_model(config).state_dict()
    return weights


def trained_classifier(run: Run) -> Classifier:
    """The classifier of a complete or running probe or fine-tuning, in evaluation mode."""
    classes = cast("int", run.config.classifier.classes)
    model = Classifier(run.config, classes, run.record.built_on)
    model.load_state_dict(network_weights(run.uri, "classifier"))
    return model.eval()
