"""What a probe or fine-tuning builds upon: a pretraining run, or a file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from percmae.config import Config


class Parent(Protocol):
    """What the identity of a run takes from its parent, and the sizes of its network."""

    @property
    def uri(self) -> str:
        """Where it lies."""

    @property
    def key(self) -> str:
        """What it is: another key is another parent."""

    @property
    def config(self) -> Config:
        """A pretraining of its network."""


@dataclass(frozen=True)
class WeightsFile:
    """A pretrained encoder that no run of this project is known to have made.

    uri: of the file; sha256: hex, of its content; config: a pretraining of the encoder's sizes,
    with any number of heads; base: what is taken over from it, as nested settings, heads among them
    where they are known; encoder: its tensors, by our names.
    """

    uri: str
    sha256: str
    config: Config
    base: Mapping[str, Any]
    encoder: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The digest of the file, wherever it lies."""
        return f"sha256:{self.sha256}"
