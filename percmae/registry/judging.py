"""Champion and challenger held against each other on the same test images, and what is decided."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from percmae.data.shards import Dataset
from percmae.data.split_digest import split_digest
from percmae.errors import DataError, UserError
from percmae.progress import note
from percmae.registry.model import (
    CHAMPION,
    Model,
    Reference,
    Version,
    now,
    read_file,
    read_model,
)
from percmae.registry.rule import TOLD, Pairs, Rule, Verdict, judged, paired, points
from percmae.runs.files import DatasetIdentity, Figure, Part
from percmae.runs.predictions import PREDICTIONS, Predictions, parse_predictions, read_predictions
from percmae.runs.record import Run

SHOWN = 24
"""At most so many of the images on which the two differ are named."""

Evaluate = Callable[[str, str], object]
"""Evaluates the run of an address on the dataset of a manifest, as ``percmae evaluate`` does."""


class Contender(Part):
    """One of the two: its version and run, and its share by the rule's metric."""

    version: int
    run: str
    share: Figure


class WorstClass(Part):
    """The class whose share of right answers has fallen most (risen least)."""

    wnid: str
    name: str
    samples: int
    champion: float
    challenger: float


class Difference(Part):
    """An image that the two take for different classes: what it is, what each says (names)."""

    key: str
    label: str
    champion: str
    challenger: str


class Decision(Part):
    """What came of a challenge (``<model>/decisions/<challenger>-against-<champion>.json``).

    champion: None where there was none; data: the dataset with the test images; images: of these,
    differing: on which the two differ, shown: some of them, where one alone is right first; won,
    lost: on which the challenger, or the champion, alone is right; for the others see
    percmae.registry.rule.Verdict. All of them are None where nothing was to be compared.
    """

    format: Literal["percmae-decision/1"] = "percmae-decision/1"
    when: str
    model: str
    alias: str
    champion: Contender | None
    challenger: Contender
    rule: dict[str, Any]
    outcome: Literal["promote", "keep"]
    why: str
    data: DatasetIdentity
    test: str | None = None
    images: int | None = None
    differing: int | None = None
    won: int | None = None
    lost: int | None = None
    gain: Figure = None
    p_value: Figure = None
    low: Figure = None
    worst: WorstClass | None = None
    shown: list[Difference] = Field(default_factory=list)

    @property
    def name(self) -> str:
        """Of its files."""
        before = "none" if self.champion is None else str(self.champion.version)
        return f"{self.challenger.version}-against-{before}"


class _Asked(NamedTuple):
    """A challenge: the model and its two versions."""

    reference: Reference
    alias: str
    champion: Version | None
    challenger: Version
    rule: Rule


def decide(
    reference: Reference, rule: Rule, evaluate: Evaluate, alias: str = CHAMPION
) -> tuple[Decision, Dataset]:
    """Hold the version of ``reference`` against the one that ``alias`` names; nothing is moved.

    Both are compared on the challenger's test images. A champion that was judged on others is
    evaluated on these by ``evaluate``. Returns the decision, and the dataset with the test images.

    Raises UserError where no version is said, for versions that classify nothing, and where there
    are no common test images; DataError for files that are damaged or gone.
    """
    if reference.which is None:
        raise UserError(f"model {reference}: say which version, as in {reference}@challenger")
    model = read_model(reference.path)
    challenger = model.named(reference.which)
    asked = _Asked(reference, alias, _champion(model, alias), challenger, rule)
    for version in (asked.champion, challenger):
        if version is not None and version.stage == "pretrain":
            raise UserError(
                f"model {reference.path}: version {version.version} is a pretraining, which has no "
                "answers to compare; versions of probes or fine-tunings have"
            )
    dataset = _dataset(challenger.evaluated_on)
    if asked.champion is None:
        return _uncontested(asked, "there is no champion to hold it against", "promote"), dataset
    if asked.champion.version == challenger.version:
        return _uncontested(asked, f"it is {alias} already", "keep"), dataset
    theirs = _answers(asked, challenger, dataset, evaluate)
    ours = _answers(asked, asked.champion, dataset, evaluate)
    return _contested(asked, paired(ours, theirs), ours, theirs), dataset


def _champion(model: Model, alias: str) -> Version | None:
    return model.named(alias) if alias in model.aliases else None


def _dataset(identity: DatasetIdentity) -> Dataset:
    """The dataset as it was evaluated on, though it may have grown."""
    dataset = Dataset.open(identity.uri)
    if dataset.digest == identity.digest:
        return dataset
    earlier = dataset.as_it_was(identity.digest)
    if earlier is None:
        raise DataError(
            f"{identity.uri} is not the dataset that the challenger was evaluated on (digest "
            f"{identity.digest}); evaluate its run on the dataset of now, and add it again"
        )
    return earlier


