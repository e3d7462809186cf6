"""Steps that need labels, in a pipeline whose images have none: they end well, and say so.

A pipeline is compiled before it is known what is ingested, so such a step is there all the same. It
leaves an artifact that says that it was skipped, which the steps behind it know by ``SKIPPED``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from percmae.progress import note

SKIPPED = "skipped"
_WHY = "no labels"


class Artifact(Protocol):
    """What is used of a KFP artifact."""

    path: str
    metadata: dict[str, Any]


def is_skipped(artifact: Artifact) -> bool:
    """Whether the step that made it, or one before, had no labels to work with."""
    return SKIPPED in artifact.metadata


def lacks_labels(dataset: Artifact) -> bool:
    """Whether a dataset is known to have none; an ingest of before did not say."""
    return dataset.metadata.get("labelled", 1) == 0


def skip(made: Artifact) -> None:
    """End a step without its work: ``made`` is what it would have made, or tells of it."""
    note(f"{SKIPPED}: {_WHY}")
    made.metadata[SKIPPED] = _WHY


def skip_run(model: Artifact, facts: Mapping[str, Any]) -> None:
    """The same where there would have been a run, of which so much is known."""
    model.metadata.update(facts)
    skip(model)
    written = json.dumps(model.metadata, indent=2) + "\n"
    Path(model.path).write_text(written, encoding="utf-8")
