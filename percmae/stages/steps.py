"""The steps of the pipeline: each verb, with its inputs and outputs as a pipeline hands them over.

A component (``components/<step>/component.py``) is the outside of one function here. What a step
hands on is an artifact: a small JSON file that says where in the store a dataset or run lies, never
the thing itself, because a pipeline downloads an input artifact whole before a step begins. The
same facts are the artifact's metadata, which the UI shows and the next step reads.

No step relies on a pipeline's cache, which knows only the image's name and the inputs' addresses.
Each looks in the store: ingest for a dataset made from the same archives, training for a run of
the same config, data and parent, evaluation for figures of the same weights and data.

An error ends a step with one line on stderr and the exit code of the command line.

More than 400 lines: every step, in the order in which a pipeline takes them.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from percmae.command import exit_code
from percmae.config import Config
from percmae.config.naming import Features, Kind, known
from percmae.errors import UserError
from percmae.stages import launch
from percmae.stages.check import check_placement, check_training, pretrain_config
from percmae.stages.confusion import shown_confusion
from percmae.stages.few_labels import settings_for
from percmae.stages.placement import LOCAL, Placement
from percmae.stages.scope import job_namespaces, overrides_for
from percmae.stages.without_labels import Artifact, is_skipped, lacks_labels, skip, skip_run
from percmae.storage import StorePath
from percmae.storage.outage import outage

if TYPE_CHECKING:
    from percmae.ingest import IngestResult
    from percmae.runs.evaluation import EvaluationResult
    from percmae.runs.record import Run, RunResult

P = ParamSpec("P")
R = TypeVar("R")

FINE_TUNED: tuple[Features, ...] = ("pretrained", "untrained")
"""What is fine-tuned on each share of the labels."""


class Metrics(Artifact, Protocol):
    """A KFP metrics artifact."""

    def log_metric(self, metric: str, value: float) -> None: ...


class Confusion(Artifact, Protocol):
    """A KFP classification metrics artifact."""

    def log_confusion_matrix(self, categories: list[str], matrix: list[list[int]]) -> None: ...


def dataset_folder(store: str, name: str) -> str:
    """Where a dataset lies."""
    return (StorePath(store) / "datasets" / name).uri


def dataset_name(images: str) -> str:
    """What the dataset of a source of images is called: the source's last part, and a mark of its
    whole address."""
    place = StorePath(images)
    mark = hashlib.sha256(place.uri.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', place.name).strip('-') or 'images'}-{mark}"


def runs_folder(store: str, seed: int) -> str:
    """Where the runs of one seed lie: runs of all seeds have the same names."""
    return (StorePath(store) / "runs" / f"seed-{seed}").uri


def report_folder(store: str, name: str) -> str:
    """Where the report of the runs called ``name`` lies."""
    return (StorePath(store) / "reports" / name).uri


def as_step(work: Callable[P, R]) -> Callable[P, R]:
    """End the process of a step as the command line would: one line, and an exit code."""

    @functools.wraps(work)
    def step(*args: P.args, **kwargs: P.kwargs) -> R:
        results: list[R] = []
        code = exit_code(lambda: results.append(outage()(work)(*args, **kwargs)), logged=True)
        if code:
            raise SystemExit(code)
        return results[0]

    return step


@as_step
def check(
    variant: str,
    recipe: str,
    size: str,
    tag: str,
    seeds: Sequence[int],
    overrides: Sequence[str],
    store: str,
    placement: Placement,
    label_fractions: Sequence[float] = (1.0,),
) -> None:
    """Refuse, before anything is read, parameters that some later step would refuse."""
    from percmae.progress import note

    check_placement(placement, store)
    name = check_training(variant, tag, recipe, size, seeds, overrides, label_fractions)
    note(f"{name}: the parameters fit")


@as_step
def ingest(
    images: str,
    labels: str,
    archives: Sequence[str],
    store: str,
    name: str,
    dataset: Artifact,
) -> None:
    """Images to the dataset ``<store>/datasets/<name>``, which ``dataset`` then names.

    images, labels: as ``percmae ingest`` takes them; archives: train, val and devkit of ILSVRC,
    which count where ``images`` is empty.
    """
    from percmae.ingest import ingest

    to = dataset_folder(store, name)
    if images:
        result = ingest(images=images, labels=labels, to=to)
    else:
        train, val, devkit = archives
        result = ingest(train=train, val=val, devkit=devkit, to=to)
    hand_on(result, name, dataset)


def hand_on(result: IngestResult, name: str, dataset: Artifact) -> None:
    """Say in the artifact what was ingested, under which name."""
    from percmae.progress import note

    found = result.dataset
    if result.reused:
        note(f"{found.uri}: unchanged, reused")
    samples = {split: len(found.split(split)) for split in ("train", "val", "test")}
    # The copy that stays: all that comes behind is of these images, though the dataset may grow.
    facts = {"uri": found.pinned, "digest": found.digest, "classes": len(found.classes)}
    facts["labelled"] = found.labelled_images
    Path(dataset.path).write_bytes(StorePath(found.uri).read_bytes())
    dataset.metadata.update(facts, name=name, reused=result.reused, **samples)


@as_step
def pretrain(
    dataset: Artifact,
    store: str,
    seed: int,
    variant: str,
    recipe: str,
    size: str,
    tag: str,
    overrides: Sequence[str],
    model: Artifact,
    metrics: Metrics,
    placement: Placement,
) -> None:
    """One seed's pretraining, in ``<store>/runs/seed-<seed>/<tag>_<variant>``."""
    config = pretrain_config(variant, recipe, size, tag, overrides, seed)
    _train(config, dataset, runs_folder(store, seed), model, metrics, placement)