def _answers(asked: _Asked, version: Version, dataset: Dataset, evaluate: Evaluate) -> Predictions:
    """A version's answers for the test images: its own, or, of other images, made anew."""
    path, test = asked.reference.path, split_digest(dataset, "test")
    if PREDICTIONS in version.files:
        where = f"{path / version.folder}/{PREDICTIONS}"
        found = parse_predictions(read_file(path, version, PREDICTIONS), where)
        if found.test == test:
            return found
    note(f"version {version.version} has no answers for these test images: its run is evaluated")
    run = Run.open(version.run)
    if run.key != version.key:
        raise DataError(
            f"run {version.run} is not what version {version.version} was made of any more, so it "
            "cannot be evaluated on these test images"
        )
    evaluate(version.run, dataset.uri)
    return read_predictions(run.path, run.key)


def _decision(asked: _Asked, why: str, outcome: str, **more: Any) -> Decision:
    rule = dataclasses.asdict(asked.rule)
    return Decision.model_validate(
        {
            "when": now(),
            "model": asked.reference.path.uri,
            "alias": asked.alias,
            "rule": rule,
            "outcome": outcome,
            "why": why,
            "data": asked.challenger.evaluated_on,
            **more,
        }
    )


def _uncontested(asked: _Asked, why: str, outcome: str) -> Decision:
    number = asked.challenger.version
    said = f"version {number} {'becomes' if outcome == 'promote' else 'stays'} {asked.alias}: {why}"
    sides = {
        side: Contender(version=version.version, run=version.run, share=None) if version else None
        for side, version in (("champion", asked.champion), ("challenger", asked.challenger))
    }
    return _decision(asked, said, outcome, **sides)


def _contested(asked: _Asked, pairs: Pairs, ours: Predictions, theirs: Predictions) -> Decision:
    assert asked.champion is not None, "it is contested"
    found = judged(pairs, asked.rule)
    worst = found.worst
    return _decision(
        asked,
        _sentence(asked, found, len(pairs.labels)),
        "keep" if found.reasons else "promote",
        champion=Contender(
            version=asked.champion.version, run=asked.champion.run, share=found.champion
        ),
        challenger=Contender(
            version=asked.challenger.version, run=asked.challenger.run, share=found.challenger
        ),
        test=theirs.test,
        images=len(pairs.labels),
        differing=int(pairs.differ.sum()),
        won=found.challenger_only,
        lost=found.champion_only,
        gain=found.gain,
        p_value=found.p_value,
        low=found.low,
        worst=WorstClass(
            **worst.of.model_dump(),
            samples=worst.samples,
            champion=worst.champion,
            challenger=worst.challenger,
        ),
        shown=list(_differences(pairs, ours, theirs)),
    )


def _sentence(asked: _Asked, found: Verdict, images: int) -> str:
    assert asked.champion is not None, "it is contested"
    before, after = asked.champion.version, asked.challenger.version
    what = TOLD[asked.rule.metric]
    figures = (
        f"{what} {found.challenger:.1%} against {found.champion:.1%} on the same {images:,} images"
    )
    if found.reasons:
        return (
            f"version {before} stays {asked.alias}, version {after} does not take its place "
            f"({figures}): {'; and '.join(found.reasons)}"
        )
    chance = (
        f"p = {found.p_value:.2g} by McNemar's exact test"
        if found.p_value is not None
        else f"at least {points(found.low or 0.0)} by the bootstrap"
    )
    return (
        f"version {after} becomes {asked.alias} in place of version {before}: {figures}, "
        f"{points(found.gain)} more, right alone on {found.challenger_only:,} and wrong alone on "
        f"{found.champion_only:,} ({chance})"
    )


def _differences(pairs: Pairs, ours: Predictions, theirs: Predictions) -> Iterator[Difference]:
    """Images on which the two differ, in turn: lost ones, won ones, then those wrong in both."""
    kinds = (
        np.flatnonzero(pairs.champion & ~pairs.challenger),
        np.flatnonzero(pairs.challenger & ~pairs.champion),
        np.flatnonzero(pairs.differ & ~pairs.champion & ~pairs.challenger),
    )
    half = SHOWN // 2
    lost = kinds[0][: max(half, SHOWN - len(kinds[1]))]
    won = kinds[1][: SHOWN - len(lost)]
    for place in [*lost, *won, *kinds[2][: SHOWN - len(lost) - len(won)]]:
        yield Difference(
            key=theirs.keys[place],
            label=theirs.classes[theirs.labels[place]].name,
            champion=ours.classes[ours.predicted[place]].name,
            challenger=theirs.classes[theirs.predicted[place]].name,
        )
