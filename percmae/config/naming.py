"""Names of runs: everything that tells the runs of one pretraining apart, made in this one place.

``<base>`` is a pretraining; ``<base>_<kind>`` what builds upon it, where a kind is the stage and,
behind it, the share of the labels that it learns from and what it starts from where these are not
the usual ones: ``probe``, ``probe_pixels``, ``finetune_labels-1pct_untrained``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast, get_args

from percmae.errors import ConfigError

Features = Literal["pretrained", "untrained", "pixels"]
"""What a classifier builds upon: a pretrained encoder; the control, the same one as it was before;
or, for a probe alone, the image's own pixels."""

_LABELS, _PERCENT = "labels-", "pct"


class Kind(NamedTuple):
    """What a run that builds upon a pretraining is, seen from there."""

    stage: str
    label_fraction: float = 1.0
    features: Features = "pretrained"

    def __str__(self) -> str:
        """As in the run's name."""
        parts = [self.stage]
        if self.label_fraction < 1:
            parts.append(f"{_LABELS}{100 * self.label_fraction:g}{_PERCENT}")
        if self.features != "pretrained":
            parts.append(self.features)
        return "_".join(parts)


def known(features: str) -> Features:
    """Raises ConfigError for others."""
    choices = get_args(Features)
    if features not in choices:
        raise ConfigError(f"features {features!r}: should be one of {', '.join(choices)}")
    return cast("Features", features)


def options(stage: str, features: Features) -> list[str]:
    """What ``percmae <stage>`` is told to build upon these features."""
    if features == "pretrained":
        return []
    return ["--features", features] if stage == "probe" else ["--untrained"]


def key_part(features: Features) -> bool | str:
    """What the identity of a run says of them: as before there was a third choice."""
    return {"pretrained": False, "untrained": True}.get(features, features)