@as_step
def probe(
    pretrained: Artifact,
    dataset: Artifact,
    overrides: Sequence[str],
    model: Artifact,
    metrics: Metrics,
    placement: Placement,
    features: str = "pretrained",
) -> None:
    """A linear probe beside the pretraining run it builds upon, or one of its controls."""
    kind = Kind("probe", features=known(features))
    _downstream(kind, pretrained, dataset, overrides, model, metrics, placement)


@as_step
def finetune(
    pretrained: Artifact,
    dataset: Artifact,
    overrides: Sequence[str],
    model: Artifact,
    metrics: Metrics,
    placement: Placement,
    label_fraction: float = 1.0,
    untrained: bool = False,
) -> None:
    """A fine-tuning beside the pretraining run it builds upon, or the control: from scratch."""
    kind = Kind("finetune", label_fraction, "untrained" if untrained else "pretrained")
    _downstream(kind, pretrained, dataset, overrides, model, metrics, placement)


def _downstream(
    kind: Kind,
    pretrained: Artifact,
    dataset: Artifact,
    overrides: Sequence[str],
    model: Artifact,
    metrics: Metrics,
    placement: Placement,
) -> None:
    from percmae.runs.downstream import downstream_config
    from percmae.runs.record import Run

    if lacks_labels(dataset):
        skip_run(model, {"kind": str(kind), "seed": pretrained.metadata["seed"]})
        return
    parent = Run.open(pretrained.metadata["uri"])
    chosen, how = overrides_for(kind.stage, overrides), {"features": kind.features}
    config = downstream_config(parent, kind.stage, overrides=chosen, **how)
    if fewer := settings_for(config, kind.label_fraction):
        config = downstream_config(parent, kind.stage, overrides=[*chosen, *fewer], **how)
    to = parent.path.parent.uri
    _train(config, dataset, to, model, metrics, placement, parent, kind.features)


def _train(
    config: Config,
    dataset: Artifact,
    to: str,
    model: Artifact,
    metrics: Metrics,
    placement: Placement,
    parent: Run | None = None,
    features: Features = "pretrained",
) -> None:
    """Train, here or by a job, then say in the artifacts what came out."""
    data = dataset.metadata["uri"]
    if placement.launcher == LOCAL:
        result = _train_here(config, data, to, parent, features)
    else:
        result = launch.train(config, data, to, parent, features, placement)
    record = result.run.record
    facts = record.model_dump(mode="json", include=_RUN_FACTS, exclude_none=True)
    facts |= {"uri": result.uri, "kind": str(record.kind), "reused": result.reused}
    facts["data_digest"] = record.data.digest
    Path(model.path).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    model.metadata.update(facts)
    log_figures(metrics, result.metrics)


_RUN_FACTS = {
    "name",
    "stage",
    "variant",
    "seed",
    "baseline",
    "key",
    "config_digest",
    "parent",
    "step",
    "seconds",
}


def _train_here(
    config: Config, data: str, to: str, parent: Run | None, features: Features
) -> RunResult:
    """Carry out one training in this process; ``percmae.stages.launch.train`` has a job do it."""
    check_torch()
    if parent is None:
        from percmae.engine.pretrain import pretrain

        return pretrain(config, data, to, "auto")
    from percmae.engine.finetune import finetune, probe

    work = probe if config.stage == "probe" else finetune
    return work(config, parent, data, to, "auto", features)


