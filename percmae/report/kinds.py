"""What a report calls the kinds of runs, in which order and colour they stand."""

from __future__ import annotations

from collections.abc import Iterable

from percmae.config.naming import Kind

KNN = {
    "knn_untrained": "k-NN, untrained encoder",
    "knn": "k-NN, pretrained encoder",
}
"""Rows that no run of their own is behind, but the evaluation of the pretraining."""

_STAGES = ("pretrain", "probe", "finetune")
_FEATURES = ("pixels", "untrained", "pretrained")
_LABELS = {
    ("probe", "pixels"): "Raw pixels, linear classifier",
    ("probe", "untrained"): "Linear probe, untrained encoder",
    ("probe", "pretrained"): "Linear probe, pretrained encoder",
    ("finetune", "untrained"): "From scratch, same budget",
    ("finetune", "pretrained"): "Fine-tuned, pretrained encoder",
}
_NAMES = {
    ("pretrain", "pretrained"): "Pretraining",
    ("probe", "pixels"): "Linear probe, pixels",
    ("probe", "untrained"): "Linear probe, untrained encoder",
    ("probe", "pretrained"): "Linear probe",
    ("finetune", "untrained"): "Fine-tuning, from scratch",
    ("finetune", "pretrained"): "Fine-tuning",
}
_COLOURS = {
    ("probe", "pixels"): "orange",
    ("probe", "untrained"): "grey",
    ("probe", "pretrained"): "blue",
    ("finetune", "untrained"): "orange",
    ("finetune", "pretrained"): "green",
}


def ordered(kinds: Iterable[Kind]) -> list[Kind]:
    """Floors first, then what is to be above them; fine-tuning by the share of the labels."""
    return sorted(
        set(kinds), key=lambda k: (_STAGES.index(k.stage), k.label_fraction, _place(k.features))
    )


def _place(features: str) -> int:
    return _FEATURES.index(features)


def label(kind: Kind) -> str:
    """A classifier, as a row of the table."""
    text = _LABELS[kind.stage, kind.features]
    if kind.label_fraction < 1:
        text = f"{text.partition(',')[0]}, {share(kind.label_fraction)}"
    return text


def name(kind: Kind) -> str:
    """A run, as a heading."""
    text = _NAMES[kind.stage, kind.features]
    return text if kind.label_fraction == 1 else f"{text}, {share(kind.label_fraction)}"


def colour(kind: Kind) -> str:
    """Of the style sheet: a class, and mostly the name of an ink too."""
    return _COLOURS[kind.stage, kind.features]


def share(fraction: float) -> str:
    """A share of the labels in words."""
    return "all labels" if fraction == 1 else f"{100 * fraction:g} % of the labels"
