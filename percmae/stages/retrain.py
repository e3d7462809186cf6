"""The steps that the retrain pipeline has beside those of the train pipeline.

``look`` brings the dataset up to date with its source and says whether there is anything to learn
from; ``judge`` makes a version of what was trained and holds it against the champion.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from percmae.data.split_digest import split_digest
from percmae.errors import ConfigError, DataError, UserError
from percmae.progress import note
from percmae.registry.model import (
    CHALLENGER,
    CHAMPION,
    LATEST,
    MODEL,
    Model,
    Reference,
    Version,
    check_name,
    read_model,
)
from percmae.registry.rule import rule_of
from percmae.stages import launch
from percmae.stages.challenge import Judged, challenge, decided
from percmae.stages.check import check_placement, check_training
from percmae.stages.notify import notify
from percmae.stages.placement import LOCAL, Placement
from percmae.stages.rounds import begin, check_schedule, end
from percmae.stages.steps import (
    Artifact,
    Metrics,
    as_step,
    check_torch,
    dataset_folder,
    evaluated,
    hand_on,
    log_figures,
)
from percmae.storage import StorePath

if TYPE_CHECKING:
    from percmae.data.shards import Dataset

STARTS = ("champion", "afresh")
"""Where a pretraining begins: from the weights of the pretraining that the champion builds upon, or
from weights drawn from its seed."""
NOTHING_NEW = "nothing_new"
"""In the metadata of a dataset: in words, since when there is nothing new in it."""
_MARK = 8


class Look(NamedTuple):
    """new: whether to train; tag: of the runs of this round; overrides: of its pretraining too."""

    new: bool
    tag: str
    overrides: list[str]


def model_of(store: str, name: str) -> Reference:
    """The model of that name in a store."""
    return Reference(StorePath(store) / "models", name, None)


def check_retrain(
    model: str,
    start: str,
    rule: Sequence[str],
    variant: str,
    tag: str,
    recipe: str,
    size: str,
    seed: int,
    overrides: Sequence[str],
    schedule: str,
) -> None:
    """Raises UserError for what some later step would refuse."""
    check_name(model, f"model {model!r}")
    if start not in STARTS:
        raise ConfigError(f"start={start}: one of {', '.join(STARTS)}")
    rule_of(rule)
    longest = _tag(tag, "0" * _MARK, 10**4)
    check_training(variant, longest, recipe, size, [seed], overrides)
    check_schedule(schedule)


@as_step
def look(
    images: str,
    labels: str,
    store: str,
    name: str,
    model: str,
    start: str,
    rule: Sequence[str],
    variant: str,
    recipe: str,
    size: str,
    tag: str,
    seed: int,
    overrides: Sequence[str],
    schedule: str,
    placement: Placement,
    dataset: Artifact,
) -> Look:
    """Bring the dataset ``<store>/datasets/<name>`` up to date, and see if there is anything new.

    New are training images that the newest version has not been trained on, or that it has and was
    not judged yet. Each round has a tag of its own, made of its training images and of what its
    pretraining starts from, so that a round that was interrupted goes on.
    """
    from percmae.ingest import ingest

    check_placement(placement, store)
    check_retrain(model, start, rule, variant, tag, recipe, size, seed, overrides, schedule)
    reference = model_of(store, model)
    begin(reference.path, placement.pipeline_run, schedule)
    result = ingest(images=images, labels=labels, to=dataset_folder(store, name))
    hand_on(result, name, dataset)
    found = result.dataset
    if not found.labelled_images:
        raise UserError(f"{images}: no training image has a label, which a classifier learns from")
    there = read_model(reference.path) if (reference.path / MODEL).exists() else None
    since = _learned(found, there, reference)
    if since is not None:
        said = f"nothing new in {images} since version {since.version} of {model} was trained"
        note(said)
        dataset.metadata[NOTHING_NEW] = said
        end(reference.path, placement.pipeline_run)
        return Look(False, tag, list(overrides))
    mark = split_digest(found, "train").removeprefix("sha256:")[:_MARK]
    champion = _champion(there) if start == "champion" else None
    if champion is None:
        return Look(True, _tag(tag, mark, None), list(overrides))
    note(f"the pretraining goes on from {champion.parent}, which champion {champion.version} is of")
    begun = f"pretrain.model.init_from={champion.parent}"
    return Look(True, _tag(tag, mark, champion.version), [*overrides, begun])


def _tag(tag: str, mark: str, champion: int | None) -> str:
    parts = [tag, mark, "" if champion is None else f"from{champion}"]
    return "-".join(part for part in parts if part)


def _champion(model: Model | None) -> Version | None:
    if model is None or CHAMPION not in model.aliases:
        return None
    version = model.named(CHAMPION)
    if version.parent is None:
        raise UserError(
            f"champion {version.version} of {model.name} builds upon no pretraining to go on from; "
            "give start=afresh"
        )
    return version


def _learned(dataset: Dataset, model: Model | None, reference: Reference) -> Version | None:
    """The newest version if it was trained on just these images, and judged."""
    from percmae.data.shards import Dataset

    if model is None or LATEST not in model.aliases:
        return None
    version = model.named(LATEST)
    try:
        before = Dataset.read(version.data.uri)
    except DataError:  # of a dataset that is gone nothing is known
        return None
    if split_digest(before, "train") != split_digest(dataset, "train"):
        return None
    return version if decided(reference.path, version.version) else None


@as_step
def judge(
    model: Artifact,
    store: str,
    name: str,
    rule: Sequence[str],
    page: Artifact,
    metrics: Metrics,
    placement: Placement,
) -> None:
    """Make a version, the challenger, of an evaluated run, judge it and carry out the decision.

    The webhook, if there is one, is told (percmae.stages.notify).
    """
    reference = model_of(store, name)
    version = _registered(model.metadata["uri"], reference, placement)
    challenger = reference._replace(which=str(version.version))
    _name_challenger(challenger)
    is_champion = read_model(reference.path).aliases.get(CHAMPION) == version.version
    # A step whose pod is made anew may have been done.
    judged = decided(reference.path, version.version) if is_champion else None
    if judged is None:
        judged = challenge(challenger, rule, partial(_evaluate, placement), carry_out=True)
    decision = judged.decision
    Path(page.path).write_text(judged.html.read_text(), encoding="utf-8")
    promoted = decision.outcome == "promote"
    note(decision.why)
    page.metadata.update(why=decision.why, promoted=promoted, uri=judged.html.uri)
    before = decision.champion.share if decision.champion else None
    log_figures(metrics, {"promoted": float(promoted), "gain": decision.gain})
    log_figures(metrics, {"champion": before, "challenger": decision.challenger.share})
    end(reference.path, placement.pipeline_run)
    _tell(judged)


def _registered(run: str, reference: Reference, placement: Placement) -> Version:
    if placement.launcher != LOCAL:
        return launch.register(run, reference, placement)
    check_torch()
    from percmae.registry.package import register

    return register(run, reference)


def _evaluate(placement: Placement, run: str, data: str) -> None:
    evaluated(run, data, placement)


def _name_challenger(challenger: Reference) -> None:
    from percmae.registry.moves import promote

    current = read_model(challenger.path).aliases.get(CHALLENGER)
    promote(challenger, CHALLENGER, instead_of=current)


def _tell(judged: Judged) -> None:
    decision = judged.decision
    facts = decision.model_dump(
        mode="json", include={"model", "outcome", "why", "gain", "champion", "challenger"}
    )
    text = f"{StorePath(decision.model).name}: {decision.why}"
    notify(text, {**facts, "page": judged.html.uri})