def check_torch() -> None:
    """The image of a pipeline's steps has none: they launch what trains."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "launcher local: there is no torch here to train with; give the pipeline a launcher "
            "(pytorchjob, trainjob or job), or an image for its steps that has torch"
        )


@as_step
def evaluate(
    model: Artifact, dataset: Artifact, metrics: Metrics, confusion: Confusion, placement: Placement
) -> None:
    """A classifier's figures on the test set, also as ``<run>/evaluation.json``."""
    from percmae.runs.evaluation import ClassifierEvaluation, figures

    if is_skipped(model):
        skip(confusion)
        return
    result = evaluated(model.metadata["uri"], dataset.metadata["uri"], placement)
    confusion.metadata["reused"] = result.reused
    evaluation = result.evaluation
    if not isinstance(evaluation, ClassifierEvaluation):
        raise UserError(
            f"{model.metadata['uri']} is no classifier: a pretraining has no such figures"
        )
    log_figures(metrics, figures(evaluation))
    guess = evaluation.random_guess
    log_figures(metrics, {"random_guess_top1": guess.top1, "random_guess_top5": guess.top5})
    confusion.log_confusion_matrix(*shown_confusion(evaluation))


@as_step
def reconstruct(
    model: Artifact, dataset: Artifact, metrics: Metrics, page: Artifact, placement: Placement
) -> None:
    """How well a pretraining run reconstructs images of the test set, and pictures of it.

    The figures also as ``<run>/evaluation.json``.
    """
    from percmae.report.page import render_reconstructions
    from percmae.report.read import read_neighbours, read_picture
    from percmae.runs.evaluation import ReconstructionEvaluation, figures

    result = evaluated(model.metadata["uri"], dataset.metadata["uri"], placement)
    page.metadata["reused"] = result.reused
    evaluation, run = result.evaluation, StorePath(model.metadata["uri"])
    if not isinstance(evaluation, ReconstructionEvaluation):
        raise UserError(f"{run}: only a pretraining reconstructs images")
    log_figures(metrics, figures(evaluation))
    grid = read_picture(run)
    if grid is None:
        raise UserError(f"{run}: its evaluation has left no picture; evaluate it again")
    shown = render_reconstructions(evaluation, grid, read_neighbours(run))
    Path(page.path).write_text(shown, encoding="utf-8")


def evaluated(run: str, data: str, placement: Placement) -> EvaluationResult:
    """A run's figures on the test set, made here or by a job."""
    if placement.launcher != LOCAL:
        return launch.evaluate(run, data, placement)
    check_torch()
    from percmae.engine.evaluate import evaluate

    return evaluate(run, data)


@as_step
def report(
    pretrained: Sequence[Artifact],
    probes: Sequence[Artifact],
    fine_tuned: bool,
    label_fractions: Sequence[float],
    store: str,
    page: Artifact,
    metrics: Metrics,
) -> None:
    """The report of all seeds, in ``<store>/reports/<name>`` and as ``page``.

    probes: with their controls, or what stands for them without labels; fine_tuned: whether each
    pretraining run has fine-tuned ones beside it, and ones from scratch, found by their names. (A
    pipeline cannot collect the outputs of a step that may not have run, nor of a loop in a loop.)
    """
    from percmae.report import PAGE, report

    made = [probe for probe in probes if not is_skipped(probe)]
    runs = [artifact.metadata["uri"] for artifact in (*pretrained, *made)]
    if fine_tuned and len(made) == len(probes):
        runs += [
            f"{artifact.metadata['uri']}_{Kind('finetune', fraction, features)}"
            for artifact in pretrained
            for fraction in label_fractions
            for features in FINE_TUNED
        ]
    folder = StorePath(report_folder(store, pretrained[0].metadata["name"]))
    found = report(runs, folder.uri)
    (folder / PAGE).read_file(page.path)
    for row in found["table"]:
        log_figures(metrics, {f"{row['row']}_top1": row["top1"]["mean"]})


@as_step
def clean(pipeline_run: str, launcher: str, job: Sequence[str]) -> None:
    """Remove the jobs that a pipeline's run has left under way: they were cancelled, or lost.

    job: of these job settings the namespaces count, which are looked at beside this process's own.
    """
    from percmae.jobs.launcher import clean
    from percmae.progress import note

    if launcher == LOCAL:
        return
    for namespace in (None, *job_namespaces(job)):
        for name in clean(pipeline_run, namespace):
            note(f"{name} was still under way: removed")


def log_figures(metrics: Metrics, values: Mapping[str, float | None]) -> None:
    """Figures for the UI, which takes finite numbers only."""
    for name, value in values.items():
        if value is not None and math.isfinite(value):
            metrics.log_metric(name, float(value))
